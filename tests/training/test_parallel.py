"""Several processes that train one network: the same data in the same order, and the same result up
to the order of sums."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from afterimage import artifacts, cli
from afterimage.training import distributed
from afterimage.training.learner import Learner, plain


def weights(folder, which):
    found = folder.glob(f"{which}/**/*.safetensors")
    return {
        f"{path.parent.name}.{name}": value
        for path in found
        for name, value in load_file(path).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "stopped", "images"),
    [
        ({"method": "baseline"}, 4, 28),
        ({"method": "loyal", "switch_timestep": 500, "rau_net": {"groups": [1, 2]}}, 7, 56),
    ],
)
def test_two_processes_give_the_result_of_one_and_take_up_each_others_states(
    arm, stopped, images, tmp_path, study, curves, in_two_processes
):
    """A signal to the second process, in a network's fourth update, stops both after the same
    update; the state is finished by two, and again by one."""
    arm = arm | {"condition": "label"}
    one, two, taken = (
        study(arm, out=out, updates=7, log_every=1, accumulation=2)
        for out in ("one", "two", "taken")
    )
    first, second = in_two_processes(
        "afterimage.training.order:Order.rows", [str(tmp_path / "kept"), *two]
    )
    assert f"stopped by a signal to another process after update {stopped};" in first
    assert "update" not in second
    assert cli.main(one) == 0
    shutil.copytree(tmp_path / "kept", tmp_path / "state", dirs_exist_ok=True)
    assert cli.main(taken) == 0
    runs = [artifacts.check_store(tmp_path / out)["facts"] for out in ("one", "two", "taken")]
    assert [run["processes"] for run in runs] == [1, 2, 1]
    assert [run["resumed_at"] for run in runs] == [[], [stopped], [stopped]]
    assert [run["images_seen"] for run in runs] == [images] * 3
    for out in ("two", "taken"):
        for mine, theirs in zip(
            curves(tmp_path / "one" / "metrics.jsonl"),
            curves(tmp_path / out / "metrics.jsonl"),
            strict=True,
        ):
            assert (mine["step"], mine["name"]) == (theirs["step"], theirs["name"])
            assert theirs["value"] == pytest.approx(mine["value"], rel=1e-3)
        for which in ("pipeline", "raw"):
            own = weights(tmp_path / "one", which)
            assert own
            for name, value in weights(tmp_path / out, which).items():
                torch.testing.assert_close(value, own[name], rtol=1e-3, atol=1e-4)
    assert not list((tmp_path / "state").iterdir())


@pytest.mark.parametrize("processes", [2, 4])
def test_the_parts_of_a_batch_add_up_to_it(processes, tmp_path, make_job, monkeypatch):
    """Each process's sums, added by hand, are the gradient and the loss of a single process,
    weights of samples included."""
    job = make_job(tmp_path, batch_size=8)
    batch = job.task.batch(np.arange(8), torch.Generator().manual_seed(0))
    counts = torch.tensor([0.0, 1, 1, 1, 0, 1, 1, 0])

    def objective(net, part):
        losses, _ = plain(job.task)(net, part)
        return losses, counts[part.rows]

    whole = Learner(job.net, job.train, job.accelerator)
    loss = whole.gradient(batch, objective)
    expected = [p.grad.clone() for p in whole.net.parameters()]
    sums: list[list[torch.Tensor]] = []
    parts: list[torch.Tensor] = []
    monkeypatch.setattr(distributed, "count", lambda: processes)
    monkeypatch.setattr(
        distributed, "add", lambda grads: sums.append([grad.clone() for grad in grads])
    )
    monkeypatch.setattr(
        distributed, "total", lambda values: parts.append(values) or torch.tensor([0.0, 8.0])
    )
    shared = Learner(job.net, job.train, job.accelerator, shared=True)
    for index in range(processes):
        monkeypatch.setattr(distributed, "index", lambda index=index: index)
        shared.gradient(batch, objective)
    total = torch.stack(parts).sum(0)
    assert total[0] / total[1] * 8 == pytest.approx(loss * 8, rel=1e-5)
    for at, gradient in enumerate(expected):
        torch.testing.assert_close(
            sum(each[at] for each in sums) * 8 / total[1], gradient, rtol=1e-4, atol=1e-6
        )


def test_a_batch_that_processes_cannot_share_is_refused(study, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "count", lambda: 3)
    assert cli.main(study()) != 0
    assert (
        "train.batch_size = 4 is not a multiple of 3 processes x accumulation = 1"
        in capsys.readouterr().err
    )


def test_a_single_process_shares_with_nobody(tmp_path, make_job):
    """The bits of plain training do not depend on its being shareable."""
    job = make_job(tmp_path)
    batch = job.task.batch(np.arange(4), torch.Generator().manual_seed(0))
    grads = []
    for shared in (False, True):
        learner = Learner(make_job(tmp_path).net, job.train, job.accelerator, shared=shared)
        learner.update(0, batch, plain(job.task))
        grads.append([p.grad for p in learner.net.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
