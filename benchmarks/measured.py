"""Write the measured part of the cost model: what jobs of finished studies took beside networks.

    python benchmarks/measured.py --results results/default results/larger

For each step and size the median over its jobs of processor seconds (``cpu_seconds`` of ``run.json``:
from the first input read to the last file written; Snakemake's own are sampled) and of peak memory (MB;
the larger of ``run.json``'s and of the ``benchmark:`` table's ``max_rss``), without what is counted of
networks and without libraries. Where several steps share a process, each has its peak. Rows of studies that are not given stay. Run the studies with
``OMP_NUM_THREADS=1`` on a machine of which nothing else takes the time. ``benchmarks/larger.yaml`` is
the second size of most steps; ``selection/*`` was read from ``tests/workflow/tiny.yaml`` with a
``loyal_selection`` of six updates.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from afterimage import artifacts, config
from afterimage.plan.cost import estimate
from afterimage.plan.cost.measured import TABLE, Row, rows
from afterimage.plan.jobs import STEPS, jobs, selection_jobs, study_of


def read(folder: Path) -> list[Row]:
    """Return the rows of one study.

    Args:
        folder: ``results/<study>``.
    """
    study = config.load(folder / "config" / "study.json")
    taken: dict[tuple[str, float, float], list[tuple[float, float]]] = defaultdict(list)
    for job in jobs(study) + selection_jobs(study):
        size = STEPS[job.step].size
        if size is None or not (folder / job.run).is_file():
            continue
        run = artifacts.read_run(folder / job.folder)
        timed = job._replace(folder=job.folder.replace("report/pages/", "report/"))
        table = timed.process_file(folder / "benchmarks", ".tsv")
        assert table is not None, job.folder
        with table.open(newline="") as stream:
            peak = max(float(row["max_rss"]) for row in csv.DictReader(stream, delimiter="\t"))
        counted = estimate.counted(study_of(study, job), job.step, job.name)
        numbers, compared = size(study_of(study, job), job.name)
        seconds = max(0.0, run["cpu_seconds"] - counted.seconds)
        held = max(peak, run["peak_memory_mb"]) - counted.megabytes
        # No step holds less than its images, a byte for each number.
        taken[job.step, numbers, compared].append((seconds, max(numbers / 2**20, held)))
    return [
        Row(step, study.study, numbers, compared, *np.median(costs, axis=0).round(3))
        for (step, numbers, compared), costs in taken.items()
    ]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, nargs="+", required=True, metavar="FOLDER")
    args = parser.parse_args()
    measured = [row for folder in args.results for row in read(folder)]
    studies = {row.study for row in measured}
    kept = [row for known in rows().values() for row in known if row.study not in studies]
    order = {step: place for place, step in enumerate(STEPS)}
    with TABLE.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(Row._fields)
        table.writerows(sorted(kept + measured, key=lambda row: (order[row.step], row[1:])))


if __name__ == "__main__":
    main()
