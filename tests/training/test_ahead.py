"""Batches that are made one update ahead are those that would be made when they are asked for."""

import threading

import pytest
import torch

from afterimage.methods import baseline, loyal
from afterimage.methods.iet_agc import train as iet_agc
from afterimage.training import ahead, stacked

DEVICE = torch.device("xpu")
"""Any device but a processor, and without pinned memory."""


def test_the_next_batch_is_made_before_it_is_asked_for_and_each_once():
    made, threads, second = [], set(), threading.Event()

    def make(s):
        made.append(s)
        threads.add(threading.current_thread())
        if s == 1:
            second.set()
        return s

    batches = ahead.Ahead(make, DEVICE)
    assert batches(0) == 0
    assert second.wait(10)
    assert [batches(s) for s in (1, 2)] == [1, 2]
    assert made[:3] == [0, 1, 2]
    assert len(threads) == 2
    assert batches(7) == 7  # resumed elsewhere


def test_on_a_processor_nothing_is_made_ahead():
    made = []
    batches = ahead.Ahead(lambda s: made.append(s) or s, torch.device("cpu"))
    assert [batches(s) for s in (0, 1)] == [0, 1]
    assert made == [0, 1]


def test_what_goes_wrong_is_raised_where_the_batch_is_asked_for():
    def make(s):
        if s == 2:
            raise ValueError("batch 2")
        return s

    batches = ahead.Ahead(make, DEVICE)
    assert [batches(s) for s in (0, 1)] == [0, 1]
    with pytest.raises(ValueError, match="batch 2"):
        batches(2)


def stack(job):
    return stacked.train([job])[0]


MOVING = {"method": "iet_agc", "shards": 2, "rounds": 3, "agc_threshold": 0.9}
RUNS = {
    "baseline": (baseline.train, {"flips": True, "dropout": 0.2}),
    "loyal": (loyal.train, {"arm": {"method": "loyal", "switch_timestep": 300}}),
    "iet_agc": (
        iet_agc.train,
        {"arm": MOVING | {"redistribute_above": 0.01, "augment_below": 1.5}, "updates": 12},
    ),
    "stacked": (stack, {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_training_ends_with_the_same_bits(name, make_job, tmp_path, monkeypatch):
    train, settings = RUNS[name]
    # Every other sample is skipped, so that images change shards.
    monkeypatch.setattr(iet_agc.Bank, "kept", lambda bank, timesteps, losses: timesteps % 2 == 0)
    settings = {"images": 40, "updates": 6} | settings
    expected = train(make_job(tmp_path / "asked", **settings))
    original, made = ahead.Ahead.__init__, []

    def elsewhere(self, make, device):
        def noting(s):
            made.append(threading.current_thread())
            return make(s)

        original(self, noting, DEVICE)

    monkeypatch.setattr(ahead.Ahead, "__init__", elsewhere)
    found = train(make_job(tmp_path / "ahead", **settings))
    assert len(set(made)) > 1
    for one, other in ((found.raw, expected.raw), (found.average, expected.average)):
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    if name == "iet_agc":
        shards = found.tables["skips_by_image"]["shard"]
        assert shards == expected.tables["skips_by_image"]["shard"]
        assert shards.to_pylist() != [0] * 20 + [1] * 20
