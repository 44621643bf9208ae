"""A run that was stopped anywhere and started again ends with the same bits."""

import importlib.util
import signal

import pytest
import torch

from afterimage.methods import baseline
from afterimage.training.loop import DivergedError

VARIANTS = {
    "plain": {},
    "accumulation and warm-up": {"accumulation": 2, "warmup": 4, "weight_decay": 0.1},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "8 bits": {"optimizer": "adamw_8bit"},
    "channels last, checkpointing": {"channels_last": True, "gradient_checkpointing": True},
    "conditional, flips, dropout": {
        "condition": "label",
        "flips": True,
        "dropout": 0.2,
        "label_dropout": 0.3,
    },
}


def assert_equal(a, b) -> None:
    for one, other in ((a.raw, b.raw), (a.average, b.average)):
        assert all(
            torch.equal(x, y)
            for x, y in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_after_any_update_it_ends_with_the_same_bits(
    variant, tmp_path, make_job, stop_at, curves
):
    if variant == "8 bits" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed: pip install '.[adam8bit]'")
    job = make_job(tmp_path / "whole", **VARIANTS[variant])
    whole = baseline.train(job)
    assert whole.progress.update == 7
    for s in range(7):
        stopped = make_job(tmp_path / str(s), **VARIANTS[variant])
        stop_at(s)
        with pytest.raises(SystemExit) as left:
            baseline.train(stopped)
        assert left.value.code == 75
        again = make_job(tmp_path / str(s), **VARIANTS[variant])
        resumed = baseline.train(again)
        assert resumed.progress.resumed_at == [s + 1]
        assert_equal(whole, resumed)
        assert curves(again.store.curves) == curves(job.store.curves)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_other_signals_save_and_ask_for_the_queue_too(number, tmp_path, make_job, stop_at, capsys):
    stop_at(1, number)
    job = make_job(tmp_path)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        baseline.train(job)
    assert left.value.code == 75
    assert job.store.load().update == 2
    assert f"stopped by {number.name} after update 2" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once(tmp_path, make_job, stop_at):
    stop_at(4, signal.SIGINT, times=2)
    job = make_job(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        baseline.train(job)
    assert job.store.load().update == 3


def test_damaged_newest_state_costs_updates_but_no_bits(tmp_path, make_job, stop_at, caplog):
    whole = baseline.train(make_job(tmp_path / "whole"))
    stop_at(4)
    job = make_job(tmp_path / "stopped")
    with pytest.raises(SystemExit):
        baseline.train(job)
    weights = job.store.saved()[0] / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    resumed = baseline.train(make_job(tmp_path / "stopped"))
    assert resumed.progress.resumed_at == [3]
    assert "damaged" in caplog.text
    assert_equal(whole, resumed)


def test_curves_of_an_attempt_that_saved_nothing_are_forgotten(tmp_path, make_job, curves):
    whole, job = make_job(tmp_path / "whole"), make_job(tmp_path / "killed")
    baseline.train(whole)
    job.store.curves.write_text('{"step": 2, "name": "loss", "value": 1.0}\n{"step": 2, "na')
    baseline.train(job)
    assert curves(job.store.curves) == curves(whole.store.curves)


def test_state_keeps_the_curves_that_were_not_yet_written(tmp_path, make_job, curves):
    """Updates 1..7 with a point every 2: the points are means over 2, and the last is update 7
    alone."""
    fine, coarse = make_job(tmp_path / "fine", log_every=1), make_job(tmp_path / "coarse")
    baseline.train(fine)
    baseline.train(coarse)
    losses = {
        row["step"]: row["value"] for row in curves(fine.store.curves) if row["name"] == "loss"
    }
    points = {
        row["step"]: row["value"] for row in curves(coarse.store.curves) if row["name"] == "loss"
    }
    assert list(losses) == [1, 2, 3, 4, 5, 6, 7]
    assert points == pytest.approx(
        {
            2: (losses[1] + losses[2]) / 2,
            4: (losses[3] + losses[4]) / 2,
            6: (losses[5] + losses[6]) / 2,
            7: losses[7],
        }
    )


def test_divergence_names_the_update_and_the_last_good_state(tmp_path, make_job, monkeypatch):
    job = make_job(tmp_path)
    original = job.task.losses
    calls = []

    def losses(net, batch):
        calls.append(1)
        return original(net, batch) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setattr(job.task, "losses", losses)
    with pytest.raises(
        DivergedError,
        match=r"at update 6 the loss is nan; the last good state is .*update-00000003",
    ):
        baseline.train(job)


def test_budget_in_epochs(tmp_path, make_job):
    job = make_job(tmp_path, updates=None, epochs=2)
    assert job.train.batch_size == 4
    assert len(job.task) == 13
    assert baseline.train(job).progress.update == 7
