"""The tables of attribution: each network's own numbers, and what all say together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from afterimage import artifacts
from afterimage.report import attribution
from afterimage.report.attribution import Stores

NAMES = ("das", "dtrak", "trak")
SUBSETS = 6


def store(folder: Path, files: dict[str, pd.DataFrame]) -> None:
    with artifacts.step({"step": "made/up"}, folder, {}, ("afterimage.seeds",)) as step:
        for name, table in files.items():
            csv = name.endswith(".csv")
            path = step.folder / name
            table.to_csv(path, index=False) if csv else table.to_parquet(path, index=False)


def made_scores(k: int, sets: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """Make up what one network gives: random numbers of every subset, and what follows of them."""
    rng = np.random.default_rng(k)
    lds, units, differences, paired = [], [], [], []
    for queries in sets:
        best = rng.normal(0.8, 0.05, SUBSETS)
        own = {name: rng.normal(0.3 + 0.2 * k, 0.2, SUBSETS) for name in NAMES}
        for name, values in own.items():
            key = {"attributor": name, "queries": queries, "target": "loss"}
            ends = ttest_1samp(values, 0).confidence_interval(0.95)
            numbers = {"lds": values.mean(), "low": ends.low, "high": ends.high}
            lds.append(key | numbers | {"ceiling": best.mean(), "repeatability": 0.5 + 0.1 * k})
            part = {"subset": range(SUBSETS), "lds": values, "ceiling": best}
            units.append(pd.DataFrame(key | part))
        for name, other in (("das", "dtrak"), ("das", "trak"), ("dtrak", "trak")):
            key = {"attributor": name, "other": other, "queries": queries, "target": "loss"}
            values = own[name] - own[other]
            differences.append(key | {"difference": values.mean(), "p": 0.01, "p_adjusted": 0.03})
            paired.append(pd.DataFrame(key | {"subset": range(SUBSETS), "difference": values}))
    return {
        "lds.csv": pd.DataFrame(lds),
        "units.parquet": pd.concat(units),
        "differences.csv": pd.DataFrame(differences),
        "paired.parquet": pd.concat(paired),
    }


@pytest.fixture
def scored(tmp_path):
    """Return a function that makes up scores of networks with some sets of queries each."""

    def make(*sets: tuple[str, ...]) -> Stores:
        settings = {"replicates": len(sets), "counterfactual": [], "variants": False}
        stores = Stores(tmp_path / "results", settings)
        for k, folder in enumerate(stores.scores):
            store(folder, made_scores(k, sets[k]))
        return stores

    return make


def rows_of(table: pd.DataFrame, *keys: str) -> dict[tuple, dict]:
    return {tuple(row[key] for key in keys): row for row in table.to_dict("records")}


def test_one_network_has_its_own_numbers_alone(scored):
    stores = scored(("holdout", "generated"))
    table = attribution.scores(stores.scores, 0.95)
    assert tuple(table.columns) == attribution.SCORES
    assert table["replicate"].unique().tolist() == [0]
    own = pd.read_csv(stores.scores[0] / "lds.csv")
    assert table["lds"].tolist() == pytest.approx(own["lds"].tolist())
    assert table["low"].tolist() == pytest.approx(own["low"].tolist())
    assert table["of_ceiling"].tolist() == pytest.approx((own["lds"] / own["ceiling"]).tolist())
    assert (table["of_ceiling_low"] < table["of_ceiling"]).all()
    assert (table["of_ceiling"] < table["of_ceiling_high"]).all()
    assert attribution.shown(table).equals(table)
    pairs = attribution.differences(stores.scores, 0.95)
    assert tuple(pairs.columns) == attribution.DIFFERENCES
    assert pairs["p_adjusted"].tolist() == [0.03] * 6


def test_two_networks_have_their_mean_with_their_errors_combined(scored):
    stores = scored(("generated",), ("generated",))
    table = attribution.scores(stores.scores, 0.95)
    assert table["replicate"].tolist() == [0] * 3 + [1] * 3 + ["mean"] * 3
    cell = rows_of(table, "replicate", "attributor")
    units = pd.concat(
        pd.read_parquet(folder / "units.parquet").assign(replicate=k)
        for k, folder in enumerate(stores.scores)
    )
    for name in NAMES:
        first, second, mean = (cell[k, name] for k in (0, 1, "mean"))
        for column in ("lds", "ceiling", "repeatability"):
            assert mean[column] == pytest.approx((first[column] + second[column]) / 2)
        assert mean["of_ceiling"] == pytest.approx(mean["lds"] / mean["ceiling"])
        own = units[units["attributor"] == name].groupby("replicate")["lds"]
        error = np.sqrt((own.var() / SUBSETS).sum()) / 2
        half = (mean["high"] - mean["low"]) / 2
        assert 2.2281 * error < half < 2.5706 * error  # Student's t of 10 and of 5 degrees
        assert (mean["low"] + mean["high"]) / 2 == pytest.approx(own.mean().mean())
        assert mean["ceiling_low"] < mean["ceiling"] < mean["ceiling_high"] <= 1
    assert attribution.shown(table)["attributor"].tolist() == list(NAMES)


def test_differences_of_two_networks_are_adjusted_for_their_number(scored):
    stores = scored(("holdout", "generated"), ("holdout", "generated"))
    table = attribution.differences(stores.scores, 0.95)
    mean = attribution.shown(table)
    assert len(table) == 18
    assert len(mean) == 6
    for _, some in mean.groupby("queries"):
        p, adjusted = some["p"].to_numpy(float), some["p_adjusted"].to_numpy(float)
        assert adjusted.min() == pytest.approx(min(3 * p.min(), 1))
        assert (adjusted >= p).all()
    cell = rows_of(table, "replicate", "attributor", "other", "queries")
    key = ("das", "trak", "generated")
    expected = (cell[0, *key]["difference"] + cell[1, *key]["difference"]) / 2
    assert cell["mean", *key]["difference"] == pytest.approx(expected)


def test_a_set_that_one_network_lacks_is_of_the_others_and_says_so(scored):
    """The attack may have extracted nothing from one of them."""
    stores = scored(("generated", "extracted"), ("generated",))
    table = attribution.shown(attribution.scores(stores.scores, 0.95))
    assert table.groupby("queries")["networks"].unique().map(list).to_dict() == {
        "generated": [2],
        "extracted": [1],
    }
    single = attribution.scores(stores.scores[:1], 0.95)
    own, mean = (
        rows_of(some[some["queries"] == "extracted"], "attributor") for some in (single, table)
    )
    for name in NAMES:
        for column in ("lds", "low", "high", "of_ceiling_low"):
            assert mean[(name,)][column] == pytest.approx(own[(name,)][column])


def rises(k: int) -> dict[str, list[float]]:
    """Return choice -> rise of the loss of four generations of a network."""
    base = [0.010, 0.012, 0.009, 0.011]
    return {
        "again": [0.0] * 4,
        "random": [0.001, -0.001, 0.002, 0.0],
        "pixel_l2": [value + 0.001 * k for value in base],
        "das": [2.5 * value + 0.001 * (query % 2) for query, value in enumerate(base)],
    }


@pytest.fixture
def removed(tmp_path):
    """Return a function that makes up counterfactuals of some networks."""

    def make(replicates: int) -> Stores:
        choices = ("random", "pixel_l2", "das")
        jobs = ["again", *(f"{choice}/{query}" for choice in choices for query in range(4))]
        settings = {"replicates": replicates, "counterfactual": jobs, "variants": False}
        stores = Stores(tmp_path / "results", settings)
        for k, folder in enumerate(stores.phases):
            # A folder that an earlier study left is nobody's.
            left = {"choice": ["trak"], "query": [0], "removed": [5]}
            left |= {"l2": [9.0], "cosine": [0.0], "loss": [9.0], "shift": [9.0]}
            store(folder / "counterfactual" / "trak" / "0", {"changes.csv": pd.DataFrame(left)})
            for choice, values in rises(k).items():
                table = pd.DataFrame({"choice": choice, "query": range(4), "removed": 5})
                table = table.assign(l2=0.1, cosine=0.9, shift=0.0)
                table["loss"] = np.array(values) + 0.5 + 0.01 * np.arange(4)
                if choice == "again":
                    store(folder / "counterfactual" / choice, {"changes.csv": table})
                    continue
                for query in range(4):
                    own = {"changes.csv": table[table["query"] == query]}
                    store(folder / "counterfactual" / choice / str(query), own)
        return stores

    return make


def test_rises_are_paired_within_a_network(removed):
    stores = removed(1)
    assert "attribution/rep0/counterfactual/das/3" in stores.inputs()
    table = attribution.counterfactual(stores.counterfactual, 0.95)
    assert tuple(table.columns) == attribution.COUNTERFACTUAL
    cell = rows_of(table, "choice", "measure")
    assert {choice for choice, _ in cell} == {"again", "random", "pixel_l2", "das"}
    das = cell["das", "rise"]
    assert das["value"] == pytest.approx(np.mean(rises(0)["das"]))
    differences = np.subtract(rises(0)["das"], rises(0)["pixel_l2"])
    usual = ttest_1samp(differences, 0)
    ends = usual.confidence_interval(0.95)
    assert (das["difference"], das["difference_low"], das["difference_high"]) == pytest.approx(
        (differences.mean(), ends.low, ends.high)
    )
    assert das["p"] == pytest.approx(usual.pvalue)
    assert das["p_adjusted"] == pytest.approx(2 * usual.pvalue)  # of das and random
    assert das["ratio"] == pytest.approx(np.mean(rises(0)["das"]) / np.mean(rises(0)["pixel_l2"]))
    assert das["ratio_low"] < das["ratio"] < das["ratio_high"]
    assert das["generations"] == 4
    for choice in ("again", "pixel_l2"):
        assert np.isnan([cell[choice, "rise"][name] for name in ("p", "p_adjusted", "ratio")]).all()
    assert cell["again", "rise"]["value"] == 0
    assert cell["das", "distance"]["value"] == pytest.approx(0.1)


def test_rises_of_two_networks_are_combined_and_not_pooled(removed):
    """Pooled, the generations of a network that rise by more would widen the interval."""
    table = attribution.counterfactual(removed(2).counterfactual, 0.95)
    cell = rows_of(table, "replicate", "choice", "measure")
    first, second, mean = (cell[k, "das", "rise"] for k in (0, 1, "mean"))
    assert mean["generations"] == 8
    assert mean["value"] == pytest.approx((first["value"] + second["value"]) / 2)
    base = [cell[k, "pixel_l2", "rise"]["value"] for k in (0, 1)]
    assert mean["ratio"] == pytest.approx((first["value"] + second["value"]) / sum(base))
    variances = [np.var(np.subtract(rises(k)["das"], rises(k)["pixel_l2"]), ddof=1) for k in (0, 1)]
    half = (mean["difference_high"] - mean["difference_low"]) / 2
    assert half == pytest.approx(2.4469 * np.sqrt(sum(variances) / 4) / 2, rel=1e-3)


def test_a_changed_store_is_refused(removed):
    stores = removed(1)
    path = stores.counterfactual[0][1] / "changes.csv"
    path.write_text(path.read_text().replace("0.9", "0.8"))
    with pytest.raises(artifacts.ArtifactError, match=r"changes\.csv is not the file"):
        attribution.counterfactual(stores.counterfactual, 0.95)


@pytest.fixture
def conceptual(tmp_path):
    """Return a function that stores the areas of two attributors for two networks."""

    def make(*areas: dict[str, list[float]]) -> Stores:
        settings = {"replicates": len(areas), "counterfactual": [], "variants": False}
        stores = Stores(tmp_path / "results", settings)
        for k, folder in enumerate(stores.scores):
            rows = [
                {"attributor": name, "queries": "generated", "query": query, "concept": "colour"}
                | {"word": "red", "combination": "trained" if query else None, "area": area}
                | {"images_error": 0.0 if k == 0 else 0.3}
                for name, values in areas[k].items()
                for query, area in enumerate([0.0, *values])
            ]
            store(folder, {"concepts.csv": pd.DataFrame(rows)})
        return stores

    return make


def test_areas_of_concepts_are_means_over_queries(conceptual):
    first, second = {"das": [0.5, 0.7, 0.9]}, {"das": [0.8, 1.0], "trak": [0.4, 0.6]}
    stores = conceptual(first, second)
    table = attribution.concepts(stores.scores, 0.95)
    assert tuple(table.columns) == attribution.CONCEPTS
    cells = rows_of(table, "replicate", "attributor")
    # The queries whose combination is not known are left out.
    assert cells[0, "das"]["images"] == 3
    assert cells[0, "das"]["area"] == pytest.approx(0.7)
    low, high = ttest_1samp([0.5, 0.7, 0.9], 0).confidence_interval(0.95)
    assert cells[0, "das"]["low"] == pytest.approx(low)
    assert cells[0, "das"]["high"] == min(high, 1)
    mean = cells["mean", "das"]
    assert (mean["networks"], mean["images"]) == (2, 5)
    assert mean["area"] == pytest.approx((0.7 + 0.9) / 2)
    # The error over images of the second network counts, halved as a part of a mean of two.
    assert mean["low"] == pytest.approx(0.8 - 1.96 * np.hypot(0.3 / 2, 0.0764), abs=0.01)
    assert cells["mean", "trak"]["networks"] == 1


@pytest.mark.parametrize("queries", [8, 40])
def test_intervals_of_areas_hold_the_mean(queries):
    """Areas lie below 1, most of them close to it."""
    rng, held = np.random.default_rng(queries), 0
    for _ in range(400):
        values = rng.beta(8, 2, queries)
        _, low, high, _ = attribution.networks.mean([values], 0.95)
        held += low <= 0.8 <= high
    assert 0.915 <= held / 400 <= 0.985


def test_costs_of_two_networks_are_averaged(tmp_path):
    settings = {"replicates": 2, "counterfactual": [], "variants": True}
    stores = Stores(tmp_path, settings)
    for k, folder in enumerate(stores.acceleration):
        key = {"variant": "t3", "attributor": "das", "queries": "generated"}
        row = key | {"seconds": 2.0 + k, "lds": 0.2 + 0.2 * k, "low": 0.1, "high": 0.3}
        values = {"subset": range(4), "lds": row["lds"] + np.array([-0.1, 0, 0, 0.1])}
        files = {"acceleration.csv": pd.DataFrame([row | {"agreement": 0.5, "first": 0.4}])}
        store(folder, files | {"units.parquet": pd.DataFrame(key | values)})
    found = attribution.shown(attribution.cost(stores.acceleration, 0.95)).iloc[0]
    assert (found["seconds"], found["lds"]) == pytest.approx((2.5, 0.3))
    error = np.sqrt(2 * (0.02 / 3) / 4) / 2
    assert found["high"] - found["lds"] == pytest.approx(2.4469 * error, rel=1e-3)
    assert found["networks"] == 2


def test_a_study_without_attribution_has_tables_without_rows():
    for name, table in attribution.tables(Stores(Path("nowhere"), None), 0.95).items():
        assert table.empty, name
        assert "replicate" in table.columns
    assert Stores(Path("nowhere"), None).inputs() == {}
