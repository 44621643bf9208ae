"""Remedies that need more than their keys' ranges: what is refused before any job starts, and what
they cost."""

import pytest

from afterimage import config
from afterimage.plan.cost import work

AMBIENT = {"method": "ambient", "level": 300}


def test_ambient_costs_what_plain_training_does(digits):
    study = digits(arms__ambient=AMBIENT)
    assert work.training(study, "ambient") == work.training(study, "baseline")


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            AMBIENT | {"level": 1000},
            "level = 1000 leaves no timestep above it: allowed are 0 to 999",
        ),
        (AMBIENT | {"level": -1}, "level"),
        ({"method": "ambient"}, "level"),
        (
            AMBIENT | {"condition": "text", "dual_fusion": {}},
            "method ambient noises each image once, but dual_fusion makes another one",
        ),
    ],
)
def test_what_does_not_fit_is_refused(digits, arm, message):
    with pytest.raises(config.ConfigError, match=message):
        digits(arms__new=arm)
