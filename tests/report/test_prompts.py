"""Areas of prompt detectors are found by what was planted, and captions that give training images
away are counted by it."""

import pandas as pd

from afterimage.report import prompts, published
from afterimage.report.prompts import areas


def test_groups_are_named_and_found():
    metrics = ["flagged", "prompt_auc[one_step]", "prompt_auc[one_step, copies=1]"]
    metrics += ["prompt_auc[one_step, copies=4]", "prompt_auc[cliques]"]
    assert areas(metrics) == {
        "one_step": {
            "all": metrics[1],
            "1 copy": metrics[2],
            "4 copies": metrics[3],
        },
        "cliques": {"all": metrics[4]},
    }
    assert areas(["flagged"]) == {}


def test_copies_are_left_out_where_what_was_planted_says_more():
    metrics = [
        f"prompt_auc[one_step{group}]"
        for group in (
            *("", ", copies=4", ", repeat=both times=4", ", repeat=neither times=1"),
            ", twins",
        )
    ]
    assert list(areas(metrics)["one_step"]) == ["all", "both, 4 times", "neither", "twins"]
    assert areas(metrics)["one_step"]["both, 4 times"] == metrics[2]


def test_extracted_captions_are_counted_over_all_trainings():
    subsets = ["all", "copies=4", "repeat=both times=4", "twins", "holdout"]
    rows = [
        {"arm": arm, "replicate": k, "metric": metric, "subset": subset, "count": k + 1, "of": 9}
        for arm in ("b", "a")
        for k in range(2)
        for metric in ("prompts_flagged", "prompts_own", "one_step_tpr@0.05")
        for subset in subsets
        if not (metric == "prompts_own" and subset in ("twins", "holdout"))
    ]
    rows.append({"arm": "c", "replicate": 0, "metric": "one_step_auc", "subset": "all", "of": 9})
    found = prompts.extracted(pd.DataFrame(rows))
    groups = ["all", "both, 4 times", "twins", "held-out"]
    assert [(row.arm, row.group) for row in found] == [(a, g) for a in "ba" for g in groups]
    assert found[0].of == 18
    assert found[1].shares == {
        "flagged": (3, "prompts_flagged[repeat=both times=4]"),
        "extracted, with this caption": (3, "prompts_own[repeat=both times=4]"),
    }
    assert found[3].shares == {"flagged": (3, "prompts_flagged[holdout]")}


def test_quantities_are_those_that_are_published():
    settings = {"images": 500, "clique": 10, "delta": 0.15}
    curve = pd.DataFrame(
        {"flagged": [1, 2, 4, 5, 9], "extracted": [1, 2, 3, 4, 4], "images": [1, 1, 2, 3, 3]}
    )
    curve = curve.assign(precision=curve["extracted"] / curve["flagged"])
    shown = prompts.as_published(curve, 1200, settings)
    assert list(shown) == list(published.STABLE_DIFFUSION)
    assert list(shown.values()) == ["1,200", "500", "10", "9", "3 within 0.15", "2", "80.0 %"]
    wrong_first = curve.iloc[2:]
    key = "extracted before the first that is not"
    assert prompts.as_published(wrong_first, 1200, settings)[key] == "0"
    wrong = curve.iloc[:1].assign(extracted=0, images=0, precision=0.0)
    shown = prompts.as_published(wrong, 1200, settings)
    assert list(shown.values())[3:] == ["1", "0 within 0.15", "0", "none found"]
    nothing = prompts.as_published(curve.iloc[:0], 1200, settings)
    assert nothing["captions flagged"] == nothing["training images extracted"] == "0"
    assert set(published.STABLE_DIFFUSION) - set(nothing) == {key, "precision when all are found"}
