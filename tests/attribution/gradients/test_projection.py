"""Random projections: unbiased, better with more dimensions, and the same whatever stands beside a
parameter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from afterimage.attribution.gradients import projection
from afterimage.attribution.gradients.layers import Factors
from afterimage.config import ConfigError

SHAPES = {"linear": (6, 5), "bias": (6,), "conv": (4, 2, 3, 3), "norm": (7,), "table": (3, 4)}
COUNT = sum(math.prod(shape) for shape in SHAPES.values())
RANDOM = ["countsketch", "gaussian", "srht", "kronecker"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def split(rows: torch.Tensor, shapes: dict = SHAPES) -> list[tuple[str, torch.Tensor]]:
    """Cut vectors, (n, P), into the gradients of parameters."""
    parts = rows[:, None].split([math.prod(shape) for shape in shapes.values()], dim=2)
    return list(zip(shapes, parts, strict=True))


def project(
    kind: str, dimension: int, rows: torch.Tensor, seed: int = 0, shapes: dict = SHAPES
) -> torch.Tensor:
    found, norms = projection.build(kind, dimension, shapes, seed)(
        split(rows, shapes), len(rows), 1
    )
    assert norms.shape == (len(rows), 1)
    assert found.dtype == torch.float32
    return found[:, 0]


def test_none_is_every_coordinate_in_the_order_of_the_parameters():
    """DAS known answer 5."""
    rows = normal(3, COUNT)
    assert torch.equal(project("none", 1, rows), rows)
    assert projection.build("none", 1, SHAPES, 0).dimension == COUNT


@pytest.mark.parametrize("kind", RANDOM)
def test_inner_products_are_right_on_average_over_seeds(kind):
    """DAS known answer 5: within four standard errors, for vectors alike, unlike and orthogonal,
    and for their squares."""
    one, other = normal(COUNT), normal(COUNT, seed=1)
    rows = torch.stack(
        [one, one + other, other - one * (one @ other) / (one @ one), torch.arange(COUNT) == 3]
    )
    exact = rows @ rows.T
    grams = []
    for seed in range(400):
        found = project(kind, 16, rows, seed)
        grams.append(found @ found.T)
    grams = torch.stack(grams)
    error = grams.std(0) / math.sqrt(len(grams)) + 1e-4
    assert ((grams.mean(0) - exact).abs() < 4 * error).all()
    assert (grams.std(0)[:3, :3] > 0).all()


def images_alike(count: int) -> torch.Tensor:
    """Gradients with a spectrum that falls, as those of images do."""
    return (normal(count, 40) * torch.arange(1, 41) ** -0.5) @ normal(
        40, COUNT, seed=1
    ) + 0.3 * normal(count, COUNT, seed=2)


@pytest.mark.parametrize("kind", RANDOM)
def test_scores_agree_with_the_exact_ones_as_k_grows(kind):
    """DAS known answer 5."""
    rows = images_alike(30)

    def agreement(k: int) -> float:
        found = [project(kind, k, rows, seed) for seed in range(4)]
        return sum(
            spearmanr((each @ each.T).flatten(), (rows @ rows.T).flatten()).statistic
            for each in found
        ) / len(found)

    few, some, many = (
        agreement(k) for k in (8, 32, 4096 if kind in ("gaussian", "countsketch") else 128)
    )
    assert few < some < many
    assert many > 0.98


@pytest.mark.parametrize("kind", ["srht", "kronecker"])
def test_with_all_coordinates_nothing_is_lost(kind):
    rows = normal(5, COUNT)
    k = {"srht": 2 ** math.ceil(math.log2(COUNT)), "kronecker": COUNT}[kind]
    found = project(kind, k, rows)
    torch.testing.assert_close(found @ found.T, rows @ rows.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", projection.KINDS)
def test_projections_are_linear_and_follow_the_seed(kind):
    rows = normal(3, COUNT)
    found = project(kind, 16, rows)
    assert torch.equal(found, project(kind, 16, rows))
    torch.testing.assert_close(
        project(kind, 16, rows[:1] - 2 * rows[1:2]),
        found[:1] - 2 * found[1:2],
        rtol=1e-4,
        atol=1e-5,
    )
    assert torch.equal(found, project(kind, 16, rows, seed=1)) == (kind == "none")


@pytest.mark.parametrize("kind", ["countsketch", "gaussian"])
def test_what_is_done_to_a_parameter_does_not_depend_on_the_others(kind):
    rows = normal(3, COUNT)
    for name, part in split(rows):
        alone = project(kind, 16, part[:, 0], shapes={name: SHAPES[name]})
        among, _ = projection.build(kind, 16, SHAPES, 0)([(name, part)], 3, 1)
        # Up to rounding: the kernel of a matrix product, and the order of its sums, depend on the
        # processor and the strides.
        torch.testing.assert_close(alone, among[:, 0], rtol=1e-5, atol=1e-5)
        assert alone.abs().max() > 0.1


@pytest.mark.parametrize("kind", projection.KINDS)
def test_readouts_and_images_do_not_mix_and_a_missing_parameter_is_zero(kind):
    rows = normal(6, COUNT)
    project_any = projection.build(kind, 16, SHAPES, 0)
    gradients = [(name, part.view(3, 2, -1)) for name, part in split(rows)]
    found, norms = project_any(gradients, 3, 2)
    torch.testing.assert_close(found.flatten(0, 1), project(kind, 16, rows))
    wanted = found if kind == "kronecker" else rows.view(3, 2, -1)
    torch.testing.assert_close(norms, torch.linalg.vector_norm(wanted, dim=2))
    without, _ = project_any(gradients[1:], 3, 2)
    zeros = [(gradients[0][0], torch.zeros_like(gradients[0][1])), *gradients[1:]]
    torch.testing.assert_close(without, project_any(zeros, 3, 2)[0])


@pytest.mark.parametrize("count", [5, 16, 17, 32, 45])
def test_countsketch_puts_each_coordinate_into_one_sum(count):
    matrix = project("countsketch", 16, torch.eye(count), shapes={"w": (count,)})
    assert (matrix.abs().sum(1) == 1).all()
    assert ((matrix != 0).sum(1) == 1).all()
    assert (matrix != 0).any(0).sum() > 1
    assert set(matrix[matrix != 0].tolist()) == {-1.0, 1.0}


def test_gaussian_in_blocks_is_dense_and_of_variance_1_over_k(monkeypatch):
    monkeypatch.setattr(projection, "BLOCK", 16 * 7)
    matrix = project("gaussian", 16, torch.eye(200), shapes={"w": (200,)})
    assert abs(matrix.var().item() - 1 / 16) < 5 / 16 * math.sqrt(2 / matrix.numel())
    assert len(matrix.flatten().unique()) == matrix.numel()


@given(bits=st.integers(0, 14), data=st.data())
@settings(deadline=None)
def test_walsh_hadamard_transform_has_the_signs_of_its_matrix(bits, data):
    """Entry (i, j) of the matrix is -1 to the number of bits that i and j share."""
    j = data.draw(st.integers(0, 2**bits - 1))
    x = torch.zeros(2, 3, 2**bits)
    x[1, 2, j] = 2.0
    found = projection.walsh_hadamard(x)
    assert found.count_nonzero() == 2**bits
    assert torch.equal(
        found[1, 2],
        torch.from_numpy(2.0 * (-1.0) ** np.bitwise_count(np.arange(2**bits) & j)).float(),
    )


def test_walsh_hadamard_transform_twice_is_the_length():
    x = normal(2, 2**13)
    twice = projection.walsh_hadamard(projection.walsh_hadamard(x))
    torch.testing.assert_close(twice / 2**13, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [8, 20, 60, 200])
def test_kronecker_on_factors_is_the_explicit_projection_of_the_explicit_gradient(k):
    shapes = {"a": (8, 5), "b": (3, 4, 3, 3), "v": (9,)}
    project_any = projection.build("kronecker", k, shapes, 0)
    factors = {
        "a": Factors(normal(2, 6, 5), normal(2, 3, 6, 8, seed=1)),
        "b": Factors(normal(2, 7, 36), normal(2, 3, 7, 3, seed=1)),
    }
    vector = normal(2, 3, 9, seed=2)
    found, norms = project_any([*factors.items(), ("v", vector)], 2, 3)
    assert found.shape == (2, 3, project_any.dimension)
    for name, each in factors.items():
        left, right = project_any.factors[name]
        wanted = each.dense() @ torch.kron(left.contiguous(), right.contiguous())
        torch.testing.assert_close(
            found[..., project_any.slices[name]], wanted, rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(norms, torch.linalg.vector_norm(found, dim=2))
    explicit, _ = project_any(
        [*((name, each.dense()) for name, each in factors.items()), ("v", vector)], 2, 3
    )
    torch.testing.assert_close(found, explicit, rtol=1e-4, atol=1e-4)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6).map(
        lambda found: [(size, 1 + size % 7) for size in found]
    ),
    dimension=st.integers(8, 500),
)
@settings(deadline=None, max_examples=50)
def test_kronecker_never_takes_more_than_k_and_wastes_little(sizes, dimension):
    shapes = {f"w{i}": shape for i, shape in enumerate(sizes)} | {"v": (4,)}
    made = projection.build("kronecker", dimension, shapes, 0)
    everything = sum(math.prod(shape) for shape in shapes.values())
    assert min(dimension, everything) / 2 < made.dimension <= dimension


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), total=st.integers(0, 120))
def test_shares_are_equal_up_to_the_sizes(sizes, total):
    given_out = projection.allocate(sizes, total)
    assert all(share <= size for share, size in zip(given_out, sizes, strict=True))
    assert sum(given_out) == min(total, sum(sizes)) or total - sum(given_out) < len(sizes)
    unfilled = [share for share, size in zip(given_out, sizes, strict=True) if share < size]
    assert not unfilled or max(given_out) - 1 <= min(unfilled)


@pytest.mark.parametrize(
    ("kind", "dimension", "message"),
    [
        ("srht", 129, r"features.dimension = 129: srht has only 128 coordinates"),
        ("kronecker", 3, r"features.dimension = 3 is too small for kronecker: each of 3 matrices"),
    ],
)
def test_a_dimension_that_does_not_suit_is_refused(kind, dimension, message):
    assert COUNT == 127
    with pytest.raises(ConfigError, match=message):
        projection.build(kind, dimension, SHAPES, 0)
