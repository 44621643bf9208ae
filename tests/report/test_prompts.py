"""Areas of prompt detectors are found by what was planted."""

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
