"""How early or late `afterimage watch` says that a training starts to copy, and how often it is wrong.

    python benchmarks/onset.py FOLDER docs/onset.csv [--studies copying-emoji clean-emoji] [--trainings 10] [--cores 2]

Trains digits, and emoji of 8 x 8 pixels, with kept states in FOLDER, where an interrupted run goes on: on images with planted copies,
and on images without any, so briefly that nothing is copied. At each state the rule of `watch` looks at 256 generations; the full
attack looks at 2,048 others, each state at 5 % for itself. One row per training: the update from which each says that
it copies (empty: never). Rows of studies that are not asked for stay. Emoji are read from the folder in AFTERIMAGE_DATA.
"""

import argparse
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from afterimage import config
from afterimage.data.members import trained_rows
from afterimage.diffusion.sample import generate, load_trained
from afterimage.images import Images, load_images
from afterimage.standalone.looks import Watch

LOOK, FULL = 256, 2048
STATES, FIRST = 8, 0.1
SHARES = np.geomspace(FIRST, 1, STATES)
"""Share of the budget that each state has spent."""
SEED = 20260301
COMMON: dict[str, Any] = {
    "seed": SEED,
    "model": {
        "channels": [16, 32],
        "attention": [False, True],
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_groups": 8,
    },
    "diffusion": {"timesteps": 1000, "schedule": "cosine", "prediction": "epsilon"},
    "dedup": {"methods": ["exact"]},
    "classifier": {"channels": [16, 32], "features": 32, "epochs": 2},
    "arms": {"plain": {"method": "baseline"}},
    "paths": {"frontier": ["plain"], "states": STATES, "first": FIRST},
    "sample": {"images": LOOK, "sampler": "ddpm", "steps": 20},
    "extraction": {},
    "quality": {"features": "classifier"},
}
TRAINED = {"batch_size": 64, "learning_rate": 3.0e-3, "ema": 0.99, "checkpoint_every": 10**6}
EMOJI = {
    "kind": "parquet",
    "path": "${AFTERIMAGE_DATA}/emoji/train.parquet",
    "image_column": "image",
    "label_column": "category",
    "licence": "Apache-2.0",
}
STUDIES: dict[str, dict[str, Any]] = {
    "copying-digits": {
        "data": {
            "source": {"kind": "sklearn-digits"},
            "split": {"train": 300, "holdout": 600, "reference": 300},
            "plant": [{"copies": 8, "images": 8}, {"copies": 16, "images": 8}],
        },
        "train": TRAINED | {"updates": 800},
    },
    "clean-digits": {
        "data": {
            "source": {"kind": "sklearn-digits"},
            "split": {"train": 1000, "holdout": 600, "reference": 100},
        },
        "train": TRAINED | {"updates": 400},
    },
    "copying-emoji": {
        "data": {
            "source": EMOJI,
            "resize": 8,
            "split": {"train": 300, "holdout": 600, "reference": 300},
            "plant": [{"copies": 8, "images": 8}, {"copies": 16, "images": 8}],
        },
        "train": TRAINED | {"updates": 800},
    },
    "clean-emoji": {
        "data": {
            "source": EMOJI,
            "resize": 8,
            "split": {"train": 600, "holdout": 500, "reference": 100},
        },
        "train": TRAINED | {"updates": 200},
    },
}


def train(folder: Path, study: dict[str, Any], cores: int) -> Path:
    """Train a study's networks, or those that are missing; return the folder of its results."""
    folder.mkdir(parents=True, exist_ok=True)
    study = COMMON | study
    file = folder / f"{study['study']}.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    root = Path(__file__).parent.parent
    command = ["snakemake", "--quiet", f"-c{cores}", "--snakefile", str(root / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(file)]
    subprocess.run([*command, "--until", "fit", "--", "all"], check=True)
    return folder / "results" / study["study"]


def networks(training: Path, updates: int, shares: np.ndarray = SHARES) -> list[tuple[int, Path]]:
    """Return the updates and the pipeline of each state of a training, the last included."""
    states = sorted(
        training.glob("states/path*"), key=lambda path: int(path.name.removeprefix("path"))
    )
    folders = [*(state / "pipeline" for state in states), training / "pipeline"]
    return [(round(share * updates), path) for share, path in zip(shares, folders, strict=True)]


def drawn(pipeline: Path, replicate: int, ids: np.ndarray) -> np.ndarray:
    """Return generations of a network, uint8 (n, H, W, C)."""
    net, scheduler = load_trained(pipeline, SEED, replicate)
    settings = config.Sample(images=len(ids), sampler="ddpm", steps=20, batch_size=256)
    return generate(net, scheduler, ids, settings, SEED, replicate)


def known_images(results: Path, replicate: int) -> tuple[Images, Images]:
    """Return the images of a training, and those held out."""
    members = pd.read_parquet(results / f"train/plain/rep{replicate}/members.parquet")
    images = load_images(results / "data/planting/0/train.npz")
    return trained_rows(images, members), load_images(results / "data/split/holdout.npz")


def onsets(results: Path, replicate: int, updates: int) -> dict[str, float | None]:
    """Return the update from which the watch and the full attack say that a training copies."""
    training = results / "train" / "plain" / f"rep{replicate}"
    images, holdout = known_images(results, replicate)
    watch = Watch(images, holdout, LOOK, STATES, seed=SEED)
    full = Watch(images, holdout, FULL, 1, seed=SEED)
    truth = None
    for update, pipeline in networks(training, updates):
        pixels = drawn(pipeline, replicate, np.arange(LOOK + FULL))
        watch.look(pixels[:LOOK], update)
        if truth is None:
            full.looks.clear()  # each state is attacked for itself
            truth = update if full.look(pixels[LOOK:], update).copies else None
        if truth is not None and watch.onset:
            break
    return {"watch": watch.onset.update if watch.onset else None, "full": truth}


def markdown(table: pd.DataFrame) -> str:
    """Return the table as ``docs/watching.md`` shows it."""
    lines = [
        "| trainings | said to copy by the watch | by the full attack | the same state | a state "
        "later | two or more later | earlier |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in table.groupby("study", sort=False):
        both = rows.dropna()
        late = both["late"]
        kind, _, source = str(name).partition("-")
        cells = [
            f"{source}, {len(rows)} {kind}",
            rows["watch"].notna().sum(),
            rows["full"].notna().sum(),
        ]
        cells += [(late == 0).sum(), (late == 1).sum(), (late > 1).sum(), (late < 0).sum()]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the trainings")
    parser.add_argument("out", type=Path, help="CSV file to write")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--trainings", type=int, default=10, help="of each kind")
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    rows = []
    for name in args.studies:
        study = STUDIES[name]
        named = {"study": f"onset_{name.replace('-', '_')}", "replicates": args.trainings}
        results = train(args.folder, study | named, args.cores)
        updates = study["train"]["updates"]
        place = {round(share * updates): k for k, share in enumerate(SHARES)}
        for replicate in range(args.trainings):
            found = onsets(results, replicate, updates)
            known = None not in found.values()
            late = place[found["watch"]] - place[found["full"]] if known else None
            rows.append({"study": name, "training": replicate, **found, "late": late})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    if args.out.exists():
        before = pd.read_csv(args.out)
        table = pd.concat([before[~before["study"].isin(args.studies)], table])
    table.to_csv(args.out, index=False)
    print(markdown(table))
