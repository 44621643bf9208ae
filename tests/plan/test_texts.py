"""Studies with arms that are conditioned on captions: what is planned, and what is refused."""

import pytest

from afterimage import config
from afterimage.plan.cost import work
from afterimage.plan.inputs import inputs_of
from afterimage.plan.jobs import STEPS, jobs

SOURCE = {"kind": "parquet", "path": "a.parquet", "caption_column": "text"}
ATTENTION = {"channels": [8, 16], "attention": [False, True], "norm_groups": 8}


def study(digits, **changed):
    texts = {
        "data__source": SOURCE,
        "text": {},
        "arms": {"plain": {"method": "baseline", "condition": "text"}},
        "model": ATTENTION,
        "attribution": None,
    }
    return digits(**texts | changed)


def test_text_arms_read_the_embeddings_and_others_do_not(digits):
    arms = {"plain": {"method": "baseline", "condition": "text"}, "none": {"method": "baseline"}}
    mixed = study(digits, arms=arms, paths={"frontier": ["plain", "none"], "states": 2})
    assert sum(job.step == "data/encode" for job in jobs(mixed)) == 1
    readers = {(job.step, job.arm) for job in jobs(mixed) if "texts" in inputs_of(mixed, job)}
    steps = ("train", "sample", "attack/membership", "attack/path")
    assert readers == {(step, "plain") for step in steps}
    prompts = inputs_of(mixed, STEPS["sample"].job("plain", 0))["train"]
    assert prompts == f"results/{mixed.study}/data/planting/0/train.npz"
    without = study(digits, text=None, arms={"none": {"method": "baseline"}})
    assert not any(job.step == "data/encode" for job in jobs(without))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text": None}, "arms.plain: condition = 'text' needs the block text"),
        ({"data__source": {"kind": "sklearn-digits"}}, "text: a text encoder needs captions, but"),
        ({"arms": {"a": {"method": "baseline"}}}, "text: no arm has condition = 'text'"),
        (
            {"model": ATTENTION | {"attention": [False, False]}},
            r"arms.plain: condition = 'text' needs a level with attention, but model.attention",
        ),
        (
            {"arms": {"a": {"method": "dp_sgd", "condition": "text", "noise_multiplier": 1.0}}},
            "arms.a: condition = 'text' is not supported by method dp_sgd",
        ),
        (
            {
                "arms": {"a": {"method": "baseline", "condition": "text", "without": "zeros"}},
                "forget": {"zeros": {"label": 0}},
            },
            "arms.a: without = 'zeros' is not supported with condition = 'text'",
        ),
        (
            {"attribution": {"arm": "plain"}},
            "attribution.arm = 'plain': arms with condition = 'text' are not supported",
        ),
        (
            {"loyal_selection": {"base": "plain", "updates": 5, "switch_timesteps": [5]}},
            "loyal_selection.base = 'plain': arms with condition = 'text' are not supported",
        ),
    ],
)
def test_what_does_not_go_with_texts_is_refused(digits, changed, message):
    with pytest.raises(config.ConfigError, match=message):
        study(digits, **changed)


def test_a_network_of_texts_is_counted_as_one(digits):
    [(texts, _)] = work.networks(study(digits), "plain")
    arms = {"plain": {"method": "baseline"}}
    [(none, _)] = work.networks(study(digits, text=None, arms=arms), "plain")
    assert texts.parameters > none.parameters
    assert texts.flop > none.flop
