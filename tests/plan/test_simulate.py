"""Simulations: the plan as Snakemake lists it, priced, and run on clusters of several sizes."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import pytest

from afterimage import cli, config
from afterimage.config import ConfigError
from afterimage.engines.simulation.dag import Planned, in_order, read
from afterimage.engines.simulation.schedule import Task
from afterimage.engines.simulation.simulate import changed, price, simulate, text
from afterimage.plan.cost import estimate
from afterimage.plan.jobs import jobs as jobs_of
from afterimage.plan.parts import parts as parts_of

LISTING = """\
Building DAG of jobs...
Job stats:
job      count
-----  -------
total        4

[Sun Nov 22 04:10:46 2026]
rule draw:
    input: results/s/config/sample/a/rep0.json, results/s/train/a/rep0/run.json
    output: results/s/sample/a/rep0/run.json, results/s/sample/a/rep0/images.npz
    jobid: 3
    reason: Missing output files: results/s/sample/a/rep0/run.json; Input files updated by another job: a, b
    wildcards: study=s, arm=a, rep=0
    resources: tmpdir=/tmp, gpu=1, runtime=6, mem_mb=1021
[Sun Nov 22 04:10:46 2026]
rule fit:
    input: results/s/config/train/a/rep0.json, results/s/data/split/train.npz
    output: results/s/train/a/rep0/run.json, results/s/train/a/rep0/pipeline
    resources: tmpdir=/tmp, gpu=1, runtime=9, mem_mb=1021
[Sun Nov 22 04:10:46 2026]
localrule split:
    input: results/s/config/data/split.json
    output: results/s/data/split/train.npz
    resources: tmpdir=/tmp
[Sun Nov 22 04:10:46 2026]
rule all:
    input: results/s/sample/a/rep0/run.json
    resources: tmpdir=/tmp
Reasons:
    (check individual jobs above for details)
    output files have to be generated:
        draw, fit, split
"""


def test_plan_is_read_off_the_list():
    jobs = in_order(read(LISTING, Path("results/s")))
    assert jobs == [
        Planned("split", ["data/split/train.npz"], (), False),
        Planned("fit", ["train/a/rep0/run.json", "train/a/rep0/pipeline"], (0,), True),
        Planned("draw", ["sample/a/rep0/run.json", "sample/a/rep0/images.npz"], (1,), True),
    ]


def test_parts_and_what_they_leave_share_the_cost(digits):
    study = digits(
        cluster={"device": "a100", "max_minutes_per_job": 1, "generations_per_job": 512},
        train__updates=10**6,
    )
    job = next(job for job in jobs_of(study) if job.folder == "train/baseline/rep0")
    slices = parts_of(study, job)
    assert len(slices) > 2
    blocks = ["0-512", "512-1024"]
    planned = [Planned("slice", [f"state/baseline/rep0/{part}"], (), True) for part in slices]
    planned += [Planned("fit", ["train/baseline/rep0/run.json"], (), True)]
    planned += [
        Planned("draw_block", [f"blocks/baseline/rep0/{part}"], (), True) for part in blocks
    ]
    stores = ["sample/baseline/rep0", "attack/baseline/rep0/membership"]
    planned += [Planned("draw_and_attack", [f"{store}/run.json" for store in stores], (), True)]
    planned += [Planned("mlflow", ["track/track.json"], (), False)]
    priced = price(study, planned, {"train/baseline/rep0": slices, "sample/baseline/rep0": blocks})
    start = estimate.START_GPU / 60
    trained = sum(each.cost.minutes - start for each in priced[: len(slices) + 1])
    assert trained == pytest.approx(estimate.training_minutes(study, "baseline") - start)
    *drawn, together, imported = priced[len(slices) + 1 :]
    assert sum(each.cost.minutes - start for each in drawn) == pytest.approx(
        estimate.step_cost(study, "sample", "baseline").minutes - start
    )
    assert [each.cost.gpu for each in priced] == [1] * (len(slices) + 4) + [0]
    attacked = estimate.step_cost(study, "attack/membership", "baseline").minutes
    assert attacked < together.cost.minutes < attacked + 1
    assert [each.name for each in (*drawn, together, imported)] == [
        "blocks/baseline/rep0/0-512",
        "blocks/baseline/rep0/512-1024",
        "attack/baseline/rep0",
        "track",
    ]


@pytest.mark.parametrize(
    ("gpus", "makespan", "limit"),
    [
        (1, 52, "the GPUs"),
        (4, 18, "waves that leave GPUs idle"),
        (6, 10, "the longest chain"),
        (50, 10, "the longest chain"),
    ],
)
def test_what_limits_a_cluster(gpus, makespan, limit):
    tasks = [Task(8, 1), Task(2, 1, (0,)), *[Task(8, 1)] * 4, Task(10, 1)]
    found, _ = simulate(tasks, gpus, 100, notice=0)
    assert (found.makespan, found.limit) == (makespan, limit)
    assert found.utilisation == pytest.approx(52 / (gpus * found.makespan))
    assert found.least == max(10, 52 / gpus) <= found.makespan


def test_keys_are_changed_before_the_study_is_read(root):
    study = changed(
        root / "studies/cifar10.yaml", ["replicates=16", "cluster.device=h100", "train.warmup=0"]
    )
    assert (study.replicates, study.cluster.device, study.train.warmup) == (16, "h100", 0)
    assert (
        study.model_copy(update={"replicates": 1}).arms
        == config.load(root / "studies/cifar10.yaml").arms
    )
    with pytest.raises(ConfigError, match="--set replicates: give KEY=VALUE"):
        changed(root / "params.yaml", ["replicates"])
    with pytest.raises(ConfigError, match=r"cluster\.device = 'a1000'"):
        changed(root / "params.yaml", ["cluster.device=a1000"])


def test_a_study_without_gpus_is_refused_with_what_to_do(root, capsys):
    assert cli.main(["cluster", "simulate", "--study", str(root / "params.yaml")]) == 2
    assert "give --set cluster.device=..., one of a100, h100, h200" in capsys.readouterr().err


def test_steps_that_nobody_measured_are_named():
    summary = {
        "study": "s",
        "device": "a100",
        "jobs": 1,
        "submitted": 1,
        "gpu_hours": 1.0,
        "width": 1,
        "largest": 1,
        "device_mb": 1000,
        "chain": [],
        "chain_minutes": 60,
        "runs": [],
        "unmeasured": ["attack/census", "attack/another"],
    }
    assert "nobody measured attack/census, attack/another: upper defaults" in text(summary, 80_000)
    assert "nobody measured" not in text(summary | {"unmeasured": []}, 80_000)


@pytest.mark.slow
def test_the_whole_command(root, tmp_path, monkeypatch, capsys):
    """On two arms: every job of the layout is simulated, after what it needs, at every size."""
    monkeypatch.chdir(root)
    study = "tests/workflow/tiny.yaml"
    changes = [
        "replicates=3",
        "cluster.device=a100",
        "cluster.max_minutes_per_job=0.2",
        "sample.batch_size=10",
        "cluster.generations_per_job=20",
    ]
    arguments = [
        "cluster",
        "simulate",
        "--study",
        study,
        "--gpus",
        "1",
        "4",
        "--notice",
        "0",
        "--out",
        str(tmp_path),
        "--set",
        *changes,
    ]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "simulation.json").read_text())
    with (tmp_path / "jobs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * found["jobs"]
    wanted = {job.process for job in jobs_of(changed(root / study, changes))}
    spans = {(row["gpus"], row["job"]): (float(row["start"]), float(row["end"])) for row in rows}
    for gpus in ("1", "4", ""):
        jobs = {job: span for (of, job), span in spans.items() if of == gpus}
        assert wanted <= set(jobs)
        for arm in ("baseline", "dedup"):
            for k in range(3):
                chain = [
                    f"state/{arm}/rep{k}/1of",
                    f"train/{arm}/rep{k}",
                    f"blocks/{arm}/rep{k}/20-40",
                    f"attack/{arm}/rep{k}",
                ]
                times = [
                    next(span for job, span in jobs.items() if job.startswith(start))
                    for start in chain
                ]
                assert all(end <= start + 1e-3 for (_, end), (start, _) in pairwise(times))
    one, four = found["runs"]
    assert one["makespan"] > four["makespan"] >= found["chain_minutes"]
    assert found["width"] > 4
    assert f"{found['jobs']} jobs" in printed
    assert found["unmeasured"] == []
    assert "nobody measured" not in printed
    assert (tmp_path / "width.svg").read_text().count("any number") >= 1
