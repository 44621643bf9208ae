"""The three answers, and what each needs."""

import numpy as np
import pytest

from afterimage.attacks import detail, verdict

RNG = np.random.default_rng(0)
UNSEEN = RNG.random(400)


def decide(scores, held_out=UNSEEN, low_detail=None, zero_means=0, different=100, nearest=None):
    count = len(scores)
    low_detail = np.zeros(count, bool) if low_detail is None else low_detail
    nearest = np.arange(count) if nearest is None else nearest
    return verdict.decide(scores, held_out, nearest, low_detail, zero_means, different)


def test_copies_are_counted_named_and_bounded():
    scores = np.concatenate([np.full(60, 1e-6), RNG.random(440)])
    nearest = np.concatenate([np.repeat(np.arange(20), 3), 100 + np.arange(440)])
    answer, flagged = decide(scores, nearest=nearest)
    assert answer.outcome == "copies shown"
    assert flagged[:60].all()
    assert answer.copies == answer.flagged - answer.false_alarms
    assert 50 <= answer.copies <= 60
    assert answer.images - answer.false_alarms == answer.images_at_least <= 20
    assert f"at least {answer.copies} of 500 generations" in answer.sentence


def test_not_shown_states_the_rate_that_would_have_been_seen():
    answer, flagged = decide(np.random.default_rng(3).random(1000))
    assert answer.outcome == "not shown"
    assert not flagged.any()
    assert 0.01 < answer.visible_rate < 0.03
    assert "though a copying rate of 2" in answer.sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"held_out": None}, "no held-out images were given"),
        ({"held_out": np.array([])}, "no held-out image is left"),
        ({"held_out": np.array([0.2, 0.4])}, "too few: not even a copying rate of 50 %"),
        ({"different": 1}, "there is only one"),
        ({"low_detail": np.arange(300) < 151}, "151 of 300 generations are blank or blurred"),
        (
            {"zero_means": 4},
            "4 generations are nearest to a training image all of whose neighbours are its own "
            "copies",
        ),
    ],
)
def test_what_is_missing_is_said(changes, words):
    answer, flagged = decide(np.linspace(0.3, 1, 300), **changes)
    assert answer.outcome == "cannot tell"
    assert words in answer.sentence
    assert not flagged.any()


def test_copies_are_shown_though_some_generations_have_no_ratio():
    scores = np.concatenate([np.full(60, 1e-6), np.full(40, np.inf), RNG.random(400)])
    assert decide(scores, zero_means=40)[0].outcome == "copies shown"


def test_records_are_plain_values():
    import json

    for scores in (np.full(300, 1e-6), RNG.random(300)):
        answer, _ = decide(scores)
        assert json.loads(json.dumps(answer.record))["sentence"] == answer.sentence


def test_detail_of_known_images():
    steps = np.zeros((3, 4, 4, 1), np.uint8)
    steps[1, :, ::2] = (
        255  # 3 of 3 differences along each row are the full range, none along columns
    )
    steps[2, :, ::2] = 102
    np.testing.assert_allclose(detail.detail(steps), [0, 1, 0.4])
    assert detail.low_detail(steps, steps[[1, 1, 1]]).tolist() == [True, False, True]
    assert detail.low_detail(steps, steps).tolist() == [
        True,
        False,
        False,
    ]  # a copy has the detail of its original


def test_a_stricter_answer_bounds_more_false_alarms_and_says_so():
    scores = np.concatenate([np.full(60, 1e-6), RNG.random(440)])
    usual, _ = decide(scores)
    strict, _ = verdict.decide(
        scores, UNSEEN, np.arange(500), np.zeros(500, bool), 0, 100, confidence=0.999
    )
    assert strict.copies < usual.copies
    assert "by chance (95 %)" in usual.sentence
    assert "by chance (99.9 %)" in strict.sentence
    none, _ = verdict.decide(
        RNG.random(500), UNSEEN, np.arange(500), np.zeros(500, bool), 0, 100, confidence=0.999
    )
    assert none.visible_rate > decide(RNG.random(500))[0].visible_rate
    assert {strict.confidence, none.confidence, none.record["confidence"]} == {0.999}
