"""Batches that are made one update ahead are those that would be made when they are asked for."""

import threading

import pytest
import torch

from afterimage.diffusion.condition import each_tensor
from afterimage.diffusion.noising import Batch
from afterimage.methods import baseline, dp_sgd, find, loyal
from afterimage.methods.iet_agc import train as iet_agc
from afterimage.training import ahead, stacked
from afterimage.training.job import TrainingRun

from .conftest import UNLEARNERS

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
    "dp_sgd": (dp_sgd.train, {"arm": {"method": "dp_sgd", "noise_multiplier": 1.0}}),
}


@pytest.fixture
def start(make_job, unlearner):
    """Return a function that trains by a method, in a state folder of its own."""

    def train(name, folder):
        if name in UNLEARNERS:
            job = unlearner(folder, UNLEARNERS[name], updates=4, dropout=0.2)
            return find(job.arm.method).train(job)
        method, settings = RUNS[name]
        return method(make_job(folder, **{"images": 40, "updates": 6} | settings))

    return train


@pytest.fixture
def computing_on(monkeypatch):
    """Return a function that has batches made for another device from then on; it returns the list
    of the threads that make them."""
    original = ahead.Ahead.__init__

    def arrange(device):
        made = []

        def elsewhere(self, make, _):
            def noting(s):
                made.append(threading.current_thread())
                return make(s)

            original(self, noting, device)

        monkeypatch.setattr(ahead.Ahead, "__init__", elsewhere)
        return made

    return arrange


@pytest.mark.parametrize("name", [*RUNS, *UNLEARNERS])
def test_a_training_ends_with_the_same_bits(name, start, tmp_path, monkeypatch, computing_on):
    # Every other sample is skipped, so that images change shards.
    monkeypatch.setattr(iet_agc.Bank, "kept", lambda bank, timesteps, losses: timesteps % 2 == 0)
    expected = start(name, tmp_path / "asked")
    made = computing_on(DEVICE)
    found = start(name, tmp_path / "ahead")
    assert len(set(made)) > 1
    for one, other in ((found.raw, expected.raw), (found.average, expected.average)):
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    if name == "iet_agc":
        shards = found.tables["skips_by_image"]["shard"]
        assert shards == expected.tables["skips_by_image"]["shard"]
        assert shards.to_pylist() != [0] * 20 + [1] * 20


SAMPLED = "esd, sampled"
"""Its noisy images are made on the device."""


@pytest.mark.parametrize("name", [*RUNS, *(name for name in UNLEARNERS if name != SAMPLED)])
def test_a_gpu_copies_every_batch_while_the_processor_goes_on(
    name, start, tmp_path, monkeypatch, computing_on
):
    """From pinned memory, and without waiting for the copy; here both are noted instead of done."""
    computing_on(torch.device("cuda"))
    pinned, copies, running = {}, [], []

    def memory(tensor):
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # by vmap: has none
        return None if wrapped else tensor.untyped_storage().data_ptr()

    def pin_memory(tensor):
        copy = tensor.clone()
        pinned[memory(copy)] = copy
        return copy

    def run(job, *args, **named):
        running.append(job)
        return originals[0](job, *args, **named)

    def batch_to(batch, device):
        tensors = []
        # What is predicted on the device is the target of some batches.
        parts = (batch.rows, batch.noisy, batch.timesteps, batch.condition)
        each_tensor(parts, tensors.append)
        if running:
            copies.extend(memory(tensor) in pinned for tensor in tensors)
        return originals[1](batch, device)

    def tensor_to(tensor, *args, **named):
        if memory(tensor) in pinned:
            copies.append(named.get("non_blocking", False))
        return originals[2](tensor, *args, **named)

    originals = TrainingRun.run, Batch.to, torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(TrainingRun, "run", run)
    monkeypatch.setattr(Batch, "to", batch_to)
    monkeypatch.setattr(torch.Tensor, "to", tensor_to)
    start(name, tmp_path)
    assert len(copies) >= 6 * 4
    assert all(copies)
