"""Losses and gradients of latent networks with texts or labels are those of diffusers, and the
commands that use them refuse what does not fit."""

from __future__ import annotations

import argparse
import json

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from afterimage import cli
from afterimage.attribution.gradients import compute
from afterimage.config import Features
from afterimage.images import Images
from afterimage.standalone import stored_pipeline
from afterimage.standalone.conditional import Conditional

from . import tiny_pipelines as tiny

TEXTS = ["a cat", "a dog on a mat", "a cat", "bird"]
KINDS = {
    "sd": ("StableDiffusionPipeline", None),
    "sd2": ("StableDiffusionPipeline 2", None),
    "sdxl": ("StableDiffusionXLPipeline", None),
    "dit": ("DiTPipeline", None),
    "lora": ("StableDiffusionPipeline", ["to_q", "to_v", "conv1"]),
}
SIDE = 16


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folders of the pipelines, and files of LoRA weights; read only."""
    folder = tmp_path_factory.mktemp("stored")
    pipelines, loras = {}, {}
    for kind, (name, targets) in KINDS.items():
        make, _ = tiny.PIPELINES[name]
        pipelines[kind] = tiny.save(make, folder / kind)
        loras[kind] = None
        if targets:
            loras[kind] = tiny.lora(folder / f"lora {kind}", make, targets)
    return pipelines, loras


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    return Images.of(pixels, labels=np.array([3, 0, 3, 1]))


def opened(stored, kind):
    pipelines, loras = stored
    args = argparse.Namespace(variant=None, lora=loras[kind], device="cpu")
    return Conditional.of(args, stored_pipeline.locate(str(pipelines[kind])))


def task_of(network, images):
    return network.task(images, TEXTS if network.takes_text else None, False, mirrors=False)


def reference(network, images, row, t, noise):
    """Return the loss of one image, by diffusers' own functions."""
    pipeline = network.pipeline
    pixels = torch.from_numpy(images.pixels[[row]]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latent = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    timestep = torch.tensor([t])
    signal = pipeline.scheduler.alphas_cumprod[t].sqrt()
    share = (1 - signal**2).sqrt()
    noisy = signal * latent + share * noise[None]
    if network.takes_text:
        with torch.no_grad():
            encoded = pipeline.encode_prompt(
                TEXTS[row], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        added = None
        if len(encoded) == 4:
            times = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]])
            added = {"text_embeds": encoded[2], "time_ids": times}
        output = network.net(noisy, timestep, encoded[0], added_cond_kwargs=added).sample
    else:
        labels = torch.tensor([images.labels[row]])
        output = network.net(noisy, timestep, class_labels=labels).sample[:, :4]
    is_v = pipeline.scheduler.config.prediction_type == "v_prediction"
    target = signal * noise[None] - share * latent if is_v else noise[None]
    return (output - target).square().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_diffusers(stored, images, kind):
    network = opened(stored, kind)
    task = task_of(network, images)
    rows, t = torch.tensor([2, 0, 1, 3]), 321
    noise = torch.randn(4, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    batch = task.noised(
        rows, torch.full((4,), t), noise, torch.zeros(4, dtype=torch.bool), task.condition_of(rows)
    )
    with torch.no_grad():
        losses = task.losses(network.net, batch)
        for position, row in enumerate(rows.tolist()):
            expected = reference(network, images, row, t, noise[position])
            assert float(losses[position]) == pytest.approx(float(expected), rel=1e-4)
    assert len(set(losses.tolist())) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_automatic_differentiation(stored, images, kind):
    """All coordinates, of one image after the other; with LoRA weights those alone."""
    network = opened(stored, kind)
    settings = Features(timesteps=1, projection="none", noise="shared", rows=False)
    found = compute.project_gradients(
        network.net, task_of(network, images), images.ids, "train", settings, ["loss"], 3, [400]
    ).features["loss"]
    noise = compute.shared_noise(3, 0, 400, (4, SIDE // 2, SIDE // 2))
    weights = {n: w for n, w in network.net.named_parameters() if w.requires_grad}
    assert all("lora_" in name for name in weights) == (kind == "lora")
    for row in range(4):
        loss = reference(network, images, row, 400, noise)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        expected = torch.cat(
            [
                torch.zeros(weight.numel()) if gradient is None else gradient.flatten()
                for weight, gradient in zip(weights.values(), gradients, strict=True)
            ]
        ).numpy()
        assert found.shape[1] == len(expected)
        np.testing.assert_allclose(
            found[row], expected, rtol=2e-3, atol=1e-5 * np.abs(expected).max()
        )


# ---- the commands --------------------------------------------------------------------------------


def folder_of(path, images, texts):
    path.mkdir()
    lines = []
    for row, pixels in enumerate(images.pixels):
        Image.fromarray(pixels).save(path / f"{row}.png")
        if texts is not None:
            lines.append(json.dumps({"file_name": f"{row}.png", "text": texts[row]}))
    if lines:
        (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory, images):
    """Training images, queries and held-out images with captions, and images without; read only."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(1)
    others = Images.of(rng.integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8))
    folder_of(folder / "train", images, TEXTS)
    folder_of(folder / "others", others, TEXTS)
    folder_of(folder / "silent", others, None)
    for name, of in (("labelled", images), ("labelled others", others)):
        np.savez(folder / f"{name}.npz", images=of.pixels, labels=images.labels)
    np.savez(folder / "small.npz", images=np.zeros((4, 15, 15, 3), np.uint8), labels=images.labels)
    return folder


def run(command, other, settings, stored, sets, out, kind, names, flags):
    """Run a command on the images called ``names``: the training images and those of ``other``."""
    given = [command, "--pipeline", stored[0][kind], "--train", sets / names[0]]
    given += [other, sets / names[1], "--out", out, "--timesteps", 2, *settings]
    lora = [] if stored[1][kind] is None else ["--lora", stored[1][kind]]
    return cli.main(list(map(str, [*given, *lora, *flags])))


def attribute(stored, sets, out, kind="sd", train="train", queries="others", *flags):
    settings = ["--dimension", 64]
    names = (train, queries)
    return run("attribute", "--queries", settings, stored, sets, out, kind, names, flags)


def membership(stored, sets, out, kind="sd", train="train", holdout="others", *flags):
    names = (train, holdout)
    return run("membership", "--holdout", ["--draws", 2], stored, sets, out, kind, names, flags)


@pytest.mark.parametrize("kind", KINDS)
def test_generations_are_attributed(stored, sets, tmp_path, kind):
    names = ("labelled.npz", "labelled others.npz") if kind == "dit" else ("train", "others")
    assert attribute(stored, sets, tmp_path / "out", kind, *names) == 0
    first = pd.read_csv(tmp_path / "out" / "first.csv")
    assert len(first) == 4 * 2 * 4
    scores = load_file(tmp_path / "out" / "scores.safetensors")
    assert all(np.isfinite(values).all() and values.std() > 0 for values in scores.values())
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["facts"]
    assert facts["pipeline"]["pipeline_class"] == KINDS[kind][0].split()[0]
    weights = facts["pipeline"]["trained_weights"]
    assert (weights < 10_000) == (kind == "lora")


def test_the_caption_of_a_query_matters(stored, sets, tmp_path, images):
    other = folder_of(tmp_path / "other", images, ["a cat", "bird", "a dog", "a cat"])
    for name, queries in (("a", sets / "train"), ("b", other)):
        assert attribute(stored, sets, tmp_path / name, "sd", "train", queries) == 0
    a, b = (load_file(tmp_path / name / "scores.safetensors")["dtrak"] for name in ("a", "b"))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-4)  # the same caption
    assert np.abs(a[1] / b[1] - 1).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_membership_of_an_untrained_network_is_not_shown(stored, sets, tmp_path, kind):
    names = ("labelled.npz", "labelled others.npz") if kind == "dit" else ("train", "others")
    assert membership(stored, sets, tmp_path / "out", kind, *names) == 0
    record = json.loads((tmp_path / "out" / "membership.json").read_text())
    assert record["outcome"] == "not shown"
    assert record["auc"]["low"] <= 0.5 <= record["auc"]["high"]
    losses = pd.read_csv(tmp_path / "out" / "losses.csv")
    assert losses.groupby("set").size().to_dict() == {"train": 4, "holdout": 4}
    np.testing.assert_allclose(losses[["loss_250", "loss_750"]].mean(axis=1), losses["loss"])


def test_a_mirror_image_is_encoded_as_such(stored, images):
    """Its latent is not the image's, mirrored."""
    network = opened(stored, "sd")
    task = network.task(images, TEXTS, False, mirrors=True)
    mirrored = torch.tensor([True, False, True, False])
    found = task.clean(torch.arange(4), mirrored)
    for row, turned in enumerate(mirrored.tolist()):
        image = images.pixels[row, :, :: -1 if turned else 1]
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        vae = network.pipeline.vae
        with torch.no_grad():
            expected = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        torch.testing.assert_close(found[row], expected[0], atol=1e-4, rtol=1e-4)


def test_membership_of_a_network_that_memorised_shows(stored, sets, tmp_path, images, monkeypatch):
    """A network that denoises everything to the nearest training latent."""
    plain = torch.zeros(4, dtype=torch.bool)
    latents = task_of(opened(stored, "sd"), images).clean(torch.arange(4), plain)
    alphas = opened(stored, "sd").pipeline.scheduler.alphas_cumprod

    def forward(self, sample, timestep, **_):
        signal = alphas[timestep].sqrt()[:, None, None, None]
        nearest = torch.cdist((sample / signal).flatten(1), latents.flatten(1)).argmin(dim=1)
        return ((sample - signal * latents[nearest]) / (1 - signal**2).sqrt(),)

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", forward)
    assert membership(stored, sets, tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "membership.json").read_text())
    assert record["auc"]["value"] == 1
    assert record["outcome"] == "membership shows"
    losses = pd.read_csv(tmp_path / "out" / "losses.csv").set_index("set")["loss"]
    assert losses["train"].max() < losses["holdout"].min()


def test_training_images_among_the_held_out_ones_are_left_out(stored, sets, tmp_path, images):
    mixed = Images.of(np.concatenate([images.pixels[:2], 255 - images.pixels[2:]]))
    holdout = folder_of(tmp_path / "mixed", mixed, TEXTS)
    assert membership(stored, sets, tmp_path / "out", "sd", "train", holdout) == 0
    record = json.loads((tmp_path / "out" / "membership.json").read_text())
    assert record["left_out"] == ["0.png", "1.png"]
    assert record["counts"] == {"train": 4, "holdout": 2}


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [attribute, membership])
@pytest.mark.parametrize(
    ("kind", "train", "other", "flags", "message"),
    [
        ("sd", "train", "silent", [], "it has no captions (metadata.jsonl"),
        ("sd", "small.npz", "small.npz", [], "images are 15x15, but multiples of 2 is needed"),
        ("dit", "small.npz", "small.npz", [], "images are 15x15, but 16x16 is needed"),
        ("dit", "train", "others", [], "label"),
        ("sd", "train", "others", ["--weights", "raw"], "--weights = raw: it is for checkpoints"),
        ("sd", "train", "others", ["--variant", "fp16"], "--variant"),
        ("sd", "train", "others", ["--lora", "nothing.safetensors"], "there is no such file"),
        ("sd", "train", "others", ["--device", "nowhere"], "--device = nowhere: it cannot be used"),
        ("sd", "train", "others", ["--revision", "abc"], "--revision = abc: it is for a Hub id"),
    ],
)
def test_what_does_not_fit_is_refused(
    stored, sets, tmp_path, capsys, command, kind, train, other, flags, message
):
    assert command(stored, sets, tmp_path / "out", kind, train, other, *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_captions_that_are_too_long_are_counted(stored, sets, tmp_path, capsys, images):
    long = folder_of(tmp_path / "long", images, ["a cat", "x" * 90, "a cat", "bird"])
    assert attribute(stored, sets, tmp_path / "out", "sd", long) == 2
    assert "1 of 3 prompts are longer than the 77 tokens" in capsys.readouterr().err
    assert (
        attribute(stored, sets, tmp_path / "out", "sd", long, "others", "--truncate-prompts") == 0
    )


@pytest.mark.parametrize("name", ["FluxPipeline", "IFPipeline", "AmusedPipeline"])
def test_other_pipelines_are_refused_by_name(sets, tmp_path, capsys, name):
    folder = tiny.save(tiny.PIPELINES[name][0], tmp_path / "stored")
    stored = ({"x": folder}, {"x": None})
    assert membership(stored, sets, tmp_path / "out", "x") == 2
    assert f"the loss of a {name} on an image is not known" in capsys.readouterr().err


def test_a_lora_of_the_text_encoder_alone_has_no_gradient(stored, sets, tmp_path, capsys):
    lora = tiny.lora(tmp_path / "lora", tiny.sd, ["q_proj"], part="text_encoder")
    assert attribute(stored, sets, tmp_path / "out", "sd", "train", "others", "--lora", lora) == 2
    assert "it has no weights of the UNet2DConditionModel" in capsys.readouterr().err
