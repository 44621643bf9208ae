"""Feature networks opened from files: inputs by known answers, and clear words for wrong files."""

import hashlib
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from afterimage.artifacts import ArtifactError
from afterimage.attacks import feature_networks
from afterimage.attacks.feature_networks import find
from afterimage.config import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

ONNX = bytes.fromhex(
    "080812003a650a190a01781201702211476c6f62616c41766572616765506f6f6c0a0f0a0170120179220746"
    "6c617474656e1201675a1e0a017812190a17080112130a0312014e0a0208030a031201480a0312015762140a"
    "0179120f0a0d080112090a0312014e0a02080342040a00100d"
)
"""GlobalAveragePool and Flatten, as onnx.helper writes them."""


class Mean(nn.Module):
    """The mean of each channel."""

    def forward(self, x):
        return x.mean((2, 3))


class Statistics(nn.Module):
    """Mean and deviation of each channel."""

    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)


def written(path, module):
    torch.jit.save(torch.jit.script(module.eval()), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def sscd(path, sha256, normalisation="small_288"):
    return find("sscd", path, sha256, normalisation)


def failing(path, sha256=None, normalisation="small_288", kind=ArtifactError):
    sha256 = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(kind) as error:
        sscd(path, sha256, normalisation)
    assert str(error.value).startswith(f"--space-weights {path}")
    return str(error.value)


# ---- sscd ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalisation", "size", "mean", "std"),
    [
        ("small_288", (288, 576), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("skew_320", (320, 320), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("dcr", (224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_inputs_have_the_published_size_and_normalisation(tmp_path, normalisation, size, mean, std):
    network = sscd(*written(tmp_path / "net.pt", Statistics()), normalisation)
    colour = np.array([10, 100, 250], np.uint8)
    image = np.broadcast_to(colour, (100, 200, 3))
    inputs = network.prepare(image)
    assert inputs.shape == (3, *size)
    assert inputs.dtype == np.float32
    wanted = (colour / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(inputs[:, 7, 9], wanted, rtol=1e-5)
    np.testing.assert_allclose(network.embed(inputs[None])[0, :3], wanted, rtol=1e-4)


def test_inputs_are_scaled_bilinear_with_antialias_and_cropped_to_the_centre(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8)
    network = sscd(*written(tmp_path / "net.pt", Statistics()), "dcr")
    scaled = np.asarray(Image.fromarray(image).resize((512, 256), Image.Resampling.BILINEAR))
    wanted = scaled[16:240, 144:368].transpose(2, 0, 1) / 255 * 2 - 1
    np.testing.assert_allclose(network.prepare(image), wanted, atol=1e-6)


def test_grey_images_become_colour(tmp_path):
    network = sscd(*written(tmp_path / "net.pt", Statistics()))
    grey = np.random.default_rng(0).integers(0, 256, (40, 40, 1), np.uint8)
    np.testing.assert_array_equal(
        network.prepare(grey), network.prepare(np.repeat(grey, 3, axis=2))
    )


def test_the_normalisation_is_part_of_what_decides_features(tmp_path):
    path, sha256 = written(tmp_path / "net.pt", Statistics())
    keys = {sscd(path, sha256, name).sha256 for name in feature_networks.NORMALISATIONS}
    assert len(keys) == 3
    assert sscd(path, sha256.upper()).facts["weights_sha256"] == sha256


def test_another_checksum_is_refused_with_both(tmp_path):
    path, sha256 = written(tmp_path / "net.pt", Statistics())
    message = failing(path, "0" * 64)
    assert message.endswith(f"has sha256 {sha256}, but --space-sha256 = {'0' * 64}")


def torch_saved():
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, stream)
    return stream.getvalue()


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("picture.txt", "none")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (torch_saved(), "a file of torch.save, i.e. a pickle, not TorchScript"),
        (zipped(), "a zip of something else, not TorchScript"),
        (b"\x80\x02}q\x00.", "a pickle, which could run code"),
        (b"hello", "neither a whole TorchScript file"),
        (b"", "neither a whole TorchScript file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
    ],
)
def test_other_files_are_refused(tmp_path, raw, words):
    path = tmp_path / "net.pt"
    path.write_bytes(raw)
    assert words in failing(path)


def test_a_truncated_file_is_refused(tmp_path):
    path, _ = written(tmp_path / "net.pt", Statistics())
    path.write_bytes(path.read_bytes()[:-100])
    assert "neither a whole TorchScript file" in failing(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "there is no such file" in failing(tmp_path / "no.pt", "0" * 64, kind=ConfigError)


class Rank(nn.Module):
    def forward(self, x):
        return x[:, :, :2, :2]


class Two(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x


class Nothing(nn.Module):
    def forward(self, x):
        return torch.log(x.mean((2, 3)) * 0 - 1)


class Same(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * 0 + 1


class OneChannel(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


class Of224(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 224 * 224, 2)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Rank, "for 2 images of 288x288 the network returns shape (2, 3, 2, 2)"),
        (Two, "returns tuple, not one array of features"),
        (Nothing, "its features of a test image are NaN or infinite"),
        (Same, "the network gives the same features for different images"),
        (OneChannel, "fails on inputs of 288x288"),
        (Of224, "fails on inputs of 288x288"),
    ],
)
def test_networks_that_give_no_features_are_refused_before_any_image(tmp_path, module, words):
    path, _ = written(tmp_path / "net.pt", module())
    assert words in failing(path)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("last.bias", float("nan"), "its weight last.bias has NaN or infinite values"),
        ("conv.weight", float("inf"), "its weight conv.weight has NaN or infinite values"),
        ("conv.weight", 0.0, "its weight conv.weight is all zero"),
        ("last.weight", 0.0, "its weight last.weight is all zero"),
    ],
)
def test_weights_of_no_trained_network_are_refused_by_name(tmp_path, name, value, words):
    module = Convolution()
    module.get_parameter(name).data.fill_(value)
    assert words in failing(written(tmp_path / "net.pt", module)[0])


def test_biases_may_be_zero(tmp_path):
    module = Convolution()
    module.conv.bias.data.zero_()
    assert sscd(*written(tmp_path / "net.pt", module)).space == "sscd"


def test_bytes_of_a_weight_that_were_zeroed_are_refused(tmp_path):
    """With the checksum of the damaged file, too."""
    module = Convolution()
    path, _ = written(tmp_path / "net.pt", module)
    raw, weight = path.read_bytes(), module.conv.weight.detach().numpy().tobytes()
    assert raw.count(weight) == 1
    path.write_bytes(raw.replace(weight[:32], bytes(32)))
    assert re.search(r"net/data/\d+ in it is damaged", failing(path))


def test_a_network_of_one_size_works_with_the_normalisation_of_that_size(tmp_path):
    network = sscd(*written(tmp_path / "net.pt", Of224()), "dcr")
    inputs = network.prepare(np.random.default_rng(0).integers(0, 256, (30, 90, 3), np.uint8))
    assert network.embed(inputs[None]).shape == (1, 2)


def test_images_whose_input_would_be_huge_are_refused(tmp_path):
    network = sscd(*written(tmp_path / "net.pt", Statistics()))
    assert network.prepare(np.zeros((16, 1, 3), np.uint8)).shape == (3, 16 * 288, 288)
    with pytest.raises(ArtifactError, match=r"it is 17x1; .*skew_320 takes any shape"):
        network.prepare(np.zeros((1, 17, 3), np.uint8))
    squashed = sscd(*written(tmp_path / "net.pt", Statistics()), "skew_320")
    assert squashed.prepare(np.zeros((1, 17, 3), np.uint8)).shape == (3, 320, 320)


def test_onnx_gives_what_torchscript_gives(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "net.onnx").write_bytes(ONNX)
    network = sscd(tmp_path / "net.onnx", hashlib.sha256(ONNX).hexdigest())
    other = sscd(*written(tmp_path / "net.pt", Mean()))
    assert network.facts["format"] == "ONNX"
    inputs = np.random.default_rng(0).random((3, 3, 288, 300), np.float32)
    np.testing.assert_allclose(network.embed(inputs), other.embed(inputs), rtol=1e-4)
    (tmp_path / "net.onnx").write_bytes(ONNX[:-20])
    assert "it cannot be opened as ONNX" in failing(tmp_path / "net.onnx")


OF_BYTES = bytes.fromhex(
    "080812003a86010a170a01691201662204436173742a090a02746f1801a001020a320a0166120179220a5265647563"
    "654d65616e2a0d0a046178657340014002a001072a0f0a086b65657064696d731800a001021201675a1e0a01691219"
    "0a17080212130a0312016e0a031201680a031201770a02080362140a0179120f0a0d080112090a0312016e0a020803"
    "42040a00100d"
)
"""The mean of each channel of uint8 images whose channels come last, as onnx.helper writes it."""


@pytest.mark.parametrize("normalisation", feature_networks.NORMALISATIONS)
def test_onnx_that_takes_bytes_is_given_the_resized_image(normalisation, tmp_path):
    """Such a file normalises by itself."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "net.onnx").write_bytes(OF_BYTES)
    network = sscd(tmp_path / "net.onnx", hashlib.sha256(OF_BYTES).hexdigest(), normalisation)
    image = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
    image[..., 1] //= 2
    features = network.embed(network.prepare(image)[None])[0]
    np.testing.assert_allclose(features, image.mean(axis=(0, 1)), atol=3)
    if normalisation == "skew_320":  # which keeps an image of this size
        np.testing.assert_allclose(features, image.mean(axis=(0, 1)), rtol=1e-6)


def test_onnx_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_networks.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "net.onnx").write_bytes(ONNX)
    assert "pip install '.[onnx]'" in failing(tmp_path / "net.onnx", kind=ConfigError)


# ---- clip and dinov2 -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny random networks: clip, dinov2, and clip_model, with its text part."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("networks")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = small | {"intermediate_size": 16, "image_size": 32, "patch_size": 8}
    vision["projection_dim"] = 8
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**vision)
        ).save_pretrained(root / "clip")
        text = small | {"intermediate_size": 16, "vocab_size": 99, "projection_dim": 8}
        transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        ).save_pretrained(root / "clip_model")
        transformers.Dinov2Model(
            transformers.Dinov2Config(**small, image_size=28, patch_size=14)
        ).save_pretrained(root / "dinov2")
    common = {"do_resize": True, "do_center_crop": True, "do_normalize": True, "resample": 3}
    common |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.1]}
    older = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32}
    newer = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 28, "width": 28},
    }
    for name, settings in {"clip": older, "clip_model": older, "dinov2": newer}.items():
        (root / name / "preprocessor_config.json").write_text(json.dumps(common | settings))
    return root


@pytest.mark.parametrize(
    ("space", "folder", "dimension"),
    [("clip", "clip", 8), ("clip", "clip_model", 8), ("dinov2", "dinov2", 16)],
)
def test_features_are_those_of_transformers_for_its_own_inputs(folders, space, folder, dimension):
    import transformers

    network = find(space, folders / folder, None, None)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    inputs = network.prepare(image)
    # By hand: the shorter side, bicubic, and the centre.
    side, crop = {"clip": (32, 32), "dinov2": (36, 28)}[space]
    scaled = Image.fromarray(image).resize((int(side * 70 / 50), side), Image.Resampling.BICUBIC)
    left, top = (scaled.width - crop) // 2, (side - crop) // 2
    cut = np.asarray(scaled)[top : top + crop, left : left + crop] / 255
    wanted = (cut - [0.5, 0.4, 0.3]) / [0.3, 0.2, 0.1]
    np.testing.assert_allclose(inputs, wanted.transpose(2, 0, 1), atol=1e-4)
    kind = {
        "clip": transformers.CLIPVisionModelWithProjection,
        "clip_model": transformers.CLIPModel,
        "dinov2": transformers.Dinov2Model,
    }[folder]
    model, pixels = kind.from_pretrained(folders / folder).eval(), torch.from_numpy(inputs[None])
    with torch.no_grad():
        if folder == "clip_model":
            pooled = model.vision_model(pixels).pooler_output
            output = model.visual_projection(pooled)
        elif folder == "clip":
            output = model(pixels).image_embeds
        else:
            output = model(pixels).pooler_output
    features = network.embed(inputs[None])
    assert features.shape == (1, dimension)
    np.testing.assert_allclose(features, output.numpy(), rtol=1e-4, atol=1e-5)


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def config(**values):
    return lambda folder: changed(folder / "config.json", **values)


def processor(**values):
    return lambda folder: changed(folder / "preprocessor_config.json", **values)


def remove(name):
    return lambda folder: (folder / name).unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def sharded(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (remove("preprocessor_config.json"), ConfigError, "preprocessor_config.json missing"),
        (remove("config.json"), ConfigError, "config.json missing"),
        (remove("model.safetensors"), ConfigError, "model.safetensors missing in this folder"),
        (pickled, ConfigError, "pytorch_model.bin is a pickle, which could run code"),
        (sharded, ConfigError, "names model-00001-of-00001.safetensors, missing"),
        (truncate, ArtifactError, "cannot be opened as a CLIPVisionModelWithProjection"),
        (config(model_type="dinov2"), ArtifactError, "config.json is of a 'dinov2'"),
        (config(hidden_size=32), ArtifactError, "of another shape are vision_model.embeddings"),
        (config(num_hidden_layers=2), ArtifactError, "missing are vision_model.encoder.layers.1"),
        (
            processor(feature_extractor_type="ViTFeatureExtractor"),
            ArtifactError,
            "is of a ViTFeatureExtractor",
        ),
        (processor(size={"longest": 3}), ArtifactError, "preprocessor_config.json cannot be used"),
        (processor(image_mean=[0.5]), ArtifactError, "preprocessor_config.json does not fit"),
        (processor(size=64, crop_size=64), ArtifactError, "fails on inputs of 64x64"),
        (
            lambda folder: (folder / "config.json").write_text("[]"),
            ArtifactError,
            "config.json is no JSON object",
        ),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text("{"),
            ArtifactError,
            "preprocessor_config.json cannot be read",
        ),
    ],
)
def test_wrong_folders_are_refused(folders, tmp_path, change, kind, words):
    folder = tmp_path / "clip"
    shutil.copytree(folders / "clip", folder)
    change(folder)
    with pytest.raises(kind) as error:
        find("clip", folder, None, None)
    assert str(error.value).startswith(f"--space-weights {folder}")
    assert words in str(error.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no such folder; --space dinov2 needs one with"):
        find("dinov2", tmp_path / "no", None, None)


def test_a_folder_of_another_checksum_is_refused(folders, tmp_path):
    actual = find("clip", folders / "clip", None, None).facts["weights_sha256"]
    find("clip", folders / "clip", actual, None)
    with pytest.raises(ArtifactError, match=f"has sha256 {actual}, but --space-sha256 = 1111"):
        find("clip", folders / "clip", "1" * 64, None)
    # Other files of the folder do not matter, all that decide features do.
    folder = tmp_path / "clip"
    shutil.copytree(folders / "clip", folder)
    (folder / "README.md").write_text("about it")
    find("clip", folder, actual, None)
    processor(resample=2)(folder)
    with pytest.raises(ArtifactError, match="has sha256"):
        find("clip", folder, actual, None)


def test_images_smaller_than_a_crop_without_resizing_are_refused(folders, tmp_path):
    """Padding them with zeros, as transformers does, would give features without a word."""
    folder: Path = tmp_path / "clip"
    shutil.copytree(folders / "clip", folder)
    processor(do_resize=False)(folder)
    network = find("clip", folder, None, None)
    assert network.smallest == 0
    assert network.prepare(np.zeros((40, 32, 3), np.uint8)).shape == (3, 32, 32)
    with pytest.raises(ArtifactError, match="it is 40x31, smaller than the 32x32"):
        network.prepare(np.zeros((31, 40, 3), np.uint8))


def test_transformers_without_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setattr(feature_networks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"the extra `text`: pip install '.\[text\]'"):
        find("clip", folders / "clip", None, None)
