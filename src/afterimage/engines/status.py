"""``afterimage status``: progress of a study, from the files in its folder; with ``--watch`` until
it is complete.

It only reads, so it works from any terminal that sees the folder, and next to any workflow engine.
A job is done when its ``run.json`` exists, and running while the partial folder of its result does
(not seen if results are first written to another disk, as with ``slurm/scratch.yaml``). It does not
check whether a result is up to date: ``afterimage verify`` does, and `snakemake --dry-run all`.

The progress of a training comes from its curves and its log, its speed from its newest checkpoint.
The time left for the study covers the jobs whose kind has finished in this run of snakemake, at
their mean duration and with the present number of jobs at a time.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from afterimage import artifacts, config
from afterimage.plan import jobs
from afterimage.plan.inputs import HEADING
from afterimage.plan.jobs import Job

EVERY = 2.0
"""Seconds between two updates of the screen."""
SILENT = 60.0
"""Seconds without a new point of its curves after which a training is reported as silent."""
OF_UPDATES = re.compile(r"^update \d+ of (\d+)", re.MULTILINE)
OF_ROWS = re.compile(r"^(\w+ \d+ of \d+ .* left)$", re.MULTILINE)
STARTED = "%Y-%m-%dT%H%M%S"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--study",
        type=Path,
        default=Path("params.yaml"),
        metavar="YAML",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder that holds the study's results (default: %(default)s)",
    )
    parser.add_argument(
        "--watch", action="store_true", help="look again every 2 s, until all is done or Ctrl-C"
    )
    parser.epilog = (
        "Results count as done when they exist; `afterimage verify` checks whether they are up to "
        "date."
    )


def run(args: argparse.Namespace) -> None:
    study = config.load(args.study)
    look = Look(study, args.results, Path(".snakemake"))
    terminal = sys.stdout.isatty()
    try:
        while True:
            height = shutil.get_terminal_size().lines - 1 if terminal else None
            text = "\n".join(look.lines(time.time(), height))
            # Move the cursor home and clear the screen, then print.
            print(f"\x1b[H\x1b[2J{text}" if args.watch and terminal else text, flush=True)
            if not args.watch or look.complete:
                return
            time.sleep(EVERY)
    except KeyboardInterrupt:
        print()


class Look:
    """The state of a study's jobs, from the files of its folder.

    Args:
        results: The folder that contains ``<study>``.
        engine: Snakemake's folder, ``.snakemake``.
    """

    def __init__(self, study: config.Study, results: Path, engine: Path) -> None:
        self.study, self.root, self.engine = study, Path(results) / study.study, Path(engine)
        self.jobs = jobs.jobs(study)
        self.done: set[Job] = set()
        self.running: set[Job] = set()
        self._spans: dict[Job, tuple[float, float]] = {}

    @property
    def complete(self) -> bool:
        """Whether all jobs were done at the last look."""
        return len(self.done) == len(self.jobs)

    def lines(self, now: float, height: int | None = None) -> list[str]:
        """Read the folder, and return the lines of the screen.

        Args:
            now: Seconds since the epoch.
            height: Available lines; if they do not suffice, arms that are done or waiting are only
                counted.
        """
        self._see()
        head = [self._summary(now), self._phases()]
        states = {
            f"{arm} rep{k}": self._state(arm, k, now)
            for arm in self.study.arms
            for k in range(self.study.replicates)
        }
        others = {
            job.folder: self._detail(job)
            for job in self.jobs
            if job in self.running and not job.arm
        }
        counted: Counter[str] = Counter()
        if height is not None and len(head) + 2 + len(states) + len(others) > height:
            counted.update(state for state in states.values() if state in ("done", "waiting"))
            states = {name: state for name, state in states.items() if state not in counted}
        rows = states | others
        width = max(map(len, rows), default=0)
        tail = (
            [f"and {', '.join(f'{n} {state}' for state, n in counted.items())}"] if counted else []
        )
        return [*head, "", *(f"{name:{width}}  {state}" for name, state in rows.items()), *tail]

    def _see(self) -> None:
        folders = {job: self.root / job.folder for job in self.jobs}
        self.running = {
            job for job, folder in folders.items() if artifacts.partial_folder(folder).is_dir()
        }
        self.done = {
            job
            for job, folder in folders.items()
            if job not in self.running and (folder / artifacts.RUN).is_file()
        }

    def _summary(self, now: float) -> str:
        text = f"study {self.study.study}: {len(self.done)} of {len(self.jobs)} jobs done"
        started = self._started()
        if started is None or self.complete:
            return text
        text += f", snakemake started {clock(now - started)} ago"
        left, steps = self._left(started)
        return f"{text}, about {clock(left)} left for {', '.join(steps)}" if steps else text

    def _phases(self) -> str:
        total = Counter(job.phase for job in self.jobs)
        done = Counter(job.phase for job in self.done)
        return "  ".join(f"{phase} {done[phase]}/{total[phase]}" for phase in total)

    def _state(self, arm: str, replicate: int, now: float) -> str:
        """Return the state of one replicate of an arm, as text."""
        cell = [job for job in self.jobs if (job.arm, job.replicate) == (arm, replicate)]
        if all(job in self.done for job in cell):
            return "done"
        phases: dict[str, list[Job]] = defaultdict(list)
        for job in cell:
            phases[job.phase].append(job)
        [training], [sampling], attacks = phases["train"], phases["sample"], phases["attack"]
        if training not in self.done:
            return self._training(training, now) if training in self.running else "waiting"
        finished = sum(job in self.done for job in attacks)
        at_work = [self._detail(job) for job in attacks if job in self.running]
        parts = [f"attacks {finished}/{len(attacks)}"] if finished or at_work else []
        if at_work:
            parts[0] += f" ({', '.join(at_work)})"
        if sampling in self.running:
            parts.insert(0, self._detail(sampling))
        elif sampling not in self.done:
            parts.insert(0, "trained")
        return ", ".join(parts) or "sampled"

    def _detail(self, job: Job) -> str:
        """Return the name of a running job, with the last progress line of its log, if any."""
        name = {"train": "training", "sample": "sampling"}.get(job.step, job.step.split("/")[-1])
        progress = OF_ROWS.findall(self._log(job))
        return f"{name}: {progress[-1]}" if progress else name

    def _log(self, job: Job) -> str:
        """Return what the job logged so far; a log of several jobs has a heading for each."""
        path = job.process_file(self.root / "logs", ".log")
        heading = f"{HEADING.format(' '.join(jobs.STEPS[job.step].command))}\n"
        return "" if path is None else path.read_text(errors="replace").rpartition(heading)[2]

    def _training(self, job: Job, now: float) -> str:
        folder = self.root / "state" / job.folder.removeprefix("train/")
        curves = max(
            folder.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime, default=None
        )
        update = 0 if curves is None else last_update(curves)
        if curves is None or not update:
            return "training"
        budget = OF_UPDATES.search(self._log(job))
        total = int(budget[1]) if budget else None
        text = f"training {update}{'' if total is None else f'/{total}'} updates"
        rate = updates_per_second(curves.parent)
        if rate is not None:
            text += f", {rate:.3g} updates/s"
            text += "" if total is None else f", {clock((total - update) / rate)} left"
        silent = now - curves.stat().st_mtime
        return f"{text}, nothing new for {clock(silent)}" if silent > SILENT else text

    def _started(self) -> float | None:
        """Return the start of the run of snakemake that locks the folder, in seconds since the
        epoch; None without a run."""
        logs = sorted(self.engine.glob("log/*.snakemake.log"))
        if not logs or not any(self.engine.glob("locks/*")):
            return None
        return datetime.strptime(logs[-1].name.split(".")[0], STARTED).timestamp()

    def _left(self, started: float) -> tuple[float, list[str]]:
        """Return the seconds left for the kinds of jobs that this run has finished, and these
        kinds."""
        for job in self.done - self._spans.keys():
            run = artifacts.read_run(self.root / job.folder)
            end = datetime.strptime(run["finished"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            self._spans[job] = end.timestamp() - run["seconds"], end.timestamp()
        spans = {job: span for job, span in self._spans.items() if span[0] >= started - 1}
        seconds = defaultdict(list)
        for job, (begun, ended) in spans.items():
            seconds[job.step].append(ended - begun)
        rest = [job.step for job in self.jobs if job not in self.done and job.step in seconds]
        if not rest:
            return 0.0, []
        busy = sum(ended - begun for begun, ended in spans.values())
        at_a_time = busy / (max(ended for _, ended in spans.values()) - started)
        return sum(fmean(seconds[step]) for step in rest) / at_a_time, list(dict.fromkeys(rest))


def last_update(curves: Path) -> int:
    """Return the update of the last complete point of training curves; 0 without one."""
    with curves.open("rb") as stream:
        stream.seek(max(0, curves.stat().st_size - 4096))
        lines = stream.read().splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:  # the last line may be half written, the first one is cut off
            continue
    return 0


def updates_per_second(folder: Path) -> float | None:
    """Return the speed of a run up to its newest checkpoint; None before the first."""
    for state in sorted(folder.glob("update-*/state.json"), reverse=True):
        try:
            record = json.loads(state.read_text())
        except (OSError, ValueError):  # just deleted
            continue
        return record["update"] / record["facts"]["seconds"]
    return None


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
