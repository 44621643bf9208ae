"""What SLURM costs: one study by `snakemake --profile slurm` against `snakemake --cores`, on the same cores of one machine.

    python benchmarks/slurm.py --cores 2

Starts the throw-away cluster of the tests (root; `python tests/slurm/cluster.py install` first), runs the small study of its tests
twice from raw data to pages, and prints wall time, CPU time of the whole machine, and what each SLURM job lost. Other work on the
machine falsifies both.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "tests" / "slurm" / "study.yaml"
CLUSTER = [sys.executable, str(ROOT / "tests" / "slurm" / "cluster.py")]


class Taken(NamedTuple):
    """Wall seconds, CPU seconds of the machine, and SLURM jobs of one run."""

    wall: float
    cpu: float
    jobs: int


def busy() -> float:
    """Return the seconds that all cores have worked since the machine started (user, nice, system, interrupts)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")


def run(*engine: str) -> Taken:
    """Run the study from raw data to pages in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "snakemake",
            *engine,
            "--directory",
            folder,
            "--configfile",
            str(STUDY),
            "--",
            "all",
        ]
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        }
        worked, started = busy(), time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        taken = time.monotonic() - started, busy() - worked
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return Taken(
        *taken, len(re.findall("has been submitted with SLURM jobid", done.stdout + done.stderr))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cores",
        type=int,
        default=2,
        help="cores of the local run, and SLURM jobs at once (default: %(default)s)",
    )
    cores = str(parser.parse_args().cores)
    local = run("--cores", cores)
    print(
        f"local, {cores} cores          {local.wall:6.1f} s   {local.cpu:6.1f} s of CPU", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="afterimage-slurm-") as folder:
        subprocess.run([*CLUSTER, "start", folder], check=True, capture_output=True)
        try:
            for name, flags in (
                ("as it is", []),
                ("polled every 2 s", ["--slurm-init-seconds-before-status-checks", "2"]),
            ):
                slurm = run("--profile", "slurm", "--jobs", cores, *flags)
                lost = [
                    (there - here) / slurm.jobs
                    for there, here in zip(slurm[:2], local[:2], strict=True)
                ]
                print(
                    f"SLURM, {cores} jobs, {name:16} {slurm.wall:6.1f} s   {slurm.cpu:6.1f} s of CPU   {slurm.jobs} jobs   "
                    f"{slurm.wall / local.wall:.2f} x the time; per job {lost[0]:.1f} s and {lost[1]:.1f} s of CPU",
                    flush=True,
                )
        finally:
            subprocess.run([*CLUSTER, "stop", folder], check=False)


if __name__ == "__main__":
    main()
