"""What the tables are told of a study."""

from __future__ import annotations

import pytest

from afterimage import config
from afterimage.plan.report import paired_with_control
from afterimage.plan.resolved import resolve


@pytest.mark.parametrize(
    ("settings", "is_paired"),
    [
        ({}, True),
        ({"rau_net": {"groups": [1]}, "train": {"updates": 10}}, True),
        ({"condition": "label"}, True),
        ({"data": "deduplicated"}, False),
        ({"without": "zeros"}, False),
        ({"fraction": 0.5}, False),
    ],
)
def test_arms_are_paired_with_controls_that_were_given_the_same_images(params, settings, is_paired):
    arms = {"plain": {"method": "baseline"}, "half": {"method": "baseline", "fraction": 0.5}}
    arms["arm"] = {"method": "baseline", "control": "plain", **settings}
    arms["halves"] = {"method": "baseline", "fraction": 0.5, "control": "half"}
    changed = {"loyal_selection": None, "attribution": None, "forget": {"zeros": {"label": 0}}}
    study = config.parse(params | changed | {"arms": arms})
    assert paired_with_control(study, "arm") == is_paired
    assert not paired_with_control(study, "plain")  # it has no control
    assert not paired_with_control(study, "halves")  # each draws its own half
    told = resolve(study, "report/tables")["settings"]
    assert told["paired"] == {"plain": False, "half": False, "arm": is_paired, "halves": False}
    assert told["margin"] == study.statistics.margin.model_dump()
    assert set(told["margin"]) == {"relative_fd", "coverage", "text_alignment"}
