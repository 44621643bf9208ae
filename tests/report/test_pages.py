"""The notebooks show a study of few arms and one of many; run in this process, on made-up
results."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import yaml

from afterimage import config

RAU_NET = {"groups": [1]}
UNLEARN = {"base": "conditional", "control": "retrained", "train": {"updates": 10}}
ARMS = {
    "baseline": {"method": "baseline"},
    "dedup": {"method": "baseline", "data": "deduplicated", "control": "baseline"},
    "rau_net": {"method": "baseline", "rau_net": RAU_NET, "control": "baseline"},
    "conditional": {"method": "baseline", "condition": "label"},
    "retrained": {
        "method": "baseline",
        "condition": "label",
        "without": "zeros",
        "control": "conditional",
    },
    "salun": {"method": "salun", "forget": "zeros", **UNLEARN},
    "both": {"method": "baseline", "data": "deduplicated", "rau_net": RAU_NET, "control": "dedup"},
}
MANY = tuple(ARMS)
FEW = ("baseline", "dedup")


@pytest.fixture(scope="module")
def study(root, make_up, truth, tmp_path_factory):
    """Make up a study, once for the same arguments; return its settings and results."""

    @cache
    def build(
        arms: tuple[str, ...],
        replicates: int,
        copies: tuple[int, ...] = (1, 2, 4, 8, 16),
        harmless: tuple[str, ...] = (),
        **report,
    ) -> tuple[config.Study, Path]:
        params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
        params |= {
            "arms": {name: ARMS[name] for name in arms},
            "replicates": replicates,
            "report": report,
            "forget": {"zeros": {"label": 0}},
            "loyal_selection": None,
            "attribution": None,
        }
        truths = {name: truth(copies=copies) for name in arms} | {
            "dedup": truth(0.02, 0.05, 6.0, copies=copies)
        }
        truths |= {name: truth(0.005, 0.0, copies=copies) for name in harmless}
        made = config.parse(params)
        return made, make_up(tmp_path_factory.mktemp("made"), made, truths)

    return build


def test_comparison_of_few_arms(study, show):
    text, figures = show("comparison", *study(FEW, 1, show_images=True, pairs=9))
    assert figures == {"pareto", "differences"}
    assert (
        "**One training: no verdict (another training of the same arm would give other "
        "numbers):** **dedup**" in text
    )
    assert "Beat their own control" not in text
    assert "all **within one training**" in text


def test_comparison_of_few_arms_over_replicates(study, show):
    text, _ = show("comparison", *study(FEW, 3))
    assert (
        "**Beat their own control, adjusted for 1 verdict(s):** **dedup** (over baseline)" in text
    )
    assert "Welch's for dedup, which were given other images" in text
    assert "its p-value adjusted for 1 verdict(s) (Holm)" in text
    assert "Fréchet distance 10 % above the control's, and a coverage 2 points below" in text
    assert "Reported, without deciding: planted images extracted" in text
    head, row = re.search("<thead>(.*?)</thead>.*?<tr>(.*?)</tr>", text, re.DOTALL).groups()
    heads, cells = (
        re.findall(f"<t{kind}[^>]*>(.*?)</t{kind}>", part)
        for kind, part in (("h", head), ("d", row))
    )
    shown = dict(zip(heads, cells, strict=True))
    assert float(shown["p"]) == float(shown["adjusted p"]) < 0.05
    assert 0 < float(shown["smallest difference detectable"]) < 38


def test_comparison_of_many_arms(study, show):
    text, figures = show("comparison", *study(MANY, 2, show_images=True))
    assert figures == {"pareto", "differences"}
    assert "over 2 replicates (Student's t, paired by replicate for rau_net, both, which" in text
    assert "adjusted for 5 verdict(s) (Holm)" in text
    assert "probability of forgotten class (zeros)" in text
    assert "are both judged on a forget set, by" not in text  # nothing is measured of the rest
    for arm, settings in ARMS.items():
        if "control" in settings:
            assert re.search(f"<b>{arm}</b></td>\\s*<td[^>]*>{settings['control']}</td>", text)


def test_what_decides_about_quality_is_named(captioned, tmp_path, make_up, truth, show):
    """Of unlearners it is the rest's alone, of which text alignment is none."""
    unlearn = {"base": "plain", "control": "plain", "train": {"updates": 10}}
    arms = {
        "plain": {"method": "baseline"},
        "astray": {"method": "baseline", "control": "plain"},
        "erasing": {"method": "erasediff", "forget": "faces", **unlearn},
    }
    forget = {"faces": {"caption": "face", "surrogate": "a thing"}}
    made = captioned(arms, forget=forget, replicates=4)
    truths = {name: truth(alignment=0.7 if name == "plain" else 0.5) for name in arms}
    results = make_up(tmp_path, made, truths)
    shown, _ = show("comparison", made, results)
    assert (
        "*Quality* is judged by FD_balanced[classifier] and coverage[classifier] and "
        "text_alignment[classifier] (where an arm and its control are both judged on a forget set, "
        "by remaining_FD_balanced[classifier, faces] and remaining_coverage[classifier, faces] "
        "alone, of the images that remain; text alignment, of all prompts, decides nothing there)"
    ) in shown
    words = pd.read_csv(results / "report/tables/comparison_wide.csv").set_index("arm")["verdict"]
    assert words["astray"].endswith("worse in text_alignment[classifier]")
    assert "text_alignment" not in words["erasing"]


def test_comparison_without_any_control(study, show):
    text, figures = show("comparison", *study(("baseline",), 1))
    assert "No arm of this study names a control." in text
    assert figures == {"pareto"}


def test_extraction_of_few_arms_shows_the_pairs_of_each(study, show):
    text, figures = show("extraction", *study(FEW, 1, show_images=True, pairs=9))
    assert {"pairs_baseline", "pairs_dedup"} <= figures
    assert "pairs" not in figures
    assert "copies shown" in text
    assert "Copies shown: at least" in text
    assert "false-alarm rates below about 1 % cannot be shown" in text
    assert "within the one training" in text


def test_extraction_of_many_arms_shows_them_on_one_sheet(study, show):
    text, figures = show("extraction", *study(MANY, 2, show_images=True))
    assert {name for name in figures if name.startswith("pairs")} == {"pairs", "pairs_baseline"}
    assert {
        "multiplicity",
        "multiplicity_published_threshold",
        "distances",
        "ratios",
        "arms",
        "precision_recall",
    } <= figures
    assert "between 2 replicates (Student's t)" in text
    assert all(f"<summary>{arm}</summary>" in text for arm in MANY)


def test_images_are_withheld_unless_the_study_allows_them(study, show):
    text, figures = show("extraction", *study(FEW, 1, show_images=False))
    assert not any(name.startswith("pairs") for name in figures)
    assert "does not allow its images to be shown" in text


def test_study_without_planted_images(study, show):
    made = study(FEW, 3, copies=(1,), show_images=True)
    text, _ = show("extraction", *made)
    assert "planted images extracted" not in text
    text, _ = show("comparison", *made)
    assert (
        "**Beat their own control, adjusted for 1 verdict(s):** **dedup** (over baseline)" in text
    )


def test_a_control_that_remembers_nothing(study, show):
    """Neither does the arm that is compared with it."""
    text, _ = show("comparison", *study(MANY, 3, harmless=("dedup", "both")))
    assert "nothing can remember less than nothing):** **both** (over dedup)" in text
    row = next(row for row in text.split("<tr") if "<b>both</b>" in row)
    assert "not testable" in row
    assert "<b>yes</b>" not in row


def test_what_an_arm_and_its_control_share(study, show):
    text, _ = show("comparison", *study(MANY, 2, show_images=True))
    shared = text[text.index("equal, to one in a hundred") :]
    row = next(row for row in shared.split("<tr") if "<b>salun</b>" in row)
    assert "updates per network since its first weights (3,000 against 1,500)" in row
    assert "of <b>conditional</b> against drawn" in row
    assert "each its own" in next(row for row in shared.split("<tr") if "<b>dedup</b>" in row)
    assert "the same" in next(row for row in shared.split("<tr") if "<b>rau_net</b>" in row)
