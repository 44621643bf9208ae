import hashlib
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.metrics import intervals, quality, spaces
from afterimage.metrics.quality import Frechet

RNG = np.random.default_rng(2)


def features(mean, covariance, count=60, seed=0):
    """Features, (count, D), whose mean and unbiased covariance are the given ones to a rounding
    step."""
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    drawn = np.random.default_rng(seed).standard_normal((count, len(mean)))
    white = np.linalg.qr(drawn - drawn.mean(axis=0))[0] * np.sqrt(count - 1)
    values, vectors = np.linalg.eigh(covariance)
    return mean + white @ (vectors * np.sqrt(values.clip(0))).T


def random_moments(dimensions, rank=None, seed=0):
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((dimensions, rank or dimensions))
    return rng.standard_normal(dimensions), factor @ factor.T


def textbook(a, b):
    """|m1 - m2|^2 + Tr(S1 + S2) - 2 Tr((S1^(1/2) S2 S1^(1/2))^(1/2)) of the covariances
    themselves."""
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return (
        ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
        + np.trace(first)
        + np.trace(second)
        - 2 * cross
    )


def test_frechet_of_diagonal_gaussians():
    a, b = features([0, 1], np.diag([4.0, 9])), features([3, 5], np.diag([1.0, 25]), count=40)
    assert Frechet(a).to(b) == pytest.approx(9 + 16 + (2 - 1) ** 2 + (3 - 5) ** 2)
    assert Frechet(np.array([[-1.0], [1]])).to(np.array([[1.0], [4]])) == pytest.approx(
        2.5**2 + (2**0.5 - 4.5**0.5) ** 2
    )


def test_frechet_equals_the_form_with_a_general_matrix_root():
    (m1, s1), (m2, s2) = random_moments(6, seed=1), random_moments(6, seed=2)
    expected = (
        ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(sqrtm(s1 @ s2)).real
    )
    a, b = features(m1, s1), features(m2, s2, count=30)
    assert Frechet(a).to(b) == pytest.approx(expected, rel=1e-10)
    assert Frechet(b).to(a) == pytest.approx(expected, rel=1e-10)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 30), st.integers(0, 99))
def test_frechet_is_the_textbooks_with_fewer_images_than_dimensions_and_with_more(
    first, second, dimensions, seed
):
    rng = np.random.default_rng(seed)
    a, b = (
        rng.standard_normal((first, dimensions)),
        2 * rng.standard_normal((second, dimensions)) + rng.standard_normal(),
    )
    assert Frechet(a).to(b) == pytest.approx(textbook(a, b), rel=1e-6, abs=1e-6)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 30), st.integers(0, 99))
def test_frechet_of_rows_is_that_of_the_rows_written_out(first, second, dimensions, seed):
    rng = np.random.default_rng(seed)
    a, b = (
        rng.standard_normal((first, dimensions)),
        2 * rng.standard_normal((second, dimensions)) + rng.standard_normal(),
    )
    rows = rng.integers(second, size=rng.integers(2, 40))
    assert Frechet(a).of_rows(b)(rows) == pytest.approx(textbook(a, b[rows]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_frechet_of_a_set_and_itself_is_zero(rank):
    mean, covariance = random_moments(8, rank)
    x = features(mean, covariance)
    assert 0 <= Frechet(x).to(x) < 1e-6 * np.trace(covariance)


def test_frechet_of_covariances_without_full_rank():
    a, b = features(np.zeros(3), np.diag([4.0, 0, 0])), features(np.zeros(3), np.diag([0.0, 9, 0]))
    assert Frechet(a).to(b) == pytest.approx(13)
    assert Frechet(a).to(features(np.zeros(3), np.diag([1.0, 9, 0]))) == pytest.approx(1 + 9)
    assert Frechet(np.zeros((5, 3))).to(b) == pytest.approx(9)


def test_frechet_of_many_samples_comes_near_the_truth():
    (m1, s1), (m2, s2) = random_moments(4, seed=1), random_moments(4, seed=2)
    drawn = [RNG.multivariate_normal(*moments, 200_000) for moments in ((m1, s1), (m2, s2))]
    assert Frechet(drawn[0]).to(drawn[1]) == pytest.approx(
        Frechet(features(m1, s1)).to(features(m2, s2)), rel=0.02
    )


def test_frechet_does_not_change_under_rotation_and_shift():
    a, b = RNG.standard_normal((50, 5)), RNG.standard_normal((60, 5)) * 2 + 1
    turn = np.linalg.qr(RNG.standard_normal((5, 5)))[0]
    assert Frechet(a @ turn + 7).to(b @ turn + 7) == pytest.approx(Frechet(a).to(b), rel=1e-9)


def test_frechet_makes_no_square_of_the_dimensions():
    """12,288 values are a 64 x 64 colour image: one covariance would take 1.2 GB."""
    a, b = RNG.standard_normal((20, 12_288)), RNG.standard_normal((30, 12_288))
    tracemalloc.start()
    Frechet(a).to(b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_288**2


def test_frechet_refuses_too_little_and_nan():
    for make in (Frechet, Frechet(np.eye(4)).to):
        with pytest.raises(ConfigError, match="at least 2 images on each side, not 1"):
            make(np.zeros((1, 4)))
        with pytest.raises(ConfigError, match="not finite"):
            make(np.full((3, 4), np.nan))


# ---- classes ------------------------------------------------------------------------------------------------------------


def mixture(shares, count, seed, scale=6.0, dimensions=3):
    """Features, (count, D), of unit Gaussians around one centre per class, and their classes."""
    rng = np.random.default_rng(seed)
    centres = scale * np.random.default_rng(99).standard_normal((len(shares), dimensions))
    classes = np.repeat(np.arange(len(shares)), rng.multinomial(count, shares))
    return centres[classes] + rng.standard_normal((count, dimensions)), classes


def balanced(reference, real_classes, x, classes):
    count = max(real_classes.max(), classes.max()) + 1
    weights = quality.balancing_weights(classes, quality.class_shares(real_classes, count))
    return Frechet(reference).of_rows(x)(np.arange(len(x)), weights)


def test_class_shares_and_their_distance_by_hand():
    shares = quality.class_shares(np.array([0, 2, 2, 2]), 4)
    assert shares.tolist() == [0.25, 0, 0.75, 0]
    assert quality.total_variation(shares, np.array([0.5, 0.25, 0.25, 0])) == 0.5
    assert quality.total_variation(shares, shares) == 0
    assert quality.total_variation(np.array([1.0, 0]), np.array([0.0, 1])) == 1


@pytest.mark.parametrize(
    ("classes", "reference", "expected"),
    [
        ([0, 0, 0, 1], [0.25, 0.75], [1 / 12, 1 / 12, 1 / 12, 3 / 4]),
        # A class that the reference lacks keeps its share, a quarter.
        ([0, 0, 1, 2], [0.25, 0.75, 0], [3 / 32, 3 / 32, 9 / 16, 1 / 4]),
        # A class without images leaves its half to the others, in their proportions.
        ([0, 1, 1, 1], [0.1, 0.4, 0.5], [0.2, 0.8 / 3, 0.8 / 3, 0.8 / 3]),
        # No class in common: nothing to balance.
        ([0, 1, 1, 1], [0, 0, 1], [0.25] * 4),
    ],
)
def test_balancing_weights_by_hand(classes, reference, expected):
    weights = quality.balancing_weights(np.array(classes), np.array(reference))
    np.testing.assert_allclose(weights, expected)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 99))
def test_weights_are_positive_with_sum_1_and_give_shared_classes_the_references_proportions(
    images, count, seed
):
    rng = np.random.default_rng(seed)
    classes = rng.integers(count, size=images)
    reference = rng.multinomial(10, np.full(count, 1 / count)) / 10
    weights = quality.balancing_weights(classes, reference)
    assert weights.min() > 0
    assert weights.sum() == pytest.approx(1)
    weighed = np.bincount(classes, weights, minlength=count)
    shared = (weighed > 0) & (reference > 0)
    np.testing.assert_allclose(
        weighed[shared] * reference[shared].sum(), reference[shared] * weighed[shared].sum()
    )
    alien = reference == 0
    np.testing.assert_allclose(weighed[alien], quality.class_shares(classes, count)[alien])


def test_balanced_distance_of_two_gaussian_classes_is_the_closed_form():
    """By the law of total variance: within each class S, between classes p (1 - p) d d^T."""
    (m0, s0), (m1, s1) = random_moments(4, seed=1), random_moments(4, seed=2)
    p, n0, n1 = 0.3, 80, 40  # the images have shares 2/3 and 1/3, the reference 0.3 and 0.7
    x = np.concatenate([features(m0, s0, n0, 5), features(m1, s1, n1, 6)])
    mean = p * m0 + (1 - p) * m1
    within = p * s0 * (n0 - 1) / n0 + (1 - p) * s1 * (n1 - 1) / n1
    covariance = within + p * (1 - p) * np.outer(m0 - m1, m0 - m1)
    covariance /= 1 - p**2 / n0 - (1 - p) ** 2 / n1
    reference = features(*random_moments(4, seed=3), 50)
    distance = balanced(
        reference,
        np.repeat([0, 1], [15, 35]),
        x,
        np.repeat([0, 1], [n0, n1]),
    )
    expected = Frechet(reference).to(features(mean, covariance))
    assert distance == pytest.approx(expected, rel=1e-9)
    assert Frechet(reference).to(x) != pytest.approx(expected, rel=0.01)


def test_a_distance_of_classes_in_one_dimension_by_hand():
    """Images 0, 2 (class 0), 10 (class 1); reference half and half: weights 1/4, 1/4, 1/2."""
    reference = np.array([[5.0], [7], [5], [7]])  # mean 6, unbiased variance 4/3
    distance = balanced(
        reference, np.array([0, 0, 1, 1]), np.array([[0.0], [2], [10]]), np.array([0, 0, 1])
    )
    mean, variance = 5.5, (0 / 4 + 4 / 4 + 100 / 2 - 5.5**2) / (1 - 1 / 16 - 1 / 16 - 1 / 4)
    assert distance == pytest.approx(
        (6 - mean) ** 2 + ((4 / 3) ** 0.5 - variance**0.5) ** 2, rel=1e-12
    )


def test_at_equal_class_shares_the_balanced_distance_is_the_plain_one():
    real, real_classes = mixture([0.2, 0.3, 0.5], 100, 1)
    x, _ = mixture([1 / 3] * 3, 50, 2)
    counts = np.bincount(real_classes)
    reference = np.concatenate([real, real])
    classes = np.repeat([0, 1, 2], counts)
    x = np.concatenate([x, x + 1])[: len(classes)]
    distance = balanced(reference, np.tile(real_classes, 2), x, classes)
    assert distance == pytest.approx(Frechet(reference).to(x), rel=1e-12)


def test_weighted_rows_that_repeat_are_the_rows_written_out():
    x, y = RNG.standard_normal((12, 4)), RNG.standard_normal((9, 4))
    rows = RNG.integers(9, size=20)
    weights = RNG.dirichlet(np.ones(20))
    written_out = Frechet(x).of_rows(y[rows])(np.arange(20), weights)
    assert Frechet(x).of_rows(y)(rows, weights) == pytest.approx(written_out, rel=1e-9)


def test_balanced_distance_does_not_follow_class_shares():
    """Images of other class shares: the plain distance measures them, the balanced one does not."""
    even = np.full(8, 1 / 8)
    reference, real_classes = mixture(even, 700, 0)
    rng = np.random.default_rng(1)
    same, other = [], []
    for seed in range(60):
        for values, shares in ((same, even), (other, rng.dirichlet(np.full(8, 8)))):
            x, classes = mixture(shares, 400, 1000 + 2 * seed + (values is other))
            plain = Frechet(reference).to(x)
            values.append((plain, balanced(reference, real_classes, x, classes)))
    (plain, level), (plain_other, level_other) = np.mean(same, axis=0), np.mean(other, axis=0)
    assert plain_other > 4 * plain
    assert level_other < 1.3 * level
    assert level < plain


def test_a_missing_class_is_seen_though_nothing_can_be_weighted_up():
    shares = np.full(5, 1 / 5)
    reference, real_classes = mixture(shares, 500, 0)
    whole, lacking = (mixture(s, 500, 1) for s in (shares, [0, 0.25, 0.25, 0.25, 0.25]))
    levels = [balanced(reference, real_classes, *images) for images in (whole, lacking)]
    assert levels[1] > 10 * levels[0]


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]])
def test_the_interval_of_the_balanced_distance_covers_as_often_as_it_says(shares):
    """Of the statistic's own mean at this number of images; what few images add to it stays."""
    reference, real_classes = mixture([0.25] * 4, 400, 0, scale=2.0)
    reference = reference * [1, 1.2, 0.8] + [0.2, 0, 0.1]
    real_shares = quality.class_shares(real_classes, 4)
    frechet, drawn = Frechet(reference), []
    for seed in range(400):
        x, classes = mixture(shares, 150, 5000 + seed, scale=2.0)
        distance = frechet.of_rows(x)

        def statistic(rows, distance=distance, classes=classes):
            return distance(rows, quality.balancing_weights(classes[rows], real_shares))

        value = statistic(np.arange(150))
        moved = intervals.resampled(statistic, 150, 60, np.random.default_rng(seed))
        drawn.append((value, *intervals.normal(value, moved, 0.9)))
    value, low, high = np.array(drawn).T
    covered = np.mean((low <= value.mean()) & (value.mean() <= high))
    assert 0.85 < covered < 0.95


@pytest.mark.parametrize(("shares", "most"), [([0.25] * 4, 0.98), ([0.1, 0.2, 0.3, 0.4], 0.95)])
def test_the_interval_of_class_shares_covers_as_often_as_it_says(shares, most):
    """Of its own mean, at 90 %; too often at equal shares, where the distance is bounded by 0."""
    reference, drawn = np.array([0.25] * 4), []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        classes = rng.choice(4, 150, p=shares)

        def statistic(rows, classes=classes):
            return quality.total_variation(quality.class_shares(classes[rows], 4), reference)

        value = statistic(np.arange(150))
        moved = intervals.resampled(statistic, 150, 200, rng)
        drawn.append((value, *intervals.normal(value, moved, 0.9)))
    value, low, high = np.array(drawn).T
    covered = np.mean((low <= value.mean()) & (value.mean() <= high))
    assert 0.85 < covered < most


# ---- KID ----------------------------------------------------------------------------------------------------------------


def test_mmd2_by_hand():
    x, y = np.array([[0.0], [1]]), np.array([[2.0], [3]])
    # kernel (xy + 1)^3: k(0,1) = 1, k(2,3) = 343, cross 1, 1, 27, 64
    assert quality.mmd2(x, y) == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)


def test_mmd2_against_all_pairs():
    x, y = RNG.standard_normal((7, 3)), RNG.standard_normal((9, 3))
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    own = [
        np.mean([kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])
        for s in (x, y)
    ]
    assert quality.mmd2(x, y) == pytest.approx(
        sum(own) - 2 * polynomial_kernel(x, y, degree=3).mean(), rel=1e-12
    )


def test_kid_of_one_distribution_is_zero_on_average():
    values = [
        quality.mmd2(*np.random.default_rng(seed).standard_normal((2, 30, 4)))
        for seed in range(400)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0


def test_kid_is_seeded_and_grows_with_the_shift():
    x, y = RNG.standard_normal((2, 300, 4))
    of = lambda shift: quality.kid(x + shift, y, 20, 100, np.random.default_rng(1))  # noqa: E731
    assert of(0) == of(0)
    assert of(0)[0] < of(0.5)[0] < of(1)[0]
    assert of(0)[1] > 0


def test_kid_of_all_images_is_the_mmd2():
    x, y = RNG.standard_normal((2, 40, 4))
    assert quality.kid(x, y, 3, 1000, np.random.default_rng(0)) == pytest.approx(
        (quality.mmd2(x, y), 0), abs=1e-9
    )


def test_resampled_mmd2_moves_as_fresh_samples_do():
    fresh = []
    y = RNG.standard_normal((200, 3))
    for seed in range(300):
        fresh.append(quality.mmd2(np.random.default_rng(seed).standard_normal((80, 3)) + 0.5, y))
    spreads = [
        quality.resampled_mmd2(
            np.random.default_rng(seed).standard_normal((80, 3)) + 0.5,
            y,
            300,
            np.random.default_rng(0),
        )
        for seed in range(20)
    ]
    assert np.mean([s.std() for s in spreads]) == pytest.approx(np.std(fresh), rel=0.25)
    assert abs(np.mean([s.mean() for s in spreads])) < 0.2 * np.std(fresh)


# ---- precision, recall, density, coverage --------------------------------------------------------


def test_overlap_by_hand():
    reference = np.array([[0.0], [1], [2], [10]])  # k = 1: reaches 1, 1, 1, 8
    generations = np.array([[0.5], [2.5], [20], [20.5]])  # k = 1: reaches 2, 2, 0.5, 0.5
    found = quality.overlap(generations, reference, 1)
    # 0.5 lies in the balls of 0 and 1; 2.5 in those of 2 and 10; 20 and 20.5 in none
    assert found.precision.tolist() == [True, True, False, False]
    assert found.density.tolist() == [2, 2, 0, 0]
    assert found.coverage.tolist() == [True, True, True, True]
    assert found.recall.tolist() == [True, True, True, False]


def test_overlap_of_a_set_with_itself_and_with_a_far_one():
    x = RNG.standard_normal((60, 3))
    same, far = quality.overlap(x, x, 4), quality.overlap(x + 100, x, 4)
    assert all(each.mean() == 1 for each in (same.precision, same.recall, same.coverage))
    assert same.density.mean() >= 1
    assert all(each.sum() == 0 for each in vars(far).values())


def test_overlap_swaps_with_its_arguments():
    x, y = RNG.standard_normal((50, 3)), RNG.standard_normal((70, 3)) + 0.5
    forth, back = quality.overlap(x, y, 5), quality.overlap(y, x, 5)
    np.testing.assert_array_equal(forth.precision, back.recall)
    np.testing.assert_array_equal(forth.recall, back.precision)


def test_overlap_in_small_blocks(monkeypatch):
    x, y = RNG.standard_normal((2, 500, 3))
    whole = quality.overlap(x, y, 5)
    monkeypatch.setattr(quality, "BLOCK_BYTES", 20_000)
    parts = quality.overlap(x, y, 5)
    for name, each in vars(whole).items():
        np.testing.assert_array_equal(each, getattr(parts, name))


def test_a_single_generation_repeated_is_precise_and_covers_little():
    reference = RNG.standard_normal((200, 2))
    found = quality.overlap(np.repeat(reference[:1], 50, axis=0), reference, 5)
    assert found.precision.all()
    assert found.coverage.mean() < 0.2


def test_too_few_images_for_k():
    with pytest.raises(
        ConfigError,
        match=r"quality.neighbours = 5 needs more than 5 images on each side, not 5 and 9",
    ):
        quality.overlap(np.zeros((5, 2)), np.zeros((9, 2)), 5)


# ---- spaces --------------------------------------------------------------------------------------


def test_pixels_are_a_space():
    space = spaces.find(config.Quality(features="pixels"), None)
    assert space(np.full((2, 4, 4, 1), 255, np.uint8)).tolist() == np.ones((2, 16)).tolist()


def test_missing_parts_are_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="needs a trained classifier"):
        spaces.find(config.Quality(), None)
    weights = tmp_path / "weights.pth"
    inception = config.Quality(
        features="inception", inception_weights=str(weights), inception_sha256="0" * 64
    )
    with pytest.raises(ConfigError, match="no such file"):
        spaces.find(inception, None)
    weights.write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"has sha256 .* but quality.inception_sha256 = 0000"):
        spaces.find(inception, None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    pinned = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ConfigError, match=r"afterimage\[inception\]"):
        spaces.find(inception.model_copy(update={"inception_sha256": pinned}), None)
