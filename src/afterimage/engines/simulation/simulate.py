"""``afterimage cluster simulate``: estimate how long a study takes on a given number of GPUs, and
what limits it.

The jobs and their dependencies are Snakemake's (``dag``), their times are estimates (``cost``), and
the cluster starts whatever is ready (``schedule``). So the answer is as good as the estimates: GPUs
are assumed to reach a certain speed. Processors are assumed to be plentiful; a queue shared with
others, failures and slow file systems are not modelled.

It prints, for each number of GPUs, the time from the first job to the last (makespan), the share of
all GPU time in which networks run, and the limit: the critical path, which no number of GPUs
shortens; the GPUs; or waves of jobs that leave some of them idle. ``--out`` gets the same as
``simulation.json``, the jobs of every simulation as ``jobs.csv`` (gpus, job, gpu, start, end;
minutes; gpus is empty for an unlimited number), and ``width.svg``, the GPUs in use over time.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from afterimage import config
from afterimage.config import ConfigError, Study
from afterimage.engines.simulation.dag import Planned, plan
from afterimage.engines.simulation.schedule import Span, Task, busy, longest_chain, schedule
from afterimage.plan.cost import estimate
from afterimage.plan.cost.estimate import share_of
from afterimage.plan.jobs import jobs as jobs_of

NEAR = 1.1
"""A makespan within this factor of a bound is reported as limited by it."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--study", type=Path, default=Path("params.yaml"), help="study file (default: %(default)s)"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        nargs="+",
        default=[1, 8, 32, 128],
        metavar="G",
        help="sizes of the cluster",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="jobs in the cluster at once (snakemake --jobs); default: any number",
    )
    parser.add_argument(
        "--notice",
        type=float,
        default=1.5,
        metavar="MINUTES",
        help="until snakemake notices that a job has ended: it polls every 15 s at first, later "
        "every 3 minutes (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="keys of the study to change first, e.g. replicates=16 cluster.device=a100",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the numbers and a picture"
    )


@dataclass(frozen=True)
class Simulation:
    """A study on one cluster.

    Attributes:
        gpus: GPUs of the cluster.
        makespan: Minutes.
        utilisation: Share of the GPUs' time in which jobs hold them.
        least: Lower bound on the makespan over all orders, in minutes.
        limit: What limits the makespan.
    """

    gpus: int
    makespan: float
    utilisation: float
    least: float
    limit: str


def changed(path: Path, changes: Sequence[str]) -> Study:
    """Return the study of a file with some keys changed.

    Raises:
        ConfigError: for a change that is not KEY=VALUE, or if the changed study is not valid.
    """
    study = config.load(path).model_dump(mode="json", exclude_unset=True)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: give KEY=VALUE, such as replicates=16")
        *parents, last = key.split(".")
        block: dict[str, Any] = study
        for parent in parents:
            block = block.setdefault(parent, {})
        block[last] = yaml.safe_load(value)
    return config.parse(study, f"{path} with {' '.join(changes)}" if changes else str(path))


class Priced(NamedTuple):
    """A planned job with its name (its folder, or a part of it) and its cost."""

    name: str
    cost: estimate.Cost
    task: Task


PARTS = {"state": "train", "blocks": "sample"}
"""Top folder of a part's output -> the step that it is a part of."""


def price(study: Study, jobs: Sequence[Planned], parts: dict[str, list[str]]) -> list[Priced]:
    """Return the jobs with their costs.

    Args:
        study: The study.
        jobs: Its plan.
        parts: Folder of a job -> its parts.
    """
    known = {job.folder: job for job in jobs_of(study)}
    priced = []
    for job in jobs:
        name, _, part = job.outputs[0].rpartition("/")
        top, _, replicate = name.partition("/")
        stores = dict.fromkeys(path.rpartition("/")[0] for path in job.outputs)
        if made := [known[store] for store in stores if store in known]:
            name = made[0].process
            steps = [
                (each.step, each.name, share_of(study, each.step, None, parts.get(each.folder, [])))
                for each in made
            ]
        elif top in PARTS:
            name, step, arm = job.outputs[0], PARTS[top], replicate.split("/")[0]
            share = share_of(study, step, part, parts[f"{step}/{replicate}"])
            steps = [(step, arm, share)]
        else:  # no result of its own: the import into MLflow
            steps = [("report/tables", "", 1.0)]
        cost = estimate.together(
            [estimate.step_cost(study, step, arm, share=share) for step, arm, share in steps]
        )
        priced.append(Priced(name, cost, Task(cost.minutes, cost.gpu, job.needs, job.submitted)))
    return priced


def simulate(
    tasks: Sequence[Task], gpus: int, jobs: float, notice: float
) -> tuple[Simulation, list[Span]]:
    """Run tasks on a cluster.

    Args:
        tasks: The tasks.
        gpus: GPUs of the cluster.
        jobs: Maximum number of submitted tasks at once.
        notice: As in ``schedule``.
    """
    spans = schedule(tasks, gpus, jobs, notice)
    makespan = max(span.end for span in spans)
    chain = chain_minutes(tasks, notice)
    work = sum(task.gpu * task.minutes for task in tasks)
    least = max(chain, work / gpus)
    if makespan <= NEAR * chain:
        limit = "the longest chain"
    elif makespan <= NEAR * work / gpus:
        limit = "the GPUs"
    else:
        limit = "waves that leave GPUs idle"
    return Simulation(gpus, makespan, work / (gpus * makespan), least, limit), spans


def chain_minutes(tasks: Sequence[Task], notice: float) -> float:
    """Return the length of the critical path; the last job's end need not be noticed."""
    *first, last = longest_chain(tasks, notice)
    return sum(tasks[i].minutes + notice * tasks[i].submitted for i in first) + tasks[last].minutes


def run(args: argparse.Namespace) -> None:
    """Simulate a study and print the results."""
    study = changed(args.study, args.set)
    device = estimate.DEVICES[study.cluster.device]
    if not device.gpu:
        gpus = ", ".join(name for name, other in estimate.DEVICES.items() if other.gpu)
        raise ConfigError(
            f"cluster.device = {study.cluster.device!r}: no job asks for a GPU; give --set "
            f"cluster.device=..., one of {gpus}"
        )
    with tempfile.TemporaryDirectory() as folder:
        jobs = price(study, *plan(study, Path(folder)))
    tasks = [job.task for job in jobs]
    largest = max(task.gpu for task in tasks)
    runs = [
        simulate(tasks, gpus, args.jobs or math.inf, args.notice)
        for gpus in args.gpus
        if gpus >= largest
    ]
    free = schedule(tasks, notice=args.notice)
    chain = [jobs[i] for i in longest_chain(tasks, args.notice)]
    summary = {
        "study": study.study,
        "changes": args.set,
        "device": study.cluster.device,
        "jobs": len(jobs),
        "submitted": sum(task.submitted for task in tasks),
        "gpu_hours": sum(task.gpu * task.minutes for task in tasks) / 60,
        "width": max((gpus for _, gpus in busy(tasks, free)), default=0),
        "largest": largest,
        "device_mb": max(job.cost.device_mb for job in jobs),
        "chain_minutes": chain_minutes(tasks, args.notice),
        "chain": [{"job": job.name, "minutes": job.task.minutes} for job in chain],
        "runs": [asdict(simulation) for simulation, _ in runs],
        "unmeasured": estimate.unmeasured(jobs_of(study)),
    }
    print(text(summary, device.memory_mb))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "simulation.json").write_text(json.dumps(summary, indent=2) + "\n")
        with (args.out / "jobs.csv").open("w", newline="") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["gpus", "job", "gpu", "start", "end"])
            sized = [(str(simulation.gpus), spans) for simulation, spans in runs]
            for size, spans in [*sized, ("", free)]:
                rows = zip(jobs, spans, strict=True)
                table.writerows(
                    [size, job.name, job.task.gpu, round(span.start, 3), round(span.end, 3)]
                    for job, span in rows
                )
        draw(
            {f"{simulation.gpus} GPUs": busy(tasks, spans) for simulation, spans in runs}
            | {"any number": busy(tasks, free)},
            args.out,
        )


def text(summary: dict[str, Any], memory_mb: int) -> str:
    """Return the printed summary."""
    lines = [
        f"study {summary['study']} on {summary['device']}: {summary['jobs']} jobs, "
        f"{summary['submitted']} of them submitted; {summary['gpu_hours']:.1f} GPU-hours; "
        f"{summary['width']} GPUs are of use at once",
        f"a job needs {summary['largest']} GPU(s) at most, and about "
        f"{summary['device_mb'] / 1000:.1f} GB of the {memory_mb / 1000:.0f} that one has",
        "longest chain: "
        + ", ".join(
            f"{step['job']} {hours(step['minutes'])}"
            for step in summary["chain"]
            if step["minutes"] >= 1
        )
        + f"; {hours(summary['chain_minutes'])} in all",
        "",
        f"{'GPUs':>6} {'makespan':>10} {'GPUs busy':>10} {'at least':>10}  limited by",
    ]
    lines += [
        f"{run['gpus']:>6} {hours(run['makespan']):>10} {run['utilisation']:>10.0%} "
        f"{hours(run['least']):>10}  {run['limit']}"
        for run in summary["runs"]
    ]
    if summary["unmeasured"]:
        steps = ", ".join(summary["unmeasured"])
        lines += ["", f"nobody measured {steps}: upper defaults are taken (benchmarks/measured.py)"]
    return "\n".join(lines)


def hours(minutes: float) -> str:
    """Return a time as text."""
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def draw(widths: dict[str, list[tuple[float, int]]], folder: Path) -> None:
    """Draw the number of GPUs in use over time, one panel for each cluster."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.6 * len(widths)), layout="constrained")
    axes = figure.subplots(len(widths), squeeze=False)
    for axis, (name, changes) in zip(axes[:, 0], widths.items(), strict=True):
        times, gpus = [minutes / 60 for minutes, _ in changes], [count for _, count in changes]
        axis.fill_between(times, gpus, step="post", alpha=0.4)
        axis.step(times, gpus, where="post")
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.set_title(name, loc="left", fontsize="medium")
        axis.set_ylabel("GPUs in use")
    axes[-1, 0].set_xlabel("hours")
    # The same small file each time.
    with matplotlib.rc_context({"svg.hashsalt": "afterimage", "svg.fonttype": "none"}):
        figure.savefig(folder / "width.svg", metadata={"Date": None})
