"""How much of a study's processor time is the steps' own work, and how much goes into starting them.

    python benchmarks/own_work.py --results results

For each step of a finished study: its jobs, the processor seconds of their own work (``cpu_seconds`` of
``run.json``: from the first input read to the last file written), those of their whole processes (the
``cpu_time`` that Snakemake's benchmark files have, which are sampled and miss the last moments), and
the share of the first in the second. What Snakemake itself takes comes on top.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import pandas as pd

from afterimage import artifacts, config
from afterimage.plan.jobs import jobs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=Path("params.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    args = parser.parse_args()
    study = config.load(args.study)
    root = args.results / study.study
    work: dict[str, float] = defaultdict(float)
    whole: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for job in jobs(study):
        table = root / "benchmarks" / f"{job.folder.replace('report/pages/', 'report/')}.tsv"
        work[job.step] += artifacts.read_run(root / job.folder)["cpu_seconds"]
        whole[job.step] += float(pd.read_csv(table, sep="\t")["cpu_time"].iloc[0])
        count[job.step] += 1
    print(f"{'step':28} {'jobs':>5} {'own work':>9} {'process':>9} {'share':>6}")
    for step in sorted(whole, key=whole.__getitem__, reverse=True):
        share = work[step] / whole[step]
        print(f"{step:28} {count[step]:5} {work[step]:9.1f} {whole[step]:9.1f} {share:6.0%}")
    own, total = sum(work.values()), sum(whole.values())
    print(f"{'all':28} {sum(count.values()):5} {own:9.1f} {total:9.1f} {own / total:6.0%}")


if __name__ == "__main__":
    main()
