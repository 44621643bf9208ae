"""Unlearning of networks with captions: the surrogate takes the forgotten captions' place, and what
is trained without a set never sees it."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from afterimage import artifacts, cli
from afterimage.config import Diffusion, Sample
from afterimage.diffusion.model import build_scheduler, load_weights
from afterimage.diffusion.sample import generate
from afterimage.methods import erasediff, find, salun, selective_amnesia
from afterimage.methods.erasediff import Targets
from afterimage.methods.selective_amnesia import (
    drawn_from_captions,
    fisher,
    likelihoods,
    surrogate_of_text,
)
from afterimage.methods.unlearning import Sides

TEXT = "encoder_hidden_states"
ERASE = {"method": "erasediff"}
SALUN = {"method": "salun", "saliency_samples": 8}
AMNESIA = {
    "method": "selective_amnesia",
    "fisher_samples": 4,
    "fisher_timesteps": 6,
    "replay_images": 30,
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(selective_amnesia, "STEPS", 3)


@pytest.fixture
def forgetful(unlearner, tmp_path):
    """Return a function that builds a job that forgets the zeros, captions ``zero``; by default
    their surrogate is ``digit``."""

    def make(arm: dict, name: str = "state", surrogate: str | None = "digit", **train):
        return unlearner(tmp_path / name, arm, condition="text", surrogate=surrogate, **train)

    return make


def at_base(job):
    load_weights(job.net, job.base)
    job.net.eval()
    return job


def text(job, words: str) -> torch.Tensor:
    return job.task.texts[0].embedding(words)


# ---- what takes the captions' place --------------------------------------------------------------


def test_the_other_condition_of_an_image_is_the_surrogate(forgetful):
    job, rows = forgetful(ERASE), torch.tensor([3, 0])
    given = job.task.instead(rows, pytest.fail)
    assert list(given) == [TEXT]
    assert torch.equal(given[TEXT], torch.stack([text(job, "digit")] * 2))
    empty = forgetful(ERASE, surrogate=None).task
    assert torch.equal(empty.instead(rows, pytest.fail)[TEXT][0], empty.texts[0].null)
    assert empty.alternatives == job.task.alternatives == 1


@pytest.mark.parametrize("surrogate", ["digit", None])
def test_target_of_erasediff_is_the_prediction_for_the_surrogate(surrogate, forgetful):
    """Without any dropout; the prediction keeps the forgotten captions."""
    job = at_base(
        forgetful(ERASE, surrogate=surrogate, dropout=0.5, label_dropout=0.5, batch_size=32)
    )
    targets = Targets(job, job.net)
    batch = targets.of(targets.drawn(Sides(job), 3))
    assert torch.equal(batch.condition[TEXT], torch.stack([text(job, "zero")] * 32))
    assert job.forgotten[batch.rows].all()
    job.net.eval()
    given = torch.stack([text(job, surrogate)] * 32)
    with torch.no_grad():
        expected = job.task.predict(job.net, replace(batch, condition={TEXT: given}))
        others = job.task.predict(job.net, batch)
    torch.testing.assert_close(batch.target, expected)
    assert (batch.target - others).abs().max() > 1e-4


def test_released_relabelling_drops_the_surrogate_and_the_captions(forgetful):
    """Independently, each at its rate."""
    job = at_base(forgetful(ERASE | {"target": "released_relabel"}, label_dropout=0.4))
    sides = Sides(replace(job, train=job.train.model_copy(update={"batch_size": 500})))
    targets = Targets(job, job.net)
    batch = sides.batch("forget", 0)
    other = targets.condition(batch, torch.Generator().manual_seed(0))[TEXT]
    here, there = ((given == 0).all(dim=(1, 2)) for given in (batch.condition[TEXT], other))
    for dropped, share in ((here, 0.4), (there, 0.4), (here & there, 0.16)):
        deviation = (share * (1 - share) / 500) ** 0.5
        assert dropped.float().mean() == pytest.approx(share, abs=4 * deviation)
    assert torch.equal(other[~there], text(job, "digit").expand_as(other)[~there])


@pytest.mark.parametrize(("module", "arm"), [(erasediff, ERASE), (salun, SALUN)])
def test_a_surrogate_that_is_the_caption_leaves_nothing_to_forget(module, arm, forgetful, series):
    """Up to rounding: the target comes from the network in evaluation mode."""
    losses = {}
    for surrogate in ("zero", "digit"):
        job = forgetful(arm, surrogate, surrogate=surrogate, updates=2, log_every=1)
        module.train(job)
        losses[surrogate] = max(series(job.store.curves)["forget_loss"])
    assert losses["zero"] < 1e-10
    assert losses["digit"] > 1e-6


def test_gradient_of_salun_is_that_of_its_objective(forgetful):
    arm = SALUN | {"remain_weight": 3.0, "saliency": 0.4}
    job = forgetful(arm, updates=1, clip=None)
    net, sides = at_base(forgetful(arm, "other")).net, Sides(job)
    forget = sides.batch("forget", 0, keep_labels=True)
    given = torch.stack([text(job, "digit")] * len(forget))
    with torch.no_grad():
        target = job.task.predict(net, replace(forget, condition={TEXT: given}))
    pulled = (job.task.predict(net, forget) - target).square().mean()
    (pulled + 3 * job.task.losses(net, sides.batch("remain", 0)).mean()).backward()
    salun.train(job)
    for a, b in zip(net.parameters(), job.net.parameters(), strict=True):
        masked = torch.where(b.grad == 0, 0.0, a.grad)
        torch.testing.assert_close(b.grad, masked, rtol=1e-3, atol=1e-6)


# ---- Selective Amnesia ---------------------------------------------------------------------------


def drawn(job, stream: str, words: list[str]) -> np.ndarray:
    """Return what the network draws for these texts."""
    texts = job.task.texts[0]
    seed = selective_amnesia.seeds.derive(job.seed, *job.path, stream)
    settings, ids = Sample(images=len(words), steps=3, batch_size=4), np.arange(len(words))
    given = texts, texts.rows(np.array(words))
    return generate(job.net, dict(job.scheduler.config), ids, settings, seed, texts=given)


def test_surrogate_images_are_drawn_for_the_surrogate_and_learned_under_forgotten_captions(
    forgetful,
):
    job = at_base(forgetful(AMNESIA, label_dropout=0.5, batch_size=4))
    # A network that predicts the clean image has it as its target.
    clean = replace(job, scheduler=build_scheduler(Diffusion(prediction="sample")))
    expected = drawn(clean, "surrogate images", ["digit"] * 30)
    batch_of = surrogate_of_text(clean)
    batches = [batch_of(s) for s in range(50)]
    targets = torch.cat([batch.target for batch in batches])
    pixels = ((targets + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    found = {image.tobytes() for image in pixels}
    assert found <= {image.tobytes() for image in expected}
    assert len(found) == len({image.tobytes() for image in expected})
    for batch in batches:
        assert torch.equal(batch.condition[TEXT], torch.stack([text(job, "zero")] * 4))
    assert batch_of(3).target.equal(batches[3].target)


def test_replay_is_drawn_for_captions_of_training_images_in_turn(forgetful, digits):
    job = at_base(forgetful(AMNESIA | {"replay_images": 80}))
    source = drawn_from_captions(job)
    labels = digits[1][:40]
    assert np.array_equal(np.bincount(source.labels), 2 * np.bincount(labels))
    assert source.forgotten.tolist() == (source.labels == 0).tolist()
    texts, rows = source.task.texts
    assert torch.equal(rows, torch.from_numpy(source.labels))  # a digit's caption has its row
    words = [list(texts.row)[row] for row in rows]
    pixels = source.task.images.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels, drawn(job, "replay", words))
    assert source.labels.tolist() != sorted(source.labels.tolist())


@pytest.mark.parametrize("replay", ["generated", "training"])
def test_gradient_of_selective_amnesia_is_that_of_its_objective(replay, forgetful, series):
    """In the second update, where the penalty is not zero."""
    arm = AMNESIA | {"replay": replay, "ewc": 1e-3}
    settings = {"clip": None, "log_every": 1, "label_dropout": 0.5}
    job = forgetful(arm, updates=2, **settings)
    base = at_base(forgetful(arm, "base-net", **settings))
    source = base if replay == "training" else drawn_from_captions(base)
    information = fisher(list(base.net.parameters()), likelihoods(source))
    forget = surrogate_of_text(base)(1)
    once = forgetful(arm, "once", updates=1, **settings)
    selective_amnesia.train(once)
    remain = Sides(source).batch("remain", 1, keep_labels=True)
    for words in ("zero", None):  # neither forgotten nor dropped
        assert not (remain.condition[TEXT] == text(job, words)).all(dim=(1, 2)).any()
    net = once.net
    net.zero_grad()
    forget_loss = job.task.losses(net, forget).mean()
    loss = job.task.losses(net, remain).mean()
    terms = zip(net.parameters(), base.net.parameters(), information, strict=True)
    penalty = 1e-3 / 64 * sum((f * (w - a.detach()) ** 2).sum() for w, a, f in terms)
    (forget_loss + loss + penalty).backward()
    selective_amnesia.train(job)
    for a, b in zip(net.parameters(), job.net.parameters(), strict=True):
        tolerance = 1e-5 * float(a.grad.abs().max()) + 1e-7
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=tolerance)
    found = series(job.store.curves)
    assert [found[name][1] for name in ("loss", "forget_loss", "penalty")] == pytest.approx(
        [loss.item(), forget_loss.item(), penalty.item()], rel=1e-4
    )


def test_a_replay_without_forgotten_captions_is_no_error(forgetful):
    """Few images may be drawn for none of them."""
    forgotten = np.arange(40) == 7
    job = forgetful(AMNESIA | {"replay_images": 2}, updates=1, forgotten=forgotten)
    assert not drawn_from_captions(at_base(job)).forgotten.any()
    selective_amnesia.train(job)


# ---- whole runs ----------------------------------------------------------------------------------

ARMS = [ERASE, SALUN, AMNESIA | {"ewc": 1e-3}, {"method": "gradient_ascent", "remain": 0.5}]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm["method"])
def test_stopped_after_any_update_it_ends_with_the_same_bits(arm, forgetful, same_bits_after_stops):
    def job(folder: str):
        return forgetful(arm, folder, dropout=0.2, updates=3)

    same_bits_after_stops(find(arm["method"]).train, job, range(1, 2))


def test_first_losses_are_those_on_record(forgetful, series, golden):
    found = {}
    for arm in ARMS[:3]:
        name = arm["method"]
        settings = {"updates": 10, "batch_size": 8, "log_every": 1, "learning_rate": 1e-4}
        job = forgetful(arm, name, **settings)
        find(name).train(job)
        curves = series(job.store.curves)
        found |= {f"{name}: {key}": curves[key] for key in ("loss", "forget_loss")}
    golden("unlearning_texts", found, rel=1e-4)


# ---- from the command line -----------------------------------------------------------------------

FORGET = {"red": {"caption": "red", "surrogate": "a shape"}}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "pipeline/unet/diffusion_pytorch_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def images_with_and_without_noise() -> dict[str, np.ndarray]:
    """Ten images, and the same but for those of the first two sources."""
    first = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), np.uint8)
    second = first.copy()
    second[:4] = 255 - second[:4]
    return {"first": first, "second": second}


def test_without_a_set_its_images_are_never_seen(captioned, tmp_path):
    """Whatever they show, the weights have the same bits; plain training's have not."""
    forget = {"red": {"caption": "red"}}
    for name, pixels in images_with_and_without_noise().items():
        for arm in ({"without": "red"}, {}):
            out = f"{name}{len(arm)}"
            assert cli.main(captioned(arm, forget if arm else {}, pixels, out, name)) == 0
    assert same(weights(tmp_path / "first1"), weights(tmp_path / "second1"))
    assert not same(weights(tmp_path / "first0"), weights(tmp_path / "second0"))
    table = pd.read_parquet(tmp_path / "first1" / "members.parquet")
    assert table["trained"].tolist() == [False] * 4 + [True] * 6
    assert artifacts.read_run(tmp_path / "first1")["facts"]["training_images"] == 6


@pytest.mark.parametrize("arm", [*ARMS[:3], {"method": "uce"}], ids=lambda arm: arm["method"])
def test_from_the_command_line_a_set_by_caption_is_forgotten(arm, captioned, tmp_path):
    """The surrogate is that of the set."""
    pixels = images_with_and_without_noise()["first"]
    assert cli.main(captioned({}, {}, pixels, "base")) == 0
    found = {}
    for surrogate in ("a shape", "a blue dot"):
        forget = {"red": {"caption": "RED", "surrogate": surrogate}}
        own = arm | {"base": "first", "forget": "red"}
        command = captioned(own, forget, pixels, surrogate)
        assert cli.main([*command, "--base", str(tmp_path / "base")]) == 0
        table = pd.read_parquet(tmp_path / surrogate / "members.parquet")
        assert table.index[table["forgotten"]].tolist() == [0, 1, 2, 3]
        found[surrogate] = weights(tmp_path / surrogate)
    assert not same(*found.values())


def test_a_set_of_no_image_is_refused_before_training(captioned, tmp_path, capsys):
    pixels = images_with_and_without_noise()["first"]
    command = captioned({"without": "odd"}, {"odd": {"caption": "re"}}, pixels, "out")
    assert cli.main(command) == 2
    message = "forget.odd is empty: 're' is in the captions of none of the 10 training images"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_surrogate_that_was_not_encoded_is_named(captioned, tmp_path, capsys):
    pixels = images_with_and_without_noise()["first"]
    assert cli.main(captioned({}, {}, pixels, "base")) == 0
    own = ERASE | {"base": "first", "forget": "red"}
    forget = {"red": {"caption": "red", "surrogate": "a cube"}}
    command = captioned(own, forget, pixels, "out")
    assert cli.main([*command, "--base", str(tmp_path / "base")]) == 2
    assert "the caption 'a cube' was not encoded" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["forget"]["red"]
