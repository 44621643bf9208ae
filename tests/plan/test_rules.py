"""Every rule asks the cluster for what its step is estimated to need, or is small and runs where
Snakemake does."""

import re

import pytest

from afterimage.plan.jobs import STEPS
from afterimage.plan.step import TOGETHER

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
    assert asked.pop("draw_and_attack") == ["*TOGETHER"]
    assert {steps[0].strip('"') for steps in asked.values() if steps} <= set(STEPS)


def test_the_rule_of_several_steps_runs_each_in_turn_with_its_own_config(rules):
    shell = rules[0]["draw_and_attack"].partition("shell:")[2]
    commands = re.findall(r"(?:afterimage|--then) (\w+ \w+) .*?config\[(\d)\]", shell, re.S)
    assert commands == [
        (" ".join(STEPS[step].command), str(place)) for place, step in enumerate(TOGETHER)
    ]


def test_only_small_steps_and_targets_are_local(rules):
    found, local = rules
    assert {name for name in local if "shell:" in found[name]} == SMALL


def test_no_rule_has_retries(rules):
    """The snakemake inside a job would obey them, too: the profile has them."""
    assert not [name for name, body in rules[0].items() if "retries" in body]
