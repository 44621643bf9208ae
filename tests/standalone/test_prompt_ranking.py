"""``afterimage prompts``: what is observed of a network is what the network says, and the ranking
finds the prompts that a network was made to memorise."""

from __future__ import annotations

import functools
import inspect
import json

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch

from afterimage import cli, seeds
from afterimage.attacks.prompts import anisotropy
from afterimage.standalone import own_call, stored_pipeline
from afterimage.standalone.observed_call import DETECTORS, ObservedCall
from afterimage.standalone.own_call import CallSettings

from . import tiny_pipelines as tiny

OBSERVED = {
    *("StableDiffusionPipeline", "StableDiffusionPipeline 2", "StableDiffusionSAGPipeline"),
    *("StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "PixArtAlphaPipeline"),
    *(
        "PixArtSigmaPipeline",
        "SanaPipeline",
        "AuraFlowPipeline",
        "HunyuanDiTPipeline",
        "IFPipeline",
        "Lumina2Pipeline",
    ),
}
"""Pipelines of which every detector can be measured."""

NOT_EDGES = {
    *("Kandinsky3Pipeline", "KandinskyV22CombinedPipeline", "ChromaPipeline"),
    *("FluxPipeline", "QwenImagePipeline"),
}
AWAY = {"guidance": 3.0, "negative_prompt": ""}
GUIDED = {"FluxPipeline": AWAY, "QwenImagePipeline": AWAY}
"""What makes pipelines guide that do not by default."""


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """A stored Stable Diffusion pipeline; read only."""
    return tiny.save(tiny.sd, tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prompts, and held-out prompts."""
    folder = tmp_path_factory.mktemp("prompts")
    write(folder / "prompts.txt", [f"picture {row}" for row in range(5)])
    write(folder / "holdout.txt", [f"other {row}" for row in range(4)])
    return folder


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def run(sd, files, out, *arguments, holdout=True):
    given = ["prompts", "--pipeline", sd, "--prompts", files / "prompts.txt", "--out", out]
    given += ["--holdout-prompts", files / "holdout.txt"] if holdout else []
    return cli.main(list(map(str, [*given, "--steps", 3, *arguments])))


def result(out):
    return json.loads((out / "prompts.json").read_text())


def table(out):
    return pd.read_csv(out / "prompts.csv").set_index("prompt")


def observed_call(folder, name="x", **settings):
    stored = stored_pipeline.find(stored_pipeline.locate(str(folder)))
    asked = own_call.asks(stored.pipeline_class, name)
    pipeline = stored_pipeline.load(stored, "float32", torch.device("cpu"))
    given = own_call.arguments(asked, CallSettings(**settings))
    return ObservedCall(pipeline, asked, given, name)


# ---- the observation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in tiny.PIPELINES if "Pipeline" in name and name != "SanaSprintPipeline"]
)
def test_what_can_be_observed_of_each_class(tmp_path, name):
    make, flags = tiny.PIPELINES[name]
    asked = own_call.asks(getattr(diffusers, name.split()[0]), name)
    if not asked.text:
        pytest.skip("takes no prompts")
    folder = tiny.save(make, tmp_path / "stored")
    sizes = dict(zip(flags[::2], flags[1::2], strict=True))
    settings = {
        side: int(sizes[f"--{side}"]) for side in ("height", "width") if f"--{side}" in sizes
    }
    call = observed_call(folder, name.split()[0], steps=3, **settings, **GUIDED.get(name, {}))
    images, observations = call.draw_observed([1, 2], ["a cat", "a dog"])
    missing = {detector for each in observations for detector in each.missing}
    if name in OBSERVED:
        assert missing == set()
    elif name in NOT_EDGES:
        assert missing == {"edges"}
    else:
        assert missing == set(DETECTORS)
        assert all(reason for each in observations for reason in each.missing.values())
        return
    (observation,) = observations
    assert len(observation.magnitudes) == 3
    numbers = [*observation.magnitudes, observation.confidence, observation.alignment]
    assert all(values.shape == (2,) and np.isfinite(values).all() for values in numbers)
    if name in OBSERVED:
        assert len(observation.first) == 2
        assert observation.first.shape[-1] == images.pixels.shape[-1]


@pytest.mark.parametrize("name", ["FluxPipeline", "ChromaPipeline", "Lumina2Pipeline"])
def test_evaluations_in_turn_are_told_apart_by_their_texts(tmp_path, name, monkeypatch):
    """Two images have different prompts, but the same text to be guided away from."""
    folder = tiny.save(tiny.PIPELINES[name][0], tmp_path / "stored")
    size = {"height": 16, "width": 16}
    call = observed_call(folder, name, steps=2, **size, **AWAY)
    transformer, calls = call.pipeline.transformer, []
    forward = transformer.forward

    @functools.wraps(forward)
    def recorded(*args, **kwargs):
        output = forward(*args, **kwargs)
        prediction = output[0]
        if prediction.ndim == 3:
            scale = call.pipeline.vae_scale_factor
            prediction = call.pipeline._unpack_latents(prediction, 16, 16, scale)
        given = inspect.signature(forward).bind(*args, **kwargs).arguments
        states = given["encoder_hidden_states"]
        if len(states) == 2:
            kind = "without" if torch.equal(states[0], states[1]) else "given"
            calls.append((float(given["timestep"][0]), kind, prediction))
        return output

    monkeypatch.setattr(transformer, "forward", recorded)
    _, (observation,) = call.draw_observed([1, 2], ["a cat", "a dog on a mat"])
    assert not {"noise_difference", "one_step", "anisotropy"} & set(observation.missing)
    start, late = (1.0, 0.04) if name != "Lumina2Pipeline" else (0.0, 0.96)
    for time, expected in ((start, observation.magnitudes[0]), (late, observation.alignment)):
        found = {kind: image for at, kind, image in calls if at == pytest.approx(time, abs=1e-6)}
        difference = found["given"] - found["without"]
        value = difference.flatten(1).norm(dim=1)
        if time == late:
            value = torch.cosine_similarity(found["without"], difference, dim=1)
            value = value.flatten(1).mean(dim=1)
        np.testing.assert_allclose(expected, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_network_that_is_not_guided_is_not_observed(tmp_path, steps):
    folder = tiny.save(tiny.flux, tmp_path / "stored")
    call = observed_call(folder, "FluxPipeline", steps=steps, height=16, width=16)
    _, (observation,) = call.draw_observed([1, 2], ["a cat", "a dog"])
    assert observation.missing.keys() == set(DETECTORS)
    assert "--negative-prompt" in observation.missing["anisotropy"]
    assert not observation.magnitudes


def test_the_observation_is_what_the_network_predicts(sd):
    """Against the U-Net, called once per image and text."""
    call = observed_call(sd, steps=3, guidance=5.0)
    _, (observation,) = call.draw_observed([1, 2], ["a cat", "a dog on a mat"])
    pipeline = call.pipeline
    pipeline.scheduler.set_timesteps(3)
    first = pipeline.scheduler.timesteps[0]
    late = round(anisotropy.LATE * 1000)
    signal = pipeline.scheduler.alphas_cumprod[first].sqrt()
    for row, (seed, prompt) in enumerate([(1, "a cat"), (2, "a dog on a mat")]):
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        texts = [pipeline.encode_prompt(text, "cpu", 1, False)[0] for text in ("", prompt)]
        with torch.no_grad():
            without, given = (pipeline.unet(noise, first, text).sample for text in texts)
            pair = [pipeline.unet(noise, late, text).sample for text in texts]
            guided = without + 5.0 * (given - without)
            image = (noise - (1 - signal**2).sqrt() * guided) / signal
            decoded = pipeline.vae.decode(image / pipeline.vae.config.scaling_factor).sample
        norm = float((given - without).norm())
        assert observation.magnitudes[0][row] == pytest.approx(norm, rel=1e-4)
        assert observation.alignment[row] == pytest.approx(
            float(torch.cosine_similarity(pair[0], pair[1] - pair[0], dim=1).mean()), abs=1e-4
        )
        expected = (noise / signal - image).square().mean()
        assert observation.confidence[row] == pytest.approx(float(expected), rel=1e-4)
        pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)[0]
        assert np.abs(observation.first[row] - pixels.numpy()).max() <= 1.5


def test_observing_changes_no_image(sd):
    given = ([1, 2, 3], ["a cat", "a dog", "bird"])
    images, _ = observed_call(sd, steps=3).draw_observed(*given)
    call = observed_call(sd, steps=3)
    plain = own_call.OwnCall(call.pipeline, call.asked, call.arguments, "x").draw(*given)
    assert (images.pixels == plain.pixels).all()


def test_the_first_step_alone_is_that_of_the_drawing(sd):
    given = ([1, 2], ["a cat", "a dog"])
    call = observed_call(sd, steps=3)
    _, (drawn,) = call.draw_observed(*given)
    call.only_first = True
    first = call.observe(*given)
    assert len(first.magnitudes) == 1
    np.testing.assert_array_equal(first.magnitudes[0], drawn.magnitudes[0])
    np.testing.assert_array_equal(first.alignment, drawn.alignment)
    np.testing.assert_array_equal(first.first, drawn.first)


# ---- the ranking ---------------------------------------------------------------------------------


def test_prompts_that_a_network_memorised_are_found(sd, tmp_path, monkeypatch):
    """A network that denoises to one image for each memorised prompt, and to gray otherwise."""
    prompts = [f"picture {row}" for row in range(24)]
    write(tmp_path / "prompts.txt", prompts)
    write(tmp_path / "holdout.txt", [f"other {row}" for row in range(60)])
    call = observed_call(sd)
    memorised = prompts[:12]
    texts = [call.pipeline.encode_prompt(text, "cpu", 1, False)[0][0] for text in memorised]
    targets = torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    alphas = call.pipeline.scheduler.alphas_cumprod

    def forward(self, sample, timestep, encoder_hidden_states, **_):
        clean = torch.zeros_like(sample)
        for row, state in enumerate(encoder_hidden_states):
            for text, target in zip(texts, targets, strict=True):
                if torch.allclose(state, text, atol=1e-4):
                    clean[row] = target
        abar = alphas[int(timestep)]
        noise = (sample - abar.sqrt() * clean) / (1 - abar).sqrt()
        return (noise + 0.05 * sample.flip(3),)

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", forward)
    out = tmp_path / "out"
    assert run(sd, tmp_path, out, "--per-prompt", 4, "--guidance", 2, "--show-images") == 0
    record, rows = result(out), table(out)
    html = (out / "prompts.html").read_text()
    assert record["sentence"] in html
    assert html.count("<img") == 2  # the statistics, and images of the first prompts
    assert html.index(rows.index[0]) < html.index(rows.index[20])
    assert record["outcome"] == "prompts stand out"
    assert record["flagged"] == 12
    assert set(rows.index[rows["flagged"]]) == set(memorised) == set(rows.index[:12])
    for detector in ("cliques", "noise_difference", "one_step"):
        area = record["detectors"][detector]["auc"]
        assert area["value"] == pytest.approx(0.75)  # twelve above all, twelve like all others
    assert "12 of 24 prompts stand out from 60 held-out prompts by cliques" in record["sentence"]


def test_prompts_of_one_kind_do_not_stand_out(sd, files, tmp_path):
    texts = np.random.default_rng(0).permutation([f"text {row}" for row in range(100, 160)])
    write(tmp_path / "prompts.txt", texts[:30])
    write(tmp_path / "holdout.txt", texts[30:])
    assert run(sd, tmp_path, tmp_path / "out", "--first-step-only", "--per-prompt", 2) == 0
    record = result(tmp_path / "out")
    assert record["outcome"] == "none stands out"
    assert record["settings"]["decide_by"] == "noise_difference"
    assert record["detectors"]["cliques"]["not_measured"]
    assert not (tmp_path / "out" / "drawn").exists()
    for name in DETECTORS:
        area = record["detectors"][name]["auc"]
        assert area["low"] <= 0.5 <= area["high"]


def test_a_prompt_is_scored_for_itself(sd, files, tmp_path):
    """Neither the order of the prompts nor the batch size matters, beyond rounding."""
    assert run(sd, files, tmp_path / "a", "--per-prompt", 4) == 0
    write(tmp_path / "prompts.txt", [f"picture {row}" for row in (3, 1)])
    write(tmp_path / "holdout.txt", ["other 2"])
    assert run(sd, tmp_path, tmp_path / "b", "--per-prompt", 4, "--batch-size", 2) == 0
    a, b = table(tmp_path / "a"), table(tmp_path / "b")
    scores = ["cliques", "noise_difference", "first_difference", "one_step", "alignment"]
    np.testing.assert_allclose(a.loc[b.index, scores], b[scores], rtol=2e-2, atol=2e-3)


def test_an_interrupted_drawing_goes_on(sd, files, tmp_path, monkeypatch):
    given = ("--per-prompt", 4, "--batch-size", 2)
    assert run(sd, files, tmp_path / "whole", *given) == 0
    draw, calls = ObservedCall.draw_observed, 0

    def failing(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    monkeypatch.setattr(ObservedCall, "draw_observed", failing)
    with pytest.raises(KeyboardInterrupt):
        run(sd, files, tmp_path / "parts", *given)
    assert run(sd, files, tmp_path / "parts", *given) == 0
    assert calls == 7 + 1 + 18 - 7
    assert "edges are those that 2 images have in common" in str(result(tmp_path / "parts"))
    whole, parts = ((tmp_path / name / "prompts.csv").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_black_images_of_a_safety_checker_are_no_clique(sd, files, tmp_path, monkeypatch, capsys):
    draw = ObservedCall.draw_observed

    def blackened(self, seeds, prompts):
        images, observations = draw(self, seeds, prompts)
        if prompts[0] == "picture 2":
            images.pixels[:3] = 0
            images.blackened[:3] = True
        return images, observations

    monkeypatch.setattr(ObservedCall, "draw_observed", blackened)
    assert run(sd, files, tmp_path / "out", "--per-prompt", 4, "--clique", 2) == 0
    rows = table(tmp_path / "out")
    assert rows["cliques"].drop("picture 2").min() > -1
    assert rows.loc["picture 2", "cliques"] == -np.inf
    printed = capsys.readouterr().out
    assert "1 prompts have fewer than --clique = 2 images" in printed
    assert "3 of 36 images were replaced by black ones" in printed


def test_without_held_out_prompts_there_is_a_ranking_alone(sd, files, tmp_path):
    assert run(sd, files, tmp_path / "out", "--first-step-only", holdout=False) == 0
    record, rows = result(tmp_path / "out"), table(tmp_path / "out")
    assert record["outcome"] == "ranked only"
    assert record["flagged"] is None
    assert "flagged" not in rows
    assert rows["noise_difference"].is_monotonic_decreasing
    html = (tmp_path / "out" / "prompts.html").read_text()
    assert "no held-out prompts" in html
    assert html.count("<img") == 1


def test_too_few_held_out_prompts_are_said(sd, files, tmp_path, capsys):
    assert run(sd, files, tmp_path / "out", "--first-step-only") == 0
    assert result(tmp_path / "out")["outcome"] == "cannot tell"
    assert "at least 19 are needed" in capsys.readouterr().out


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per-prompt", 1], "--per-prompt = 1"),
        (["--per-prompt", 0], "--per-prompt = 0"),
        (["--per-prompt", 4, "--clique", 5], "--clique = 5: allowed are numbers from 2 to"),
        (["--clique", 1], "--clique = 1: allowed are numbers from 2 to --per-prompt = 16"),
        (["--tiles", 0], "--tiles = 0"),
        (["--per-prompt", 2, "--tiles", 3], "--tiles = 3: it has to divide the sides"),
        (["--first-step-only", "--clique", 3], "--clique = 3: --first-step-only draws no images"),
        (["--first-step-only", "--decide-by", "cliques"], "--decide-by = cliques"),
        (["--first-step-only", "--show-images"], "--show-images: --first-step-only draws"),
        (["--alignment-weight", "nan"], "--alignment-weight = nan"),
        (["--guidance", 1, "--first-step-only"], "noise_difference, which decides, cannot be"),
    ],
)
def test_flags_that_do_not_fit_are_refused(sd, files, tmp_path, capsys, flags, message):
    assert run(sd, files, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "prompts.json").exists()


def test_bad_files_of_held_out_prompts_are_named(sd, files, tmp_path, capsys):
    for text, message in (
        ("", "--holdout-prompts {}: it is empty"),
        ("a\n\nb\n", "--holdout-prompts {}: 1 lines are empty (line 2)"),
        ("other\npicture 3\n", "--holdout-prompts {}: 1 of its prompts are in --prompts too"),
    ):
        path = tmp_path / "bad.txt"
        path.write_text(text)
        given = ["--holdout-prompts", path, "--first-step-only"]
        assert run(sd, files, tmp_path / "out", *given, holdout=False) == 2
        assert message.format(path) in capsys.readouterr().err
    missing = ["--holdout-prompts", tmp_path / "none.txt"]
    assert run(sd, files, tmp_path / "out", *missing, holdout=False) == 2
    assert "--holdout-prompts" in capsys.readouterr().err


def test_a_pipeline_without_prompts_is_refused(files, tmp_path, capsys):
    folder = tiny.save(tiny.PIPELINES["DiTPipeline"][0], tmp_path / "dit")
    assert run(folder, files, tmp_path / "out") == 2
    assert "DiTPipeline takes no prompts" in capsys.readouterr().err


def test_prompts_have_the_same_noise(sd, monkeypatch, files, tmp_path):
    drawn = []
    draw = ObservedCall.draw_observed

    def recorded(self, given, prompts):
        drawn.append(list(given))
        return draw(self, given, prompts)

    monkeypatch.setattr(ObservedCall, "draw_observed", recorded)
    assert run(sd, files, tmp_path / "out", "--per-prompt", 2, "--seed", 3) == 0
    assert drawn == [[seeds.derive(3, "prompts", number) for number in range(2)]] * 9
