"""SalUn: which weights are salient, that the others never move, and what the salient ones
follow."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from afterimage.config import ConfigError
from afterimage.diffusion.model import load_weights
from afterimage.methods import salun
from afterimage.methods.salun import forgetting_gradient, largest
from afterimage.methods.unlearning import Sides
from afterimage.training.learner import Learner

ARM = {"method": "salun", "saliency_samples": 8}


# ---- the mask ------------------------------------------------------------------------------------


def test_largest_values_whatever_their_sign_over_all_tensors():
    values = [torch.tensor([[1.0, -5.0], [0.0, 2.0]]), torch.tensor([-3.0, 4.0])]
    matrix, vector = largest(values, 0.5)
    assert matrix.tolist() == [[False, True], [False, False]]
    assert vector.tolist() == [True, True]


@pytest.mark.parametrize(
    ("share", "chosen"), [(1.0, [1, 1, 1, 1]), (0.5, [0, 1, 1, 0]), (0.01, [0, 1, 0, 0])]
)
def test_number_of_chosen_is_exact_and_the_first_of_equals_are_taken(share, chosen):
    assert largest([torch.tensor([0.0, -2.0, 2.0, 0.0])], share)[0].tolist() == [
        bool(one) for one in chosen
    ]


@given(
    arrays(np.float32, st.integers(1, 50), elements=st.floats(-9, 9, width=16)), st.floats(0.02, 1)
)
def test_no_value_left_out_is_larger_than_one_chosen(values, share):
    mask = largest([torch.from_numpy(values)], share)[0].numpy()
    assert mask.sum() == max(1, round(share * len(values)))
    assert mask.all() or np.abs(values[mask]).min() >= np.abs(values[~mask]).max()


def test_saliency_is_the_gradient_of_the_ordinary_loss_on_the_forgotten_images_alone(
    unlearner, tmp_path
):
    """With their own labels: no label is dropped."""
    job = unlearner(tmp_path, ARM, dropout=0.5, label_dropout=0.9)
    load_weights(job.net, job.base)
    net = unlearner(tmp_path, ARM, dropout=0.5).net.eval()
    load_weights(net, job.base)
    sides = Sides(replace(job, path=(*job.path, "saliency")))
    for i in range(3):
        batch = sides.batch("forget", i, keep_labels=True)
        assert job.forgotten[batch.rows].all()
        assert set(batch.condition["class_labels"].tolist()) == {0}
        job.task.losses(net, batch).mean().backward()
    found = forgetting_gradient(job, Learner(job.net, job.train, job.accelerator), 3)
    for a, weight in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(a, weight.grad, rtol=1e-4, atol=1e-6)
    assert job.net.training


# ---- the updates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_weights_outside_the_mask_keep_every_bit_even_under_weight_decay(
    share, unlearner, tmp_path
):
    job = unlearner(
        tmp_path / "state", ARM | {"saliency": share}, weight_decay=0.5, condition="label"
    )
    base = unlearner(tmp_path / "other", ARM).net
    load_weights(base, job.base)
    result = salun.train(job)
    total = sum(weight.numel() for weight in base.parameters())
    assert result.facts["salient_weights"] == round(share * total)
    start = base.state_dict()
    for net in (result.raw, result.average):
        moved = sum(int((value != start[name]).sum()) for name, value in net.state_dict().items())
        assert 0.99 * result.facts["salient_weights"] < moved <= result.facts["salient_weights"]


def wrong(labels: torch.Tensor, relabel: str, job) -> torch.Tensor:
    if relabel == "next":
        return (labels + 1) % 10
    return salun.wrong_labels(labels, 10, salun.seeds.torch_rng(job.seed, *job.path, "relabel", 0))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("relabel", ["next", "random"])
def test_gradient_is_that_of_the_objective_where_the_mask_is_one_and_zero_elsewhere(
    relabel, parts, unlearner, series, tmp_path
):
    arm = ARM | {"relabel": relabel, "remain_weight": 3.07, "saliency": 0.4}
    job = unlearner(tmp_path / "state", arm, updates=1, clip=None, log_every=1, accumulation=parts)
    net, sides = unlearner(tmp_path / "other", arm).net, Sides(job)
    load_weights(net, job.base)
    forget = sides.batch("forget", 0, keep_labels=True)
    with torch.no_grad():
        labels = wrong(forget.condition["class_labels"], relabel, job)
        target = job.task.predict(net, replace(forget, condition={"class_labels": labels}))
    pulled = (job.task.predict(net, forget) - target).square().mean()
    rest = job.task.losses(net, sides.batch("remain", 0)).mean()
    (pulled + 3.07 * rest).backward()
    salun.train(job)
    masked = 0
    for a, b in zip(net.parameters(), job.net.parameters(), strict=True):
        torch.testing.assert_close(
            b.grad, torch.where(b.grad == 0, 0.0, a.grad), rtol=1e-3, atol=1e-6
        )
        masked += int((b.grad != 0).sum())
    assert 0.39 < masked / sum(weight.numel() for weight in net.parameters()) <= 0.401
    found = series(job.store.curves)
    assert found["loss"] == pytest.approx([rest.item()], rel=1e-5)
    assert found["forget_loss"] == pytest.approx([pulled.item()], rel=1e-4)


def test_a_target_for_the_right_label_is_met_already(unlearner, series, tmp_path, monkeypatch):
    monkeypatch.setattr(salun, "wrong_labels", lambda labels, classes, generator: labels)
    job = unlearner(tmp_path, ARM, updates=2, log_every=1)
    salun.train(job)
    # Up to rounding: dropout of 0 copies what it is given, and products of matrices with other
    # strides may round otherwise.
    assert max(series(job.store.curves)["forget_loss"]) < 1e-10


def test_target_comes_without_dropout(unlearner, series, tmp_path, monkeypatch):
    """With dropout the prediction differs from its own target; were both to drop the same, it would
    not."""
    monkeypatch.setattr(salun, "wrong_labels", lambda labels, classes, generator: labels)
    job = unlearner(tmp_path, ARM, dropout=0.5, updates=1, log_every=1)
    predictions = []
    original = job.task.predict
    monkeypatch.setattr(
        job.task,
        "predict",
        lambda net, batch: (
            predictions.append((net.training, torch.is_grad_enabled())) or original(net, batch)
        ),
    )
    salun.train(job)
    assert predictions[-3:] == [(False, False), (True, True), (True, True)]
    assert series(job.store.curves)["forget_loss"][0] > 0


def test_what_it_costs(unlearner, tmp_path):
    result = salun.train(unlearner(tmp_path, ARM | {"saliency_samples": 9}))
    assert (result.spent.updates, result.spent.updates_per_model) == (7, 7)
    assert result.spent.images_seen == result.spent.kept_samples == 7 * 2 * 4
    assert result.spent.backward_passes == 14
    assert result.facts["forward_only_passes"] == 7
    assert result.facts["setup_backward_passes"] == 3


def test_one_label_is_refused(unlearner, tmp_path):
    job = unlearner(tmp_path, ARM, condition="none")
    with pytest.raises(
        ConfigError, match="method salun needs at least 2 labels; the network knows 0"
    ):
        salun.train(job)


def test_stopped_after_any_update_it_ends_with_the_same_bits(
    unlearner, tmp_path, same_bits_after_stops
):
    def job(folder: str):
        return unlearner(tmp_path / folder, ARM, dropout=0.2, updates=5, weight_decay=0.1)

    same_bits_after_stops(salun.train, job, range(4))


def test_first_losses_are_those_on_record(unlearner, series, tmp_path, golden):
    job = unlearner(tmp_path, ARM, updates=20, batch_size=8, log_every=1, learning_rate=1e-4)
    salun.train(job)
    golden("salun", {name: series(job.store.curves)[name] for name in ("loss", "forget_loss")})
