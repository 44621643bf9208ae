"""How often an audit shows copies, by simulation: error rate without copies, power with them.

Scores of generations that are not copies, and of held-out images, are uniform in [0, 1]; the band knows
ranks alone, so any other distribution gives the same numbers. Copies are either nearer than all unseen
images (score 0), or as near as the nearest 1 % of them (uniform in [0, 0.01]).

    python benchmarks/audit_power.py docs/audit-power.csv

writes the table; ``docs/auditing.md`` shows it, and a test holds the two together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from afterimage.attacks.verdict import POWER
from afterimage.metrics.exceedance import exceedance, visible_rate

GENERATIONS = 1000
HELD_OUT = (100, 400, 2000)
RATES = (0.0, 0.01, 0.05, 0.2)
AUDITS = 1000


def shown(held_out: int, rate: float, nearness: float, audits: int) -> float:
    """Return the share of simulated audits that show copies.

    Args:
        held_out: Held-out images.
        rate: Share of the generations that are copies.
        nearness: Copies score uniformly in [0, nearness].
        audits: How many to simulate.
    """
    rng = np.random.default_rng([held_out, round(1e4 * rate), round(1e4 * nearness)])
    count = 0
    for _ in range(audits):
        copies = rng.binomial(GENERATIONS, rate)
        scores = np.concatenate([nearness * rng.random(copies), rng.random(GENERATIONS - copies)])
        count += exceedance(scores, rng.random(held_out)).copies > 0
    return count / audits


def table(audits: int = AUDITS) -> pd.DataFrame:
    """Return one row per number of held-out images and copying rate."""
    rows = [
        {
            "held_out": held_out,
            "copying_rate": rate,
            "shown_nearer_than_all": shown(held_out, rate, 0.0, audits),
            "shown_nearest_percent": shown(held_out, rate, 0.01, audits),
            "visible_rate": round(visible_rate(GENERATIONS, held_out, POWER), 4),
        }
        for held_out in HELD_OUT
        for rate in RATES
    ]
    return pd.DataFrame(rows)


def markdown(power: pd.DataFrame) -> str:
    """Return the table as ``docs/auditing.md`` shows it."""
    lines = [
        "| held-out images | copying rate | shown, copies nearer than all unseen | shown, copies among the nearest 1 % |",
        "|---|---|---|---|",
    ]
    for row in power.itertuples():
        shares = [
            f"{100 * share:.1f} %"
            for share in (row.shown_nearer_than_all, row.shown_nearest_percent)
        ]
        lines.append(
            f"| {row.held_out:,} | {100 * row.copying_rate:g} % | {shares[0]} | {shares[1]} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="CSV file to write")
    power = table()
    power.to_csv(parser.parse_args().out, index=False)
    print(markdown(power))
