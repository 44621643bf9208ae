"""Training images that prompts give away, against hand-made cliques and images."""

import numpy as np
import pandas as pd
import pytest

from afterimage.attacks import prompt_extraction
from afterimage.images import Images

SHAPE = (4, 4, 1)


def grey(*levels: float) -> np.ndarray:
    """Return even images, uint8; the distance of two is the difference of their levels / 255."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), *SHAPE))


def corner(level: int) -> np.ndarray:
    """Return a black image with one bright corner, (1, H, W, C)."""
    image = np.zeros((1, *SHAPE), np.uint8)
    image[0, 0, 0] = level
    return image


def test_prompts_whose_images_agree_are_flagged():
    drawn = np.stack([grey(10, 200, 11, 14, 90), grey(0, 50, 100, 150, 200), grey(7, 7, 90, 7, 7)])
    found, given_up = prompt_extraction.agreement(drawn, size=3, edge=5 / 255)
    assert found["clique"].tolist() == [3, 1, 4]
    assert found["flagged"].tolist() == [True, False, True]
    np.testing.assert_allclose(found["clique_mean"] * 255, [8 / 3, np.nan, 0])
    np.testing.assert_allclose(found["cliques"] * 255, [-4, -100, 0])
    assert found["medoid"].tolist() == [2, 0, 0]
    assert given_up == 0
    strict, _ = prompt_extraction.agreement(drawn, size=3, edge=np.nextafter(4 / 255, 0))
    assert strict["clique"].tolist() == [2, 1, 4]  # all pairs have to agree
    assert strict["flagged"].tolist() == [False, False, True]


def train() -> tuple[Images, np.ndarray]:
    """Four rows: an image twice, with two captions, another, and one with a bright corner."""
    pixels = np.concatenate([grey(100, 100, 160), corner(255)])
    captions = np.array(["a", "b", "c", "d"])
    return Images.of(pixels, np.array([5, 105, 6, 7]), sources=np.array([5, 5, 6, 7])), captions


def compared(levels: tuple[int, ...], prompts: tuple[str, ...], **more) -> pd.DataFrame:
    settings = {"holdout": Images.of(grey(24, 220), np.array([8, 9])), "delta": 10 / 255}
    return prompt_extraction.compared(
        grey(*levels), np.array(prompts), *train(), **(settings | {"flips": False} | more)
    )


def test_medoids_are_compared_with_training_images_and_held_out_ones():
    found = compared((101, 101, 112, 170, 20, 230), ("b", "c", "a", "c", "a", "b"))
    assert found["nearest"].tolist() == [5, 5, 5, 6, 7, 6]
    assert found["nearest_source"].tolist() == [5, 5, 5, 6, 7, 6]
    # The lower of two equal rows is named, but both captions are its own.
    assert found["own"].tolist() == [True, False, True, True, False, False]
    np.testing.assert_allclose(found["l2"][[0, 2, 3]] * 255, [1, 12, 10])
    assert found["within"].tolist() == [True, True, False, True, False, False]  # 10 of 10 is in
    assert found["nearest_holdout"].tolist() == [8, 8, 8, 9, 8, 9]
    np.testing.assert_allclose(found["holdout_l2"] * 255, [77, 77, 88, 50, 4, 10])
    assert found["within_holdout"].tolist() == [False, False, False, False, True, True]


def test_the_distance_is_over_the_whole_image():
    """A quarter of the corner's 255 over 16 values; tiled it would be four times as much."""
    found = compared((0,), ("d",), delta=0.25)
    assert found["l2"].item() == pytest.approx(0.25 * 1.0)
    assert found[["within", "own"]].all(axis=None)


def test_without_held_out_images_nothing_is_said_of_them():
    found = compared((40,), ("a",), holdout=Images.of(grey(), np.array([], int)))
    assert found[["nearest_holdout", "within_holdout"]].iloc[0].tolist() == [-1, False]
    assert found["holdout_l2"].isna().all()


def test_mirrored_images_count_where_some_training_mirrors():
    medoid = corner(255)[:, :, ::-1]
    given = (medoid, np.array(["d"]), *train(), Images.of(grey(40), np.array([8])), 0.01)
    plain, mirrored = (prompt_extraction.compared(*given, flips) for flips in (False, True))
    assert not plain["within"].item()
    assert mirrored[["within", "own"]].all(axis=None)
    assert mirrored["l2"].item() == 0


def prompts() -> pd.DataFrame:
    """Six prompts: five flagged, of which two agree equally well, four near a training image, one of
    another caption, one near a held-out image."""
    columns = ["clique_mean", "flagged", "within", "own", "within_holdout", "nearest_source"]
    rows = [
        (0.3, True, True, True, True, 1),
        (0.1, True, True, True, False, 1),
        (0.2, True, False, True, True, 2),
        (0.2, True, True, False, False, 3),
        (0.4, True, True, True, False, 1),
        (0.0, False, True, True, True, 4),
    ]
    return pd.DataFrame(rows, columns=columns)


def test_only_flagged_prompts_count():
    found = prompt_extraction.shares(prompts())
    assert {name: mask.astype(int).tolist() for name, mask in found.items()} == {
        "prompts_flagged": [1, 1, 1, 1, 1, 0],
        "prompts_extracted": [1, 1, 0, 1, 1, 0],
        "prompts_own": [1, 1, 0, 0, 1, 0],
        "prompts_false": [1, 0, 1, 0, 0, 0],
    }


def test_prompts_are_ranked_by_their_mean_distance_equal_ones_together():
    curve = prompt_extraction.ranked(prompts())
    assert tuple(curve.columns) == prompt_extraction.RANKED
    assert curve.drop(columns="precision").to_numpy().tolist() == [
        [0.1, 1, 1, 1, 0, 1],
        [0.2, 3, 2, 1, 1, 2],
        [0.3, 4, 3, 2, 2, 2],
        [0.4, 5, 4, 3, 2, 2],
    ]
    np.testing.assert_allclose(curve["precision"], [1, 2 / 3, 3 / 4, 4 / 5])
    nothing = prompt_extraction.ranked(prompts().assign(flagged=False))
    assert tuple(nothing.columns) == prompt_extraction.RANKED
    assert nothing.empty


def test_the_curve_of_a_ranking_without_worth_is_flat():
    """Every third is extracted whatever the mean distance: precision 1/3 after every third."""
    count = np.arange(300)
    table = pd.DataFrame({"clique_mean": count / 300, "flagged": True, "within": count % 3 == 2})
    table = table.assign(own=True, within_holdout=False, nearest_source=count)
    curve = prompt_extraction.ranked(table)
    np.testing.assert_allclose(curve["precision"], (count + 1) // 3 / (count + 1))
    assert (curve["images"] == curve["extracted"]).all()
