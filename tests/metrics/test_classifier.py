import argparse
import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import Classifier, ConfigError
from afterimage.images import Images
from afterimage.metrics import classifier

SMALL = Classifier(channels=[16, 32], features=24, epochs=12, batch_size=32)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    rows = np.random.default_rng(0).permutation(len(data.target))
    return Images.of(
        np.rint(data.images[rows] / 16 * 255).astype(np.uint8)[..., None], labels=data.target[rows]
    )


def _store(folder, images, settings=SMALL, seed=3):
    folder.mkdir(parents=True, exist_ok=True)
    images.save(folder / "reference.npz")
    artifacts.write_json(
        folder / "run.json",
        {"outputs": {"reference.npz": artifacts.sha256(folder / "reference.npz")}},
    )
    config = {
        "step": classifier.STEP,
        "arm": None,
        "replicate": None,
        "seed": seed,
        "settings": settings.model_dump(),
    }
    artifacts.write_json(folder / "config.json", config)
    out = folder / "classifier"
    classifier.run(
        argparse.Namespace(
            reference=folder / "reference.npz", config=folder / "config.json", out=out
        )
    )
    return out


@pytest.fixture(scope="module")
def store(digits, tmp_path_factory):
    return _store(tmp_path_factory.mktemp("classifier"), digits.take(np.arange(600)))


def test_unseen_digits_are_told_apart(store, digits):
    unseen = digits.take(np.arange(1000, 1797))
    probabilities = classifier.predict(store, unseen.pixels)
    assert probabilities.shape == (797, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == unseen.labels).mean() > 0.9


def test_validation_accuracy_is_recorded_per_epoch(store):
    rows = [json.loads(line) for line in (store / "metrics.jsonl").read_text().splitlines()]
    accuracy = [row["value"] for row in rows if row["name"] == "classifier/validation_accuracy"]
    assert len(accuracy) == SMALL.epochs
    assert accuracy[-1] > 0.9
    assert json.loads((store / "classifier.json").read_text())["task"] == "labels"


def test_features_do_not_depend_on_the_batch(store, digits):
    whole = classifier.embed(store, digits.pixels[:50])
    assert whole.shape == (50, 24)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(
        classifier.embed(store, digits.pixels[:50], batch=7), whole, rtol=1e-4, atol=1e-5
    )


def test_memory_does_not_grow_with_the_size_of_images(monkeypatch):
    """A pass takes as many pixels, not as many images."""
    monkeypatch.setattr(classifier, "PIXELS", 8 * 12 * 12)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 1), np.uint8)
    network, _, _ = classifier.fit(Images.of(pixels), SMALL, seed=1)
    passes, forward = [], network.embed
    monkeypatch.setattr(network, "embed", lambda x: passes.append(len(x)) or forward(x))
    assert classifier.embed_with(network, pixels).shape == (20, 24)
    assert passes == [8, 8, 4]
    passes.clear()
    classifier.embed_with(network, pixels[:, :6, :6], batch=10)
    assert passes == [10, 10]


def test_inputs_are_normalised_by_the_statistics_of_each_channel():
    """All images are alike, so that it does not matter which ones are for validation."""
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    pixels = np.repeat(image[None], 10, axis=0)
    _, description, _ = classifier.fit(Images.of(pixels, labels=np.arange(10) % 2), SMALL, seed=1)
    values = image.reshape(-1, 3) / 255
    np.testing.assert_allclose(description.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(description.std, values.std(axis=0), rtol=1e-12)


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_stream_alone(digits):
    images = digits.take(np.arange(100))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, description, _ = classifier.fit(images, SMALL, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, _, _ = classifier.fit(images, SMALL, seed=1)
    other, _, _ = classifier.fit(images, SMALL, seed=2)
    weights = [n.body[0].weight for n in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert description.classes == list(range(10))


@pytest.mark.parametrize("labels", [-1, 7])
def test_without_classes_it_learns_rotations(digits, labels):
    images = Images.of(digits.pixels[:400], labels=np.full(400, labels))
    _, description, history = classifier.fit(
        images, Classifier(channels=[16, 32], epochs=12), seed=1
    )
    assert description.task == "rotations"
    assert history[-1]["validation_accuracy"] > 0.6  # chance is 0.25


def test_rows_without_a_label_are_left_out(digits):
    labels = digits.labels[:60].copy()
    labels[::2] = -1
    _, description, _ = classifier.fit(Images.of(digits.pixels[:60], labels=labels), SMALL, seed=1)
    assert description.task == "labels"
    assert -1 not in description.classes


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3), (33, 33, 3)])
def test_any_side_and_colour(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    settings = Classifier(channels=[4, 4, 6, 6, 8], features=3, epochs=1)
    network, _, _ = classifier.fit(Images.of(pixels), settings, seed=1)
    assert network.embed(classifier._to_tensor(pixels)).shape == (12, 3)


def test_constant_images_give_finite_features():
    _, _, history = classifier.fit(Images.of(np.full((10, 8, 8, 1), 9, np.uint8)), SMALL, seed=1)
    assert np.isfinite(history[-1]["loss"])


def test_errors_name_what_is_wrong(store, digits, tmp_path):
    with pytest.raises(ConfigError, match="side 8"):
        classifier.fit(Images.of(np.zeros((4, 7, 9, 1), np.uint8)), SMALL, seed=1)
    with pytest.raises(ArtifactError, match=r"\(N, H, W, 1\)"):
        classifier.embed(store, np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ArtifactError, match="no images"):
        classifier.embed(store, np.zeros((0, 8, 8, 1), np.uint8))
    damaged = _store(tmp_path, digits.take(np.arange(40)), SMALL.model_copy(update={"epochs": 1}))
    with (damaged / "classifier.safetensors").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ArtifactError, match="truncated or changed"):
        classifier.load(damaged)
