"""A study's document says what its tables say, and the documents in git are those of their
tables."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from afterimage import artifacts, cli, config
from afterimage.report import document
from afterimage.report.document import BEGIN, END, Document

ARMS = {
    "plain": {"method": "baseline", "condition": "label"},
    "noisy": {
        "method": "baseline",
        "condition": "label",
        "train": {"updates": 900},
        "control": "plain",
    },
    "never": {
        "method": "baseline",
        "condition": "label",
        "without": "zeros",
        "control": "plain",
    },
    "spare": {"method": "baseline", "condition": "label", "control": "plain"},
}
PATHS = {"frontier": ["plain"], "arms": ["noisy"], "states": 4}


@pytest.fixture(scope="module")
def made(root, make_up, truth, tmp_path_factory) -> Callable[..., Path]:
    """Make up a study once; return its tables, which are only to be read."""
    truths = dict.fromkeys(ARMS, truth()) | {"noisy": truth(0.1, 0.2, 9.0)}

    @cache
    def build(replicates: int, paths: bool = True, attribution: bool = True) -> Path:
        params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
        names = list(ARMS) if paths else ["plain", "spare"]
        params |= {"replicates": replicates, "loyal_selection": None, "study": "made"}
        params["arms"] = {name: ARMS[name] for name in names}
        params["paths"] = PATHS if paths else None
        params["forget"] = {"zeros": {"label": 0}} if paths else {}
        params["attribution"] = params["attribution"] | {"arm": "plain"} if attribution else None
        study = config.parse(params)
        return make_up(tmp_path_factory.mktemp("made"), study, truths) / "report" / "tables"

    return build


def table(text: str, heading: str) -> dict[str, dict[str, str]]:
    """Return the first table below a heading: first cell -> heading -> cell."""
    section = text.split(f"## {heading}\n", 1)[1]
    first = section[section.index("| ") :].split("\n\n")[0]
    lines = first.splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(header, row, strict=True)) for row in rows}


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.M)


def test_numbers_are_those_of_the_tables(made):
    folder = made(3)
    arms = table(Document(folder, "made").text(), "Arms")
    numbers = pd.read_csv(folder / "arms.csv").set_index(["arm", "metric"])
    compared = pd.read_csv(folder / "comparison.csv").set_index(["arm", "metric"])
    wide = pd.read_csv(folder / "comparison_wide.csv").set_index("arm")
    primary = "flagged_generations_calibrated"
    for arm in ARMS:
        value, low, high = 100 * numbers.loc[(arm, primary), ["value", "low", "high"]].astype(float)
        assert arms[arm]["generations flagged"] == f"{value:.1f} % ({low:.1f} to {high:.1f})"
    for arm in ("noisy", "never", "spare"):
        row = compared.loc[(arm, primary)]
        assert arms[arm]["flagged, difference in points"].startswith(f"{100 * row.difference:+.1f}")
        assert arms[arm]["adjusted p"] == f"{row.p_adjusted:.2g}"
        assert arms[arm]["verdict"] == wide.loc[arm, "verdict"]
    assert arms["plain"]["control"] == arms["plain"]["verdict"] == ""


def test_the_difference_at_equal_quality_is_a_factor_of_the_odds(made):
    folder = made(3)
    row = table(Document(folder, "made").text(), "Copying at equal quality")["noisy"]
    beside = pd.read_csv(folder / "frontier.csv").query("decides").iloc[0]
    shown = row["odds of a copy, times those of plain training"]
    assert shown.split(" ")[0] == f"{np.exp(beside.difference):.2g}"
    assert (row["verdict"], beside.verdict) == ("copies less", "better")
    low, high = row["smallest factor detectable"].split(" or ")
    assert float(low) * float(high) == pytest.approx(1, rel=0.1)


def test_one_training_has_no_p_value_and_no_verdict(made):
    text = Document(made(1), "made").text().replace("\n", " ")
    assert "there are no verdicts" in text
    assert "adjusted p |" not in text
    assert "beats its control |" not in text
    arms = table(Document(made(1), "made").text(), "Arms")
    assert {row["verdict"] for row in arms.values()} == {
        "",
        "one training: no verdict",
    }


def test_sections_follow_from_what_the_study_has(made):
    whole = headings(Document(made(1), "made").text())
    assert whole == [
        "Copying at equal quality",
        "Arms",
        "Forgetting `zeros`",
        "Attribution",
        "Deduplication",
        "What was spent",
    ]
    short = Document(made(1, paths=False, attribution=False), "made")
    assert headings(short.text()) == ["Arms", "Deduplication", "What was spent"]
    assert "svg" not in short.text() + short.summary("docs/results")


def test_attribution_has_its_ceiling_and_repeatability(made):
    rows = table(Document(made(1), "made").text(), "Attribution")
    assert rows["das_revised"]["LDS of the loss, generations"] == "0.50 (0.40 to 0.60)"
    assert rows["das_revised"]["repeatability"] == "0.77 / 0.77"
    assert rows["pixel_l2"]["repeatability"] == ""  # it uses no gradients
    assert rows["ceiling"]["LDS of the prediction, held-out images"] == "0.80 (0.70 to 0.90)"


def test_areas_of_concepts_are_those_of_the_table(made):
    folder = made(1)
    text = Document(folder, "made").text()
    row = pd.read_csv(folder / "attribution_concepts.csv").set_index("attributor").loc["pixel_l2"]
    lines = text.split("colour, trained")[1].splitlines()
    cells = ["`pixel_l2`", "generations", f"{row.area:.2f} ({row.low:.2f} to {row.high:.2f})"]
    assert f"| {' | '.join(cells)} |" in lines
    assert row.area == pytest.approx(0.6)


def test_scores_from_other_features_are_listed_by_variant(root, made):
    folder = root / "results" / "digits_attribution" / "report" / "tables"
    text = Document(folder, "digits_attribution").text()
    costs = pd.read_csv(folder / "attribution_cost.csv")
    costs = costs[(costs["replicate"] == "mean") & (costs["queries"] == "generated")]
    variants = list(dict.fromkeys(costs["variant"]))
    header = "| attributor | " + " | ".join(f"`{name}`" for name in variants) + " |\n"
    lines = text.split(header)[1].split("\n\n")[0].splitlines()[1:]
    shown = {line.split("`")[1]: line.split(" | ")[1:] for line in lines}
    for row in costs.itertuples():
        cell = shown[row.attributor][variants.index(row.variant)].removesuffix(" |")
        assert cell == f"{row.lds:z.2f} ({row.low:z.2f} to {row.high:z.2f})"
    assert "variants of the features" not in Document(made(1), "made").text()


def test_forgetting_lists_every_training(made):
    folder = made(3)
    again = pd.read_csv(folder / "forgetting.csv").query("metric == 'relearn_updates'")
    rows = table(Document(folder, "made").text(), "Forgetting `zeros`")
    assert set(rows) == set(again["arm"])
    for arm, some in again.groupby("arm"):
        assert rows[arm]["updates to relearn"] == ", ".join(f"{u:g}" for u in some["value"])
        assert len(some) == 3


def test_the_figure_is_the_same_every_time_and_names_its_tables(made, tmp_path):
    for name in ("a", "b"):
        out = tmp_path / name / "made.md"
        assert cli.main(["report", "document", "--tables", str(made(3)), "--out", str(out)]) == 0
    first, second = ((tmp_path / name / "made-paths.svg").read_bytes() for name in ("a", "b"))
    assert first == second
    text = out.read_text().replace("\n", " ")
    for name in ("paths.csv", "frontier.csv"):
        source = f"`{name}` (SHA-256 `{artifacts.sha256(made(3) / name)}`)"
        assert source in text
        assert source in first.decode()
    assert "](made-paths.svg)" in text


def test_a_readme_gets_three_rows_and_keeps_the_rest(made, tmp_path):
    readme, out = tmp_path / "README.md", tmp_path / "docs" / "results" / "made.md"
    readme.write_text(f"# Title\n{BEGIN}\nold\n{END}\nend\n")
    command = ["report", "document", "--tables", str(made(3)), "--out", str(out)]
    assert cli.main([*command, "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(f"# Title\n{BEGIN}\n")
    assert text.endswith(f"{END}\nend\n")
    assert "old" not in text
    assert "](docs/results/made-paths.svg)" in text
    assert "](docs/results/made.md)" in text
    arms = re.findall(r"^\| `(\w+)`", text, re.M)
    assert arms == ["plain", "noisy", "never"]  # the path, then arms with a control
    assert cli.main([*command, "--readme", str(readme)]) == 0
    assert readme.read_text() == text


@pytest.mark.parametrize(
    "text", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{END}{BEGIN}{END}"]
)
def test_a_readme_without_its_marks_is_refused_before_anything_is_written(
    made, tmp_path, capsys, text
):
    readme, out = tmp_path / "README.md", tmp_path / "made.md"
    readme.write_text(text)
    command = ["report", "document", "--tables", str(made(1)), "--out", str(out)]
    assert cli.main([*command, "--readme", str(readme)]) == 2
    assert f"--readme {readme} must have the lines" in capsys.readouterr().err
    assert not out.exists()
    assert readme.read_text() == text


@pytest.mark.parametrize("name", ["arms.csv", "loss.csv"])  # one that is read, one that is not
def test_a_table_that_was_changed_is_refused(made, tmp_path, capsys, name):
    folder = shutil.copytree(made(1), tmp_path / "tables")
    with (folder / name).open("a") as file:
        file.write("\n")
    command = ["report", "document", "--tables", str(folder), "--out", str(tmp_path / "made.md")]
    assert cli.main(command) == 2
    assert f"{name} is not the file that" in capsys.readouterr().err
    empty = tmp_path / "empty"
    command = ["report", "document", "--tables", str(empty), "--out", str(tmp_path / "made.md")]
    assert cli.main(command) == 2
    assert "has no run.json" in capsys.readouterr().err
    assert not (tmp_path / "made.md").exists()


# ---- what git keeps


@pytest.fixture
def kept(root, tmp_path) -> Path:
    """What git keeps of README, documents and tables, in a folder of its own: a study that was run
    again here writes its tables into the working tree, and its document only when asked."""
    if not (root / ".git").exists():
        pytest.skip("no git here")
    git = ["git", "-C", str(root)]
    paths = ["README.md", "docs/results", "results/*/report/tables/*"]
    listed = subprocess.run(
        [*git, "ls-files", "-z", *paths], capture_output=True, check=True
    ).stdout
    subprocess.run(
        [*git, "checkout-index", "-z", "--stdin", f"--prefix={tmp_path}/"], input=listed, check=True
    )
    return tmp_path


def tables(kept: Path) -> list[Path]:
    """Return the folders of tables."""
    return [run.parent for run in sorted(kept.glob("results/*/report/tables/run.json"))]


def test_git_keeps_the_tables_and_no_other_result(root):
    if not (root / ".git").exists():
        pytest.skip("no git here")
    kept = ["results/new/report/tables/arms.csv", "results/new/report/tables/run.json"]
    left = [f"results/new/{name}" for name in ("train/a/rep0/run.json", "report/pages/x/run.json")]
    command = ["git", "-C", str(root), "check-ignore", "--no-index", *kept, *left]
    ignored = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert ignored == left


def test_documents_in_git_are_those_of_their_tables(kept):
    folders = tables(kept)
    assert folders
    results = kept / "docs" / "results"
    assert {path.stem for path in results.glob("*.md")} == {f.parents[1].name for f in folders}
    for folder in folders:
        made = Document(folder, folder.parents[1].name)
        assert (results / f"{made.study}.md").read_text() == made.text()
        figure = results / made.figure_name
        assert figure.is_file() == made.has_paths
        for name in document.SOURCES if made.has_paths else ():
            assert artifacts.sha256(folder / name) in figure.read_text()


def test_the_readme_shows_a_study_of_git(kept):
    parts = document.between_marks((kept / "README.md").read_text())
    assert parts is not None
    study = re.search(r"\(docs/results/(\w+)\.md\)", parts[1])[1]
    made = Document(kept / "results" / study / "report" / "tables", study)
    assert parts[1] == "\n" + made.summary("docs/results")
