"""Every attributor against its formula written out, and what all of them have in common."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from afterimage import scratch
from afterimage.artifacts import ArtifactError
from afterimage.attribution import attributors
from afterimage.attribution.attributors.inputs import AttributionInputs, ImageFeatures
from afterimage.config.attribution import ATTRIBUTOR_TABLE, ATTRIBUTORS, Attribution
from afterimage.images import Images

N, Q, R = 11, 4, 3
NARROW, WIDE = 7, 45
"""Coordinates: fewer than images, and more than all their rows."""
READOUTS = ("mean", "l1", "square", "loss")


def side(rng: np.random.Generator, n: int, k: int, **more: np.ndarray) -> ImageFeatures:
    features = {
        f"{name}{end}": rng.standard_normal((n, k)).astype(np.float32)
        for name in READOUTS
        for end in ("", "/normalised")
    }
    return ImageFeatures(
        images=Images.of(rng.integers(0, 256, (n, 4, 4, 1), np.uint8)),
        features=features | more,
        rows=rng.standard_normal((n, R, k)).astype(np.float32),
        residual=rng.uniform(0.5, 2, n).astype(np.float32),
        embedding=rng.standard_normal((n, 5)).astype(np.float32),
    )


def made_up(k: int = NARROW) -> AttributionInputs:
    rng = np.random.default_rng(k)
    train = side(rng, N, k)
    queries = side(rng, Q, k, journey=rng.standard_normal((Q, k)).astype(np.float32))
    checkpoints = tuple(
        (rng.standard_normal((N, k)), rng.standard_normal((Q, k))) for _ in range(3)
    )
    masks = np.stack([rng.permutation(N) < N // 2 for _ in range(4)])
    masks = np.concatenate([masks, ~masks])
    return AttributionInputs(train, queries, checkpoints, masks, rng.uniform(0, 1, (8, Q)), seed=3)


def take(part: ImageFeatures, rows: np.ndarray) -> ImageFeatures:
    assert part.embedding is not None
    features = {name: values[rows] for name, values in part.features.items()}
    images = Images.of(part.images.pixels[rows])
    return ImageFeatures(
        images, features, part.rows[rows], part.residual[rows], part.embedding[rows]
    )


def with_train(inputs: AttributionInputs, rows: np.ndarray) -> AttributionInputs:
    """The inputs with its training images in another order, or some of them twice."""
    checkpoints = tuple((train[rows], queries) for train, queries in inputs.checkpoints)
    return replace(
        inputs,
        train=take(inputs.train, rows),
        checkpoints=checkpoints,
        masks=inputs.masks[:, rows],
    )


def inverse(rows: np.ndarray, relative: float) -> np.ndarray:
    rows = rows.astype(np.float64)
    n, k = rows.shape
    return np.linalg.inv(rows.T @ rows + relative * np.trace(rows.T @ rows) / min(n, k) * np.eye(k))


def pair(inputs: AttributionInputs, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of the queries and of the training images, float64."""
    return inputs.queries.features[name].astype(np.float64), inputs.train.features[name].astype(
        np.float64
    )


def kernel(inputs: AttributionInputs, name: str, relative: float) -> np.ndarray:
    z, phi = pair(inputs, name)
    return z @ inverse(phi, relative) @ phi.T


def das_of(inputs: AttributionInputs, relative: float, scalar: bool) -> np.ndarray:
    """DAS image by image in all k coordinates."""
    rows = inputs.train.rows.astype(np.float64)
    A = inverse(rows.reshape(N * R, -1), relative)
    found = np.empty((Q, N))
    for i, (J, u) in enumerate(zip(rows, pair(inputs, "loss")[1], strict=True)):
        block = J @ A @ J.T
        delta = A @ u / (1 - np.trace(block) / R)
        if not scalar:
            delta = A @ u + A @ J.T @ np.linalg.inv(np.eye(R) - block) @ J @ A @ u
        found[:, i] = np.mean((inputs.queries.rows.astype(np.float64) @ delta) ** 2, axis=1)
    return found


def released(inputs: AttributionInputs, relative: float) -> np.ndarray:
    _, phi = pair(inputs, "mean/normalised")
    h = np.diag(phi @ inverse(phi, relative) @ phi.T)
    return kernel(inputs, "mean/normalised", relative) * inputs.train.residual / (1 - h)


def journey(inputs: AttributionInputs, relative: float) -> np.ndarray:
    phi = pair(inputs, "loss")[1]
    return inputs.queries.features["journey"].astype(np.float64) @ inverse(phi, relative) @ phi.T


def relative_influence(inputs: AttributionInputs, relative: float) -> np.ndarray:
    phi = pair(inputs, "loss")[1]
    return kernel(inputs, "loss", relative) / np.linalg.norm(inverse(phi, relative) @ phi.T, axis=0)


def ggn(inputs: AttributionInputs, relative: float) -> np.ndarray:
    z, phi = pair(inputs, "loss")
    return z @ inverse(inputs.train.rows.reshape(N * R, -1), relative) @ phi.T


def cosine(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in x] for a in z])


def pixels(part: ImageFeatures) -> np.ndarray:
    return part.images.pixels.reshape(len(part.images), -1) / 255 * 2 - 1


def empirical(inputs: AttributionInputs) -> np.ndarray:
    found = np.zeros((Q, N))
    for i, seen in enumerate(inputs.masks.T):
        if 0 < seen.sum() < len(seen):
            found[:, i] = inputs.losses[~seen].mean(axis=0) - inputs.losses[seen].mean(axis=0)
    return found


FORMULAS = {
    "das": lambda e, lam: das_of(e, lam, scalar=False),
    "das_scalar": lambda e, lam: das_of(e, lam, scalar=True),
    "das_released": released,
    "das_released_squared": lambda e, lam: released(e, lam) ** 2,
    "das_revised": lambda e, lam: kernel(e, "mean/normalised", lam) ** 2,
    "das_archive": lambda e, lam: kernel(e, "l1/normalised", lam) ** 2,
    "trak": lambda e, lam: kernel(e, "loss", lam),
    "trak_normalised": lambda e, lam: kernel(e, "loss/normalised", lam),
    "trak_squared": lambda e, lam: kernel(e, "loss", lam) ** 2,
    "trak_normalised_squared": lambda e, lam: kernel(e, "loss/normalised", lam) ** 2,
    "dtrak": lambda e, lam: kernel(e, "square", lam),
    "dtrak_normalised": lambda e, lam: kernel(e, "square/normalised", lam),
    "dtrak_squared": lambda e, lam: kernel(e, "square", lam) ** 2,
    "dtrak_normalised_squared": lambda e, lam: kernel(e, "square/normalised", lam) ** 2,
    "relative_influence": relative_influence,
    "renormalised_influence": lambda e, lam: (
        kernel(e, "loss", lam) / np.linalg.norm(pair(e, "loss")[1], axis=1)
    ),
    "journey_trak": journey,
    "ggn_influence": ggn,
    "gradient_dot": lambda e, lam: pair(e, "loss")[0] @ pair(e, "loss")[1].T,
    "gradient_cosine": lambda e, lam: cosine(*pair(e, "loss")),
    "tracin": lambda e, lam: sum(z @ x.T for x, z in e.checkpoints) / 3,
    "gas": lambda e, lam: sum(cosine(z, x) for x, z in e.checkpoints) / 3,
    "pixel_cosine": lambda e, lam: cosine(pixels(e.queries), pixels(e.train)),
    "pixel_l2": lambda e, lam: (
        -np.sqrt(((pixels(e.queries)[:, None] - pixels(e.train)) ** 2).sum(axis=2))
    ),
    "feature_cosine": lambda e, lam: cosine(e.queries.embedding, e.train.embedding),
    "empirical_influence": lambda e, lam: empirical(e),
}


def test_every_attributor_has_a_formula():
    assert set(FORMULAS) == set(ATTRIBUTORS) - {"shuffled"}


@pytest.mark.parametrize("k", [NARROW, WIDE])
@pytest.mark.parametrize("name", FORMULAS)
def test_scores_are_those_of_the_formula(name, k):
    inputs = made_up(k)
    scores = attributors.scorer(name, inputs)
    for relative in (1e-3, 1.0):
        truth = FORMULAS[name](inputs, relative)
        np.testing.assert_allclose(
            scores(relative), truth, rtol=1e-5, atol=1e-6 * np.abs(truth).max()
        )


@pytest.mark.parametrize("k", [NARROW, WIDE])
@pytest.mark.parametrize("name", FORMULAS)
def test_memory_mapped_arrays_in_blocks_of_a_few_rows_give_the_same_scores(name, k, monkeypatch):
    inputs = made_up(k)
    plain = attributors.scorer(name, inputs)(0.1)
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(scratch, "BLOCK", 8 * k * 4)
    found = attributors.scorer(name, replace(inputs))(0.1)
    np.testing.assert_allclose(found, plain, rtol=1e-9, atol=1e-12 * np.abs(plain).max())


@pytest.mark.parametrize("name", ["das", "das_scalar", "ggn_influence"])
def test_scores_from_rows_need_less_memory_than_the_rows(name, monkeypatch):
    """10 MB as coordinates in float64, and as changes of all queries' rows for all images: what has
    either as a whole in memory needs more."""
    rng, images, rows, k = np.random.default_rng(0), 2000, 10, 64

    def features(count: int) -> ImageFeatures:
        return ImageFeatures(
            Images.of(np.zeros((count, 1, 1, 1), np.uint8)),
            {"loss": rng.standard_normal((count, k)).astype(np.float32)},
            rng.standard_normal((count, rows, k)).astype(np.float32),
            np.ones(count, np.float32),
            embedding=None,
        )

    inputs = AttributionInputs.from_gradients(features(images), features(k), seed=0)
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", 2**20)
    monkeypatch.setattr(scratch, "BLOCK", 2**18)
    tracemalloc.start()
    attributors.scorer(name, inputs)(0.1)
    inputs.curvature.leverage(0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * images * rows * k * 8


@pytest.mark.parametrize("name", ATTRIBUTORS)
def test_every_attributor_scores_every_pair(name):
    inputs = made_up()
    scores = attributors.scorer(name, inputs)
    found = scores(0.1)
    assert found.shape == (Q, N)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert np.array_equal(scores(10.0), found) is not ATTRIBUTOR_TABLE[name].regularised
    np.testing.assert_array_equal(scores(0.1), found)


def test_variants_are_scored_by_what_the_gradients_of_one_network_suffice_for():
    study = Attribution(
        arm="baseline", variants={"long": {"timesteps": 20}, "light": {"rows": False}}
    )
    assert study.attributors_of("main") == list(ATTRIBUTORS)
    other_inputs = {"journey_trak", "tracin", "gas", "feature_cosine", "empirical_influence"}
    without_gradients, control = {"pixel_cosine", "pixel_l2"}, {"shuffled"}
    long, light = (set(study.attributors_of(variant)) for variant in ("long", "light"))
    assert set(ATTRIBUTORS) - long == other_inputs | without_gradients | control
    assert long - light == {"das", "das_scalar", "ggn_influence"}


@pytest.mark.parametrize("name", ["trak", "pixel_l2"])
def test_a_wrong_row_of_the_table_is_refused(name, monkeypatch):
    """The table is no part of a result's fingerprint: it must not change scores."""
    row = ATTRIBUTOR_TABLE[name]
    monkeypatch.setitem(ATTRIBUTOR_TABLE, name, row._replace(regularised=not row.regularised))
    with pytest.raises(TypeError, match=f"attributor {name}: .* regularised"):
        attributors.scorer(name, made_up())


@pytest.mark.parametrize("name", sorted(set(ATTRIBUTORS) - {"shuffled"}))
def test_the_order_of_the_training_images_does_not_matter(name):
    """DAS known answer 6."""
    inputs, order = made_up(), np.random.default_rng(0).permutation(N)
    found = attributors.scorer(name, inputs)(0.1)
    np.testing.assert_allclose(
        attributors.scorer(name, with_train(inputs, order))(0.1),
        found[:, order],
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("k", [NARROW, WIDE])
@pytest.mark.parametrize("name", sorted(set(ATTRIBUTORS) - {"shuffled"}))
def test_copies_get_equal_scores(name, k):
    """DAS known answer 6."""
    twice = with_train(made_up(k), np.append(np.arange(N), 2))
    found = attributors.scorer(name, twice)(1e-3)
    np.testing.assert_allclose(found[:, 2], found[:, N], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["trak", "renormalised_influence"])
def test_large_lambda_leaves_the_gradients(name):
    """DAS known answer 8: rankings become those of the inner product, or of its share of the
    training gradient's length."""
    inputs = made_up()
    z, phi = pair(inputs, "loss")
    plain = z @ phi.T / (np.linalg.norm(phi, axis=1) if name == "renormalised_influence" else 1)
    found = attributors.scorer(name, inputs)(1e9)
    np.testing.assert_array_equal(np.argsort(found, axis=1), np.argsort(plain, axis=1))


def test_a_helpful_image_has_a_positive_score():
    """A query with the training image's gradient, and networks that did better with the image."""
    inputs = made_up()
    own = replace(inputs, queries=take(inputs.train, np.arange(N)), losses=1.0 - inputs.masks)
    for name in (
        "trak",
        "ggn_influence",
        "gradient_dot",
        "gradient_cosine",
        "das_released",
        "empirical_influence",
    ):
        assert (np.diag(attributors.scorer(name, own)(0.1)) > 0).all()
    np.testing.assert_allclose(np.diag(attributors.scorer("empirical_influence", own)(0.1)), 1)


def test_shuffled_scores_are_traks_in_another_order():
    inputs = made_up()
    trak, shuffled = (attributors.scorer(name, inputs) for name in ("trak", "shuffled"))
    (places,) = {
        tuple(np.argmin(np.abs(trak(lam)[:, :, None] - shuffled(lam)[:, None]).sum(axis=0), axis=0))
        for lam in (0.1, 10)
    }
    assert sorted(places) == list(range(N))
    assert (np.array(places) != np.arange(N)).sum() > N // 2
    np.testing.assert_array_equal(trak(0.1)[:, places], shuffled(0.1))
    other = attributors.scorer("shuffled", replace(inputs, seed=4))
    assert not np.array_equal(other(0.1), shuffled(0.1))


def test_an_image_that_no_network_or_every_network_saw_has_no_empirical_influence():
    inputs = made_up()
    inputs.masks[:, 0], inputs.masks[:, 1] = True, False
    found = attributors.scorer("empirical_influence", inputs)(1.0)
    assert (found[:, :2] == 0).all()
    assert (found[:, 2:] != 0).any()


def test_the_training_features_are_decomposed_once():
    inputs = made_up()
    assert inputs.spectrum("loss") is inputs.spectrum("loss")
    assert inputs.curvature is inputs.curvature
    assert inputs.spectrum("loss") is not inputs.spectrum("mean")


def test_what_is_missing_is_named():
    inputs = made_up()
    features = {
        name: values for name, values in inputs.queries.features.items() if name != "journey"
    }
    poor = replace(
        inputs,
        queries=replace(inputs.queries, features=features, embedding=None),
        checkpoints=(),
        masks=np.zeros((0, N), bool),
        losses=np.zeros((0, Q)),
    )
    for name, message in {
        "journey_trak": "no features 'journey'; available are l1, ",
        "feature_cosine": "classifier's features",
        "tracin": "no checkpoints",
        "gas": "no checkpoints",
        "empirical_influence": "retrained networks",
    }.items():
        with pytest.raises(ArtifactError, match=message):
            attributors.scorer(name, poor)


def test_parts_that_do_not_belong_together_are_refused():
    inputs = made_up()
    with pytest.raises(ArtifactError, match="rows has values for 10 images, but there are 11"):
        replace(inputs.train, rows=inputs.train.rows[1:])
    with pytest.raises(ArtifactError, match="embedding has values for 3 images"):
        replace(inputs.queries, embedding=np.zeros((3, 5)))
    with pytest.raises(ArtifactError, match="do not match 11 training images and 4 queries"):
        replace(inputs, masks=inputs.masks[:, 1:])
    with pytest.raises(ArtifactError, match="do not match"):
        replace(inputs, losses=inputs.losses[1:])
