"""What the GPU studies cost, as `afterimage cluster simulate` estimates it.

    python benchmarks/cluster.py docs/cluster.csv

Writes one row per study, or change of a study, and prints the table of docs/cluster.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
CASES = {
    "cifar10, 16 replicates": ("cifar10", ["replicates=16"]),
    "the same, 4 GPUs per training": ("cifar10", ["replicates=16", "cluster.gpus_per_training=4"]),
    "cifar2-das": ("cifar2-das", []),
    "iet-cifar10, 2 replicates": ("iet-cifar10", ["replicates=2"]),
    "erasediff-cifar10": ("erasediff-cifar10", []),
    "loyal-laion10k": ("loyal-laion10k", []),
    "iet-laion10k, on H200s": ("iet-laion10k", []),
    "erasediff-imagenette": ("erasediff-imagenette", []),
    "das-artbench2-lora": ("das-artbench2-lora", []),
}
GPUS = (8, 32, 128)


def row(name: str) -> dict[str, object]:
    """Return what the simulation says of one case."""
    study, changes = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "afterimage.cli", "cluster", "simulate"]
        command += ["--study", str(ROOT / "studies" / f"{study}.yaml"), "--out", folder]
        command += ["--gpus", *map(str, GPUS), *(["--set", *changes] if changes else [])]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((Path(folder) / "simulation.json").read_text())
    longest = max(summary["chain"], key=lambda step: step["minutes"])
    return {
        "study": name,
        "device": summary["device"],
        "jobs": summary["jobs"],
        "gpu_hours": round(summary["gpu_hours"], 1),
        "width": summary["width"],
        **{f"on_{run['gpus']}": round(run["makespan"] / 60, 1) for run in summary["runs"]},
        "chain_hours": round(summary["chain_minutes"] / 60, 1),
        "longest_job": longest["job"],
        "longest_job_hours": round(longest["minutes"] / 60, 1),
    }


def markdown(table: pd.DataFrame) -> str:
    """Return the table as ``docs/cluster.md`` shows it."""
    heads = ["study", "jobs", "GPU-hours", "GPUs of use at once"]
    heads += [*(f"on {gpus}" for gpus in GPUS), "longest chain", "its longest job"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for case in table.to_dict("records"):
        cells = [case["study"], case["jobs"], f"{case['gpu_hours']:.0f}", case["width"]]
        cells += [f"{case[f'on_{gpus}']:.1f} h" for gpus in GPUS]
        cells += [f"{case['chain_hours']:.1f} h"]
        cells += [f"`{case['longest_job']}`, {case['longest_job_hours']:.1f} h"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="CSV file to write")
    out = parser.parse_args().out
    table = pd.DataFrame([row(name) for name in CASES])
    table.to_csv(out, index=False)
    print(markdown(table))
