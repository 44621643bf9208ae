"""Load LoRA weights into an opened pipeline, completely or not at all.

diffusers loads what fits and warns about the rest. Here weights that do not fit are an error: a
pipeline with half of its LoRA is a third model.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion.stored_files import BAD_CONFIG, POINTER, first_line, listed

_INCOMPLETE = ("unexpected keys", "missing keys", "dora_scale", "not compatible", "skipped")
"""Words of diffusers' warnings about weights that it does not use."""


def check(path: Path, pipeline_class: type) -> None:
    """Check a LoRA file, and that a pipeline's class and the installation can take one.

    Raises:
        ConfigError: naming ``--lora``, if there is no such safetensors file, the class takes no
            LoRA, or peft is not installed.
        ArtifactError: if the file is damaged.
    """
    if not hasattr(pipeline_class, "load_lora_weights"):
        raise ConfigError(f"--lora = {path}: a {pipeline_class.__name__} takes no LoRA weights")
    if not path.is_file():
        raise ConfigError(f"--lora = {path}: there is no such file")
    with path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ArtifactError(f"--lora = {path}: a git-lfs pointer; run `git lfs pull`")
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"--lora = {path}: a .safetensors file is needed; other files may be pickles, which "
            "are never read"
        )
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            f"--lora = {path}: it needs peft, which is not installed; it comes with the extra "
            "`text`: pip install '.[text]'"
        )
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"--lora = {path} is damaged (truncated or changed): {first_line(error)}"
        ) from error
    if not any("lora" in key.lower() or "lokr" in key.lower() for key in keys):
        raise ArtifactError(
            f"--lora = {path}: it has no LoRA weights, but {listed(sorted(keys)) or 'nothing'}"
        )


def load(pipeline: Any, path: Path) -> None:
    """Load a checked LoRA file into a pipeline.

    Raises:
        ArtifactError: naming ``--lora``, if it is for another base: weights have another shape, or
            belong to modules that the pipeline lacks.
    """
    another = f"--lora = {path} is not for this {type(pipeline).__name__}"
    warnings = _Warnings()
    logger = logging.getLogger("diffusers")
    logger.addHandler(warnings)
    try:
        state = pipeline.lora_state_dict(
            str(path.parent), weight_name=path.name, use_safetensors=True, local_files_only=True
        )
        keys = list(state[0] if isinstance(state, tuple) else state)
        parts = {key.partition(".")[0] for key in keys}
        foreign = sorted(parts - {name for name, part in pipeline.components.items() if part})
        if foreign:
            raise ArtifactError(f"{another}: it has weights of {listed(foreign)}")
        pipeline.load_lora_weights(
            str(path.parent), weight_name=path.name, use_safetensors=True, local_files_only=True
        )
    except (*BAD_CONFIG, OSError) as error:
        if isinstance(error, ArtifactError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "size mismatch" in line), first_line(error))
        raise ArtifactError(f"{another}: {reason}") from error
    finally:
        logger.removeHandler(warnings)
    for message in warnings.messages:
        if any(words in message for words in _INCOMPLETE):
            raise ArtifactError(f"{another}: {message[:500]}")
    stored, loaded = _count(keys), sum(map(_count, _states(pipeline)))
    if loaded != stored and not any("lokr_" in key for key in keys):  # LoKr fuses what it stores
        raise ArtifactError(f"{another}: {loaded} of its {stored} tensors were loaded")


def _states(pipeline: Any) -> list[list[str]]:
    """Return the names of the weights of every network of a pipeline."""
    networks = (part for part in pipeline.components.values() if hasattr(part, "state_dict"))
    return [list(network.state_dict()) for network in networks]


def _count(keys: list[str]) -> int:
    return sum("lora" in key for key in keys)


class _Warnings(logging.Handler):
    """Keeps warnings of a library instead of printing them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
