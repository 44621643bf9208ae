"""Made-up results of a whole study, with rates that a test chooses: true stores, from which the
true tables and pages are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import jupytext
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import stats

from afterimage import artifacts, cli, config, provenance
from afterimage.attacks import prompt_detection, prompt_extraction, verdict
from afterimage.images import Images
from afterimage.plan import jobs
from afterimage.plan.resolved import modules, resolve, resolved, write_configs
from afterimage.report.notebook import Notebook

GENERATIONS, PLANTED, SINGLES, HELD_OUT = 400, 32, 60, 200


@dataclass(frozen=True)
class Truth:
    """What an arm's results are drawn around; text alignment for arms with captions alone."""

    flagged: float = 0.4
    planted: float = 0.6
    frechet: float = 8.0
    coverage: float = 0.7
    membership: float = 0.7
    forgotten: float = 0.5
    alignment: float | None = None
    copies: tuple[int, ...] = (1, 2, 4, 8, 16)


@pytest.fixture(scope="session")
def truth() -> type[Truth]:
    return Truth


@pytest.fixture(scope="session")
def captioned(root) -> Callable[..., config.Study]:
    """Return a function that gives a study of images with captions, with these arms and blocks."""

    def study(arms: dict[str, dict[str, object]], **blocks: object) -> config.Study:
        params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
        params["data"]["source"] = {"kind": "parquet", "path": "a", "caption_column": "text"}
        params["data"]["split"]["fusion"] = 50
        params["model"]["attention"] = [True] * len(params["model"]["channels"])
        params |= {"arms": {name: arm | {"condition": "text"} for name, arm in arms.items()}}
        params |= {"text": {}, "forget": {}, "loyal_selection": None, "attribution": None}
        return config.parse(params | blocks)

    return study


@pytest.fixture(scope="session")
def make_up() -> Callable[..., Path]:
    return make


def make(folder: Path, study: config.Study, truth: dict[str, Truth]) -> Path:
    """Write made-up results of ``study`` below ``folder``, and its tables; return
    ``results/<study>``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "fingerprint", lambda *entries: f"code of {', '.join(entries)}")
        return _make(folder, study, truth)


def _make(folder: Path, study: config.Study, truth: dict[str, Truth]) -> Path:
    root = folder / study.study
    write_configs(study, folder)
    rng = np.random.default_rng(0)
    images = Images.of(rng.integers(0, 256, (PLANTED + SINGLES, 8, 8, 1), np.uint8))
    attacks = {
        "attack/extraction": _extraction,
        "attack/quality": _quality,
        "attack/membership": _membership,
    }
    for job in jobs.jobs(study):
        if job.phase == "report":
            continue
        wanted_config = resolved(study, job)
        with artifacts.step(wanted_config, root / job.folder, {}, modules(study, job)) as step:
            if job.step == "data/planting":
                images.save(step.folder / "train.npz")
            elif job.step == "data/dedup":
                pd.DataFrame({"method": ["exact"], "recall": [1.0]}).to_csv(
                    step.folder / "table.csv", index=False
                )
            elif job.step == "train":
                for update in range(0, 30, 10):
                    step.metric("loss", 1 / (update + 1), update)
                updates = {
                    "updates": 1500,
                    "updates_per_model": 1500,
                    "images_seen": 96000,
                    "kept_samples": 96000,
                    "backward_passes": 1500,
                }
                step.note(
                    **updates,
                    training_images=500,
                    training_seconds=rng.uniform(20, 60),
                    parameters=123_456,
                )
                if isinstance(study.model, config.StoredModel):
                    step.note(levels=3)
            elif job.step == "sample":
                Images.of(rng.integers(0, 256, (GENERATIONS, 8, 8, 1), np.uint8)).save(
                    step.folder / "images.npz"
                )
            elif job.step in attacks:
                attacks[job.step](step.folder, truth[job.arm], rng)
                if job.step == "attack/extraction":
                    step.note(**_answer(truth[job.arm]))
            elif job.step == "attack/prompts":
                prompts(wanted_config["settings"], job.replicate, step.folder)
            elif job.step == "attack/path":
                _path(step.folder, wanted_config["settings"]["states"], truth[job.arm], rng)
                step.note(generations=GENERATIONS)
            elif job.step == "attribution/scores" and job.job == "main":
                for name, table in _scores().items():
                    path = step.folder / name
                    csv = name.endswith(".csv")
                    table.to_csv(path, index=False) if csv else table.to_parquet(path)
            elif job.step == "attack/forgetting":
                sets = list(wanted_config["settings"]["sets"])
                _forgetting(step.folder, sets, truth[job.arm], rng)
                step.note(sets={name: {"sources": 20, "trained": 20} for name in sets})
    command = [
        "report",
        "tables",
        "--results",
        str(root),
        "--config",
        str(root / "config/report/tables.json"),
    ]
    assert cli.main([*command, "--out", str(root / "report/tables")]) == 0
    return root


def _share(
    metric: str, count: int, of: int, anchor: str = "none", alpha: str = "none", subset: str = "all"
) -> pd.DataFrame:
    exact = stats.binomtest(count, of).proportion_ci()
    row = {
        "metric": metric,
        "anchor": anchor,
        "alpha": alpha,
        "alpha_value": 0.5 if alpha == "fixed" else 0.3,
        "subset": subset,
    }
    row |= {"count": count, "of": of, "value": count / of, "low": exact.low, "high": exact.high}
    return pd.DataFrame([row | {"exact_low": exact.low, "exact_high": exact.high}])


def _answer(truth: Truth) -> dict[str, object]:
    """Make up the facts of an extraction: the verdict of scores with as many copies as the truth
    says."""
    rng = np.random.default_rng(1)
    copies = rng.random(GENERATIONS) < truth.flagged
    scores = np.where(copies, 0.0, rng.random(GENERATIONS))
    answer, _ = verdict.decide(
        scores,
        rng.random(HELD_OUT),
        np.arange(GENERATIONS) % 7,
        np.zeros(GENERATIONS, bool),
        0,
        SINGLES,
    )
    return {
        "verdict": answer.record,
        "holdout_left_out": {"exact": 2},
        "holdout_smallest_rate": 0.01,
        "low_detail_generations": 3,
        "zero_means_generations": {"training": 0, "candidate": 0},
        "calibration_impossible": [],
    }


def _extraction(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    rows, flags, found = [], {}, {}
    planted = PLANTED if len(truth.copies) > 1 else 0
    copies = np.repeat(truth.copies, [SINGLES, *[planted // 4] * (len(truth.copies) - 1)])
    rates = np.where(copies == 1, 0.1 * truth.planted, truth.planted ** (8 / copies))
    for alpha, more in (("fixed", 1.5), ("calibrated", 1.0)):
        flagged = np.arange(GENERATIONS) < rng.binomial(GENERATIONS, min(1, more * truth.flagged))
        out = rng.random(len(copies)) < rates
        flags[f"flagged_training_{alpha}"], found[f"extracted_training_{alpha}"] = flagged, out
        rows += [
            _share("flagged_generations", int(flagged.sum()), GENERATIONS, "training", alpha),
            _share(
                "flagged_holdout",
                rng.binomial(HELD_OUT, 0.01 if more == 1 else 0.1),
                HELD_OUT,
                "training",
                alpha,
            ),
            _share("extracted_images", int(out.sum()), len(out), "training", alpha),
        ]
        if planted:
            rows.append(
                _share("twins_flagged", rng.binomial(planted, 0.02), planted, "training", alpha)
            )
        for c in truth.copies:
            some = out[copies == c]
            rows.append(
                _share(
                    "extracted_by_copies",
                    int(some.sum()),
                    len(some),
                    "training",
                    alpha,
                    f"copies={c}",
                )
            )
            if c > 1:
                twins = rng.binomial(len(some), 0.02)
                rows.append(
                    _share(
                        "twins_flagged_by_copies",
                        twins,
                        len(some),
                        "training",
                        alpha,
                        f"copies={c}",
                    )
                )
    for of, rate in (("", truth.flagged), ("_holdout", 0.01)):
        rows.append(_share(f"mq{of}@0.5", rng.binomial(GENERATIONS, rate), GENERATIONS))
    precision, recall = 0.5 + 0.5 * truth.planted, np.linspace(0, 1, 20 if planted else 0)
    if planted:
        ranking = {
            "metric": "average_precision",
            "anchor": "training",
            "alpha": "none",
            "subset": "all",
            "of": planted,
        }
        rows.append(
            pd.DataFrame(
                [
                    ranking
                    | {"value": precision, "low": precision - 0.1, "high": min(1, precision + 0.1)}
                ]
            )
        )
    pd.concat(rows).to_csv(folder / "results.csv", index=False)
    curve = pd.DataFrame(
        {"recall": recall, "precision": 1 - recall * (1 - precision), "ratio": recall}
    )
    curve.to_csv(folder / "precision_recall.csv", index=False)
    for name, near in (("pairs", truth.flagged), ("holdout_pairs", 0.01)):
        n = GENERATIONS if name == "pairs" else HELD_OUT
        ratio = np.where(rng.random(n) < near, rng.uniform(0.1, 1, n), rng.uniform(1, 2, n))
        pairs = pd.DataFrame(
            {"sample": np.arange(n), "nearest": rng.integers(0, len(copies), n), "l2": 0.2 * ratio}
        )
        pairs["nearest_source"], pairs["ratio_training"] = pairs["nearest"], ratio
        (pairs.assign(**flags) if name == "pairs" else pairs).to_parquet(folder / f"{name}.parquet")
    images = pd.DataFrame({"source": np.arange(len(copies)), "copies": copies, **found})
    images = images.assign(repeat=np.where(copies > 1, "both", "neither"), times=copies)
    images.to_parquet(folder / "images.parquet")


def _quality(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    rows, cover = [], truth.coverage + 0.003 * rng.standard_normal()
    for of, frechet in (
        ("generations", truth.frechet * np.exp(0.07 * rng.standard_normal())),
        ("holdout", 1.0),
    ):
        for metric, value in (
            ("FD_balanced[classifier]", frechet),
            ("KID[classifier]", frechet / 100),
            ("coverage[classifier]", cover),
        ):
            rows.append(
                {
                    "metric": metric,
                    "of": of,
                    "value": value,
                    "low": 0.9 * value,
                    "high": 1.1 * value,
                }
            )
        rows.append({"metric": "KID_sd[classifier]", "of": of, "value": 0.1})
        if truth.alignment is not None:
            value = truth.alignment + 0.002 * rng.standard_normal() if of == "generations" else 0.8
            ends = {"low": value - 0.03, "high": value + 0.03}
            rows.append({"metric": "text_alignment[classifier]", "of": of, "value": value} | ends)
        for metric, value in (
            ("R[pixels]", 0.9),
            ("similarity[pixels]", 0.7),
            ("similar[pixels]", 0.9),
        ):
            rows.append(
                {
                    "metric": metric,
                    "of": of,
                    "value": value,
                    "low": 0.9 * value,
                    "high": 1.05 * value,
                }
            )
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)


def _path(folder: Path, states: dict[str, float], truth: Truth, rng: np.random.Generator) -> None:
    """Make up a path that ends near the truth: half the odds of a copy at 1.3 times the
    distance."""
    rows = []
    for state, share in states.items():
        worse = -np.log(share)
        odds = truth.flagged / (1 - truth.flagged) * np.exp(-1.5 * worse)
        flagged = rng.binomial(GENERATIONS, odds / (1 + odds))
        frechet = truth.frechet * np.exp(0.6 * worse + 0.02 * rng.standard_normal())
        counts = {
            "flagged_generations_calibrated": (flagged, GENERATIONS),
            "flagged_holdout_calibrated": (1, HELD_OUT),
            "planted_extracted_calibrated": (int(PLANTED * odds / (1 + odds)), PLANTED),
        }
        rows += [
            {"metric": metric, "value": count / of, "count": count, "of": of}
            for metric, (count, of) in counts.items()
        ]
        rows += [
            {"metric": "FD_balanced[classifier]", "value": frechet},
            {"metric": "coverage[classifier]", "value": truth.coverage - 0.1 * worse},
        ]
        for row in rows[-5:]:
            row |= {"state": state, "share": share}
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)


def _scores() -> dict[str, pd.DataFrame]:
    """Make up the scores of two attributors, one of them without gradients, on six subsets."""
    subsets = np.linspace(-0.1, 0.1, 6)
    rows = [
        {"attributor": name, "queries": queries, "target": target, "regulariser": 1.0}
        | {"lds": lds, "low": lds - 0.1, "high": lds + 0.1, "repeatability": again}
        | {"ceiling": 0.8, "ceiling_low": 0.7, "ceiling_high": 0.9}
        for name, lds, again in (("das_revised", 0.5, 0.77), ("pixel_l2", 0.3, np.nan))
        for queries in ("holdout", "generated")
        for target in ("loss", "shift")
    ]
    keys = ["attributor", "queries", "target"]
    units = pd.concat(
        pd.DataFrame(
            {key: row[key] for key in keys}
            | {"subset": range(6), "lds": row["lds"] + subsets, "ceiling": 0.8 + subsets[::-1]}
        )
        for row in rows
    )
    pair = {"attributor": "das_revised", "other": "pixel_l2"}
    pairs = [
        pair
        | {"queries": queries, "target": target, "difference": 0.2, "low": 0.1, "high": 0.3}
        | {"p": 0.01, "p_adjusted": 0.01}
        for queries in ("holdout", "generated")
        for target in ("loss", "shift")
    ]
    paired = pd.concat(
        pd.DataFrame(
            {key: row[key] for key in (*keys, "other")}
            | {"subset": range(6), "difference": 0.2 + subsets}
        )
        for row in pairs
    )
    areas = [
        {"attributor": name, "queries": "generated", "query": query, "concept": "colour"}
        | {"word": "red", "combination": "trained", "area": area + 0.1 * query}
        | {"images_error": 0.02}
        for name, area in (("das_revised", 0.7), ("pixel_l2", 0.5))
        for query in range(3)
    ]
    return {
        "lds.csv": pd.DataFrame(rows),
        "units.parquet": units,
        "differences.csv": pd.DataFrame(pairs),
        "paired.parquet": paired,
        "concepts.csv": pd.DataFrame(areas),
    }


def _membership(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    auc = truth.membership + 0.01 * rng.standard_normal()
    row = {
        "metric": "roc_auc",
        "anchor": "none",
        "alpha": "none",
        "subset": "all",
        "of": PLANTED + SINGLES,
    }
    rows = [
        pd.DataFrame([row | {"value": auc, "low": auc - 0.03, "high": auc + 0.03}]),
        _share("tpr@0.01", 10, PLANTED + SINGLES),
    ]
    pd.concat(rows).to_csv(folder / "results.csv", index=False)


def prompts(settings: dict, replicate: int, folder: Path) -> None:
    """Make up an attack on prompts: of ten captions of training, six of them planted, the first
    5 - ``replicate`` in the order of their mean distance are extracted, and one more is flagged; of
    four held-out ones one is flagged. Without images only the detectors' numbers."""
    table = pd.DataFrame({"set": ["train"] * 10 + ["holdout"] * 4, "one_step": np.arange(14.0)})
    table["copies"] = [4] * 6 + [1] * 4 + [0] * 4
    table = table.assign(repeat=np.where(table["copies"] > 1, "both", "neither"))
    table = table.assign(times=table["copies"])
    ranked = pd.DataFrame(columns=prompt_extraction.RANKED)
    detectors = ["one_step"]
    if settings["images"]:
        place, last = np.arange(14), 5 - replicate
        near, flagged = place < last, (place <= last) | (place == 10)
        table = table.assign(cliques=-place, clique_mean=place / 100, flagged=flagged, within=near)
        table = table.assign(own=place > 0, within_holdout=place == 1, holdout_l2=0.3)
        table = table.assign(nearest_source=place // 2)
        ranked = prompt_extraction.ranked(table[table["set"] == "train"])
        detectors.append("cliques")
    statistics = config.Statistics(bootstrap=20)
    results = prompt_detection.attack(table, detectors, [0.05], statistics, 0)
    results.to_csv(folder / "results.csv", index=False)
    ranked.to_csv(folder / "ranked.csv", index=False)


def _forgetting(folder: Path, sets: list[str], truth: Truth, rng: np.random.Generator) -> None:
    rows = []
    for name in sets:
        some = _of_class(truth, rng) if truth.alignment is None else _of_captions(truth, rng)
        some += [
            _share(
                "extracted_images", rng.binomial(20, truth.forgotten), 20, "training", a, "forget"
            )
            for a in ("fixed", "calibrated")
        ]
        rows += [table.assign(set=name) for table in some]
    pd.concat(rows).to_csv(folder / "results.csv", index=False)


def _of_class(truth: Truth, rng: np.random.Generator) -> list[pd.DataFrame]:
    """Make up what a classifier sees of arms with labels."""
    mean = {
        "metric": "probability",
        "anchor": "none",
        "alpha": "none",
        "subset": "forget",
        "of": 40,
    }
    value = truth.forgotten + 0.01 * rng.standard_normal()
    some = [pd.DataFrame([mean | {"value": value, "low": value - 0.02, "high": value + 0.02}])]
    return [*some, pd.DataFrame([mean | {"metric": "relearn_updates", "value": 20.0}])]


def _of_captions(truth: Truth, rng: np.random.Generator) -> list[pd.DataFrame]:
    """Make up what is measured of arms with captions alone."""
    shares = [
        _share(metric, rng.binomial(of, rate), of, "training", "calibrated", "forget")
        for metric, of, rate in (
            ("copied", 64, truth.forgotten),
            ("brought_back", 8, truth.forgotten),
            ("brought_back_holdout", 8, 0.0),
        )
    ]
    rest = {"anchor": "none", "alpha": "none", "subset": "remain", "of": 80}
    for metric, value in (("FD_balanced", truth.frechet), ("coverage", truth.coverage)):
        near = value * (1 + 0.01 * rng.standard_normal())
        row = {"metric": f"{metric}[classifier]", "value": near, "low": 0.9 * near}
        shares.append(pd.DataFrame([rest | row | {"high": 1.1 * near}]))
    return shares


@pytest.fixture(scope="session")
def show(root, tmp_path_factory):
    """Run a notebook, once on the same results; return its text, written or displayed, and the
    names of its figures."""
    shown: dict[tuple[str, Path], tuple[str, frozenset[str]]] = {}

    def run(name: str, made: config.Study, results: Path) -> tuple[str, frozenset[str]]:
        if (name, results) not in shown:
            figures = tmp_path_factory.mktemp("figures")
            text = displayed(root / "notebooks" / f"{name}.py", made, results, figures)
            names = frozenset(path.stem for path in figures.glob("*.png"))
            shown[name, results] = text, names
        return shown[name, results]

    return run


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Return the titles, labels of axes and legends below them that are drawn over each other."""
    figure.draw_without_rendering()
    drawn = [
        (text.get_text(), text.get_window_extent())
        for axes in figure.axes
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label)
        if text.get_text() and text.get_visible()
    ]
    drawn += [("legend", legend.get_window_extent()) for legend in figure.legends]
    return [
        (one, other)
        for (one, here), (other, there) in combinations(drawn, 2)
        if here.overlaps(there)
    ]


def displayed(notebook: Path, made: config.Study, results: Path, figures: Path) -> str:
    """Run a notebook in this process; return its text."""
    shown: list[object] = []
    parameters = resolve(made, "report/page")["settings"] | {
        "results": str(results),
        "figures": str(figures),
    }
    space: dict = {}
    keep = Notebook.keep

    def kept(book: Notebook, figure: Figure, name: str) -> None:
        assert not overlapping(figure), name
        keep(book, figure, name)

    with mpl.rc_context({"backend": "agg"}), pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", shown.append)
        patch.setattr(Notebook, "keep", kept)
        for cell in jupytext.read(notebook).cells:
            if cell.cell_type == "code":
                exec(cell.source, space)
            else:
                shown.append(cell.source.replace("\n", " "))
            if "parameters" in cell.metadata.get("tags", []):
                assert parameters.keys() <= space.keys()
                space |= parameters
                space.pop("__builtins__", None)
    assert not plt.get_fignums()
    return "\n".join(
        str(getattr(each, "data", each)) for each in shown if not hasattr(each, "embed")
    )
