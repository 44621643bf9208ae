"""Remedies on latents: each trains a network of latents and their captions."""

from dataclasses import replace

import pytest
import torch

from afterimage import seeds
from afterimage.config import Diffusion, Model, Sample
from afterimage.diffusion.latents import EncodedImages, Latents
from afterimage.diffusion.model import build_scheduler, build_unet, load_weights, save_pipeline
from afterimage.diffusion.sample import denoised_batches
from afterimage.images import contents
from afterimage.methods import find, selective_amnesia

from .conftest import MODEL, WORDS, embedded

ARMS = [
    {"method": "ambient", "level": 300},
    {"method": "siss", "norm_ratio": 0.1},
    {"method": "esd", "steps": 3, "trainable": "noxattn"},
    {"method": "uce"},
    {"method": "selective_amnesia", "ewc": 0.01, "fisher_samples": 4, "fisher_timesteps": 2}
    | {"replay_images": 6},
]


@pytest.fixture
def latent_job(make_job, digits, tmp_path):
    """Return a function that builds a run on made-up latents, (4, 4, 4), of captioned digits."""

    def make(arm: dict):
        unlearning = arm["method"] != "ambient"
        own = arm | ({"base": "base", "forget": "zeros"} if unlearning else {})
        job = make_job(tmp_path / arm["method"], "text", arm=own, images=40, updates=2)
        pixels, labels, texts = digits[0][:40], digits[1][:40], embedded()
        generator = torch.Generator().manual_seed(2)
        mean = torch.randn((40, 1, 4, 4, 4), generator=generator)
        row = {digest.tobytes(): place for place, digest in enumerate(contents(pixels))}
        scheduler = build_scheduler(Diffusion(), latents=True)
        given = (texts, texts.rows([WORDS[label] for label in labels]))
        net = build_unet(Model.model_validate(MODEL), (4, 4, 4), seed=1, text_width=texts.width)
        base = tmp_path / f"base of {arm['method']}"
        save_pipeline(net, scheduler, base)
        task = Latents(
            pixels,
            EncodedImages(row, mean, 0.1 * torch.ones_like(mean)),
            scheduler,
            label_dropout=0.2,
            texts=given,
            surrogate=texts.embedding("digit"),
        )
        settings = {"forgotten": labels == 0, "base": base} if unlearning else {}
        return replace(job, net=net, scheduler=scheduler, task=task, **settings)

    return make


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm["method"])
def test_it_trains_a_network_of_latents(arm, latent_job):
    job = latent_job(arm)
    start = {name: value.clone() for name, value in job.net.state_dict().items()}
    if job.base is not None:
        load_weights(job.net, job.base)
    result = find(arm["method"]).train(job)
    after = result.raw.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, start[name]) for name, value in after.items())


def test_selective_amnesia_replays_latents_as_the_base_draws_them(latent_job):
    """Before they would be decoded: no rounding to eight bits, and what they are is fixed."""
    job = latent_job(ARMS[-1])
    replay = selective_amnesia.drawn_from_captions(job)
    rows = torch.arange(6)
    latents = replay.task.clean(rows, torch.zeros(6, dtype=torch.bool))
    assert latents.shape == (6, 4, 4, 4)
    settings = Sample(images=6, steps=50, batch_size=job.train.batch_size)
    seed = seeds.derive(job.seed, *job.path, "replay")
    drawn = denoised_batches(
        job.net, dict(job.scheduler.config), range(6), settings, seed, texts=replay.task.texts
    )
    assert torch.equal(latents, torch.cat([batch for _, batch in drawn]))
    again = [replay.task.drawn(rows, rows < 0, torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert torch.equal(*again)
    prompts = replay.task.texts[1]
    assert torch.equal(job.task.texts[1][replay.sources], prompts)
    assert (replay.forgotten == (job.labels[replay.sources] == 0)).all()
