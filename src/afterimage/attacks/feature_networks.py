"""Feature networks, for ``--space`` and ``quality.similarity``: opened from files, checked, and
applied to batches of images.

- ``sscd``: the copy-detection networks of Pizzi et al. 2022, as TorchScript (how they are published)
  or ONNX. Such files are programs, so their checksum has to be given. Inputs are scaled in one of
  the published ways (``NORMALISATIONS``).
- ``clip``, ``dinov2``: folders with the transformers library's ``config.json``,
  ``preprocessor_config.json``, which decides size and normalisation, and safetensors. Features are
  CLIP's projected image embedding and DINOv2's pooled output, the normalised class token.

Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from afterimage import artifacts, provenance
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.data import pictures, zips
from afterimage.data.records import refuse_pointer
from afterimage.diffusion.stored_files import BAD_CONFIG, first_line, listed


class Normalisation(NamedTuple):
    """How an image becomes an input.

    Attributes:
        side: Of the shorter side, or of the square if ``squashed``, in pixels.
        squashed: Whether the whole image becomes a square, whatever its shape.
        crop: Side of the square in the middle that is kept; None keeps all.
        mean, std: Per channel, of values in [0, 1].
        text: What it does, in words.
    """

    side: int
    squashed: bool
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    text: str


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATIONS = {
    "small_288": Normalisation(
        288, False, None, *_IMAGENET, "shorter side 288, mean and deviation of ImageNet"
    ),
    "skew_320": Normalisation(
        320, True, None, *_IMAGENET, "squashed to 320x320, mean and deviation of ImageNet"
    ),
    "dcr": Normalisation(
        256,
        False,
        224,
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        "shorter side 256, centre 224x224, mean and deviation 0.5",
    ),
}
"""The two of SSCD's authors, by the names in their README, and that of Somepalli et al. 2023, whose
repository is called DCR."""

BATCH = 32
"""Images in a batch of a study's."""
LONGEST = 16
"""Maximum ratio of the sides of an image that keeps its shape, which bounds memory."""

FOLDERS = {"clip": "CLIP", "dinov2": "DINOv2"}
"""Spaces whose weights are a folder."""
SPACES = ("sscd", *FOLDERS)
_CLASSES = {
    "clip": {
        "clip": "CLIPVisionModelWithProjection",
        "clip_vision_model": "CLIPVisionModelWithProjection",
    },
    "dinov2": {"dinov2": "Dinov2Model"},
}
"""Space -> ``model_type`` of its config.json -> class of transformers."""
_PROCESSORS = {"clip": "CLIPImageProcessorPil", "dinov2": "BitImageProcessorPil"}
_WEIGHTS = "model.safetensors"
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class FeatureNetwork:
    """An opened network.

    Attributes:
        space: One of ``SPACES``.
        flag: What gave the weights, with their path, for messages.
        sha256: Of the weights and of all that decides the features with them.
        facts: For the record: weights, their sha256, and how images become inputs.
        smallest: Shorter side in pixels that images are scaled to; 0 if they keep their size.
        prepare: uint8 (H, W, 1 or 3) to an input, float32 (3, h, w). Grey images become RGB.
        apply: Inputs of one size, float32 (N, 3, h, w), to the network's output.
    """

    space: str
    flag: str
    sha256: str
    facts: dict[str, Any]
    smallest: int
    prepare: Callable[[np.ndarray], np.ndarray]
    apply: Callable[[np.ndarray], Any]

    def of_images(self, images: np.ndarray) -> np.ndarray:
        """Return the features of images, uint8 (N, H, W, C): float64 (N, D)."""
        parts = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
        batches = (np.stack([self.prepare(image) for image in part]) for part in parts)
        return np.concatenate([self.embed(batch) for batch in batches]).astype(np.float64)

    def embed(self, inputs: np.ndarray) -> np.ndarray:
        """Return the features of a batch, float32 (N, D).

        Raises:
            ArtifactError: if the network fails on inputs of this size, or gives anything else.
        """
        size = "x".join(map(str, inputs.shape[2:]))
        try:
            output = self.apply(inputs)
        except _failures() as error:
            raise ArtifactError(
                f"{self.flag}: the network fails on inputs of {size}: {_reason(error)}"
            ) from error
        if not isinstance(output, np.ndarray):
            raise ArtifactError(
                f"{self.flag}: the network returns {type(output).__name__}, not one array of "
                "features"
            )
        if output.ndim != 2 or len(output) != len(inputs):
            raise ArtifactError(
                f"{self.flag}: for {len(inputs)} images of {size} the network returns shape "
                f"{output.shape}; features have shape ({len(inputs)}, D)"
            )
        return output.astype(np.float32)


def find(
    space: str,
    weights: Path,
    sha256: str | None,
    normalisation: str | None,
    flag: str = "--space-weights",
) -> FeatureNetwork:
    """Open a network, after checking its files.

    Args:
        space: One of ``SPACES``.
        weights: File of ``sscd``, folder of the others.
        sha256: What it has to be; needed for ``sscd``.
        normalisation: Key of ``NORMALISATIONS``, for ``sscd``.
        flag: What gave ``weights``, for messages; what gave ``sha256`` is called alike.

    Raises:
        ConfigError: naming the flag, if there is no such file or folder, a file is missing in it,
            or a package is not installed.
        ArtifactError: naming the flag, if a file has another checksum, is of another
            kind, or is damaged.
    """
    flag = f"{flag} {weights}"
    if space == "sscd":
        assert sha256 is not None
        assert normalisation is not None
        network = _sscd(weights, flag, sha256, normalisation)
    else:
        network = _transformers(space, weights, flag, sha256)
    if network.smallest:
        _try(network)
    return network


def _try(network: FeatureNetwork) -> None:
    """Apply a network to two images that have nothing in common, before any image is read."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    slope = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 64, axis=1)
    try:
        inputs = [network.prepare(image) for image in (noise, slope[..., None])]
    except ArtifactError as error:
        raise ArtifactError(f"{network.flag}: for a test image, {error}") from error
    features = network.embed(np.stack(inputs))
    if not np.isfinite(features).all():
        raise ArtifactError(f"{network.flag}: its features of a test image are NaN or infinite")
    if (features[0] == features[1]).all():
        raise ArtifactError(
            f"{network.flag}: the network gives the same features for different images"
        )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of a forward pass: torch's, and onnxruntime's if it is installed."""
    return (*BAD_CONFIG, *_onnx_errors())


def _reason(error: BaseException) -> str:
    """Return the line of a message that says what is wrong; TorchScript's is the last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    torchscript = bool(lines) and lines[0].startswith("The following operation failed")
    if lines and lines[0].startswith("[ONNXRuntimeError]"):
        return " ".join(lines)
    return lines[-1] if torchscript else first_line(error)


# ---- sscd ----------------------------------------------------------------------------------------


def _sscd(path: Path, flag: str, expected: str, name: str) -> FeatureNetwork:
    if not path.is_file():
        raise ConfigError(f"{flag}: there is no such file; TorchScript or ONNX is needed")
    _refuse_pointer(path, flag)
    try:
        raw = (
            path.read_bytes()
        )  # opened from these bytes, so that the checksum is that of the program
    except OSError as error:
        raise ConfigError(f"{flag}: it cannot be read: {error.strerror}") from error
    actual = hashlib.sha256(raw).hexdigest()
    _check_sha256(flag, actual, expected)
    scaling = NORMALISATIONS[name]
    mean, deviation = np.array(scaling.mean, np.float32), np.array(scaling.std, np.float32)

    def prepare(pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(_colour(pixels))
        short, long = sorted(image.size)
        if long > LONGEST * short and not scaling.squashed:
            raise ArtifactError(
                f"it is {image.size[0]}x{image.size[1]}; with {name} the longer side is at most "
                f"{LONGEST} times the shorter (skew_320 takes any shape)"
            )
        if scaling.squashed:
            image = pictures.resize(image, scaling.side, "bilinear", "none")
        else:
            image = pictures.shorter_side(image, scaling.side, "bilinear")
            if scaling.crop is not None:
                image = pictures.centre(image, scaling.crop)
        values = (np.asarray(image, np.float32) / 255 - mean) / deviation
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    if zipfile.is_zipfile(io.BytesIO(raw)):
        kind, apply = "TorchScript", _torchscript(raw, flag)
    elif path.suffix.lower() == ".onnx":
        kind, apply = "ONNX", _onnx(raw, flag, scaling)
    else:
        pickled = raw[:1] == b"\x80"
        what = (
            "a pickle, which could run code"
            if pickled
            else "neither a whole TorchScript file, which is a zip, nor called .onnx"
        )
        raise ArtifactError(f"{flag}: {what}; TorchScript (torch.jit.save) or ONNX is needed")
    facts = {
        "weights": str(path),
        "weights_sha256": actual,
        "format": kind,
        "normalisation": name,
        "input": scaling.text,
    }
    key = provenance.digest({"sha256": actual, "normalisation": [name, *scaling]})
    return FeatureNetwork("sscd", flag, key, facts, scaling.side, prepare, apply)


def _refuse_pointer(path: Path, flag: str) -> None:
    try:
        refuse_pointer(path)
    except ArtifactError as error:
        raise ArtifactError(f"{flag}: {error}") from error


def _check_sha256(flag: str, actual: str, expected: str | None) -> None:
    if expected is not None and actual != expected.lower():
        given = flag.partition(" ")[0].replace("weights", "sha256")
        raise ArtifactError(f"{flag} has sha256 {actual}, but {given} = {expected}")


def _colour(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, 3) of grey or colour."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _torchscript(raw: bytes, flag: str) -> Callable[[np.ndarray], Any]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = archive.namelist()
    if not any("/code/" in name for name in members):
        pickled = any(name.endswith("/data.pkl") for name in members)
        what = "a file of torch.save, i.e. a pickle" if pickled else "a zip of something else"
        raise ArtifactError(
            f"{flag}: {what}, not TorchScript; SSCD's TorchScript files end in .torchscript.pt"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            damaged = archive.testzip()  # torch ignores the checksums of the members
    except zips.DAMAGE as error:
        raise ArtifactError(f"{flag}: it is damaged: {first_line(error)}") from error
    if damaged is not None:
        raise ArtifactError(f"{flag}: {damaged} in it is damaged: its bytes were changed")
    device = _device()
    try:
        with _without_deprecation():
            module = torch.jit.load(io.BytesIO(raw), map_location=device).eval()
    except (*BAD_CONFIG, OSError) as error:
        raise ArtifactError(
            f"{flag}: it cannot be opened as TorchScript: {_reason(error)}"
        ) from error
    _check_weights(module, flag)

    @torch.no_grad()
    def apply(inputs: np.ndarray) -> Any:
        # Without the second pass of optimisation, which rounds differently from the first.
        with torch.jit.optimized_execution(False):
            return _array(module(torch.from_numpy(inputs).to(device)))

    return apply


def _check_weights(module: Any, flag: str) -> None:
    """Refuse weights that are not finite, and matrices and kernels that are all zero; vectors, such
    as biases, may be."""
    for name, weight in module.state_dict().items():
        if not weight.is_floating_point():
            continue
        if not torch.isfinite(weight).all():
            raise ArtifactError(f"{flag}: its weight {name} has NaN or infinite values")
        if weight.ndim > 1 and len(weight) > 1 and not weight.any():
            raise ArtifactError(f"{flag}: its weight {name} is all zero, of no trained network")


def _without_deprecation() -> Any:
    """Silence the note that torch.jit is superseded: the published files are TorchScript."""
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)


def _array(output: Any) -> Any:
    return output.float().cpu().numpy() if isinstance(output, torch.Tensor) else output


def _onnx(raw: bytes, flag: str, scaling: Normalisation) -> Callable[[np.ndarray], Any]:
    """Return the network of an ONNX file. One that takes uint8 scales values itself, and is given
    the resized images as they are, with the channels first or last as it takes them."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError(
            f"{flag}: ONNX needs onnxruntime, which is not installed; it comes with the extra "
            "`onnx`: pip install '.[onnx]'"
        )
    import onnxruntime

    available = onnxruntime.get_available_providers()
    providers = [
        name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available
    ]
    try:
        session = onnxruntime.InferenceSession(raw, providers=providers)
    except _onnx_errors() as error:
        raise ArtifactError(f"{flag}: it cannot be opened as ONNX: {first_line(error)}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ArtifactError(
            f"{flag}: it has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed"
        )
    alone = inputs[0].shape[:1] == [1]  # a batch size of 1 is fixed in the file
    of_bytes, channels_last = inputs[0].type == "tensor(uint8)", inputs[0].shape[-1:] == [3]
    mean, deviation = (
        np.array(each, np.float32).reshape(3, 1, 1) for each in (scaling.mean, scaling.std)
    )

    def apply(batch: np.ndarray) -> Any:
        if of_bytes:
            batch = np.rint((batch * deviation + mean) * 255).astype(np.uint8)
        if channels_last:
            batch = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        parts = [batch[row : row + 1] for row in range(len(batch))] if alone else [batch]
        return np.concatenate([session.run(None, {inputs[0].name: part})[0] for part in parts])

    return apply


def _onnx_errors() -> tuple[type[Exception], ...]:
    """Return onnxruntime's exceptions, which have no common class; none if it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(
        value
        for value in vars(state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    )


# ---- clip and dinov2 -----------------------------------------------------------------------------


def _transformers(space: str, folder: Path, flag: str, expected: str | None) -> FeatureNetwork:
    if not folder.is_dir():
        raise ConfigError(
            f"{flag}: there is no such folder; --space {space} needs one with {_CONFIG}, "
            f"{_PREPROCESSOR} and {_WEIGHTS}"
        )
    files = _files(folder, flag)
    for path in files:
        _refuse_pointer(path, flag)
    hashes = {path.relative_to(folder): artifacts.sha256(path) for path in files}
    actual = artifacts.folder_sha256(hashes)
    _check_sha256(flag, actual, expected)
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            f"--space {space}: it needs transformers, which is not installed; it comes with the "
            "extra `text`: pip install '.[text]'"
        )
    model_type = _json(folder / _CONFIG, flag).get("model_type")
    class_name = _CLASSES[space].get(str(model_type))
    if class_name is None:
        raise ArtifactError(
            f"{flag}: its {_CONFIG} is of a {model_type!r}; --space {space} opens "
            f"{', '.join(_CLASSES[space])}"
        )
    prepare, smallest, text = _processor(space, folder, flag)
    model = _model(class_name, folder, flag)
    device = _device()
    model.to(device)

    @torch.no_grad()
    def apply(inputs: np.ndarray) -> Any:
        output = model(torch.from_numpy(inputs).to(device))
        return _array(output.image_embeds if space == "clip" else output.pooler_output)

    facts = {
        "weights": str(folder),
        "weights_sha256": actual,
        "format": class_name,
        "normalisation": None,
        "input": text,
    }
    return FeatureNetwork(space, flag, actual, facts, smallest, prepare, apply)


def _files(folder: Path, flag: str) -> list[Path]:
    """Return the files that the features depend on."""
    missing = [name for name in (_CONFIG, _PREPROCESSOR) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{flag}: {' and '.join(missing)} missing in this folder")
    single, index = folder / _WEIGHTS, folder / f"{_WEIGHTS}.index.json"
    if single.is_file():
        weights = [single]
    elif index.is_file():
        parts = _json(index, flag).get("weight_map", {})
        names = sorted({str(name) for name in parts.values()}) if isinstance(parts, dict) else []
        absent = [name for name in names if not (folder / name).is_file()]
        if absent or not names:
            raise ConfigError(f"{flag}: {index.name} names {listed(absent) or 'no files'}, missing")
        weights = [index, *(folder / name for name in names)]
    else:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        instead = (
            f"; {listed(pickled)} is a pickle, which could run code and is not read: convert it to "
            "safetensors"
            if pickled
            else ""
        )
        raise ConfigError(f"{flag}: {_WEIGHTS} missing in this folder{instead}")
    return [folder / _CONFIG, folder / _PREPROCESSOR, *weights]


def _json(path: Path, flag: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{flag}: {path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{flag}: {path.name} is no JSON object")
    return value


def _processor(
    space: str, folder: Path, flag: str
) -> tuple[Callable[[np.ndarray], np.ndarray], int, str]:
    """Return how images become inputs, the shorter side that they are scaled to, and the same in
    words."""
    import transformers

    settings = _json(folder / _PREPROCESSOR, flag)
    kind = str(settings.get("image_processor_type", settings.get("feature_extractor_type", "")))
    known = {
        "",
        *(f"{name}ImageProcessor{end}" for name in ("CLIP", "Bit") for end in ("", "Fast")),
    }
    if kind not in known | {"CLIPFeatureExtractor", "BitFeatureExtractor"}:
        raise ArtifactError(
            f"{flag}: its {_PREPROCESSOR} is of a {kind}; --space {space} takes images as "
            "CLIPImageProcessor and BitImageProcessor do"
        )
    try:
        processor = getattr(transformers, _PROCESSORS[space]).from_pretrained(
            folder, local_files_only=True
        )
    except (*BAD_CONFIG, OSError) as error:
        raise ArtifactError(
            f"{flag}: its {_PREPROCESSOR} cannot be used: {first_line(error)}"
        ) from error
    size = dict(processor.size) if processor.do_resize else {}
    crop = dict(processor.crop_size) if processor.do_center_crop else {}
    smallest = int(size.get("shortest_edge") or min(size.values(), default=0))

    def prepare(pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        if not size and (height < crop.get("height", 0) or width < crop.get("width", 0)):
            raise ArtifactError(
                f"it is {width}x{height}, smaller than the {crop['width']}x{crop['height']} that "
                f"{_PREPROCESSOR} crops to without resizing"
            )
        try:
            batch = processor(images=[_colour(pixels)], return_tensors="np")
        except (*BAD_CONFIG, OSError) as error:
            raise ArtifactError(f"{_PREPROCESSOR} does not fit it: {first_line(error)}") from error
        return np.ascontiguousarray(batch["pixel_values"][0], np.float32)

    parts = [
        f"shorter side {smallest}" if "shortest_edge" in size else "",
        "squashed to {width}x{height}".format(**size) if "width" in size else "",
        "centre {width}x{height}".format(**crop) if "width" in crop else "",
        f"mean {list(processor.image_mean)} and deviation {list(processor.image_std)}"
        if processor.do_normalize
        else "",
    ]
    return prepare, smallest, ", ".join(part for part in parts if part) or "as they are"


def _model(class_name: str, folder: Path, flag: str) -> Any:
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # CLIP's text weights, of which there is no use
    transformers.logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            model, loading = getattr(transformers, class_name).from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except (*BAD_CONFIG, OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{flag}: it cannot be opened as a {class_name}: {first_line(error)}"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    for kind, keys in (("missing", "missing_keys"), ("of another shape", "mismatched_keys")):
        names = [key if isinstance(key, str) else key[0] for key in loading[keys]]
        if wrong := sorted(names):
            raise ArtifactError(
                f"{flag}: its weights are not those of the {class_name} in its {_CONFIG}: {kind} "
                f"are {listed(wrong)}"
            )
    _check_weights(model, flag)
    return model.eval()
