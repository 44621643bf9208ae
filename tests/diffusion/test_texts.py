"""Networks that are conditioned on captions: what they are given in training, in sampling and when
their losses are measured."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DConditionModel

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.attacks import losses
from afterimage.config import ConfigError, Diffusion, Model, Sample, TransferBlocks
from afterimage.diffusion import sample
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.model import build_scheduler, build_unet, reads_texts, save_pipeline
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.pipelines import open_pipeline
from afterimage.diffusion.rau_net import RAUNetCondition
from afterimage.diffusion.router import TimestepRouter
from afterimage.diffusion.texts import Texts
from afterimage.images import Images

TINY = Model(
    channels=[8, 16],
    attention=[False, True],
    layers_per_block=1,
    norm_groups=4,
    attention_head_dim=8,
)
CAPTIONS = ["a", "b", "c"]
SCHEDULER = build_scheduler(Diffusion(timesteps=20))


def texts(seed: int = 0) -> Texts:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn((3, 5, 12), generator=generator)
    return Texts({text: row for row, text in enumerate(CAPTIONS)}, embeddings, torch.zeros(5, 12))


def images(count: int = 6) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)
    return Images.of(pixels, captions=np.array([CAPTIONS[row % 3] for row in range(count)]))


def task(dropout: float = 0.0, encoded: Texts | None = None) -> Pixels:
    encoded, some = encoded or texts(), images()
    given = (encoded, encoded.rows(some.captions))
    return Pixels(some.pixels, SCHEDULER, label_dropout=dropout, texts=given)


def net(seed: int = 1, blocks: TransferBlocks | None = None):
    return build_unet(TINY, (8, 8, 1), seed=seed, blocks=blocks, text_width=12).eval()


# ---- training ------------------------------------------------------------------------------------


def test_each_image_is_given_its_own_caption():
    batch = task().batch(np.array([4, 0, 5]), torch.Generator().manual_seed(0))
    assert list(batch.condition) == ["encoder_hidden_states"]
    expected = texts().embeddings[[1, 0, 2]]
    assert torch.equal(batch.condition["encoder_hidden_states"], expected)


def test_dropped_captions_are_the_null_text_and_shift_no_other_draw():
    rows = np.arange(6).repeat(200)
    batches = [
        task(dropout).batch(rows, torch.Generator().manual_seed(0)) for dropout in (0.0, 0.25)
    ]
    assert torch.equal(batches[0].noisy, batches[1].noisy)
    given = batches[1].condition["encoder_hidden_states"]
    null = (given == 0).all(dim=(1, 2))
    assert 240 < int(null.sum()) < 360  # binomial, 300 in the mean with deviation 15
    assert torch.equal(given[~null], texts().embeddings[torch.from_numpy(rows % 3)][~null])


def test_a_text_changes_the_prediction_of_its_own_image_alone():
    network, before = net(), texts()
    changed = dataclasses.replace(before, embeddings=before.embeddings.clone())
    changed.embeddings[1] += 1
    with torch.no_grad():
        first, second = (
            task(encoded=encoded).predict(
                network,
                task(encoded=encoded).batch(np.arange(3), torch.Generator().manual_seed(0)),
            )
            for encoded in (before, changed)
        )
    differs = (first != second).flatten(1).any(dim=1)
    assert differs.tolist() == [False, True, False]


def test_the_network_is_diffusers_own_and_opens_without_this_package(tmp_path):
    assert type(net()) is UNet2DConditionModel
    assert reads_texts(net())
    assert not reads_texts(build_unet(TINY, (8, 8, 1)))
    heads = [block.attn2.heads for block in net().modules() if hasattr(block, "attn2")]
    assert heads
    assert set(heads) == {2}  # 16 channels, 8 of them a head
    save_pipeline(net(), SCHEDULER, tmp_path / "model")
    opened = DDPMPipeline.from_pretrained(tmp_path / "model").unet
    assert type(opened) is UNet2DConditionModel
    assert all(map(torch.equal, opened.state_dict().values(), net().state_dict().values()))


def test_blocks_and_seeds_are_those_of_other_networks():
    blocks = TransferBlocks(groups=[1, 2], variant="trained_identity")
    plain, with_blocks = net(), net(blocks=blocks)
    assert isinstance(with_blocks, RAUNetCondition)
    weights = with_blocks.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())
    other = net(seed=2)
    assert not torch.equal(plain.conv_in.weight, other.conv_in.weight)


# ---- opening -------------------------------------------------------------------------------------


def test_only_studies_open_networks_of_texts(tmp_path):
    """A stored U-Net of pixels and texts has no text encoder, so nobody else could ask it."""
    save_pipeline(net(), SCHEDULER, tmp_path / "model")
    opened, _ = sample.load_denoiser(tmp_path / "model")
    assert type(opened) is UNet2DConditionModel
    with pytest.raises(ArtifactError, match="its unet is a UNet2DConditionModel"):
        open_pipeline(tmp_path / "model")
    save_pipeline(TimestepRouter(net(1), net(2), 10), SCHEDULER, tmp_path / "router")
    assert isinstance(sample.load_denoiser(tmp_path / "router")[0], TimestepRouter)
    with pytest.raises(ArtifactError, match="its networks are conditioned on texts"):
        open_pipeline(tmp_path / "router")


# ---- sampling ------------------------------------------------------------------------------------


class Asked(torch.nn.Module):
    """Predicts the mean of the text that it is given."""

    def forward(self, x, t, encoder_hidden_states, return_dict):
        means = encoder_hidden_states.mean(dim=(1, 2))[:, None, None, None]
        return (means.expand_as(x),)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_is_between_the_text_and_the_null_text(guidance):
    """With one step to t = 0 of a network that predicts the clean image, what it predicts is what
    comes out: null + w (text - null)."""
    encoded = dataclasses.replace(texts(), null=torch.full((5, 12), -0.2))
    encoded.embeddings[:] = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    scheduler = build_scheduler(Diffusion(timesteps=20, prediction="sample"))
    settings = Sample(images=3, sampler="ddim", steps=1, guidance=guidance)
    start = torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    drawn = sample.denoise(
        Asked(),
        dict(scheduler.config),
        start,
        [torch.Generator().manual_seed(row) for row in range(3)],
        settings,
        texts=(encoded.embeddings, encoded.null),
    )
    expected = -0.2 + guidance * (torch.tensor([0.1, 0.2, 0.3]) + 0.2)
    torch.testing.assert_close(drawn.mean(dim=(1, 2, 3)), expected.clamp(-1, 1))


def test_every_generation_is_drawn_from_its_own_prompt():
    """Whatever else is in its batch."""
    encoded, network = texts(), net()
    settings = Sample(images=3, sampler="ddim", steps=2, batch_size=3, guidance=2.0)

    def draw(prompts: list[int], ids: list[int]) -> np.ndarray:
        rows = torch.tensor(prompts)
        return sample.generate(
            network, dict(SCHEDULER.config), ids, settings, seed=1, texts=(encoded, rows)
        ).astype(int)

    together = draw([0, 1, 2], [0, 1, 2])
    for row in range(3):
        alone = draw([row], [row])
        assert np.abs(alone - together[row]).max() <= 1  # rounding of another batch shape
        assert np.abs(draw([(row + 1) % 3], [row]) - alone).max() > 1


def test_texts_are_neither_missing_nor_superfluous():
    settings = Sample(images=1, sampler="ddim", steps=1)
    with pytest.raises(ConfigError, match="the network is conditioned on texts, but they were not"):
        sample.generate(net(), dict(SCHEDULER.config), [0], settings, seed=1)
    plain = build_unet(TINY, (8, 8, 1))
    with pytest.raises(ConfigError, match="the network is not conditioned on texts, but they were"):
        sample.generate(
            plain,
            dict(SCHEDULER.config),
            [0],
            settings,
            seed=1,
            texts=(texts(), torch.tensor([0])),
        )


def test_prompts_are_captions_of_training_images_as_often_as_they_occur(tmp_path, monkeypatch):
    train = Images.of(np.zeros((4, 8, 8, 1), np.uint8), captions=np.array(["a", "a", "a", "b"]))
    settings = {"step": "data/planting", "arm": None, "replicate": None, "seed": 1, "settings": {}}
    with artifacts.step(settings, tmp_path / "planting", {}, ("afterimage.seeds",)) as step:
        train.save(step.folder / "train.npz")
    file = tmp_path / "planting" / "train.npz"
    monkeypatch.setattr(Texts, "load", lambda folder: texts())

    def captions(replicate: int, images: int = 4000) -> list[str]:
        resolved = {"seed": 1, "replicate": replicate}
        found = sample.Prompts.of(tmp_path, file, images, resolved)
        assert found is not None
        encoded, rows = found.rows(np.arange(images))
        assert [CAPTIONS[row] for row in rows] == found.captions.tolist()
        assert encoded.row == texts().row
        return found.captions.tolist()

    first = captions(0)
    assert 0.72 < first.count("a") / 4000 < 0.78  # 0.75 with deviation 0.007
    assert captions(0) == first != captions(1)
    assert sample.Prompts.of(None, None, 4, {}) is None
    assert sample.Prompts.of(None, file, 4, {}) is None
    with pytest.raises(ConfigError, match=r"--texts is .*: give --train too"):
        sample.Prompts.of(tmp_path, None, 4, {})


# ---- losses --------------------------------------------------------------------------------------


def test_losses_are_measured_with_the_captions_of_the_images():
    some, network = images(), net()
    swapped = dataclasses.replace(some, captions=some.captions[[1, 0, 2, 3, 4, 5]])
    measured = [
        losses.measure(
            network,
            task_of(network, dict(SCHEDULER.config), each, texts()),
            some.ids,
            "train",
            [10],
            1,
            seed=1,
        )
        for each in (some, swapped)
    ]
    assert (measured[0] != measured[1])[:, 0].tolist() == [True, True] + [False] * 4
    variant = dataclasses.replace(texts(), row_of_image={0: 2, 1: 0, 5: 1})
    planted = dataclasses.replace(some, caption_sources=np.array([0, 1, 0, 5, 5, 1]))
    task = task_of(network, dict(SCHEDULER.config), planted, variant)
    given = task.condition_of(torch.arange(6))["encoder_hidden_states"]
    assert torch.equal(given, texts().embeddings[[2, 0, 2, 1, 1, 0]])
    with pytest.raises(ArtifactError, match="the caption 'd' was not encoded"):
        task_of(
            network,
            dict(SCHEDULER.config),
            dataclasses.replace(some, captions=np.array(["d"] * 6)),
            texts(),
        )
