"""The tidy table: no row depends on another, intervals hold their values."""

import numpy as np
import pandas as pd

from afterimage import config
from afterimage.attacks.table import COLUMNS, Reading, Results

STATISTICS = config.Statistics(bootstrap=200)
VALUES = np.random.default_rng(0).normal(size=40)


def difference(units, others):
    return float(units.mean() - others.mean())


def test_rows_do_not_depend_on_what_stands_beside_them():
    together, alone = Results(STATISTICS, 3, "attack"), Results(STATISTICS, 3, "attack")
    together.share("share", VALUES > 0, Reading("training", "fixed", 0.5))
    together.mean("mean", VALUES, "some")
    together.contrast("contrast", difference, VALUES, VALUES[:9])
    alone.contrast("contrast", difference, VALUES, VALUES[:9])
    pd.testing.assert_series_equal(
        together.frame().iloc[2], alone.frame().iloc[0], check_names=False
    )


def test_subsets_and_sets_have_streams_of_their_own():
    one, other = Results(STATISTICS, 3, "attack", "a"), Results(STATISTICS, 3, "attack", "b")
    for table in (one, other):
        table.mean("mean", VALUES)
    one.mean("mean", VALUES, "some")
    lows = [*one.frame()["low"], *other.frame()["low"]]
    assert len(set(lows)) == 3


def test_intervals_of_means_and_contrasts():
    table = Results(STATISTICS, 0)
    table.mean("mean", VALUES)
    table.contrast("contrast", difference, VALUES + 10, VALUES[:9])
    table.number("plain", None, 5)
    frame = table.frame()
    assert frame.columns.tolist() == COLUMNS
    assert frame["of"].tolist() == [40, 40, 5]
    error = VALUES.std() / np.sqrt(40)
    mean = frame.iloc[0]
    np.testing.assert_allclose(
        [mean["low"], mean["high"]],
        VALUES.mean() + np.array([-1.96, 1.96]) * error,
        atol=0.3 * error,
    )
    both = np.hypot(error, VALUES[:9].std() / 3)
    contrast = frame.iloc[1]
    np.testing.assert_allclose(
        [contrast["low"], contrast["high"]],
        contrast["value"] + np.array([-1.96, 1.96]) * both,
        atol=0.3 * both,
    )
    assert frame.iloc[2].drop(["metric", "anchor", "alpha", "subset", "of"]).isna().all()
