"""What prompts give away: from the attack's stores to the tables, the page and the document."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib import pyplot as plt
from scipy import stats

from afterimage import config
from afterimage.report import prompts, published
from afterimage.report.document import Document
from afterimage.report.notebook import Notebook
from afterimage.report.pages.extraction import Extraction

ARMS = {name: {"method": "baseline", "condition": "text"} for name in ("plain", "other")}


@pytest.fixture(scope="module")
def made(root, tmp_path_factory, make_up, truth):
    """Make up a study of captions; return its settings and results."""

    @cache
    def build(replicates: int, images: int = 4) -> tuple[config.Study, Path]:
        params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
        params["data"]["source"] = {"kind": "parquet", "path": "a", "caption_column": "text"}
        params["model"]["attention"] = [True] * len(params["model"]["channels"])
        params |= {"arms": ARMS, "forget": {}, "loyal_selection": None, "attribution": None}
        params |= {"replicates": replicates, "study": "made", "text": {}}
        params["prompts"] = {"arms": ["plain"], "images": images, "clique": 2}
        study = config.parse(params)
        return study, make_up(tmp_path_factory.mktemp("made"), study, dict.fromkeys(ARMS, truth()))

    return build


def table(results: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(results / "report" / "tables" / f"{name}.csv")


def rows(text: str, start: str) -> list[list[str]]:
    """Return the cells of the table in Markdown whose header starts so."""
    lines = text[text.index(start) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_shares_of_prompts_are_headline_numbers_with_exact_intervals(made):
    _, results = made(1)
    arms = table(results, "arms").set_index(["arm", "metric"])
    for group, count, of in (("all", 5, 10), ("copies=4", 5, 6), ("holdout", 0, 4)):
        exact = stats.binomtest(count, of).proportion_ci(0.95, method="exact")
        row = arms.loc[("plain", f"prompts_extracted[{group}]"), ["value", "low", "high"]]
        np.testing.assert_allclose(row.astype(float), [count / of, exact.low, exact.high])
    assert "other" not in arms[arms.index.get_level_values("metric").str.startswith("prompts_")]


def test_several_trainings_are_averaged(made):
    _, results = made(3)
    arms = table(results, "arms").set_index(["arm", "metric"])
    row = arms.loc[("plain", "prompts_extracted[all]")]
    assert row["value"] == pytest.approx((0.5 + 0.4 + 0.3) / 3)
    assert row["interval"] == "between replicates"
    ranked = table(results, "prompts_ranked")
    assert ranked.groupby("replicate").size().tolist() == [6, 5, 4]
    last = ranked.groupby("replicate").last()
    assert last["extracted"].tolist() == [5, 4, 3]
    np.testing.assert_allclose(last["precision"], [5 / 6, 4 / 5, 3 / 4])


def test_the_document_has_the_counts_of_every_group(made):
    _, results = made(3)
    text = Document(results / "report" / "tables", "made").text()
    found = {row[1]: row for row in rows(text, "| arm | captions |")}
    assert list(found) == ["all", "1 copy", "4 copies", "held-out"]
    assert found["all"][:3] == ["`plain`", "all", "30"]
    flagged, extracted, own, false = found["all"][3:]
    assert flagged.startswith("15: 50.0 % (")
    assert extracted.startswith("12: 40.0 % (")
    assert own.startswith("9: 30.0 % (")
    assert false.startswith("3: 10.0 %")
    assert found["held-out"][3].startswith("3: 25.0 %")
    assert found["held-out"][5] == ""
    assert prompts.EXTRACTED[:30] in text


def test_the_page_shows_counts_curve_and_what_is_published(made, show):
    text, figures = show("extraction", *made(3))
    assert "prompts_ranked" in figures
    assert "12: 40.0 % <small>" in text
    assert prompts.NOT_EXTRACTED not in text
    line = {part.split("</td>")[0].split(">")[-1]: part for part in text.split("<tr")}
    for name, known in published.STABLE_DIFFUSION.items():
        assert known.statement in line[name]
    assert "6, 5, 4" in line["captions flagged"]
    assert "3 within 0.15, 2 within 0.15, 2 within 0.15" in line["training images extracted"]
    assert "5, 4, 3" in line["extracted before the first that is not"]
    assert "100.0 %</td>" in line["precision when all are found"]  # the wrong one comes last
    assert ">plain</th>" in text
    assert line["images of each"].count("4</td>") == 1  # one setting, not one per training


def test_the_figure_is_precision_over_the_number_extracted(made, tmp_path):
    _, results = made(3)
    page = Extraction(Notebook(results, tmp_path / "figures", 0.95), list(ARMS), 3)
    assert page.prompted == ["plain"]
    figure = page.prompts_ranked()
    plt.close(figure)
    (axis,) = figure.axes
    lines = [line.get_xydata() for line in axis.get_lines()]
    assert len(lines) == 6
    np.testing.assert_allclose(lines[1][:, 0], [1, 2, 3, 4, 5, 5])
    np.testing.assert_allclose(lines[1][:, 1], [1, 1, 1, 1, 1, 5 / 6])
    np.testing.assert_allclose(lines[0][:, 1], [0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6])


def test_without_images_it_is_said_that_nothing_was_measured(made, show):
    study, results = made(1, images=0)
    assert table(results, "prompts_ranked").empty
    document = Document(results / "report" / "tables", "made").text()
    assert prompts.NOT_EXTRACTED in document.replace("\n", " ")
    text, figures = show("extraction", study, results)
    assert prompts.NOT_EXTRACTED in text
    assert "prompts_ranked" not in figures
    assert "one_step" in text


def test_the_page_reads_tables_that_were_made_before(made, show, tmp_path):
    """Without the shares, and without the table of the ranking."""
    study, results = made(1)
    older = tmp_path / results.name
    shutil.copytree(results, older)
    folder = older / "report" / "tables"
    (folder / "prompts_ranked.csv").unlink()
    for name in ("prompts", "arms"):
        numbers = table(older, name)
        kept = numbers[~numbers["metric"].str.startswith("prompts_")]
        kept.to_csv(folder / f"{name}.csv", index=False)
    text, figures = show("extraction", study, older)
    assert prompts.NOT_EXTRACTED in text
    assert "prompts_ranked" not in figures
