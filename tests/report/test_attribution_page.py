"""The page of attribution on made-up scores, of a study that asks for all, and for little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from afterimage import artifacts, config
from afterimage.images import Images
from afterimage.report.notebook import Notebook
from afterimage.report.pages.attribution import Attribution

ATTRIBUTORS = {"das_revised": 0.5, "dtrak": 0.4, "trak": 0.3, "das": 0.2, "shuffled": 0.0}
SETS = ("holdout", "generated", "extracted")
TRAIN = 40
FEATURES = {"timesteps": 10, "dimension": 4096, "probes": 1, "grid": "regular", "rows": True}
VARIANTS = {"main": FEATURES, "t100": FEATURES | {"timesteps": 100}}


def store(folder: Path, settings: dict, facts: dict, files: dict) -> None:
    """Write a store with some tables or images."""
    resolved = {"step": "made/up", "seed": 0, "settings": settings}
    with artifacts.step(resolved, folder, {}, ("afterimage.seeds",)) as step:
        for name, content in files.items():
            if isinstance(content, Images):
                content.save(step.folder / name)
            elif name.endswith(".csv"):
                content.to_csv(step.folder / name, index=False)
            else:
                content.to_parquet(step.folder / name)
        step.note(**facts)


def scores(sets: tuple[str, ...], copies: bool) -> dict[str, pd.DataFrame]:
    """Make up the tables of the main scores: every set has the same ones."""
    rows, regularisers, first = [], [], []
    for name, lds in ATTRIBUTORS.items():
        for queries in sets:
            about = {"attributor": name, "queries": queries}
            for target in ("loss", "shift"):
                own = {"regulariser": 0.1, "lds": lds, "low": lds - 0.1, "high": lds + 0.1}
                own |= {"oracle": lds + 0.05, "undefined": int(name == "das")}
                own |= {"repeatability": 0.25 if name == "das" else np.nan}
                rows.append(
                    about | {"target": target, **own, "ceiling": 0.8, "of_ceiling": lds / 0.8}
                )
            for regulariser in (0.01, 0.1, 1.0) if name != "shuffled" else (1.0,):
                row = about | {"target": "loss", "half": "second", "regulariser": regulariser}
                regularisers.append(row | {"lds": lds - 0.1 * abs(np.log10(regulariser) + 1)})
            for query in range(4):
                leaders = {"query": query, "rank": range(8), "id": range(query, query + 8)}
                first.append(pd.DataFrame(about | leaders))
    names = list(ATTRIBUTORS)
    differences = [
        {"attributor": name, "other": other, "queries": queries, "target": target}
        | {"difference": ATTRIBUTORS[name] - ATTRIBUTORS[other], "low": -0.1, "high": 0.3}
        | {"p": 0.01, "p_adjusted": 0.01 if other == "shuffled" else 0.4}
        for number, name in enumerate(names)
        for other in names[number + 1 :]
        for queries in sets
        for target in ("loss", "shift")
    ]
    recall = [
        {"attributor": name, "query": query, "copies": query + 1, "recall": 0.5, "chance": 0.1}
        for name in ATTRIBUTORS
        for query in range(4 if copies else 0)
    ]
    columns = ["attributor", "query", "copies", "recall", "chance"]
    leverage = pd.DataFrame({"regulariser": [0.1, 1.0], "auc": [0.9, 0.4]})
    return {
        "lds.csv": pd.DataFrame(rows),
        "differences.csv": pd.DataFrame(differences),
        "regularisers.csv": pd.DataFrame(regularisers),
        "copies.csv": pd.DataFrame(recall, columns=columns),
        "leverage.csv": leverage if copies else leverage[:0],
        "first.parquet": pd.concat(first, ignore_index=True),
    }


def make_phase(results: Path, everything: bool) -> None:
    """Write the results of the phase.

    Without counterfactuals, remedies and variants unless ``everything``.
    """
    rng = np.random.default_rng(0)

    def images(count: int) -> Images:
        return Images.of(rng.integers(0, 256, (count, 8, 8, 1), np.uint8))

    phase = results / "attribution"
    sets = SETS if everything else SETS[:2]
    store(results / "data/planting/0", {}, {}, {"train.npz": images(TRAIN)})
    facts = {"training_images": TRAIN, "reported_subsets": 8, "queries": dict.fromkeys(sets, 4)}
    settings = {"subsets": 16, "share": 0.5, "seeds": 2}
    store(phase / "scores/main", settings, facts, scores(sets, everything))
    store(phase / "retrain/0-8", {"attribution": {"arm": "explained"}}, {}, {})
    store(phase / "queries", {}, {}, {f"{name}.npz": images(4) for name in SETS})
    if not everything:
        return
    for choice, queries in {"again": [0, 1], "random": [0], "dtrak": [1]}.items():
        moved = {"choice": choice, "query": queries, "removed": 0 if choice == "again" else 5}
        changes = pd.DataFrame(moved | {"l2": 0.1, "cosine": 0.9, "loss": 1.0})
        folder = phase / "counterfactual" / choice
        for query in [""] if choice == "again" else map(str, (0, 1)):
            files = {"changes.csv": changes, "regenerated.npz": images(len(queries))}
            if choice != "again":
                files["changes.csv"] = changes.assign(query=int(query), loss=1.0 + int(query))
            store(folder / query, {}, {}, files)
    auc = [
        {"network": network, "attributor": name, "queries": queries, "count": 6, "auc": value}
        for network, value in (("before", 0.9), ("after", 0.5))
        for name in ("das", "dtrak")
        for queries in ("forgotten", "others")
    ]
    files = {"influence.csv": pd.DataFrame(auc)}
    store(phase / "remedied/salun", {"before": "conditional"}, {}, files)
    costs = [
        {"variant": variant, "attributor": name, "queries": "generated", "seconds": seconds}
        | {"lds": lds, "low": lds - 0.1, "high": lds + 0.1, "agreement": 0.7, "first": 0.25}
        for variant, seconds in (("main", 3.0), ("t100", 30.0))
        for name, lds in ATTRIBUTORS.items()
    ]
    files = {"acceleration.csv": pd.DataFrame(costs)}
    store(phase / "acceleration", {"reference": "t100"}, {"shortlist": 4}, files)
    for name, features in VARIANTS.items():
        store(phase / "features" / name / "final/queries", {"features": features}, {}, {})


@pytest.fixture
def study(params, tmp_path):
    """Return a function that makes up the phase of a study; it gives the study and its results."""

    def build(everything: bool, **report) -> tuple[config.Study, Path]:
        arms = {"salun": {"method": "baseline"}}
        made = params | {"arms": arms, "forget": {}, "loyal_selection": None, "report": report}
        results = tmp_path / "made"
        make_phase(results, everything)
        return config.parse(made), results

    return build


def test_everything_that_a_study_can_ask_for(study, show):
    text, shown = show("attribution", *study(True, show_images=True))
    first = {f"attribution_first_{query}" for query in range(3)}
    names = ("lds", "regularisers", "copies", "counterfactual", "regenerated", "remedied", "cost")
    assert shown == first | {f"attribution_{name}" for name in (*names, "timesteps_dimension")}
    assert "arm **explained**: 40 training images" in text
    assert "4 extracted generations, 3 of images that occur several times" in text
    assert "in 90 % of pairs" in text
    assert "(λ = 0.1); over all regularisers from 40 to 90 %" in text
    assert "2 generations, 5 of 40 training images taken out." in text
    assert "Before: `conditional`." in text
    assert "Two stages look at 4 of 40 images again." in text


def test_little(study, show):
    text, shown = show("attribution", *study(False, show_images=False))
    assert shown == {"attribution_lds", "attribution_regularisers"}
    assert "none is of known origin" in text
    assert "does not allow its images to be shown" in text
    for missing in ("does not take images out", "does not follow forgotten images", "no variants"):
        assert missing in text
    assert "Leverage:" not in text


@pytest.fixture
def page(study, tmp_path):
    """The page's numbers, with everything."""
    _, results = study(True)
    return Attribution(Notebook(results, tmp_path / "figures", 0.95))


def test_attributors_stand_by_their_mean_score_and_the_control_is_shaded(page):
    rows, shaded = page.table("loss")
    assert [row["attributor"].striptags() for row in rows] == list(ATTRIBUTORS)
    assert shaded == [len(ATTRIBUTORS) - 1]
    assert rows[0]["LDS, generations"].startswith("0.5 <small>[0.4, 0.6]</small>")
    assert rows[0]["of ceiling, generated"] == "62.5 %"
    assert "1 queries without" in rows[3]["LDS, held-out images"]


def test_repeatability_stands_beside_the_scores_that_have_one(page):
    rows, _ = page.table("loss")
    shown = {row["attributor"].striptags(): row for row in rows}
    assert shown["das"]["repeatability, generated"] == "0.25"
    assert "repeatability, generated" not in shown["trak"]


def test_each_attributor_stands_beside_the_leader_and_the_clear_differences_are_bold(page):
    """The leader is first in its pair here, so that what is shown is the difference turned round."""
    rows = {row["attributor"].striptags(): row for row in page.behind("loss")}
    assert list(rows) == list(ATTRIBUTORS)
    column = "minus das_revised, generations"
    assert rows["das_revised"][column] == "leads"
    assert rows["dtrak"][column] == "-0.1 <small>[-0.3, +0.1]</small>"
    assert rows["shuffled"][column] == "<b>-0.5 <small>[-0.3, +0.1]</small></b>"
    assert page.told_apart("shift").startswith(
        "Attributors that differ: 4 of 10 pairs for held-out images, 4 of 10 pairs for gen"
    )


def test_changes_are_compared_generation_by_generation(page, monkeypatch):
    """What differs between generations is common to both choices; what is missing is left out."""
    base, extra = np.array([1.0, 5.0, 2.0, 8.0]), np.array([0.3, 0.5, 0.4, 0.4])
    rows = [
        {"choice": choice, "query": query, "l2": value, "distance": 0.0, "rise": value}
        for choice, values in (
            ("again", 0 * base),
            ("random", -base),
            ("pixel_l2", base),
            ("das", base + extra),
        )
        for query, value in enumerate(values)
    ]
    monkeypatch.setattr(page, "changes", lambda: pd.DataFrame(rows))
    table = {row["taken out by"].striptags(): row for row in page.counterfactual_table()}
    label = "pixels (normalised l2)"
    assert table["das"][label].startswith("4.4 <small>[-0.")
    difference = table["das"][f"minus pixel_l2: {label}"]
    assert difference == "+0.4 <small>[+0.27, +0.53]</small>"
    assert f"minus pixel_l2: {label}" not in table["pixel_l2"]


def test_rise_of_the_loss_is_measured_from_that_of_a_retraining(page):
    rise = page.changes().set_index(["choice", "query"])["rise"]
    assert rise["again"].eq(0).all()
    assert rise["dtrak", 1] == pytest.approx(1.0)
    assert page.choices() == ["again", "random", "dtrak"]


def test_settings_that_differ_alone_make_a_curve(page):
    assert page.dials() == {
        "timesteps": [(10, "main"), (100, "t100")],
        "dimension": [(4096, "main")],
        "probes": [(1, "main")],
    }


def test_only_attributors_with_published_scores_are_compared(page):
    assert [row["attributor"] for row in page.published()] == ["dtrak", "trak"]
    assert page.published()[0]["here, generations"] == "40.0 %"
