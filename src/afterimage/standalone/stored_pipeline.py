"""Open a stored pipeline of any class of diffusers, and check it before any work starts.

Opened is what ``DiffusionPipeline.from_pretrained`` opens, with four differences: code that comes
with a pipeline is never executed, weights are read from safetensors alone, nothing but the pipeline
itself is fetched, and weights that are missing, of another shape or not finite are errors
(from_pretrained leaves missing ones at their random initial values, with a warning).
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion.rau_net import redraw
from afterimage.diffusion.stored_files import (
    BAD_CONFIG,
    POINTER,
    first_line,
    hub_errors,
    listed,
    read_json,
)

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers", "afterimage")
"""Whose classes a part may have; the last for networks of studies."""

_WEIGHTS = r"(?:diffusion_pytorch_model|model){variant}(?:-\d+-of-\d+)?{variant}\.safetensors"
"""File names of weights; the variant stands before the number of the shard, or once after it."""

_MOVED = "deprecated"
"""What diffusers 0.42 stores as the library of some of its own schedulers."""

_ANY_CLASS = re.compile(r"Auto(?!encoder)|Onnx|Flax|TF[A-Z]")
"""Names of classes that open others, and of networks that are not of PyTorch."""

_READ = {".json", ".txt", ".model", ".jinja", ".bpe"}
"""Endings of the other files that a pipeline is made from."""


@dataclass(frozen=True)
class StoredPipeline:
    """A stored pipeline whose files are there and whose class is known; no weights are read yet.

    Attributes:
        name: Its name in messages, as given.
        folder: Its folder.
        index: Its ``model_index.json``.
        pipeline_class: Its class, one of diffusers' own.
        parts: Part -> library and class, without the parts that are null.
        variant: The variant of the weights, e.g. ``fp16``, or None.
        commit: The commit on the Hub; None for a folder.
        notes: Sentences for the user.
    """

    name: str
    folder: Path
    index: dict[str, Any]
    pipeline_class: type
    parts: Mapping[str, tuple[str, str]]
    variant: str | None
    commit: str | None
    notes: tuple[str, ...] = ()

    def weights(self, part: str) -> list[Path]:
        """Return the files of a part's weights; none for a scheduler or a tokenizer."""
        return weight_files(self.folder / part, self.variant) or weight_files(
            self.folder / part, None
        )

    def sha256(self) -> str:
        """Return the sha256 over all files that the pipeline is made from."""
        files = [self.folder / INDEX]
        for part in self.parts:
            folder = self.folder / part
            files += [path for path in folder.rglob("*") if path.suffix in _READ and path.is_file()]
            files += self.weights(part)
        return artifacts.folder_sha256(
            {path.relative_to(self.folder): artifacts.sha256(path) for path in files}
        )

    def is_distilled(self) -> bool:
        """Return whether the network takes the guidance scale as an input, by its config."""
        folder = self.folder / "transformer"
        if "transformer" not in self.parts or not (folder / "config.json").is_file():
            return False
        return bool(read_json(folder / "config.json", self.name).get("guidance_embeds"))

    def parameters(self) -> int:
        """Return the number of stored weights."""
        return sum(_elements(path, self.name) for part in self.parts for path in self.weights(part))


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """Return the safetensors files of one variant of a part's weights."""
    mark = re.escape(f".{variant}") if variant else ""
    pattern = re.compile(_WEIGHTS.format(variant=f"(?:{mark})?" if variant else ""))
    return sorted(
        path
        for path in folder.glob("*.safetensors")
        if pattern.fullmatch(path.name) and (not variant or f".{variant}" in path.name)
    )


@dataclass(frozen=True)
class Located:
    """The folder and the index of a stored pipeline.

    Attributes:
        name: Its name in messages, as given.
        folder: Its folder.
        index: Its ``model_index.json``.
        repository: Its repository on the Hub; None for a folder.
        commit: The commit there.
        notes: Sentences for the user.
    """

    name: str
    folder: Path
    index: dict[str, Any]
    repository: str | None
    commit: str | None
    notes: tuple[str, ...]


def find(located: Located, variant: str | None = None) -> StoredPipeline:
    """Check the index and the files of a pipeline; fetch its files if it is on the Hub.

    Args:
        located: Where it is.
        variant: Variant of the weights, e.g. ``fp16``.

    Raises:
        ConfigError: naming the flag, if there is no such variant, or a package is not installed.
        ArtifactError: naming the part, if the pipeline has code of its own, or files are missing,
            pickles or pointers.
    """
    pipeline_class, parts = _checked_index(located.index, located.name)
    notes = list(located.notes)
    stored = StoredPipeline(
        located.name, located.folder, located.index, pipeline_class, parts, variant, located.commit
    )
    if located.repository is not None:
        _fetch(stored, located.repository)
    without = _check_files(stored)
    if variant is not None and without:
        notes.append(
            f"--variant {variant}: there are no such weights of {', '.join(without)}, whose usual "
            "ones are used"
        )
    return replace(stored, notes=tuple(notes))


# ---- folder or id --------------------------------------------------------------------------------


AS_ID = "there is no such folder, and as a Hub id it"
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def pinned(pipeline: str, revision: str | None) -> tuple[str, str] | None:
    """Return the repository and the revision of a Hub id; None for a folder or any other text.

    Raises:
        ConfigError: if the id has no revision, or two; or if ``--revision`` comes with a folder.
    """
    hub_id = None if Path(pipeline).exists() else HUB_ID.fullmatch(pipeline)
    if hub_id is None or pipeline.startswith("."):
        if revision is not None:
            raise ConfigError(
                f"--revision = {revision}: it is for a Hub id (owner/name), and --pipeline "
                f"{pipeline} is none"
            )
        return None
    if revision is not None and hub_id[2] is not None and revision != hub_id[2]:
        raise ConfigError(
            f"--revision = {revision}: --pipeline {pipeline} names another; give one of them"
        )
    if (pin := revision or hub_id[2]) is None:
        raise ConfigError(
            f"--pipeline {pipeline}: there is no such folder, and a Hub id is opened at a revision "
            "only, so that the audit can be repeated: add --revision COMMIT"
        )
    return hub_id[1], pin


def locate(pipeline: str, revision: str | None = None) -> Located:
    """Find the folder of a pipeline and read its index; of a Hub id nothing else is fetched.

    Args:
        pipeline: A folder, or a Hub id (owner/name, or owner/name@revision).
        revision: Commit, tag or branch of a Hub id.

    Raises:
        ConfigError: naming the flag, if an id is not pinned, or a folder has a revision.
        ArtifactError: if there is no readable index.
    """
    if (hub := pinned(pipeline, revision)) is None:
        folder = Path(pipeline)
        return Located(pipeline, folder, read_json(folder / INDEX, pipeline), None, None, ())
    from huggingface_hub import hf_hub_download

    repository, pin = hub
    with hub_errors(pipeline, AS_ID, f"{INDEX}, it is no diffusers pipeline"):
        folder = Path(hf_hub_download(repository, INDEX, revision=pin)).parent
    commit, notes = folder.name, []
    if commit != pin:
        notes.append(f"revision {pin} is commit {commit} now; --revision {commit} repeats this")
    index = read_json(folder / INDEX, pipeline)
    return Located(pipeline, folder, index, repository, commit, tuple(notes))


def _fetch(stored: StoredPipeline, repository: str) -> None:
    """Fetch the files of a Hub id's parts, unless the local cache has them."""
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/*{ending}" for part in stored.parts for ending in sorted(_READ)]
    for part in stored.parts:
        mark = f"*.{stored.variant}*" if stored.variant else ""
        patterns += [f"{part}/*model{mark}.safetensors", f"{part}/*model{mark}-*-of-*.safetensors"]
    with hub_errors(stored.name, AS_ID):
        snapshot_download(repository, revision=stored.commit, allow_patterns=patterns)


# ---- the index -----------------------------------------------------------------------------------


def parts_of(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the parts of a pipeline's index that are not null: name -> library and class."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if not name.startswith("_")
        and isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
    }


def _checked_index(index: dict[str, Any], name: str) -> tuple[type, dict[str, tuple[str, str]]]:
    """Return the class of a pipeline and its parts, all of which are those of diffusers,
    transformers, or this package."""
    kind, parts = index.get("_class_name"), parts_of(index)
    for part, (library, class_name) in parts.items():
        of_pipeline = hasattr(diffusers.pipelines, library)
        if library not in LIBRARIES and not of_pipeline:
            raise ArtifactError(
                f"{name}: its {part} is {library}.{class_name}; allowed are parts of "
                f"{' and '.join(LIBRARIES[:2])}: code of a pipeline's own is never run"
            )
        if _ANY_CLASS.match(class_name):
            raise ArtifactError(
                f"{name}: its {part} is {library}.{class_name}, which may run code of the "
                "pipeline's own, or is no network of PyTorch; allowed are networks by their class"
            )
    plain = {library for library, _ in parts.values()} <= {"diffusers", _MOVED}
    for package in () if plain else ("tokenizers", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--pipeline {name}: a {kind} needs {package}, which is not installed; it comes "
                "with the extra `text`: pip install '.[text]'"
            )
    pipeline_class = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    _refuse_placeholder(pipeline_class, name)
    if not inspect.isclass(pipeline_class) or not issubclass(
        pipeline_class, diffusers.DiffusionPipeline
    ):
        raise ArtifactError(
            f"{name}: its class is {kind}, which diffusers {diffusers.__version__} does not have: "
            "code of a pipeline's own is never run"
        )
    parameters = inspect.signature(pipeline_class.__init__).parameters
    for part in sorted(set(parameters) & set(index) - set(parts)):
        if _is_needed(pipeline_class, parameters[part]) and _is_null(index[part]):
            raise ArtifactError(f"{name}: a {kind} needs its {part}, which is null in {INDEX}")
    absent = [
        part
        for part, parameter in parameters.items()
        if part not in index and _is_needed(pipeline_class, parameter)
    ]
    if absent:
        raise ArtifactError(f"{name}: a {kind} needs its {listed(absent)}, not named in {INDEX}")
    return pipeline_class, parts


def _refuse_placeholder(cls: Any, name: str) -> None:
    """Refuse what stands in diffusers for a class whose packages are not installed."""
    if type(cls).__name__ == "DummyObject":
        missing = [
            package for package in cls._backends if importlib.util.find_spec(package) is None
        ]
        raise ConfigError(
            f"--pipeline {name}: a {cls.__name__} needs {', '.join(missing) or 'packages'}, not "
            "installed here; those of text pipelines come with the extra `text`: pip install "
            "'.[text]'"
        )


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(part is None for part in value))


def _is_needed(pipeline_class: Any, parameter: inspect.Parameter) -> bool:
    """Say whether a pipeline cannot be made without an argument of its constructor."""
    return (
        parameter.name != "self"
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is parameter.empty
        and parameter.name not in pipeline_class._optional_components
    )


# ---- files ---------------------------------------------------------------------------------------


def _check_files(stored: StoredPipeline) -> list[str]:
    """Check that the files of every part are there; return the parts without the variant."""
    models: dict[str, list[str]] = {}
    for part, (library, class_name) in stored.parts.items():
        folder = stored.folder / part
        if not folder.is_dir() or not any(folder.iterdir()):
            raise ArtifactError(
                f"{stored.name}: its {part} ({class_name}) is missing: there is no {part}/ with "
                "files in it; copy the whole pipeline"
            )
        for path in folder.iterdir():
            _refuse_pointer(path, stored.name)
        cls = part_class(library, class_name, stored.name)
        if hasattr(cls, "vocab_files_names"):
            _check_tokenizer(folder, cls, stored.name)
        if issubclass(cls, torch.nn.Module):
            models[part] = sorted(path.name for path in folder.iterdir())
    variants = {_variant(name) for names in models.values() for name in names} - {None}
    if stored.variant is not None and stored.variant not in variants:
        raise ConfigError(
            f"--variant = {stored.variant}: {stored.name} has no weights of that name; it has "
            f"{', '.join(sorted(map(str, variants))) or 'no variant'}"
        )
    for part, names in models.items():
        if not stored.weights(part):
            raise ArtifactError(
                f"{stored.name}: there are no weights in {part}/: {_instead(names)}"
            )
    return [part for part in models if not weight_files(stored.folder / part, stored.variant)]


def _variant(file: str) -> str | None:
    match = re.fullmatch(
        r"(?:diffusion_pytorch_model|model)\.([a-z]\w*)(?:-\d+-of-\d+)?\.safetensors", file
    )
    return match[1] if match else None


def _refuse_pointer(path: Path, name: str) -> None:
    if not path.is_file():
        return
    with path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ArtifactError(
                f"{name}: {path.parent.name}/{path.name} is a git-lfs pointer, not the file; run "
                "`git lfs pull`"
            )


def _check_tokenizer(folder: Path, cls: Any, name: str) -> None:
    """Check that a tokenizer has its vocabulary: without it transformers makes an empty one."""
    files = dict(cls.vocab_files_names)
    whole = files.pop("tokenizer_file", "tokenizer.json")
    if (folder / whole).is_file() or (
        files and all((folder / file).is_file() for file in files.values())
    ):
        return
    needed = " or ".join([whole, *([" and ".join(files.values())] if files else [])])
    names = sorted(path.name for path in folder.iterdir())
    raise ArtifactError(
        f"{name}: its {folder.name} has no vocabulary: there is no {needed} in {folder.name}/, but "
        f"{listed(names)}; without it prompts cannot be read"
    )


def _instead(names: list[str]) -> str:
    """Return what lies there instead of safetensors, and what to do."""
    if variants := sorted({v for name in names if (v := _variant(name)) is not None}):
        return f"only those of --variant {' or '.join(variants)}"
    pickles = [name for name in names if Path(name).suffix in (".bin", ".pt", ".ckpt", ".pth")]
    if pickles:
        return (
            f"but {listed(pickles)}, a pickle, which is never read; open it where you trust it and "
            "save it by save_pretrained(..., safe_serialization=True)"
        )
    return f"but {listed(names)}; fetch them, or copy the whole folder"


def part_class(library: str, class_name: str, name: str) -> Any:
    """Return the class of a part, from diffusers or transformers."""
    from diffusers.pipelines.pipeline_loading_utils import get_class_obj_and_candidates

    pipelines = diffusers.pipelines
    if library == _MOVED:
        library = "diffusers"
    try:
        cls, _ = get_class_obj_and_candidates(
            library, class_name, {}, pipelines, hasattr(pipelines, library)
        )
    except BAD_CONFIG as error:
        raise ArtifactError(
            f"{name}: there is no {library}.{class_name} in what is installed: {first_line(error)}"
        ) from error
    _refuse_placeholder(cls, name)
    is_part = inspect.isclass(cls) and not issubclass(cls, diffusers.DiffusionPipeline)
    if not is_part or not hasattr(cls, "from_pretrained"):
        raise ArtifactError(f"{name}: {library}.{class_name} is no part of a pipeline")
    return cls


# ---- loading -------------------------------------------------------------------------------------


def load(stored: StoredPipeline, dtype: str, device: torch.device) -> Any:
    """Build the pipeline and move it to a device.

    Raises:
        ConfigError: naming the flags, if the weights do not fit into the memory.
        ArtifactError: naming the part, if it cannot be built, or its weights do not fit it, are
            damaged or not finite.
    """
    _check_memory(stored, dtype, device)
    parts = {part: _loaded(stored, part, dtype) for part in stored.parts}
    for opened in parts.values():
        if isinstance(opened, torch.nn.Module):
            redraw(opened, 0)
    parameters = inspect.signature(stored.pipeline_class).parameters
    settings = {
        name: value
        for name, value in stored.index.items()
        if name in parameters and name not in parts and not name.startswith("_")
    }
    settings |= {name: None for name, value in settings.items() if _is_null(value)}
    optional = {
        name: None
        for name, parameter in parameters.items()
        if name in stored.pipeline_class._optional_components  # type: ignore[attr-defined]
        and parameter.default is parameter.empty
    }
    try:
        pipeline = stored.pipeline_class(**(optional | settings | parts))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(_no_memory(stored, dtype, device, None)) from error
    except BAD_CONFIG as error:
        raise ArtifactError(
            f"{stored.name}: no {stored.pipeline_class.__name__} can be made of its parts: "
            f"{first_line(error)}"
        ) from error


def has_known_loss(pipeline: Any) -> bool:
    """Say whether the loss of an opened pipeline's network on an image is known: that of a U-Net
    with texts or a DiT with labels, which denoise an autoencoder's latents."""
    net = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    return isinstance(
        net, diffusers.UNet2DConditionModel | diffusers.DiTTransformer2DModel
    ) and isinstance(getattr(pipeline, "vae", None), diffusers.AutoencoderKL)


def _loaded(stored: StoredPipeline, part: str, dtype: str) -> Any:
    """Load one part, and check its weights."""
    cls = part_class(*stored.parts[part], stored.name)
    folder = stored.folder / part
    if not issubclass(cls, torch.nn.Module):
        try:
            return cls.from_pretrained(folder, local_files_only=True)
        except (*BAD_CONFIG, OSError) as error:
            raise ArtifactError(
                f"{stored.name}: its {part} cannot be opened as a {cls.__name__}: "
                f"{first_line(error)}"
            ) from error
    variant = stored.variant if weight_files(folder, stored.variant) else None
    kind = "torch_dtype" if issubclass(cls, diffusers.ModelMixin) else "dtype"
    try:
        with torch.random.fork_rng(devices=[]):
            module, loading = cls.from_pretrained(
                folder,
                **{kind: getattr(torch, dtype)},
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (*BAD_CONFIG, OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{stored.name}: its {part} cannot be opened as a {cls.__name__}: {first_line(error)}"
        ) from error
    for kind, keys in (("missing", "missing_keys"), ("of another shape", "mismatched_keys")):
        if wrong := sorted(str(key) for key in loading[keys]):
            raise ArtifactError(
                f"{stored.name}: the weights in {part}/ are not those of the {cls.__name__} in its "
                f"config.json: {kind} are {listed(wrong)}"
            )
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtifactError(
                f"{stored.name}: the weights in {part}/ are not finite as {dtype}: {key} has NaN "
                "or infinite values, and nothing can be drawn with it"
            )
    return module.eval()


def _elements(path: Path, name: str) -> int:
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            return sum(math.prod(file.get_slice(key).get_shape()) for key in keys)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{name}: {path.parent.name}/{path.name} is damaged (truncated or changed): "
            f"{first_line(error)}"
        ) from error


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def _check_memory(stored: StoredPipeline, dtype: str, device: torch.device) -> None:
    """Check that the weights fit into the memory of the device."""
    if (free := free_memory(device)) < stored.parameters() * getattr(torch, dtype).itemsize:
        raise ConfigError(_no_memory(stored, dtype, device, free))


def _no_memory(stored: StoredPipeline, dtype: str, device: torch.device, free: int | None) -> str:
    needed = stored.parameters() * getattr(torch, dtype).itemsize
    smaller = " --dtype bfloat16 needs half;" if dtype == "float32" else ""
    there = "" if free is None else f", and {free / 1e9:.3g} GB are free"
    return (
        f"--pipeline {stored.name}: no memory: its {stored.parameters() / 1e6:.4g} million weights "
        f"need {needed / 1e9:.3g} GB as {dtype} on --device {device}{there};{smaller} --device "
        "chooses another, or draw elsewhere and give the images as --samples"
    )
