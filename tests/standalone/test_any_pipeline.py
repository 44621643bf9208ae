"""Pipelines of any class are audited by their own call: what is drawn depends on the seed of each
image, its prompt or label, and nothing else."""

from __future__ import annotations

import json
import shutil
import warnings

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from afterimage import cli, seeds
from afterimage.standalone import drawing, own_call, stored_pipeline
from afterimage.standalone.own_call import CallSettings, OwnCall

from . import tiny_pipelines as tiny

PROMPTS = ("a cat", "a dog on a mat", "bird")

KNOWN_LOSS = {
    *("DiTPipeline", "StableDiffusionPipeline", "StableDiffusionPipeline 2"),
    *("StableDiffusionPAGPipeline", "StableDiffusionSAGPipeline", "LatentConsistencyModelPipeline"),
    *("StableDiffusionXLPipeline", "StableDiffusionXLPAGPipeline"),
}
"""Pipelines that `attribute` opens, besides U-Nets of pixels."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Random training and held-out images of 16 x 16 pixels, and a file of prompts."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for name in ("train", "holdout"):
        pixels = rng.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=pixels)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """A stored Stable Diffusion pipeline; read only."""
    return tiny.save(tiny.sd, tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture
def stored(sd, tmp_path):
    """A copy of it, to change."""
    return shutil.copytree(sd, tmp_path / "stored")


def run(sets, *arguments):
    given = ["audit", "--train", sets / "train.npz", "--features", "pixels", *arguments]
    return cli.main(list(map(str, given)))


def result(folder):
    return json.loads((folder / "audit.json").read_text())


def images(folder):
    """Return the drawn images, int64, (N, H, W, C)."""
    paths = sorted((folder / "drawn").glob("*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)


def opened(folder, **settings):
    stored = stored_pipeline.find(stored_pipeline.locate(str(folder)))
    asked = own_call.asks(stored.pipeline_class, "x")
    pipeline = stored_pipeline.load(stored, "float32", torch.device("cpu"))
    return OwnCall(pipeline, asked, own_call.arguments(asked, CallSettings(**settings)), "x")


# ---- every class ---------------------------------------------------------------------------------


def test_at_least_twenty_classes_are_audited_below():
    assert len({name.split()[0] for name in tiny.PIPELINES}) >= 30


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_tiny_pipeline_is_audited(sets, tmp_path, name):
    make, flags = tiny.PIPELINES[name]
    folder = tiny.save(make, tmp_path / "stored")
    asked = own_call.asks(getattr(diffusers, name.split()[0]), name)
    prompts = ["--prompts", sets / "prompts.txt"] if asked.text else ["--generate", 3]
    steps = ["--steps", 5 if name == "PNDMPipeline" else 2]
    given = [*flags, *prompts, *steps, "--batch-size", 3, "--out", tmp_path / "out"]
    assert run(sets, "--pipeline", folder, *given) == 0

    record = result(tmp_path / "out")
    assert record["counts"]["generations"] == 3
    drawn = images(tmp_path / "out")
    assert len({image.tobytes() for image in drawn}) == 3
    assert drawn.std() > 5
    if name in ("DDPMPipeline", "DDIMPipeline"):
        assert record["settings"]["network"]["pipeline_class"] == name
        return
    drawing = record["settings"]["drawing"]
    assert drawing["pipeline_class"] == name.split()[0]
    assert drawing["schedulers"]
    assert drawing["known_loss"] == (name in KNOWN_LOSS)
    if asked.generators == "one per image":
        assert drawing["batch_difference"] <= own_call.ROUNDING
        assert drawing["one_at_a_time"] == ""
    else:
        assert "one random generator" in drawing["one_at_a_time"]
    kind = {"DiTPipeline": "label", "ConsistencyModelPipeline of classes": "label"}.get(name)
    kind = "prompt" if asked.text else kind
    assert (record["conditions"] or {"kind": None})["kind"] == kind
    if kind:
        table = pd.read_csv(tmp_path / "out" / "conditions.csv")
        expected = sorted(PROMPTS) if kind == "prompt" else [0, 1, 2]
        assert sorted(table[kind]) == expected


def test_the_images_are_those_of_the_pipelines_own_call(sets, sd, tmp_path):
    given = ["--prompts", sets / "prompts.txt", "--steps", 3, "--guidance", 4, "--seed", 7]
    negative = ["--negative-prompt", "blue", "--out", tmp_path / "out"]
    assert run(sets, "--pipeline", sd, *given, *negative) == 0
    own = diffusers.DiffusionPipeline.from_pretrained(sd)
    for row, prompt in enumerate(PROMPTS):
        seed = seeds.derive(7, "sample", 0, row)
        generator = torch.Generator().manual_seed(seed)
        settings = {"num_inference_steps": 3, "guidance_scale": 4.0, "negative_prompt": "blue"}
        image = own(prompt, generator=generator, **settings).images[0]
        assert abs(images(tmp_path / "out")[row] - np.asarray(image).astype(int)).max() <= 1


def test_the_batch_size_changes_nothing_but_rounding(sets, sd, tmp_path):
    given = ["--prompts", sets / "prompts.txt", "--per-prompt", 2, "--steps", 2]
    drawn = []
    for size in (1, 4, 6):
        out = ["--batch-size", size, "--out", tmp_path / f"{size}"]
        assert run(sets, "--pipeline", sd, *given, *out) == 0
        drawn.append(images(tmp_path / f"{size}"))
    assert abs(drawn[1] - drawn[0]).max() <= own_call.ROUNDING
    assert abs(drawn[2] - drawn[0]).max() <= own_call.ROUNDING
    assert abs(drawn[0][0] - drawn[0][1]).max() > 20  # two images of one prompt


def test_noise_past_the_generators_is_drawn_for_one_image_at_a_time(sets, tmp_path, capsys):
    """DiT's call gives its scheduler no generator."""
    folder = tiny.save(tiny.dit_with_noise, tmp_path / "dit")
    drawn = []
    for size in (2, 4):
        torch.manual_seed(size)  # the program's own random state does not matter
        out = ["--generate", 4, "--steps", 2, "--batch-size", size, "--out", tmp_path / f"{size}"]
        assert run(sets, "--pipeline", folder, *out) == 0
        drawn.append(images(tmp_path / f"{size}"))
        notice = "images were drawn one at a time, whatever --batch-size: noise is drawn without"
        assert notice in capsys.readouterr().out
        assert notice in (tmp_path / f"{size}" / "audit.html").read_text()
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_a_call_that_fails_for_several_images_is_made_for_each(sets, tmp_path, capsys):
    """Kandinsky 2.2's does with negative prompts, in diffusers 0.42: it draws too much noise."""
    folder = tiny.save(tiny.kandinsky22, tmp_path / "kandinsky")
    given = ["--prompts", sets / "prompts.txt", "--steps", 2, *tiny.SIZE]
    assert run(sets, "--pipeline", folder, *given, "--out", tmp_path / "plain") == 0
    assert "one at a time" not in capsys.readouterr().out
    negative = ["--negative-prompt", "blue", "--out", tmp_path / "out"]
    assert run(sets, "--pipeline", folder, *given, *negative) == 0
    notice = "images were drawn one at a time, whatever --batch-size: its call fails for several"
    assert f"{notice}: list index out of range" in capsys.readouterr().out
    assert (images(tmp_path / "out") != images(tmp_path / "plain")).any()


def test_a_call_that_fails_in_half_precision_names_the_flag(sets, tmp_path, capsys):
    folder = tiny.save(tiny.latent, tmp_path / "latent")
    given = ["--generate", 2, "--steps", 1, "--out", tmp_path / "out"]
    assert run(sets, "--pipeline", folder, *given, "--dtype", "bfloat16") == 2
    assert "this was in bfloat16, try --dtype float32" in capsys.readouterr().err


def test_images_that_depend_on_their_batch_are_said_to(sets, tmp_path, capsys):
    """A panorama's does, in diffusers 0.42."""
    folder = tiny.save(tiny.panorama, tmp_path / "panorama")
    given = ["--prompts", sets / "prompts.txt", "--steps", 2, *tiny.SIZE, "--batch-size", 3]
    assert run(sets, "--pipeline", folder, *given, "--out", tmp_path / "out") == 0
    assert (
        "images depend on --batch-size: the first one differs by up to" in capsys.readouterr().out
    )
    difference = result(tmp_path / "out")["settings"]["drawing"]["batch_difference"]
    assert difference > own_call.ROUNDING
    assert run(sets, "--pipeline", folder, *given, "--out", tmp_path / "out") == 0
    assert f"up to {difference} of 255" in capsys.readouterr().out  # though nothing was drawn


# ---- what a call asks for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("StableDiffusionImg2ImgPipeline", "its call needs image;"),
        ("StableDiffusionInpaintPipeline", "its call needs image, mask_image;"),
        ("StableDiffusionControlNetPipeline", "its call needs image;"),
        ("StableDiffusionUpscalePipeline", "its call needs image;"),
        ("StableDiffusionXLControlNetUnionPipeline", "its call needs control_image;"),
        ("FluxFillPipeline", "its call needs image, mask_image;"),
        ("FluxControlPipeline", "its call needs control_image;"),
        ("QwenImageEditPipeline", "its call needs image;"),
        ("KandinskyV22Pipeline", "its call needs image_embeds, negative_image_embeds;"),
        ("StableCascadeDecoderPipeline", "its call needs image_embeddings;"),
        ("UnCLIPImageVariationPipeline", "its call needs image"),
        ("MarigoldDepthPipeline", "its call needs image;"),
        ("RePaintPipeline", "its call needs image, mask_image;"),
        ("StableDiffusionAttendAndExcitePipeline", "its call needs token_indices;"),
        ("WanPipeline", "draws videos or sound, not images: its call takes num_frames"),
        ("StableVideoDiffusionPipeline", "draws videos or sound, not images"),
        (
            "AudioLDM2Pipeline",
            "draws videos or sound, not images: its call takes audio_length_in_s",
        ),
        ("ShapEPipeline", "draws videos or sound, not images: its call takes frame_size"),
    ],
)
def test_a_call_that_needs_more_is_refused_by_the_name_of_its_input(kind, words):
    with pytest.raises(own_call.ArtifactError, match=f"^model: a {kind} .*") as error:
        own_call.asks(getattr(diffusers, kind), "model")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "kind",
    [
        *("Flux2Pipeline", "Flux2KleinPipeline", "FluxKontextPipeline", "OmniGenPipeline"),
        *("StableCascadeCombinedPipeline", "UniDiffuserPipeline", "KolorsPipeline"),
        *("HiDreamImagePipeline", "CogView4Pipeline", "UnCLIPPipeline", "VQDiffusionPipeline"),
    ],
)
def test_an_image_that_may_be_left_out_is_not_needed(kind):
    assert own_call.asks(getattr(diffusers, kind), "model").text


def test_every_class_is_classified_by_its_signature_alone():
    """Of the classes that diffusers lists for image-to-image or inpainting alone none is drawn
    from, and of those for text-to-image all, but those that take a control."""
    from diffusers.pipelines import auto_pipeline

    text = set(auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values())
    others = {
        *auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.values(),
        *auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING.values(),
    } - text
    moving = {"HeliosPipeline", "HeliosPyramidPipeline"}
    for kind in others:
        with pytest.raises(own_call.ArtifactError):
            own_call.asks(kind, "model")
    for kind in text:
        if "Control" in kind.__name__ or kind.__name__ in moving:
            with pytest.raises(own_call.ArtifactError):
                own_call.asks(kind, "model")
        else:
            assert own_call.asks(kind, "model").text


@pytest.mark.parametrize(
    ("kind", "flags", "words"),
    [
        ("ScoreSdeVePipeline", {"guidance": 2.0}, "--guidance = 2.0: the call of a ScoreSdeVe"),
        ("DiTPipeline", {"height": 64}, "--height = 64: the call of a DiTPipeline takes no height"),
        ("UnCLIPPipeline", {"steps": 5}, "takes no num_inference_steps; leave --steps out"),
        ("SanaSprintPipeline", {"negative_prompt": "x"}, "--negative-prompt = x: the call of a"),
        ("QwenImagePipeline", {"guidance": 3.0}, "add --negative-prompt, which may be empty"),
    ],
)
def test_a_flag_that_the_call_does_not_take_is_named(kind, flags, words):
    asked = own_call.asks(getattr(diffusers, kind), "model")
    with pytest.raises(own_call.ConfigError) as error:
        own_call.arguments(asked, CallSettings(**flags))
    assert words in str(error.value)


def test_guidance_goes_where_the_network_uses_it():
    asked = own_call.asks(diffusers.FluxPipeline, "model")
    settings = CallSettings(guidance=3.0, negative_prompt="")
    assert own_call.arguments(asked, settings)["true_cfg_scale"] == 3.0
    settings = CallSettings(guidance=3.0)
    assert own_call.arguments(asked, settings, distilled=True) == {"guidance_scale": 3.0}


@pytest.mark.parametrize(
    ("kind", "distilled", "guidance", "words"),
    [
        ("StableDiffusionPipeline", False, 1.0, "the guidance is 1.0; allowed is a --guidance abo"),
        ("FluxPipeline", False, None, "the guidance is 1.0; allowed is a --guidance above 1"),
        ("FluxPipeline", True, 3.0, "the network of this FluxPipeline takes the guidance as an in"),
    ],
)
def test_a_negative_prompt_without_effect_is_refused(kind, distilled, guidance, words):
    asked = own_call.asks(getattr(diffusers, kind), "model")
    settings = CallSettings(guidance=guidance, negative_prompt="blue")
    with pytest.raises(own_call.ConfigError) as error:
        own_call.arguments(asked, settings, distilled)
    assert f"--negative-prompt = blue: it has no effect, since {words}" in str(error.value)


def test_whether_a_network_is_distilled_is_read_from_its_config(tmp_path):
    folder = tiny.save(tiny.flux, tmp_path / "flux")
    assert not stored_pipeline.find(stored_pipeline.locate(str(folder))).is_distilled()
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"guidance_embeds": True}))
    assert stored_pipeline.find(stored_pipeline.locate(str(folder))).is_distilled()


def test_a_size_that_is_asked_for_is_not_snapped_to_another():
    asked = own_call.asks(diffusers.PixArtSigmaPipeline, "model")
    assert own_call.arguments(asked, CallSettings(height=48))["use_resolution_binning"] is False
    assert own_call.arguments(asked, CallSettings(steps=4)) == {"num_inference_steps": 4}


# ---- values that are not finite, and calls that fail ---------------------------------------------


def test_a_prediction_that_is_not_finite_stops_at_its_step(sd, monkeypatch):
    call = opened(sd, steps=4)
    network, calls = call.pipeline.unet, []
    forward = type(network).forward

    def overflowing(self, *args, **kwargs):
        calls.append(1)
        output = forward(self, *args, **kwargs)
        return tuple(part * float("inf") for part in output) if len(calls) == 3 else output

    monkeypatch.setattr(type(network), "forward", overflowing)
    with pytest.raises(own_call.ArtifactError) as error:
        call.draw([1], ["a cat"])
    words = "x: the prediction of the network at step 3 (timestep 251) is not finite"
    assert words in str(error.value)
    assert "--dtype float32 and bfloat16 have a wider range" in str(error.value)
    assert len(calls) == 3
    assert "step" not in vars(call.pipeline.scheduler)  # the scheduler is as it was


def test_a_decoder_that_overflows_is_named(sd, monkeypatch):
    call = opened(sd, steps=1)
    decode = type(call.pipeline.vae).decode
    monkeypatch.setattr(
        type(call.pipeline.vae),
        "decode",
        lambda self, *args, **kwargs: (decode(self, *args, **kwargs)[0] * float("nan"),),
    )
    with pytest.raises(own_call.ArtifactError, match="the decoder gives NaN or infinite values"):
        call.draw([1], ["a cat"])


def test_no_memory_for_a_batch_names_its_size(sd, monkeypatch):
    call = opened(sd, steps=1)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(type(call.pipeline), "__call__", full)
    with pytest.raises(own_call.ConfigError, match="--batch-size: no memory for 2 images"):
        call.draw([1, 2], ["a", "b"])


def test_a_call_that_fails_is_one_message(sets, tmp_path, capsys):
    folder = tiny.save(tiny.sana, tmp_path / "sana")
    given = ["--prompts", sets / "prompts.txt", *tiny.SIZE, "--out", tmp_path / "out"]
    assert run(sets, "--pipeline", folder, *given) == 2
    message = capsys.readouterr().err
    assert "the call of its SanaPipeline fails: `height` and `width` have to be divis" in message
    assert not list((tmp_path / "out").glob("drawn/*.png"))


def test_a_size_that_the_call_rounds_is_refused(sets, sd, tmp_path, capsys):
    given = ["--prompts", sets / "prompts.txt", "--steps", 1, "--out", tmp_path / "out"]
    assert run(sets, "--pipeline", sd, *given, "--height", 13) == 2
    assert "--height = 13: a StableDiffusionPipeline cannot draw it" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("drawn/*.png"))


def test_a_call_that_returns_no_images_is_refused_by_what_it_returns(sd, monkeypatch):
    call = opened(sd, steps=1)
    embeddings = diffusers.pipelines.kandinsky.pipeline_kandinsky_prior.KandinskyPriorPipelineOutput
    monkeypatch.setattr(type(call.pipeline), "__call__", lambda *_, **__: embeddings(1, 2))
    with pytest.raises(own_call.ArtifactError, match="returns image_embeds, negative_image_embeds"):
        call.draw([1], ["a cat"])


def test_images_of_another_size_stop_at_the_first_batch(sets, sd, tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "train.npz", images=rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8))
    given = ["--prompts", sets / "prompts.txt", "--steps", 1, "--train", tmp_path / "train.npz"]
    for flags, words in (
        ([], "draws 16x16x3, but --train has 8x8x1"),
        (["--resize", 8], "draws 8x8x3, but --train has 8x8x1"),
        (["--colour", "rgb"], "draws 16x16x3, but --train has 8x8x3"),
    ):
        assert run(sets, "--pipeline", sd, *given, *flags, "--out", tmp_path / "out") == 2
        assert f"{words}; --resize and --colour convert both" in capsys.readouterr().err
        assert not list((tmp_path / "out").glob("drawn/*"))
    flags = ["--resize", 8, "--colour", "grey", "--out", tmp_path / "out"]
    assert run(sets, "--pipeline", sd, *given, *flags) == 0
    assert "generations were resized like the training images" in capsys.readouterr().out
    assert images(tmp_path / "out").shape == (3, 16, 16, 3)  # kept as they were drawn


def test_images_that_the_safety_checker_blackens_are_counted(sd, monkeypatch):
    call = opened(sd, steps=1)
    own = type(call.pipeline).__call__

    def checked(self, **given):
        output = own(self, **given)
        output.nsfw_content_detected = [prompt == "bird" for prompt in given["prompt"]]
        return output

    monkeypatch.setattr(type(call.pipeline), "__call__", checked)
    batch = call.draw([1, 2, 3], list(PROMPTS))
    np.testing.assert_array_equal(batch.blackened, [False, False, True])


# ---- an interrupted drawing ----------------------------------------------------------------------


def test_an_interrupted_drawing_goes_on_to_the_same_bytes(sets, sd, tmp_path, monkeypatch, capsys):
    given = ["--prompts", sets / "prompts.txt", "--per-prompt", 3, "--steps", 2, "--batch-size", 2]
    assert run(sets, "--pipeline", sd, *given, "--out", tmp_path / "whole") == 0

    draw = OwnCall.draw
    calls = []

    def interrupted(self, derived, conditions):
        calls.append(len(derived))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, derived, conditions)

    monkeypatch.setattr(OwnCall, "draw", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(sets, "--pipeline", sd, *given, "--out", out)
    assert len(list((out / "drawn").glob("*.png"))) == 4
    (out / "drawn" / ".000004.png.123.partial").write_text("of a killed process")
    (out / "drawn" / "000003.png").unlink()
    capsys.readouterr()
    assert run(sets, "--pipeline", sd, *given, "--out", out) == 0
    assert calls[3:] == [2, 2, 2, 1]  # the batch with the image that is gone, and the last three
    assert "2 of 9 generations are in" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "whole" / "drawn").glob("*"))
    assert sorted(path.name for path in (out / "drawn").glob("*")) == names
    for name in names:
        assert (out / "drawn" / name).read_bytes() == (
            tmp_path / "whole" / "drawn" / name
        ).read_bytes()
    np.testing.assert_equal(
        result(out)["inputs"]["samples"], result(tmp_path / "whole")["inputs"]["samples"]
    )

    del calls[:]
    assert run(sets, "--pipeline", sd, *given, "--out", out) == 0  # all of it is there
    assert calls == []
    assert "9 of 9 generations were drawn by an earlier run" in capsys.readouterr().out


def test_a_pixel_pipeline_goes_on_too(sets, tmp_path, monkeypatch):
    from afterimage.diffusion import sample

    folder = tiny.save(tiny.ddpm, tmp_path / "ddpm")
    given = ["--generate", 5, "--steps", 2, "--batch-size", 2]
    assert run(sets, "--pipeline", folder, *given, "--out", tmp_path / "whole") == 0
    denoise, calls = sample.denoise, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return denoise(*args)

    monkeypatch.setattr(sample, "denoise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(sets, "--pipeline", folder, *given, "--out", tmp_path / "out")
    assert run(sets, "--pipeline", folder, *given, "--out", tmp_path / "out") == 0
    assert len(calls) == 4
    np.testing.assert_array_equal(images(tmp_path / "out"), images(tmp_path / "whole"))


def test_a_pixel_pipeline_draws_what_a_study_draws(sets, tmp_path):
    from afterimage import config
    from afterimage.diffusion import pipelines, sample

    folder = tiny.save(tiny.ddim, tmp_path / "ddim")
    given = ["--generate", 5, "--steps", 3, "--batch-size", 2, "--seed", 4]
    assert run(sets, "--pipeline", folder, *given, "--out", tmp_path / "out") == 0
    net = pipelines.open_pipeline(folder)
    settings = config.Sample(images=5, steps=3, sampler="ddim", batch_size=2)
    expected = sample.generate(net.net, net.scheduler_config, np.arange(5), settings, 4)
    np.testing.assert_array_equal(images(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--steps", 3], "arguments.num_inference_steps was 2, is now 3"),
        (["--seed", 1], "seed was 0, is now 1"),
        (["--guidance", 2], "arguments.guidance_scale was '(absent)', is now 2.0"),
        (["--batch-size", 2], "batch_size was 8, is now 2"),
        (["--dtype", "bfloat16"], "dtype was 'float32', is now 'bfloat16'"),
        (["--per-prompt", 2], "images_per_condition was 1, is now 2"),
        (["--negative-prompt", "x"], "arguments.negative_prompt was '(absent)', is now 'x'"),
    ],
)
def test_images_of_another_drawing_are_never_mixed_in(
    sets, drawn_once, tmp_path, capsys, changed, words
):
    """One that was interrupted is kept; one whose audit is finished is replaced."""
    sd, out, given = drawn_once
    out = shutil.copytree(out, tmp_path / "out")
    before = images(out)
    record = out / "drawn" / "drawing.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"audited": False}))
    assert run(sets, "--pipeline", sd, *given, "--out", out, *changed) == 2
    message = capsys.readouterr().err
    assert "are of another drawing, which was interrupted" in message
    assert words in message
    np.testing.assert_array_equal(images(out), before)

    record.write_text(json.dumps(json.loads(record.read_text()) | {"audited": True}))
    assert run(sets, "--pipeline", sd, *given, "--out", out, *changed) == 0
    output = capsys.readouterr().out
    assert f"the images of an earlier audit were replaced: {words}" in output
    assert run(sets, "--pipeline", sd, *given, "--out", tmp_path / "new", *changed) == 0
    np.testing.assert_array_equal(images(out), images(tmp_path / "new"))


@pytest.fixture(scope="module")
def drawn_once(sets, sd, tmp_path_factory):
    """A pipeline, the folder of an audit, and its flags; read only."""
    out = tmp_path_factory.mktemp("drawn") / "out"
    given = ["--prompts", sets / "prompts.txt", "--steps", 2]
    assert run(sets, "--pipeline", sd, *given, "--out", out) == 0
    return sd, out, given


def test_other_weights_are_another_drawing(sets, stored, tmp_path, capsys):
    given = ["--prompts", sets / "prompts.txt", "--steps", 1, "--out", tmp_path / "out"]
    assert run(sets, "--pipeline", stored, *given) == 0
    (path,) = (stored / "unet").glob("*.safetensors")
    weights = load_file(path)
    weights["conv_out.bias"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    before = images(tmp_path / "out")
    assert run(sets, "--pipeline", stored, *given) == 0
    assert "an earlier audit were replaced: weights.pipeline was" in capsys.readouterr().out
    assert (images(tmp_path / "out") != before).any()


def test_more_images_of_a_drawing_are_added(sets, sd, tmp_path):
    given = ["--prompts", sets / "prompts.txt", "--steps", 2, "--batch-size", 1]
    assert run(sets, "--pipeline", sd, *given, "--generate", 2, "--out", tmp_path / "out") == 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "drawn").glob("*.png")}
    assert run(sets, "--pipeline", sd, *given, "--generate", 3, "--out", tmp_path / "out") == 0
    assert len(images(tmp_path / "out")) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_the_drawn_folder_can_be_audited_again_by_prompt(sets, drawn_once, tmp_path):
    _, out, _ = drawn_once
    assert run(sets, "--samples", out / "drawn", "--out", tmp_path / "again") == 0
    first, again = result(out), result(tmp_path / "again")
    assert again["conditions"] == first["conditions"]
    assert again["unique_images"] == first["unique_images"]


def test_a_log_has_images_per_second_and_the_time_left(capsys, monkeypatch):
    clock = iter([0.0, 40.0, 50.0, 80.0])
    monkeypatch.setattr(drawing.time, "monotonic", lambda: next(clock))
    with drawing.Progress(100, there=20) as report:
        report.advance(20)
        report.advance(10)  # too soon for another line
        report.advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "drawn 40 of 100 generations (40 %), 0.5 images/s, 2 min 0 s left",
        "drawn 60 of 100 generations (60 %), 0.5 images/s, 1 min 20 s left",
    ]


# ---- the page ------------------------------------------------------------------------------------


def test_copies_are_counted_by_prompt(sets, tmp_path, capsys):
    """Three of four images of one prompt are training images, none of another's."""
    train = np.load(sets / "train.npz")["images"]
    rng = np.random.default_rng(1)
    folder = tmp_path / "samples"
    folder.mkdir()
    far = 255 * rng.integers(0, 2, (5, 16, 16, 3), dtype=np.uint8)  # farther than unseen images
    rows = [*train[[5, 5, 9]], *far]
    prompts = ["copied"] * 4 + ["new"] * 4
    lines = []
    for row, (pixels, prompt) in enumerate(zip(rows, prompts, strict=True)):
        Image.fromarray(pixels).save(folder / f"{row}.png")
        lines.append(json.dumps({"file_name": f"{row}.png", "text": prompt}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    given = ["--samples", folder, "--holdout", sets / "holdout.npz", "--out", tmp_path / "out"]
    assert run(sets, *given) == 0
    table = pd.read_csv(tmp_path / "out" / "conditions.csv")
    assert table["prompt"].tolist() == ["copied", "new"]
    assert table["generations"].tolist() == [4, 4]
    assert table["flagged_generations"].tolist() == [3, 0]
    assert table["extracted_images"].tolist() == [2, 0]
    assert table["best_ratio"][0] == 0
    record = result(tmp_path / "out")
    assert record["conditions"] == {"kind": "prompt", "different": 2, "with_copies": 1}
    pairs = pd.read_parquet(tmp_path / "out" / "pairs.parquet")
    assert pairs["prompt"].tolist() == prompts
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "1 of 2 different prompts have a generation that the verdict flags" in page
    assert "prompts with copies, the first 1 of 1 in conditions.csv" in capsys.readouterr().out

    (folder / "metadata.jsonl").unlink()
    assert run(sets, *given) == 0
    assert not (tmp_path / "out" / "conditions.csv").exists()
    assert result(tmp_path / "out")["conditions"] is None


def test_the_page_says_what_was_drawn(drawn_once):
    _, out, _ = drawn_once
    page = (out / "audit.html").read_text()
    rows = ("StableDiffusionPipeline", "DDIMScheduler", "num inference steps", "guidance scale")
    for text in (*rows, "float32", "derived from --seed 0 and the number of the image"):
        assert f"{text}</td>" in page


def test_nothing_is_warned_about_in_a_plain_audit(sets, sd, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        given = ["--prompts", sets / "prompts.txt", "--steps", 1, "--out", tmp_path / "out"]
        assert run(sets, "--pipeline", sd, *given) == 0
