"""The page of attribution on made-up scores, of a study that asks for all, and for little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from afterimage import artifacts, config
from afterimage.images import Images
from afterimage.report import attribution as made_of
from afterimage.report.notebook import Notebook
from afterimage.report.pages.attribution import Attribution

ATTRIBUTORS = {"das_revised": 0.5, "dtrak": 0.4, "trak": 0.3, "das": 0.2, "shuffled": 0.0}
SETS = ("holdout", "generated", "extracted")
TRAIN, SUBSETS = 40, 8
CHOICES = ("random", "pixel_l2", "dtrak")
GENERATIONS = 3
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


def scores(sets: tuple[str, ...], copies: bool, shift: float) -> dict[str, pd.DataFrame]:
    """Make up the tables of the main scores, ``shift`` higher than ``ATTRIBUTORS``: every set has
    the same ones."""
    rows, regularisers, first, units, paired = [], [], [], [], []
    spread = np.linspace(-0.14, 0.14, SUBSETS)
    for name, lds in ((name, lds + shift) for name, lds in ATTRIBUTORS.items()):
        for queries in sets:
            about = {"attributor": name, "queries": queries}
            for target in ("loss", "shift"):
                own = {"regulariser": 0.1, "lds": lds, "low": lds - 0.1, "high": lds + 0.1}
                own |= {"oracle": lds + 0.05, "undefined": int(name == "das")}
                own |= {"repeatability": 0.25 if name == "das" else np.nan}
                ceiling = {"ceiling": 0.8, "ceiling_low": 0.7, "ceiling_high": 0.9}
                rows.append(about | {"target": target, **own, **ceiling, "of_ceiling": lds / 0.8})
                values = {"subset": range(SUBSETS), "lds": lds + spread, "ceiling": 0.8}
                units.append(pd.DataFrame(about | {"target": target} | values))
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
    for pair in differences:
        values = {"subset": range(SUBSETS), "difference": pair["difference"] + spread}
        paired.append(
            pd.DataFrame(
                {key: pair[key] for key in ("attributor", "other", "queries", "target")} | values
            )
        )
    recall = [
        {"attributor": name, "query": query, "copies": query + 1, "recall": 0.5, "chance": 0.1}
        for name in ATTRIBUTORS
        for query in range(4 if copies else 0)
    ]
    columns = ["attributor", "query", "copies", "recall", "chance"]
    areas = [
        {"attributor": name, "queries": queries, "query": query, "concept": concept}
        | {"word": "red", "combination": "held out" if query < 2 else "trained"}
        | {"area": 0.4 + 0.1 * query, "images_error": 0.02}
        for name in ATTRIBUTORS
        for queries in sets
        for concept in ("colour", "shape")
        for query in range(4 if copies else 0)
    ]
    columns_of_concepts = ["attributor", "queries", "query", "concept", "combination"]
    columns_of_concepts += ["area", "images_error"]
    leverage = pd.DataFrame({"regulariser": [0.1, 1.0], "auc": [0.9, 0.4]})
    return {
        "lds.csv": pd.DataFrame(rows),
        "differences.csv": pd.DataFrame(differences),
        "units.parquet": pd.concat(units, ignore_index=True),
        "paired.parquet": pd.concat(paired, ignore_index=True),
        "regularisers.csv": pd.DataFrame(regularisers),
        "copies.csv": pd.DataFrame(recall, columns=columns),
        "concepts.csv": pd.DataFrame(areas, columns=columns_of_concepts),
        "leverage.csv": leverage if copies else leverage[:0],
        "first.parquet": pd.concat(first, ignore_index=True),
    }


def make_phase(results: Path, everything: bool, replicates: int = 1) -> None:
    """Write the results of the phase, and their tables.

    Without counterfactuals, remedies and variants unless ``everything``. Of several networks, the
    scores of each are 0.1 higher than those of the one before.
    """
    for k in range(replicates):
        make_replicate(results, k, everything)
    jobs = ["again", *(f"{choice}/{q}" for choice in CHOICES for q in range(GENERATIONS))]
    settings = {"replicates": replicates, "counterfactual": jobs if everything else []}
    settings |= {"variants": everything}
    tables = made_of.tables(made_of.Stores(results, settings), 0.95)
    files = {f"{name}.csv": table for name, table in tables.items()}
    store(results / "report/tables", {"attribution": settings}, {}, files)


def make_replicate(results: Path, k: int, everything: bool) -> None:
    rng = np.random.default_rng(k)

    def images(count: int) -> Images:
        return Images.of(rng.integers(0, 256, (count, 8, 8, 1), np.uint8))

    phase = results / f"attribution/rep{k}"
    sets = SETS if everything else SETS[:2]
    store(results / f"data/planting/{k}", {}, {}, {"train.npz": images(TRAIN)})
    facts = {"training_images": TRAIN, "reported_subsets": 8, "queries": dict.fromkeys(sets, 4)}
    settings = {"subsets": 16, "share": 0.5, "seeds": 2}
    store(phase / "scores/main", settings, facts, scores(sets, everything, 0.1 * k))
    store(phase / "retrain/0-8", {"attribution": {"arm": "explained"}}, {}, {})
    store(phase / "queries", {}, {}, {f"{name}.npz": images(4) for name in SETS})
    if not everything:
        return
    for choice in ("again", *CHOICES):
        queries = list(range(GENERATIONS))
        # The loss rises by (query + 1) hundredths without the nearest images, by three times as
        # much without dtrak's, and with every network a little more.
        times = {"again": 0, "random": 0.5, "pixel_l2": 1, "dtrak": 3}[choice]
        changes = pd.DataFrame(
            {"choice": choice, "query": queries, "removed": 0 if choice == "again" else 5}
            | {"l2": 0.1, "cosine": 0.9, "shift": 0.0}
            | {"loss": [1 + 0.01 * times * (query + 1 + k) for query in queries]}
        )
        folder = phase / "counterfactual" / choice
        if choice == "again":
            files = {"changes.csv": changes, "regenerated.npz": images(GENERATIONS)}
            store(folder, {}, {}, files)
            continue
        for query in queries:
            own = changes[changes["query"] == query]
            store(folder / str(query), {}, {}, {"changes.csv": own, "regenerated.npz": images(1)})
    auc = [
        {"network": network, "attributor": name, "queries": queries, "count": 6, "auc": value}
        for network, value in (("before", 0.9), ("after", 0.5))
        for name in ("das", "dtrak")
        for queries in ("forgotten", "others")
    ]
    files = {"influence.csv": pd.DataFrame(auc)}
    store(phase / "remedied/salun", {"before": "conditional"}, {}, files)
    costs = [
        {"variant": variant, "attributor": name, "queries": "generated", "seconds": seconds + k}
        | {"lds": lds, "low": lds - 0.1, "high": lds + 0.1, "agreement": 0.7, "first": 0.25}
        for variant, seconds in (("main", 3.0), ("t100", 30.0))
        for name, lds in ATTRIBUTORS.items()
    ]
    units = [
        pd.DataFrame(
            {key: cost[key] for key in ("variant", "attributor", "queries")}
            | {"subset": range(SUBSETS), "lds": cost["lds"] + np.linspace(-0.1, 0.1, SUBSETS)}
        )
        for cost in costs
    ]
    files = {"acceleration.csv": pd.DataFrame(costs), "units.parquet": pd.concat(units)}
    store(phase / "acceleration", {"reference": "t100"}, {"shortlist": 4}, files)
    for name, features in VARIANTS.items():
        store(phase / "features" / name / "final/0", {"features": features}, {}, {})


@pytest.fixture
def study(params, tmp_path):
    """Return a function that makes up the phase of a study; it gives the study and its results."""

    def build(everything: bool, replicates: int = 1, **report) -> tuple[config.Study, Path]:
        arms = {"salun": {"method": "baseline"}}
        made = params | {"arms": arms, "forget": {}, "loyal_selection": None, "report": report}
        made |= {"replicates": replicates}
        made |= {"data": made["data"] | {"plantings": replicates}}
        results = tmp_path / f"made{replicates}"
        make_phase(results, everything, replicates)
        return config.parse(made), results

    return build


def names_of_figures(replicates: int) -> set[str]:
    names = ["lds", "regularisers", "copies", "concepts", "counterfactual", "remedied", "cost"]
    names += ["timesteps_dimension", *(f"regenerated_rep{k}" for k in range(replicates))]
    names += [f"first_rep{k}_{query}" for k in range(replicates) for query in range(3)]
    return {f"attribution_{name}" for name in names}


def test_everything_that_a_study_can_ask_for(study, show):
    text, shown = show("attribution", *study(True, show_images=True))
    assert shown == names_of_figures(1)
    assert "arm **explained**: 40 training images" in text
    assert "4 extracted generations, 3 of images that occur several times" in text
    assert "in 90 % of pairs" in text
    assert "(λ = 0.1); over all regularisers from 40 to 90 %" in text
    assert "3 generations, 5 of 40 training images taken out." in text
    assert "of **one trained network**" in text
    assert "Before: `conditional`." in text
    assert "Two stages look at 4 of 40 images again." in text


def test_several_networks(study, show):
    """Means with the networks beside them; nothing of it is of the first network alone."""
    text, shown = show("attribution", *study(True, 2, show_images=True))
    assert shown == names_of_figures(2)
    assert "2 networks (its first replicates), each explained for itself: 40 training" in text
    assert "means over **these 2 networks**" in text
    assert "**one trained network**" not in text
    assert "8 extracted generations of 2 networks, 6 of images that occur several times" in text
    assert text.count("in 90 % of pairs") == 2
    assert "6 generations of 2 networks, 5 of 40 training images taken out." in text


def test_little(study, show):
    text, shown = show("attribution", *study(False, show_images=False))
    assert shown == {"attribution_lds", "attribution_regularisers"}
    assert "none is of known origin" in text
    assert "does not allow its images to be shown" in text
    for missing in ("does not take images out", "does not follow forgotten images", "no variants"):
        assert missing in text
    assert "Leverage:" not in text


@pytest.fixture
def page_of(study, tmp_path):
    """Return a function that gives the page's numbers, with everything."""

    def build(replicates: int) -> Attribution:
        _, results = study(True, replicates)
        return Attribution(Notebook(results, tmp_path / "figures", 0.95, replicates))

    return build


@pytest.fixture
def page(page_of):
    return page_of(1)


def test_attributors_stand_by_their_mean_score_and_the_control_is_shaded(page):
    rows, shaded = page.table("loss")
    assert [row["attributor"].striptags() for row in rows] == list(ATTRIBUTORS)
    assert shaded == [len(ATTRIBUTORS) - 1]
    assert rows[0]["LDS, generations"].startswith("0.5 <small>[0.4, 0.6]</small>")
    # Half the width of the interval is t sqrt(sum of squares / 7 / 8) = 2.365 * 0.0346, over 0.8.
    assert rows[0]["of ceiling, generated"] == "62.5 % <small>[52.3, 72.7]</small>"
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


def test_rises_are_compared_generation_by_generation(page):
    """Rises of 1, 2 and 3 hundredths with the nearest images, of 3, 6 and 9 with dtrak's: the ratio
    is 3 for every generation, so that no other is possible."""
    table = {row["taken out by"].striptags(): row for row in page.counterfactual_table()}
    assert list(table) == ["again", *CHOICES]
    label, ratio = "loss of the query, less that of `again`", "rise, times that of pixel_l2"
    # Student's t with 2 degrees of freedom: 4.303 / sqrt(3) = 2.484 standard deviations.
    assert table["dtrak"][label] == "0.06 <small>[-0.0145, 0.135]</small>"
    difference = table["dtrak"][f"minus pixel_l2: {label}"]
    assert difference == "+0.04 <small>[-0.00968, +0.0897]</small>"
    assert f"minus pixel_l2: {label}" not in table["pixel_l2"]
    assert (table["pixel_l2"][ratio], table["again"][ratio]) == ("", "")
    assert table["dtrak"][ratio] == "3 <small>[no bounds]</small>"  # a rise of 0 is possible


def test_rise_of_the_loss_is_measured_from_that_of_a_retraining(page):
    rise = page.changes().set_index(["choice", "query"])["rise"]
    assert rise["again"].eq(0).all()
    assert rise["dtrak", 1] == pytest.approx(0.06)
    assert page.choices() == ["again", *CHOICES]


def test_each_network_stands_beside_the_mean(page_of):
    page = page_of(2)
    mean = {row["attributor"].striptags(): row for row in page.table("loss")[0]}
    each = {row["attributor"].striptags(): row for row in page.by_network("loss")}
    assert mean["dtrak"]["LDS, generations"].startswith("0.45 ")
    assert each["dtrak"]["generations, network 0"].startswith("0.4 ")
    assert each["dtrak"]["generations, network 1"].startswith("0.5 ")
    assert each["das"]["generations, network 1"].endswith("<small>repeats 0.25</small>")
    assert "2 queries without" in mean["das"]["LDS, held-out images"]
    rises = {row["taken out by"].striptags(): row for row in page.counterfactual_by_network()}
    assert rises["dtrak"]["rise, network 0"].startswith("0.06 ")
    assert rises["dtrak"]["rise, network 1"].startswith("0.09 ")
    assert page.costs()["seconds"].unique().tolist() == [3.5, 30.5]


def test_settings_that_differ_alone_make_a_curve(page):
    assert page.dials() == {
        "timesteps": [(10, "main"), (100, "t100")],
        "dimension": [(4096, "main")],
        "probes": [(1, "main")],
    }


def test_only_attributors_with_published_scores_are_compared(page):
    assert [row["attributor"] for row in page.published()] == ["dtrak", "trak"]
    assert page.published()[0]["here, generations"] == "40.0 %"
