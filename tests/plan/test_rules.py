"""Every rule asks the cluster for what its step is estimated to need, or is small and runs where
Snakemake does."""

import re

import pytest

from afterimage.plan.jobs import DERIVED, STEPS

RULE = re.compile(r"^rule (\w+):\n((?:    .*\n|\n)*)", re.MULTILINE)
LOCAL = re.compile(r"^localrules:\n((?:    \w+,\n)*)", re.MULTILINE)
SMALL = {
    "fetch",
    "split",
    "planting",
    "queries",
    "tables",
    "page",
    "selection",
    "selection_page",
    "mlflow",
}


@pytest.fixture(scope="module")
def rules(root):
    files = [path.read_text() for path in sorted((root / "workflow/rules").glob("*.smk"))]
    found = {name: body for text in files for name, body in RULE.findall(text)}
    local = {
        name
        for text in files
        for listed in LOCAL.findall(text)
        for name in re.findall(r"\w+", listed)
    }
    return found, local


def test_rules_that_compute_ask_by_their_step(rules):
    found, local = rules
    asked = {name: re.findall(r"\*\*needs\((.+)\)", body) for name, body in found.items()}
    assert {name for name, steps in asked.items() if not steps} == local
    assert all(
        len(steps) == 1 and "    threads: " in found[name] for name, steps in asked.items() if steps
    )
    assert asked["attacks"] == ["*ATTACKS"]
    named = {steps[0].strip('"') for name, steps in asked.items() if steps and name != "attacks"}
    assert named <= set(STEPS)


def test_the_selections_arms_go_through_all_that_one_rule_makes(root):
    [listed] = re.findall(
        r"^ATTACKS = \((.+)\)$", (root / "workflow/rules/attack.smk").read_text(), re.M
    )
    assert set(re.findall(r'"([\w/]+)"', listed)) <= set(DERIVED)


def test_only_small_steps_and_targets_are_local(rules):
    found, local = rules
    assert {name for name in local if "shell:" in found[name]} == SMALL


def test_no_rule_has_retries(rules):
    """The snakemake inside a job would obey them, too: the profile has them."""
    assert not [name for name, body in rules[0].items() if "retries" in body]
