"""Features of images in batches, kept by content."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from afterimage.artifacts import ArtifactError
from afterimage.attacks.feature_networks import FeatureNetwork
from afterimage.standalone import features
from afterimage.standalone.features import BATCH, FeatureReader, KeptFeatures


class Network:
    """Features are mean, deviation and first value of an image; inputs are images as they are."""

    def __init__(self, sha256="a" * 64):
        self.batches = []
        self.network = FeatureNetwork(
            "sscd", "--space-weights F", sha256, {}, 8, self.prepare, self.apply
        )

    def prepare(self, pixels):
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).transpose(2, 0, 1).astype(np.float32)

    def apply(self, inputs):
        self.batches.append(inputs.shape)
        flat = inputs.reshape(len(inputs), -1)
        return np.stack([flat.mean(axis=1), flat.std(axis=1), flat[:, 0]], axis=1)

    @property
    def images(self):
        return sum(shape[0] for shape in self.batches)


def images(count, side=8, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (count, side, side, 3), np.uint8)


def read(network, out, pixels, mirrored=False):
    reader = FeatureReader(network.network, KeptFeatures(out, network.network), "--train", mirrored)
    for row, image in enumerate(pixels):
        reader.add(f"{row:03d}.png", image)
    return reader.finish()


def expected(pixels):
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    values = np.stack([flat.mean(axis=1), flat.std(axis=1), flat[:, 0]], axis=1)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_features_have_unit_length_and_the_order_of_the_images(tmp_path):
    pixels = images(100)
    network = Network()
    found = read(network, tmp_path, pixels)
    assert found.shape == (1, 100, 3)
    np.testing.assert_allclose(found[0], expected(pixels), rtol=1e-5)
    assert max(shape[0] for shape in network.batches) == BATCH


def test_images_of_several_sizes_are_batched_by_size(tmp_path):
    small, large = images(2 * BATCH + 1), images(2 * BATCH + 1, 12, 1)
    mixed = [image for pair in zip(small, large, strict=True) for image in pair]
    network = Network()
    found = read(network, tmp_path, mixed)[0]
    np.testing.assert_allclose(found[::2], expected(small), rtol=1e-5)
    np.testing.assert_allclose(found[1::2], expected(large), rtol=1e-5)
    assert sorted(shape[0] for shape in network.batches) == [1, 1, *[BATCH] * 4]


def test_few_inputs_wait_for_others_of_their_size(tmp_path, monkeypatch):
    """Otherwise images of many sizes would all be held."""
    network = Network()
    reader = FeatureReader(
        network.network, KeptFeatures(tmp_path, network.network), "--train", False
    )
    held = []
    for row in range(400):
        reader.add(str(row), images(1, 8 + row, row)[0])
        held.append(row + 1 - network.images)
    assert max(held) < features.PENDING
    assert reader.finish().shape == (1, 400, 3)
    assert network.images == 400


def test_equal_images_are_computed_once(tmp_path):
    pixels = images(30)
    network = Network()
    found = read(network, tmp_path, pixels[[*range(30), *range(30)]])[0]
    assert network.images == 30
    np.testing.assert_array_equal(found[:30], found[30:])


def test_mirror_images_are_a_second_view(tmp_path):
    pixels = images(20)
    pixels[0] = 7  # equal to its mirror image
    network = Network()
    found = read(network, tmp_path, pixels, mirrored=True)
    assert found.shape == (2, 20, 3)
    np.testing.assert_allclose(found[1], expected(pixels[:, :, ::-1]), rtol=1e-5)
    assert network.images == 39


def test_what_was_kept_is_not_computed_again(tmp_path):
    pixels = images(50)
    once = read(Network(), tmp_path, pixels)
    again = Network()
    np.testing.assert_array_equal(read(again, tmp_path, pixels), once)
    assert again.images == 0
    # Another network has features of its own.
    other = Network("b" * 64)
    read(other, tmp_path, pixels)
    assert other.images == 50


def test_an_interrupted_set_goes_on_with_the_same_bits(tmp_path):
    pixels = images(600)
    whole = read(Network(), tmp_path / "whole", pixels)

    class Stopped(Network):
        def apply(self, inputs):
            if self.images >= 400:
                raise KeyboardInterrupt
            return super().apply(inputs)

    with pytest.raises(KeyboardInterrupt):
        read(Stopped(), tmp_path / "out", pixels)
    rest = Network()
    np.testing.assert_array_equal(read(rest, tmp_path / "out", pixels), whole)
    assert rest.images == 600 - features.SAVED


def test_the_names_of_kept_files_are_known_and_no_others(tmp_path):
    assert features.files(tmp_path) == set()
    read(Network(), tmp_path, images(20))
    (tmp_path / "features" / "notes.txt").write_text("mine")
    (name,) = features.files(tmp_path)
    arrays = load_file(tmp_path / name)
    assert {key: (array.dtype.name, array.shape) for key, array in arrays.items()} == {
        "digests": ("uint8", (20, 16)),
        "features": ("float32", (20, 3)),
    }


@pytest.mark.parametrize("damage", [lambda raw: raw[:-8], lambda raw: raw[:-1] + b"\x01"])
def test_changed_files_are_refused(tmp_path, damage):
    read(Network(), tmp_path, images(20))
    (path,) = (tmp_path / "features").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"is not what an earlier run kept; remove it") as error:
        read(Network(), tmp_path, images(20))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (0.0, "all zero")],
)
def test_an_image_without_features_is_named(tmp_path, value, words):
    class Sometimes(Network):
        def apply(self, inputs):
            result = super().apply(inputs)
            result[inputs[:, 0, 0, 0] == 0] = value
            return result

    pixels = images(60)
    pixels[37, 0, 0, 0] = 0
    with pytest.raises(ArtifactError) as error:
        read(Sometimes(), tmp_path, pixels)
    assert str(error.value) == f"--train: the features of 037.png are {words} by --space-weights F"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            lambda inputs: inputs,
            rf"for {BATCH} images of 8x8 the network returns shape \({BATCH}, 3, 8, 8\)",
        ),
        (
            lambda inputs: inputs[0, 0],
            rf"returns shape \(8, 8\); features have shape \({BATCH}, D\)",
        ),
        (lambda inputs: (inputs, inputs), "returns tuple, not one array"),
    ],
)
def test_outputs_that_are_no_features_are_refused(tmp_path, output, words):
    class Other(Network):
        def apply(self, inputs):
            return output(inputs)

    with pytest.raises(ArtifactError, match=words):
        read(Other(), tmp_path, images(BATCH))


def test_images_below_the_size_of_the_input_are_counted(tmp_path):
    network = Network()
    reader = FeatureReader(
        network.network, KeptFeatures(tmp_path, network.network), "--train", True
    )
    for side in (7, 8, 9):
        reader.add(str(side), images(1, side)[0])
    assert reader.enlarged == 1
