"""Detectors of memorised prompts against closed forms, and the control against simulations."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.attacks.prompts import anisotropy, cliques, control, noise_difference, one_step
from afterimage.diffusion.prediction import clean_image
from afterimage.metrics import distances

# ---- cliques -------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), count=st.integers(2, 8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_tightest_clique_is_that_of_all_subsets(seed, count, data):
    size = data.draw(st.integers(2, count))
    values = np.random.default_rng(seed).integers(1, 12, (count, count)) / 12  # with ties
    between = np.triu(values, 1) + np.triu(values, 1).T
    clique = cliques.tightest(between, size)
    diameters = {
        rows: max(between[pair] for pair in combinations(rows, 2))
        for rows in combinations(range(count), size)
    }
    assert clique.diameter == min(diameters.values()) == diameters[clique.members]
    inside = [between[pair] for pair in combinations(clique.members, 2)]
    assert clique.mean == pytest.approx(np.mean(inside))
    assert not clique.bounded


def test_the_images_that_agree_are_found():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    copies = [3, 9, 11, 20, 38]
    images[copies] = np.clip(images[3].astype(int) + rng.integers(-3, 4, (5, 16, 16, 3)), 0, 255)
    clique = cliques.tightest(cliques.pairwise(images), 5)
    assert list(clique.members) == copies
    assert clique.diameter < 0.03
    assert cliques.tightest(cliques.pairwise(images), 6).diameter > 0.3


def test_the_distance_of_images_is_the_tiled_one():
    images = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    between = cliques.pairwise(images, tiles=2)
    assert (between == between.T).all()
    assert (np.diag(between) == 0).all()
    for a, b in combinations(range(6), 2):
        expected = distances.between(images[[a]], images[[b]], tiles=2)
        assert between[a, b] == expected[0]


def test_a_search_that_is_given_up_is_said(monkeypatch):
    """A graph with many maximal cliques, none of them large enough: all pairs but three groups."""
    monkeypatch.setattr(cliques, "MOST_CLIQUES", 5)
    group = np.arange(12) % 4
    between = np.where(group[:, None] == group, 0.9, 0.1)
    np.fill_diagonal(between, 0)
    assert not cliques.tightest(between, 4).bounded
    assert cliques.tightest(between, 5).bounded


@given(seed=st.integers(0, 10**6), count=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_the_largest_clique_is_that_of_all_subsets(seed, count):
    values = np.random.default_rng(seed).integers(1, 8, (count, count)) / 8  # with ties
    between = np.triu(values, 1) + np.triu(values, 1).T
    clique = cliques.largest(between, 0.5)
    joined = {(row,): [0.0] for row in range(count)}
    for size in range(2, count + 1):
        for rows in combinations(range(count), size):
            inside = [between[pair] for pair in combinations(rows, 2)]
            if max(inside) <= 0.5:
                joined[rows] = inside
    best = min(joined, key=lambda rows: (-len(rows), np.mean(joined[rows]), rows))
    assert len(clique.members) == len(best)
    assert clique.mean == pytest.approx(np.mean(joined[best]))
    assert clique.diameter == max(joined[clique.members])
    assert not clique.bounded


def test_of_equally_large_cliques_the_one_that_agrees_best_is_taken():
    between = np.ones((5, 5))
    for a, b, distance in ((0, 1, 0.3), (2, 3, 0.2), (3, 4, 0.2)):
        between[a, b] = between[b, a] = distance
    np.fill_diagonal(between, 0)
    assert cliques.largest(between, 0.3) == cliques.Clique(0.2, 0.2, (2, 3), False)
    assert cliques.largest(between, 0.25).members == (2, 3)
    assert cliques.largest(between, 0.1) == cliques.Clique(0, 0, (0,), False)
    assert cliques.largest(between, np.nan).members == (0,)


def test_a_search_for_the_largest_that_is_given_up_is_said(monkeypatch):
    """Three groups of four: every choice of one of each is a clique."""
    group = np.arange(12) % 3
    between = np.where(group[:, None] == group, 0.9, 0.1)
    np.fill_diagonal(between, 0)
    assert len(cliques.largest(between, 0.5).members) == 3
    assert not cliques.largest(between, 0.5).bounded
    monkeypatch.setattr(cliques, "MOST_CLIQUES", 5)
    assert cliques.largest(between, 0.5).bounded


def test_the_medoid_is_nearest_to_the_others_of_its_clique():
    places = np.array([0.0, 0.9, 0.4, 0.5, 0.3])
    between = np.abs(places[:, None] - places)
    assert cliques.medoid(between, (0, 2, 3, 4)) == 2  # sums 1.2, 0.6, 0.8, 0.6: the lower row
    assert cliques.medoid(between, (1, 2, 3)) == 3
    assert cliques.medoid(between, (1,)) == 1


def test_pairs_across_are_of_other_prompts_and_other_noises():
    """Images that are all grey of a level of their own: the distance tells the two levels."""
    levels = np.array([[0, 1, 2], [10, 21, 42], [60, 101, 152]], np.uint8)
    images = np.broadcast_to(levels[:, :, None, None, None], (3, 3, 4, 4, 1))
    found = cliques.across(images, np.random.default_rng(0))
    allowed = {
        abs(int(levels[a, i]) - int(levels[b, j]))
        for a, b in combinations(range(3), 2)
        for i in range(3)
        for j in range(3)
        if i != j
    }
    assert set(np.rint(255 * found).astype(int)) == allowed
    assert len(found) == cliques.ACROSS
    assert np.isnan(cliques.across(images[:1], np.random.default_rng(0))).all()


# ---- the network's predictions -------------------------------------------------------------------


def test_the_magnitude_is_the_norm_of_the_difference_of_each_image():
    unconditional = torch.zeros(2, 1, 2, 2)
    conditional = torch.tensor([3.0, 0, 4, 0, 0, 0, 0, 2]).reshape(2, 1, 2, 2)
    assert noise_difference.magnitude(unconditional, conditional).tolist() == [5, 2]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_one_step_gives_the_image_back_if_the_prediction_is_exact(kind):
    image, noise = torch.randn(2, 3, 4, 8, 8).unbind(0)
    signal = 0.6
    share = 1 - signal if kind == "flow" else (1 - signal**2) ** 0.5
    prediction = {
        "epsilon": noise,
        "v_prediction": signal * noise - share * image,
        "sample": image,
        "flow": noise - image,
    }[kind]
    noisy = signal * image + share * noise
    torch.testing.assert_close(clean_image(noisy, prediction, signal, kind), image)


def test_the_confidence_is_the_predicted_noise_in_units_of_the_image():
    noisy, prediction = torch.randn(2, 5, 4, 8, 8).unbind(0)
    signal = 0.1
    image = clean_image(noisy, prediction, signal, "epsilon")
    sigma = (1 / signal**2 - 1) ** 0.5
    expected = sigma**2 * prediction.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(one_step.confidence(noisy / signal, image), expected)


def test_edges_count_where_most_images_have_them():
    rng = np.random.default_rng(0)
    step = np.zeros((4, 16, 16, 3), np.uint8)
    step[:, :, 8:] = 255  # the gradient of a step is two pixels wide
    assert one_step.edge_consistency(step) == 2 / 16
    half = step.copy()
    half[:2] = 0
    assert one_step.edge_consistency(half) == 0
    blurred = np.repeat(np.linspace(0, 40, 16)[None, :], 16, 0)
    assert one_step.edge_consistency(np.stack([blurred[..., None]] * 4).astype(np.uint8)) == 0
    noise = rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    assert one_step.edge_consistency(noise) > 0.9


def test_large_images_are_compared_at_the_published_size():
    step = np.zeros((4, 512, 512, 3), np.uint8)
    step[:, :, 256:] = 255
    share = one_step.edge_consistency(step)
    assert 2 <= share * one_step.SIDE <= 4  # columns; resizing overshoots at an edge
    assert (share * one_step.SIDE).is_integer()


def test_alignment_is_the_cosine_over_channels():
    unconditional = torch.zeros(3, 2, 1, 2)
    unconditional[:, 0] = 1.0
    guidance = torch.zeros(3, 2, 1, 2)
    guidance[0, 0], guidance[1, 0] = 0.5, -2.0
    guidance[2, 0, 0, 0], guidance[2, 1, 0, 1] = 3.0, 1.0  # along, and across
    cosine = anisotropy.alignment(unconditional, unconditional + guidance)
    torch.testing.assert_close(cosine, torch.tensor([1.0, -1.0, 0.5]))


# ---- the control ---------------------------------------------------------------------------------


def test_the_p_value_is_the_rank_among_held_out_prompts():
    held_out = np.array([1.0, 2.0, 3.0, 4.0])
    p = control.p_values(np.array([0.0, 2.0, 2.5, 9.0, -np.inf]), held_out)
    assert p.tolist() == [1.0, 0.8, 0.6, 0.2, 1.0]


@pytest.mark.parametrize(("prompts", "held_out"), [(1, 19), (10, 99), (50, 200), (30, 60)])
def test_how_many_prompts_have_to_stand_out_together(prompts, held_out):
    needed = control.together(prompts, held_out, 0.05)
    for number, flagged in ((needed - 1, 0), (needed, needed)):
        statistics = np.concatenate([np.full(number, 2.0), np.full(prompts - number, -1.0)])
        p = control.p_values(statistics, np.linspace(0, 1, held_out))
        assert control.flagged(p, 0.05).sum() == flagged


def test_fewer_held_out_prompts_can_flag_nothing():
    enough = control.fewest(0.05)
    for held_out, possible in ((enough - 1, False), (enough, True)):
        p = control.p_values(np.full(5, 2.0), np.linspace(0, 1, held_out))
        assert control.flagged(p, 0.05).all() == possible


@pytest.mark.parametrize("memorised", [0, 10, 30])
def test_false_discoveries_are_as_rare_as_stated(memorised):
    """40 prompts against 200 held-out ones; memorised prompts are shifted by 3 deviations."""
    rng = np.random.default_rng(memorised)
    shares = []
    for _ in range(2000):
        statistics, held_out = rng.normal(size=40), rng.normal(size=200)
        statistics[:memorised] += 3
        flagged = control.flagged(control.p_values(statistics, held_out), 0.05)
        shares.append(flagged[memorised:].sum() / max(1, flagged.sum()))
    error = np.std(shares) / len(shares) ** 0.5
    assert np.mean(shares) <= 0.05 + 2 * error
    if memorised:
        assert np.mean(shares) > 0.005  # the rate is not kept by flagging nothing
