"""The tables hold what the attacks and trainings said, whatever came between."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from afterimage import artifacts, cli, config
from afterimage.metrics.intervals import clustered_share
from afterimage.plan.jobs import STEPS
from afterimage.report import tables

ARMS = {
    "zeta": {"method": "baseline"},
    "dedup": {"method": "baseline", "data": "deduplicated", "control": "zeta"},
    "alpha": {"method": "baseline", "without": "zeros", "control": "zeta"},
}
AGAIN = {"again": {"method": "baseline", "control": "zeta"}}
"""An arm that was given the same images as its control."""


@pytest.fixture(scope="module")
def made(root, make_up, truth, tmp_path_factory):
    """Make up a study of three arms, or of some of them, once; return its results, which are only to be read."""
    truths = {"dedup": truth(0.05, 0.1, 6.0)} | dict.fromkeys(("zeta", "alpha", "again"), truth())

    @cache
    def build(
        replicates: int, confidence: float = 0.95, arms: tuple[str, ...] = tuple(ARMS)
    ) -> Path:
        params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
        params |= {
            "replicates": replicates,
            "statistics": {"confidence": confidence},
            "forget": {"zeros": {"label": 0}},
            "loyal_selection": None,
            "attribution": None,
        }
        params["arms"] = {name: (ARMS | AGAIN)[name] for name in arms}
        return make_up(tmp_path_factory.mktemp("made"), config.parse(params), truths)

    return build


def table(root: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(root / "report" / "tables" / f"{name}.csv")


def facts(root: Path, arm: str, k: int) -> dict:
    return artifacts.read_run(root / "train" / arm / f"rep{k}")["facts"]


def test_planted_share_counts_the_images_themselves(made):
    root = made(1)
    arms = table(root, "arms").set_index(["arm", "metric"])
    for arm in ARMS:
        images = pd.read_parquet(root / "attack" / arm / "rep0" / "extraction" / "images.parquet")
        planted = images[images["copies"] > 1]
        for alpha, suffix in (("fixed", ""), ("calibrated", "_calibrated")):
            found = int(planted[f"extracted_training_{alpha}"].sum())
            row = arms.loc[(arm, f"planted_extracted{suffix}")]
            exact = stats.binomtest(found, len(planted)).proportion_ci(0.95, method="exact")
            np.testing.assert_allclose(
                row[["value", "low", "high"]].astype(float),
                (found / len(planted), exact.low, exact.high),
            )
            every = arms.loc[(arm, f"unique_images{suffix}"), "value"]
            assert every == images[f"extracted_training_{alpha}"].sum()


def test_intervals_have_the_confidence_of_the_study(made):
    root = made(1, confidence=0.8)
    images = pd.read_parquet(root / "attack" / "zeta" / "rep0" / "extraction" / "images.parquet")
    some = images[images["copies"] == 16]
    exact = stats.binomtest(
        int(some["extracted_training_calibrated"].sum()), len(some)
    ).proportion_ci(0.8, method="exact")
    copies = (
        table(root, "copies").set_index(["arm", "alpha", "copies"]).loc[("zeta", "calibrated", 16)]
    )
    np.testing.assert_allclose((copies["low"], copies["high"]), (exact.low, exact.high))
    shares = [
        table(root, "extraction").query(
            "arm == @arm and metric == 'flagged_generations' and alpha == 'calibrated'"
        )
        for arm in ("dedup", "zeta")
    ]
    wilson = [
        stats.binomtest(int(one["count"].iloc[0]), 400).proportion_ci(0.8, method="wilson")
        for one in shares
    ]
    value = [one["value"].iloc[0] for one in shares]
    row = (
        table(root, "comparison")
        .set_index(["arm", "metric"])
        .loc[("dedup", "flagged_generations_calibrated")]
    )
    low = value[0] - value[1] - np.hypot(value[0] - wilson[0].low, wilson[1].high - value[1])
    assert row["difference_low"] == pytest.approx(low)
    assert row["method"] == "score"


def test_several_replicates_are_averaged_and_paired_where_arms_share_images(made):
    root = made(3, arms=("zeta", "dedup", "again"))
    single = (
        table(root, "quality")
        .query("metric == 'FD_balanced[classifier]' and of == 'generations'")
        .pivot(index="replicate", columns="arm", values="value")
    )
    compared = table(root, "comparison").set_index(["arm", "metric"])
    tests = {
        "again": (stats.ttest_rel(single["again"], single["zeta"]), "paired t"),
        "dedup": (stats.ttest_ind(single["dedup"], single["zeta"], equal_var=False), "Welch's t"),
    }
    for arm, (expected, method) in tests.items():
        row, interval = (
            compared.loc[(arm, "FD_balanced[classifier]")],
            expected.confidence_interval(0.95),
        )
        np.testing.assert_allclose(
            (row["difference_low"], row["difference_high"]), (interval.low, interval.high)
        )
        assert (row["p"], row["method"]) == (pytest.approx(expected.pvalue), method)
        assert row["value"] == pytest.approx(single[arm].mean())
        assert row["margin"] == pytest.approx(0.1 * single["zeta"].mean())
    assert compared.loc[("dedup", "FD_balanced[classifier]"), "verdict"] == "better"
    arms = table(root, "arms").set_index(["arm", "metric"])
    between = stats.t.interval(0.95, 2, single["zeta"].mean(), stats.sem(single["zeta"]))
    np.testing.assert_allclose(
        arms.loc[("zeta", "FD_balanced[classifier]"), ["low", "high"]].astype(float), between
    )
    assert set(arms["replicates"]) == {3}
    union = table(root, "union").set_index(["arm", "alpha"]).loc[("zeta", "calibrated")]
    images = [
        pd.read_parquet(root / "attack/zeta" / f"rep{k}" / "extraction/images.parquet")
        for k in range(3)
    ]
    assert union["unique_images"] == len(
        set().union(*(one["source"][one["extracted_training_calibrated"]] for one in images))
    )
    points = table(root, "points")
    assert len(points) == 9
    assert (
        points.set_index(["arm", "replicate"]).loc[("dedup", 2), "FD_balanced[classifier]"]
        == single["dedup"][2]
    )


def test_the_copies_curve_takes_images_for_its_units(made):
    """Three trainings with the same images: shares of all trials, limits wider than theirs."""
    root = made(3, arms=("zeta", "dedup", "again"))
    folders = [root / "attack/zeta" / f"rep{k}" / "extraction" for k in range(3)]
    images = pd.concat(pd.read_parquet(folder / "images.parquet") for folder in folders)
    copies = table(root, "copies").set_index(["arm", "alpha", "copies"])
    for number, some in images.groupby("copies"):
        by_image = some.groupby("source")["extracted_training_calibrated"].agg(["sum", "count"])
        row = copies.loc[("zeta", "calibrated", number)]
        assert (row["images"], row["of"], row["count"]) == (
            len(by_image),
            3 * len(by_image),
            by_image["sum"].sum(),
        )
        expected = clustered_share(*by_image.to_numpy().T, 0.95)
        np.testing.assert_allclose(row[["share", "low", "high"]].astype(float), expected)
        assert row["twins_of"] == (
            3 * len(by_image) if number > 1 else pytest.approx(np.nan, nan_ok=True)
        )


def test_extraction_by_what_was_planted():
    """Two trainings; images of another style than their copies' count are in the other table."""
    planted = [
        (0, 1, "neither", 1, (0, 0)),
        (1, 4, "both", 4, (1, 1)),
        (2, 4, "image", 4, (1, 0)),
        (3, 4, "image", 4, (0, 0)),
        (4, 1, "caption", 4, (0, 1)),
    ]
    extracted = pd.DataFrame(
        [
            ("a", k, "fixed", source, copies, repeat, times, bool(found[k]))
            for source, copies, repeat, times, found in planted
            for k in (0, 1)
        ],
        columns=["arm", "replicate", "alpha", "source", "copies", "repeat", "times", "extracted"],
    )
    numbers = pd.DataFrame(
        [
            ("a", k, "fixed", anchor, f"twins_flagged_by_{metric}", subset, 1, 2)
            for k in (0, 1)
            for anchor in ("training", "candidate")
            for metric, subset in (("copies", "copies=4"), ("repeat", "repeat=image times=4"))
        ],
        columns=["arm", "replicate", "alpha", "anchor", "metric", "subset", "count", "of"],
    )
    found = tables.by_repeat(extracted, numbers, "training", 0.95)
    shown = found[["repeat", "times", "images", "count", "of", "twins_count", "twins_of"]]
    assert shown.fillna(-1).to_numpy().tolist() == [
        ["both", 4, 1, 2, 2, -1, -1],
        ["caption", 4, 1, 1, 2, -1, -1],
        ["image", 4, 2, 1, 4, 2, 4],
        ["neither", 1, 1, 0, 2, -1, -1],
    ]
    interval = clustered_share(np.array([1, 0]), np.array([2, 2]), 0.95)
    np.testing.assert_allclose(found.loc[2, ["share", "low", "high"]].astype(float), interval)
    copies = tables.against_copies(extracted, numbers, "training", 0.95)
    shown = copies[["copies", "images", "count", "of", "twins_count", "twins_of"]]
    assert shown.fillna(-1).to_numpy().tolist() == [[1, 1, 0, 2, -1, -1], [4, 1, 2, 2, 2, 4]]
    alike = extracted[extracted["repeat"].isin(["both", "neither"])]
    assert list(tables.by_repeat(alike, numbers, "training", 0.95)) == list(found)
    assert tables.by_repeat(alike, numbers, "training", 0.95).empty


def test_budgets_are_those_of_the_trainings(made):
    root = made(2)
    wide = table(root, "comparison_wide").set_index("arm")
    for arm in ARMS:
        assert wide.loc[arm, "training_seconds"] == pytest.approx(
            np.mean([facts(root, arm, k)["training_seconds"] for k in (0, 1)])
        )
        for fact in (
            "updates",
            "updates_per_model",
            "images_seen",
            "kept_samples",
            "backward_passes",
        ):
            assert wide.loc[arm, fact] == facts(root, arm, 0)[fact]
        assert (
            wide.loc[arm, "passes"]
            == facts(root, arm, 0)["images_seen"] / facts(root, arm, 0)["training_images"]
        )


def test_false_alarms_stand_beside_every_count(made):
    root = made(1)
    wide = table(root, "comparison_wide").set_index("arm")
    extraction = (
        table(root, "extraction")
        .query("alpha == 'calibrated'")
        .set_index(["arm", "metric"])["value"]
    )
    for arm in ARMS:
        assert wide.loc[arm, "flagged_holdout_calibrated"] == extraction[arm, "flagged_holdout"]
        assert wide.loc[arm, "twins_flagged_calibrated"] == extraction[arm, "twins_flagged"]


def test_arms_stand_in_the_order_of_the_study(made):
    root = made(1)
    for name in ("arms", "comparison", "comparison_wide", "points"):
        assert list(table(root, name)["arm"].drop_duplicates()) == list(ARMS), name
    assert table(root, "comparison_wide")["control"].tolist()[1:] == ["zeta", "zeta"]


def test_forgetting_is_gathered_where_an_arm_is_judged_on_it(made):
    root = made(1)
    forgetting = table(root, "forgetting")
    assert set(forgetting["arm"]) == {"alpha"}
    value = forgetting.query("metric == 'probability'")["value"].item()
    assert (
        table(root, "arms")
        .set_index(["arm", "metric"])
        .loc[("alpha", "forgotten_probability[zeros]"), "value"]
        == value
    )
    inputs = artifacts.read_run(root / "report" / "tables")["inputs"]
    assert {name for name in inputs if name.startswith("forgetting/")} == {"forgetting/alpha/rep0"}
    assert {
        f"{what}/{arm}/rep0"
        for what in ("train", "extraction", "quality", "membership")
        for arm in ARMS
    } <= set(inputs)


def test_without_forgetting_its_table_is_empty(made):
    root = made(1, arms=("zeta", "dedup"))
    assert table(root, "forgetting").empty
    assert not any(metric.startswith("forgotten") for metric in table(root, "arms")["metric"])


def test_plots_have_one_row_per_point(made):
    """DVC's plots take them by arm, whatever the arms of the study."""
    root = made(2)
    loss = table(root, "loss").set_index(["arm", "update"])["loss"]
    assert loss.to_dict() == pytest.approx(
        {(arm, update): 1 / (update + 1) for arm in ARMS for update in (0, 10, 20)}
    )
    multiplicity, copies = (
        table(root, "multiplicity"),
        table(root, "copies").query("alpha == 'calibrated'"),
    )
    assert list(multiplicity) == ["arm", "copies", "share"]
    assert multiplicity["share"].tolist() == copies["share"].tolist()


def test_metrics_are_the_headline_numbers(made):
    root = made(1)
    metrics = json.loads((root / "report" / "tables" / "metrics.json").read_text())
    arms = table(root, "arms")
    assert metrics == {
        arm: dict(zip(some["metric"], some["value"], strict=True))
        for arm, some in arms.groupby("arm")
    }


def test_every_attack_has_its_table(made):
    """The rule of the tables names one for each."""
    written = artifacts.read_run(made(1) / "report" / "tables")["outputs"]
    verbs = {step.verb for step in STEPS.values() if step.phase_name == "attack"}
    assert {f"{verb}.csv" for verb in verbs} <= set(written)
    assert table(made(1), "attribution").empty  # without attribution, as without paths
    assert table(made(1), "path").empty


def test_a_harmed_result_is_refused(made, tmp_path, capsys):
    root = shutil.copytree(made(1), tmp_path / "study")
    (root / "attack" / "dedup" / "rep0" / "membership" / "results.csv").write_text("")
    command = [
        "report",
        "tables",
        "--results",
        str(root),
        "--config",
        str(root / "config/report/tables.json"),
    ]
    assert cli.main([*command, "--out", str(root / "again")]) == 2
    assert "membership/results.csv is not the file that" in capsys.readouterr().err
    assert not (root / "again").exists()
