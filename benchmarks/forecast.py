"""How well the start of copying is foretold by a training on an eighth of the images.

    python benchmarks/forecast.py FOLDER docs/forecast.csv [--seeds 5] [--cores 2]

Trains digits without planted copies in FOLDER, where an interrupted run goes on: on 64 and 128 images, which foretell trainings on 512
and 1,024, each pair with images, weights and noise of its own seed. The rule of `watch` looks at 256 generations of each state. One row
per pair: the updates after which and from which the large training copies (between two states; empty: it never did), as forecast and
as seen, and ``ratio``, seen over forecast, both taken in the middle of their two states on the logarithmic scale.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from onset import COMMON, LOOK, TRAINED, drawn, known_images, networks, train

from afterimage.standalone.looks import Watch

PAIRS = {64: 512, 128: 1024}
"""Images of the training that foretells -> of the one that is foretold."""
BUDGET, STATES, FIRST = 10, 8, 0.2
"""Updates per image, and the states that are looked at."""
WITHIN = 1.5
"""Factor that a forecast should be within."""


def study(images: int, seed: int) -> dict[str, Any]:
    """Return a study of one training on so many images."""
    return {
        "study": f"forecast_{images}_{seed}",
        "seed": COMMON["seed"] + seed,
        "data": {
            "source": {"kind": "sklearn-digits"},
            "split": {"train": images, "holdout": 400, "reference": 200},
        },
        "train": TRAINED | {"updates": BUDGET * images},
        "paths": {"frontier": ["plain"], "states": STATES, "first": FIRST},
    }


def watched(results: Path, images: int, seed: int) -> Watch:
    """Return the looks at a training, up to the first that shows copies."""
    training = results / "train" / "plain" / "rep0"
    watch = Watch(*known_images(results, 0), LOOK, STATES, seed=seed)
    shares = np.geomspace(FIRST, 1, STATES)
    for update, pipeline in networks(training, BUDGET * images, shares):
        watch.look(drawn(pipeline, 0, np.arange(LOOK)), update)
        if watch.onset:
            break
    return watch


def compared(small: Watch, large: Watch) -> dict[str, float | None]:
    """Return the columns of a pair."""
    forecast, seen = small.forecast(large.different), large.forecast(large.different)
    row = {
        "forecast_after": forecast and forecast[0],
        "forecast_from": forecast and forecast[1],
        "seen_after": seen and seen[0],
        "seen_from": seen and seen[1],
    }
    ratio = None
    if forecast and seen and forecast[0] and seen[0]:
        ratio = math.sqrt(seen[0] * seen[1] / (forecast[0] * forecast[1]))
    return row | {"ratio": ratio}


def markdown(table: pd.DataFrame) -> str:
    """Return the table as ``docs/watching.md`` shows it."""
    lines = [
        "| foretold by | trainings | copying seen | within a factor of "
        f"{WITHIN} | seen over forecast: smallest | median | largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for (few, many), rows in table.groupby(["images", "foretold"]):
        ratios = rows["ratio"].dropna()
        near = ((ratios <= WITHIN) & (ratios >= 1 / WITHIN)).sum()
        cells = [f"{few} images for {many:,}", len(rows), len(ratios), near]
        cells += [f"{value:.2f}" for value in (ratios.min(), ratios.median(), ratios.max())]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the trainings")
    parser.add_argument("out", type=Path, help="CSV file to write")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each size")
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        watches = {}
        for images in (*PAIRS, *PAIRS.values()):
            results = train(args.folder, study(images, seed), args.cores)
            watches[images] = watched(results, images, seed)
        for few, many in PAIRS.items():
            row = {"images": few, "foretold": many, "seed": seed}
            rows.append(row | compared(watches[few], watches[many]))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(args.out, index=False)
    print(markdown(table))
