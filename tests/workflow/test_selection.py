"""The target ``loyal_selection``: its jobs are planned on request only, by the rules of every other
arm."""

import pytest

pytestmark = pytest.mark.slow

SELECTION = {"base": "baseline", "updates": 4, "switch_timesteps": [20, 30]}
DERIVED = 1 + 3 + 1 + 2 * 3
"""The control; groups 0 to 2 of the tiny network's two levels; blocks throughout; three pairs of
networks for each timestep."""


def test_selection_is_planned_on_request_and_leaves_all_alone(empty):
    before = empty.planned()
    empty.edit("loyal_selection", value=SELECTION)
    empty.edit("replicates", value=2)
    planned = empty.planned(target="loyal_selection")
    once = ["fetch", "split", "planting", "classifier"]
    once += ["selection", "selection_page", "loyal_selection"]
    assert planned == dict.fromkeys(once, 1) | {
        "timestep_ablation": 2,
        "fit": 2 * (DERIVED + 1),
        "draw_and_attack": 2 * DERIVED,
    }
    empty.edit("replicates", value=1)
    assert empty.planned() == before


def test_without_a_selection_the_target_says_what_is_missing(empty):
    empty.edit("loyal_selection", value=None)
    done = empty.snakemake("--dry-run", "--", "loyal_selection", check=False)
    assert done.returncode != 0
    assert "the study has no loyal_selection" in done.stdout + done.stderr
