"""The tidy table: no row depends on another, intervals hold their values."""

import numpy as np
import pandas as pd

from afterimage import config
from afterimage.attacks.table import COLUMNS, Reading, Results
from afterimage.metrics import intervals, ranking

STATISTICS = config.Statistics(bootstrap=200)
VALUES = np.random.default_rng(0).normal(size=40)
OTHERS = np.random.default_rng(1).normal(0.5, 1, 30)


def test_rows_do_not_depend_on_what_stands_beside_them():
    together, alone = Results(STATISTICS, 3, "attack"), Results(STATISTICS, 3, "attack")
    together.share("share", VALUES > 0, Reading("training", "fixed", 0.5))
    together.mean("mean", VALUES, "some")
    together.contrast("contrast", ranking.area, VALUES, VALUES[:9])
    alone.contrast("contrast", ranking.area, VALUES, VALUES[:9])
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
    table.contrast("contrast", ranking.area, VALUES, OTHERS)
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
    contrast = frame.iloc[1]
    assert contrast["value"] == ranking.roc_auc(VALUES, OTHERS)
    expected = intervals.auc(contrast["value"], 40, 30, 0.95)
    np.testing.assert_allclose(
        [contrast["low"], contrast["high"]], [expected.low, expected.high], atol=0.05
    )
    assert frame.iloc[2].drop(["metric", "anchor", "alpha", "subset", "of"]).isna().all()


def test_pairs_are_resampled_together():
    """Where each positive lies just before its own negative, pairs keep that."""
    apart, paired = Results(STATISTICS, 0), Results(STATISTICS, 0)
    apart.contrast("apart", ranking.area, np.array([0.0, 10]), np.array([1.0, 11]))
    paired.ranking("paired", ranking.area, np.array([0.0, 10]), np.array([1.0, 11]), "training")
    assert apart.frame()["low"].item() == 0  # positive 10 twice, negative 1 twice
    row = paired.frame().iloc[0]
    assert (row["value"], row["low"], row["anchor"], row["of"]) == (0.75, 0.75, "training", 2)
