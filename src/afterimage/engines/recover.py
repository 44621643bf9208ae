"""``afterimage recover``: after snakemake was killed, or its host restarted, end the jobs it left
behind, and unlock the folder.

A snakemake that is killed cannot end its jobs: on a cluster they keep running, and pending jobs
still start. Unlocking the folder and calling snakemake again would then run every such job twice,
in one folder. So this command finds the jobs in Snakemake's logs in ``.snakemake/log`` (its SLURM
plugin gives all jobs of a run the same name), and jobs on this host by their working folder; it
ends them, waits until they are gone, and only then removes the lock. A training that is ended saves
its state. Finished results stay; unfinished ones are detected by the next call and computed again.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from afterimage.artifacts import ArtifactError
from afterimage.engines import settings_lock

PATIENCE = 300.0
"""Seconds until jobs must have ended; SLURM itself kills a job that has not ended 30 s (KillWait)
after `scancel`."""
RUN_ID = re.compile(r"SLURM run ID: (\S+)")
HEADER = re.compile(r"  (Host|Command): (.+)")


class Run(NamedTuple):
    """One call of snakemake, as recorded in its log.

    Attributes:
        host: Host where it was started.
        command: Command that started it.
        slurm_id: Name of its jobs on the cluster; None without a cluster.
    """

    host: str
    command: str
    slurm_id: str | None


class Job(NamedTuple):
    """One line of ``squeue``."""

    number: str
    run: str
    state: str
    comment: str

    def __str__(self) -> str:
        rule, _, wildcards = self.comment.removeprefix("rule_").partition("_wildcards_")
        job = f"{rule} of {wildcards}" if wildcards else rule
        return f"SLURM job {self.number} ({job}, {self.state.lower()})"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="where snakemake worked (default: here)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what is left behind")
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if snakemake was started on another host, which cannot be checked from here",
    )


def run(args: argparse.Namespace) -> int:
    directory = args.directory.resolve()
    if not (directory / ".snakemake").is_dir():
        raise ArtifactError(
            f"{directory} has no .snakemake: snakemake never worked there; give --directory"
        )
    locks = directory / ".snakemake" / "locks"  # missing after a run that ended normally
    if alive := at_work(directory):
        raise ArtifactError(
            f"snakemake is at work in {directory}: {alive}. Stop it there (Ctrl-C ends its jobs); "
            "nothing was done"
        )
    past = runs(directory)
    locked = locks.is_dir() and any(locks.iterdir())
    elsewhere = past[-1].host if past and past[-1].host != socket.gethostname() else None
    if elsewhere and locked and not (args.force or args.dry_run):
        raise ArtifactError(
            f"snakemake was last started on {elsewhere}, and whether it is still at work there "
            "cannot be seen from here. Type this there, or give --force if that host is down or "
            "snakemake no longer runs there; nothing was done"
        )
    names = [run.slurm_id for run in past if run.slurm_id]
    queued, orphans = in_queue(names), on_this_host(directory)
    for job in queued:
        print(job)
    for process in orphans:
        print(f"process {process.pid} on this host: {shlex.join(process.cmdline())}")
    if args.dry_run:
        print(
            f"{len(queued) + len(orphans)} job(s) left behind; the folder is "
            f"{'' if locked else 'not '}locked; nothing was done"
        )
        return 0
    _end(names, orphans)
    if locked:
        shutil.rmtree(locks)  # as `snakemake --unlock`, which would need a valid study
        locks.mkdir()
    print(
        f"{len(queued) + len(orphans)} job(s) ended; {directory} "
        f"{'is unlocked' if locked else 'was not locked'}"
    )
    if past:
        print(f"to resume, type: {past[-1].command}")
    return 0


def at_work(directory: Path) -> str | None:
    """Return the main process of snakemake that works in a folder, as text; None if there is
    none."""
    for config in sorted(directory.glob("results/*/config")):
        if holder := settings_lock.holder(config):
            return holder
    for process in _working_in(directory):
        words = process.cmdline()
        if any(Path(word).name == "snakemake" for word in words[:3]) and "--mode" not in words:
            return f"process {process.pid}: {shlex.join(words)}"
    return None


def runs(directory: Path) -> list[Run]:
    """Return the calls of snakemake that ran jobs, oldest first."""
    calls = []
    for path in sorted((directory / ".snakemake" / "log").glob("*.snakemake.log")):
        header: dict[str, str] = {}
        slurm_id = None
        with path.open(errors="replace") as lines:
            for line in lines:
                if match := HEADER.match(line):
                    header.setdefault(match[1], match[2].strip())
                elif match := RUN_ID.search(line):
                    slurm_id = match[1]
                # It ran jobs from here on; a log without this line is of a dry run.
                elif line.startswith("Using shell:"):
                    program, *rest = header.get("Command", "snakemake").split(" ", 1)
                    calls.append(
                        Run(header.get("Host", ""), " ".join([Path(program).name, *rest]), slurm_id)
                    )
                    break
    return calls


def in_queue(names: list[str]) -> list[Job]:
    """Return the pending and running jobs of some runs.

    Raises:
        ArtifactError: if there were runs on a cluster and it cannot be queried.
    """
    if not names:
        return []
    if shutil.which("squeue") is None:
        raise ArtifactError(
            f"snakemake worked on a SLURM cluster from here (run {names[-1]}), but there is no "
            "squeue on this host to look for its jobs; type this where `squeue` works. Nothing was "
            "done"
        )
    jobs = []
    for start in range(0, len(names), 100):
        chunk = ",".join(names[start : start + 100])
        listed = _call("squeue", "--noheader", "--format", "%i|%j|%T|%k", "--name", chunk)
        jobs += [Job(*line.strip().split("|", 3)) for line in listed.splitlines() if line.strip()]
    return jobs


def on_this_host(directory: Path) -> list[psutil.Process]:
    """Return the steps that still run in a folder without a parent snakemake, except steps inside
    SLURM jobs."""
    orphans = []
    for process in _working_in(directory):
        words = process.cmdline()
        if any(Path(word).name == "afterimage" for word in words[:2]) and "--config" in words:
            try:
                in_job = "SLURM_JOB_ID" in process.environ()
            except psutil.Error:
                continue
            if not in_job:
                orphans.append(process)
    return orphans


def _working_in(directory: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(directory) and process.cmdline():
                yield process
        except psutil.Error:  # gone, or another user's
            continue


def _end(names: list[str], orphans: list[psutil.Process]) -> None:
    """End all jobs of some runs and some processes, and wait until they are gone."""
    deadline = time.monotonic() + PATIENCE
    for process in orphans:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    cancelled: set[str] = set()
    while left := in_queue(names):
        if new := [job.number for job in left if job.number not in cancelled]:
            # A job that has ended in the meantime is an error for scancel, but not here.
            done = subprocess.run(["scancel", *new], capture_output=True, text=True)
            print(
                f"scancel {' '.join(new)}",
                done.stderr.strip(),
                sep="\n" if done.stderr.strip() else "",
            )
            cancelled.update(new)
        if time.monotonic() > deadline:
            raise ArtifactError(
                f"still there after {PATIENCE:.0f} s: {', '.join(map(str, left))}; the folder "
                "stays as it was"
            )
        time.sleep(1)
    _, alive = psutil.wait_procs(orphans, timeout=max(0.0, deadline - time.monotonic()))
    if alive:
        numbers = ", ".join(str(process.pid) for process in alive)
        raise ArtifactError(
            f"still there after {PATIENCE:.0f} s: process {numbers}; the folder stays as it was"
        )


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ArtifactError(
            f"`{shlex.join(command)}` failed, so the folder stays as it was: {done.stderr.strip()}"
        )
    return done.stdout
