"""How much of a study's processor time is the steps' own work, and how much goes into starting them.

    python benchmarks/own_work.py --results results

For each step of a finished study: its jobs, the processor seconds of their own work (``cpu_seconds``
of ``run.json``: from the first input read to the last file written, with child processes), those
that start-up took before (``startup_cpu_seconds``: Python and its imports; nothing for a step that
another one of the same process came before), and the share of the first in both. What Snakemake
itself takes comes on top, and is not in these files.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from afterimage import artifacts, config
from afterimage.plan.jobs import jobs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=Path("params.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    args = parser.parse_args()
    study = config.load(args.study)
    work: dict[str, float] = defaultdict(float)
    startup: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for job in jobs(study):
        run = artifacts.read_run(args.results / study.study / job.folder)
        work[job.step] += run["cpu_seconds"]
        startup[job.step] += run["startup_cpu_seconds"]
        count[job.step] += 1
    print(f"{'step':28} {'jobs':>5} {'own work':>9} {'start-up':>9} {'share':>6}")
    for step in sorted(work, key=lambda step: work[step] + startup[step], reverse=True):
        share = work[step] / (work[step] + startup[step])
        print(f"{step:28} {count[step]:5} {work[step]:9.1f} {startup[step]:9.1f} {share:6.0%}")
    own, others = sum(work.values()), sum(startup.values())
    share = own / (own + others)
    print(f"{'all':28} {sum(count.values()):5} {own:9.1f} {others:9.1f} {share:6.0%}")


if __name__ == "__main__":
    main()
