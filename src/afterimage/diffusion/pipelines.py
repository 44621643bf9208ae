"""Somebody's diffusers pipeline, opened and checked before any work starts.

What can be opened is a network of pixels (``UNet2DModel``, or one of this package) with a scheduler
of the DDPM family, from safetensors alone; code that comes with a pipeline never runs. What would
make another thing of the model than it is (a scheduler of another family, weights that do not fill
the network, a network that cannot take images of its size) is an error of one sentence.

A network of this package names its null label in its config (``router.NULL``). Of any other network
every embedding is a label.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError, safe_open

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion.model import classes_of, null_of
from afterimage.diffusion.rau_net import redraw
from afterimage.diffusion.router import NETS, TimestepRouter

Sampler = Literal["ddim", "ddpm"]

OWN_SAMPLER: dict[str, Sampler] = {
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
}
"""Scheduler that a pipeline is drawn with -> the sampler that it is."""

SOLVERS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Other ways to draw from a network that was trained as a DDPM. Their betas are used, not their steps."""

PREDICTIONS = ("epsilon", "sample", "v_prediction")

NETWORKS: dict[str, type[UNet2DModel]] = NETS | {"TimestepRouter": TimestepRouter}

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"

POINTER = b"version https://git-lfs"
"""How a file begins that git-lfs has not fetched."""

AVERAGING = {
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
}
"""Keys that diffusers' ``EMAModel`` leaves in the config of averaged weights."""

BAD_CONFIG = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a constructor or a forward pass of diffusers raises where a config asks for what there is not (NotImplementedError is a
RuntimeError, KeyError and IndexError are LookupErrors)."""

WHAT_OPENS = "what can be opened is a UNet2DModel of pixels with a DDPMScheduler or DDIMScheduler"
OWN_CODE = (
    "draw with the pipeline's own code and give the images to `afterimage audit` as --samples"
)


@dataclass(frozen=True)
class Opened:
    """A pipeline that was opened.

    Attributes:
        net: The network, float32 on the CPU, in evaluation mode; its config has the size of its images.
        scheduler_config: Config for ``DDPMScheduler`` and ``DDIMScheduler``, both of which then have the pipeline's own betas.
        scheduler_class: Name of the pipeline's own scheduler.
        weights: Which were opened: ``ema`` or ``raw`` of a checkpoint (or where they were asked for), or the ``unet`` that the
            ``pipeline`` names.
        weights_sha256: Over names, dtypes, shapes and bytes of the stored tensors.
        pipeline_class: Name of the pipeline's class; None for a trainer's checkpoint.
        notes: Sentences that a command prints: what was chosen, and what else is there.
    """

    net: UNet2DModel
    scheduler_config: dict[str, Any]
    scheduler_class: str
    weights: Literal["ema", "raw", "pipeline"]
    weights_sha256: str
    pipeline_class: str | None
    notes: tuple[str, ...]

    @property
    def classes(self) -> int | None:
        """Number of labels that the network takes, a null label not counted; None for one without labels."""
        return classes_of(self.net)

    @property
    def null(self) -> int | None:
        """The null label; None where there is none, or none is known."""
        return null_of(self.net)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of its images."""
        size = self.net.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height, width, self.net.config["in_channels"]

    @property
    def timesteps(self) -> int:
        """Number of the training's timesteps."""
        return self.scheduler_config["num_train_timesteps"]

    def sampler(self, asked: Sampler | None = None) -> Sampler:
        """Return the sampler to draw with: the pipeline's own, unless another is asked for.

        Raises:
            ConfigError: naming ``--sampler``, if the pipeline's scheduler is a solver that is not drawn with, or if ancestral
                sampling needs a variance that the network does not predict.
        """
        own = (
            "ddim"
            if self.pipeline_class == "DDIMPipeline"
            else OWN_SAMPLER.get(self.scheduler_class)
        )  # it converts any
        sampler = asked or own
        if sampler is None:
            raise ConfigError(
                f"--sampler is needed: the pipeline's own {self.scheduler_class} is not drawn with; allowed are ddim and ddpm, "
                f"which take its betas, or {OWN_CODE}"
            )
        variance = str(self.scheduler_config.get("variance_type"))
        if sampler == "ddpm" and variance.startswith("learned") and not predicts_variance(self.net):
            raise ConfigError(
                f"--sampler ddpm: the scheduler's variance_type is {variance}, but the network makes as many channels as it "
                "takes, and so no variance; allowed is --sampler ddim"
            )
        return sampler

    def facts(self) -> dict[str, Any]:
        """Return what a record says of the pipeline, as JSON values."""
        return {
            "pipeline_class": self.pipeline_class,
            "network_class": type(self.net).__name__,
            "scheduler_class": self.scheduler_class,
            "prediction": self.scheduler_config.get("prediction_type", "epsilon"),
            "timesteps": self.timesteps,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "shape": list(self.shape),
            "learned_variance": predicts_variance(self.net),
            "classes": self.classes,
            "null_label": self.null,
        }


def open_pipeline(
    pipeline: str | Path,
    weights: Literal["ema", "raw"] | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> Opened:
    """Open somebody's pipeline and check it.

    Args:
        pipeline: A pipeline folder, a Hub id (owner/name, or owner/name@revision) or a trainer's ``checkpoint-N`` folder. The last
            has ``unet/``, ``unet_ema/`` or both; its scheduler may lie in the folder above.
        weights: Averaged weights (``unet_ema/``) or those of the last update (``unet/``). None is the averaged ones of a
            checkpoint that has them, and the ``unet`` that a pipeline's index names.
        seed: Of the blocks that a RAU-Net draws anew at every loading (variant ``frozen_redrawn``); no other net uses it.
        size: Height and width of the images, for a network whose config names none.

    Raises:
        ArtifactError: naming what is there, why it is not opened, and what to do.
    """
    name = str(pipeline)
    folder = _folder(name, weights)
    if (folder / "model_index.json").exists():
        index = _read_json(folder / "model_index.json", name)
        _check_index(index, name)
        unet, label, notes = _of_pipeline(folder, weights, name)
        net_class, scheduler_class, pipeline_class = (
            index["unet"][1],
            index["scheduler"][1],
            str(index.get("_class_name")),
        )
        if pipeline_class not in ("DDPMPipeline", "DDIMPipeline"):
            notes.append(
                f"its class is {pipeline_class}, of which only the unet and the scheduler are used, as DDPMPipeline does"
            )
        place = folder / "scheduler"
    else:
        unet, label, notes = _of_checkpoint(folder, weights, name)
        net_class = scheduler_class = pipeline_class = None
        place = next(
            (
                at
                for at in (folder / "scheduler", folder.resolve().parent / "scheduler")
                if at.is_dir()
            ),
            folder,
        )
        if place == folder:
            raise ArtifactError(
                f"{name} has {unet.name}/, but no scheduler/ is in it or in the folder above; copy the "
                "scheduler/ of the training's pipeline into either"
            )
    scheduler_class, scheduler_config = _scheduler(place, scheduler_class, name)
    net, sha256 = _network(unet, net_class, name)
    _check_network(net, size, name)
    redraw(net, seed)
    net.eval()
    _try(net, scheduler_config, name)
    return Opened(
        net, scheduler_config, scheduler_class, label, sha256, pipeline_class, tuple(notes)
    )


def predicts_variance(net: UNet2DModel) -> bool:
    """Return whether the network makes twice as many channels as it takes: the prediction, and behind it a variance."""
    return net.config["out_channels"] == 2 * net.config["in_channels"]


# ---- files --------------------------------------------------------------------------------------------------------------


def _folder(name: str, weights: str | None) -> Path:
    """Return the folder of a pipeline, fetched from the Hub if it is an id."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise ArtifactError(
            f"{name} cannot be opened as a diffusers pipeline: it is a file; give the folder, or a Hub id"
        )
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if found is None or name.startswith("."):
        raise ArtifactError(
            f"{name} cannot be opened as a diffusers pipeline: there is no such folder, and it is no Hub id (owner/name, or "
            "owner/name@revision)"
        )
    return _fetched(found[1], found[2], weights, name)


def _fetched(repository: str, revision: str | None, weights: str | None, name: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    unet = "unet_ema" if weights == "ema" else "unet"
    patterns = [
        "model_index.json",
        "scheduler/*.json",
        f"{unet}/config.json",
        f"{unet}/{WEIGHTS}",
        f"{unet}/{SHARDS}",
    ]
    try:
        index = Path(hf_hub_download(repository, "model_index.json", revision=revision))
        _check_index(_read_json(index, name), name)  # before any weights are fetched
        shards = f"{unet}/diffusion_pytorch_model-*-of-*.safetensors"
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=[*patterns, shards])
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ArtifactError(
            f"{name} cannot be opened as a diffusers pipeline: there is no such folder, and as a Hub id it is "
            "neither in the local cache nor can the Hub be reached (no network, or HF_HUB_OFFLINE is set); give a folder, or fetch it first"
        ) from error
    except EntryNotFoundError as error:
        raise ArtifactError(
            f"{name} cannot be opened as a diffusers pipeline: the Hub's repository has no model_index.json"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        raise ArtifactError(
            f"there is no folder {name}, and it cannot be fetched from the Hub: {_first_line(error)}"
        ) from error


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        value = json.loads(text)
    except FileNotFoundError as error:
        raise ArtifactError(f"{name} is not whole: there is no {_short(path)}") from error
    except OSError as error:
        raise ArtifactError(f"{name}: {_short(path)} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of json, and of the encoding
        if path.read_bytes().startswith(POINTER):
            raise ArtifactError(
                f"{name}: {_short(path)} is a git-lfs pointer, not the file; run `git lfs pull`"
            ) from error
        raise ArtifactError(
            f"{name}: {_short(path)} is damaged, it is no JSON: {_first_line(error)}"
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError(
            f"{name}: {_short(path)} is damaged: a JSON object is needed, not {type(value).__name__}"
        )
    return value


def _short(path: Path) -> str:
    return path.name if path.name == "model_index.json" else f"{path.parent.name}/{path.name}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


# ---- which parts --------------------------------------------------------------------------------------------------------


def _check_index(index: dict[str, Any], name: str) -> None:
    """Check that a pipeline's index names a network of pixels and a scheduler, both of known libraries, and nothing else."""
    parts = {
        key: value
        for key, value in index.items()
        if not key.startswith("_")
        and isinstance(value, list)
        and any(part is not None for part in value)
    }
    said = f"{name} is a {index.get('_class_name', 'pipeline without a class')} of {', '.join(sorted(parts)) or 'no parts'}"
    others = sorted(set(parts) - {"unet", "scheduler"})
    if others or set(parts) != {"unet", "scheduler"}:
        kind = ""
        if any(part.startswith(("text_encoder", "tokenizer", "bert")) for part in others):
            kind = ", a text-to-image pipeline"
        elif any(part.startswith(("vae", "vq", "movq")) for part in others):
            kind = ", a pipeline of latents"
        raise ArtifactError(f"{said}{kind}; {WHAT_OPENS}; {OWN_CODE}")
    for part, libraries in (("unet", ("diffusers", "afterimage")), ("scheduler", ("diffusers",))):
        if (
            len(parts[part]) != 2
            or parts[part][0] not in libraries
            or not isinstance(parts[part][1], str)
        ):
            raise ArtifactError(
                f"{name}: its {part} is {'.'.join(map(str, parts[part]))}, code of its own, which is never run; "
                f"{WHAT_OPENS}; {OWN_CODE}"
            )
    if parts["unet"][1] not in NETWORKS:
        raise ArtifactError(f"{name}: its unet is a {parts['unet'][1]}; {WHAT_OPENS}; {OWN_CODE}")


def _of_pipeline(
    folder: Path, weights: Literal["ema", "raw"] | None, name: str
) -> tuple[Path, Literal["ema", "raw", "pipeline"], list[str]]:
    """Return the folder of the weights to open, which they are, and notes."""
    averaged = folder / "unet_ema"
    if weights is None:
        also = (
            "averaged weights lie there too (unet_ema/): --weights ema opens them"
            if averaged.is_dir()
            else ""
        )
        return folder / "unet", "pipeline", [also] if also else []
    if not averaged.is_dir():
        raise ArtifactError(
            f"{name} has one set of weights, unet/, and nothing says whether they are averaged: --weights {weights} "
            "cannot be told from the other; leave --weights out, or give a trainer's checkpoint-N folder with unet/ and unet_ema/"
        )
    return (averaged if weights == "ema" else folder / "unet"), weights, []


def _of_checkpoint(
    folder: Path, weights: Literal["ema", "raw"] | None, name: str
) -> tuple[Path, Literal["ema", "raw"], list[str]]:
    """As ``_of_pipeline``, for a folder without an index."""
    there: dict[Literal["ema", "raw"], Path] = {}
    if (folder / "unet_ema").is_dir():
        there["ema"] = folder / "unet_ema"
    if (folder / "unet").is_dir():
        there["raw"] = folder / "unet"
    if not there:
        names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
        why = (
            f"there is no model_index.json, but {_listed(names) or 'nothing'}; give the folder of a pipeline, or a trainer's "
            "checkpoint-N folder with unet/ or unet_ema/"
        )
        if "config.json" in names:
            why = (
                "it is a network alone (config.json), without a scheduler; give the folder above it, or save both by "
                "DDPMPipeline(unet, scheduler).save_pretrained"
            )
        elif checkpoints := [each for each in names if each.startswith("checkpoint-")]:
            why = f"there is no model_index.json; name one of the training's states: {_listed(checkpoints)}"
        raise ArtifactError(f"{name} cannot be opened as a diffusers pipeline: {why}")
    chosen = weights or next(iter(there))
    if chosen not in there:
        only = next(iter(there))
        raise ArtifactError(
            f"{name} has no {'unet_ema' if chosen == 'ema' else 'unet'}/, which --weights {chosen} asks for; allowed is "
            f"--weights {only}"
        )
    notes = []
    if weights is None:
        other = (
            f"; --weights {'raw' if chosen == 'ema' else 'ema'} opens the others"
            if len(there) > 1
            else ""
        )
        notes = [f"{chosen} weights ({there[chosen].name}/) were opened{other}"]
    return there[chosen], chosen, notes


# ---- the scheduler ------------------------------------------------------------------------------------------------------


def _scheduler(folder: Path, named: str | None, name: str) -> tuple[str, dict[str, Any]]:
    """Return the class of the scheduler and a config that gives DDPMScheduler and DDIMScheduler its betas.

    Args:
        folder: Of ``scheduler_config.json``.
        named: The class in the pipeline's index, by which diffusers goes.
        name: Of the pipeline.
    """
    stored = _read_json(folder / "scheduler_config.json", name)
    kind = named or str(stored.get("_class_name"))
    for each in (kind, str(stored.get("_class_name", kind))):
        if each not in OWN_SAMPLER and each not in SOLVERS:
            raise ArtifactError(
                f"{name}: its scheduler is {each}, which is not known to be of the DDPM family; allowed are "
                f"{', '.join((*OWN_SAMPLER, *SOLVERS))}; {OWN_CODE}"
            )
    for key, plain in (
        ("use_flow_sigmas", False),
        ("use_dynamic_shifting", False),
        ("timestep_type", "discrete"),
    ):
        if stored.get(key, plain) != plain:
            raise ArtifactError(
                f"{name}: its scheduler {kind} has {key} = {stored[key]}: that is not the forward process of a DDPM; {OWN_CODE}"
            )
    try:
        own = getattr(diffusers, kind).from_config(stored)
        keys = (inspect.signature(each).parameters for each in (DDPMScheduler, DDIMScheduler))
        config = {
            key: own.config[key] for key in set().union(*keys) if own.config.get(key) is not None
        }
        betas = own.betas.reshape(-1)
    except BAD_CONFIG as error:
        raise ArtifactError(
            f"{name}: {kind} cannot be made of its scheduler_config.json: {_first_line(error)}"
        ) from error
    for key, allowed in (
        ("prediction_type", PREDICTIONS),
        ("timestep_spacing", ("leading", "linspace", "trailing")),
    ):
        if key in config and config[key] not in allowed:
            raise ArtifactError(
                f"{name}: its scheduler has {key} = {config[key]!r}; allowed are {', '.join(allowed)}; {OWN_CODE}"
            )
    if (
        not 0 < len(betas) == config["num_train_timesteps"]
        or not ((betas >= 0) & (betas <= 1)).all()
        or betas[0] == 1
    ):
        ends = f" from {betas.min():.4g} to {betas.max():.4g}" if len(betas) else ""
        raise ArtifactError(
            f"{name}: the betas of its scheduler must be num_train_timesteps = {config['num_train_timesteps']} numbers "
            f"from 0 to 1, at least one and the first below 1, but are {len(betas)}{ends}"
        )
    known = "trained_betas" in config or config.get("beta_schedule") in (
        "linear",
        "scaled_linear",
        "squaredcos_cap_v2",
    )
    if not known or not torch.equal(DDIMScheduler.from_config(config).betas, betas):
        config |= {
            "trained_betas": betas.tolist(),
            "rescale_betas_zero_snr": False,
        }  # they are rescaled already
    return kind, config


# ---- the network --------------------------------------------------------------------------------------------------------


def _network(folder: Path, named: str | None, name: str) -> tuple[UNet2DModel, str]:
    """Build the network of a folder, fill it, and return it with the hash of its weights.

    diffusers' own ``from_pretrained`` leaves weights that are missing as they were drawn, with a warning.
    """
    config = _read_json(folder / "config.json", name)
    kind = str(config.get("_class_name", named))
    if kind not in NETWORKS or (named is not None and kind != named):
        raise ArtifactError(
            f"{name}: {_short(folder / 'config.json')} is that of a {kind}; {WHAT_OPENS}; {OWN_CODE}"
        )
    if config.get("class_embed_type") is not None:
        raise ArtifactError(
            f"{name}: its network's class_embed_type is {config['class_embed_type']!r}; allowed are networks without "
            f"labels, and labels by num_class_embeds; {OWN_CODE}"
        )
    state, sha256 = _weights(folder, name)
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights, all of which are replaced
            own = {key: value for key, value in config.items() if key not in AVERAGING}
            net = cast(UNet2DModel, NETWORKS[kind].from_config(own))
    except (*BAD_CONFIG, ConfigError) as error:
        raise ArtifactError(
            f"{name}: no {kind} can be built from {folder.name}/config.json: {_first_line(error)}"
        ) from error
    net._fix_state_dict_keys_on_load(
        state
    )  # names that attention had in earlier versions of diffusers
    wanted = net.state_dict()
    missing, foreign = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or foreign:
        listed = "; ".join(
            f"{what} {_listed(names)}"
            for what, names in (("missing are", missing), ("not known are", foreign))
            if names
        )
        raise ArtifactError(
            f"{name}: the weights in {folder.name}/ are not those of the network in its config.json: {listed}"
        )
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise ArtifactError(
                f"{name}: {folder.name}/config.json and the weights disagree: {key} is {tuple(tensor.shape)} where "
                f"{tuple(wanted[key].shape)} is needed"
            )
        if tensor.is_floating_point() != wanted[key].is_floating_point():
            raise ArtifactError(
                f"{name}: the weights in {folder.name}/ are quantised ({key} is {tensor.dtype}); allowed are floats"
            )
        if not torch.isfinite(tensor.float()).all():
            raise ArtifactError(
                f"{name}: the weights in {folder.name}/ are not finite: {key} has NaN or infinite values, of which nothing "
                "can be drawn; open an earlier state of the training"
            )
    net.load_state_dict(state)
    return net, sha256


def _weights(folder: Path, name: str) -> tuple[OrderedDict[str, torch.Tensor], str]:
    """Return the stored tensors by name, and their hash."""
    files = [WEIGHTS]
    if not (folder / WEIGHTS).exists() and (folder / SHARDS).exists():
        shards = _read_json(folder / SHARDS, name).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(file, str) and "/" not in file for file in shards.values()
        ):
            raise ArtifactError(
                f"{name}: {folder.name}/{SHARDS} is damaged: it has no weight_map of file names"
            )
        files = sorted(set(shards.values()))
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for file in files:
        if not (folder / file).is_file():
            raise ArtifactError(f"{name}: there is no {folder.name}/{file}{_instead(folder)}")
        try:
            with (folder / file).open("rb") as stream:
                start = stream.read(len(POINTER))
            if start == POINTER:
                raise ArtifactError(
                    f"{name}: {folder.name}/{file} is a git-lfs pointer, not the weights; run `git lfs pull`"
                )
            with safe_open(folder / file, "pt") as stored:
                state.update((key, stored.get_tensor(key)) for key in stored.keys())  # noqa: SIM118 -- not a dict
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(
                f"{name}: {folder.name}/{file} is damaged (truncated or changed): {_first_line(error)}"
            ) from error
    total = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return state, total.hexdigest()


def _instead(folder: Path) -> str:
    """Say which weights are there that are not read, and what to do."""
    there = sorted(
        path.name
        for path in folder.glob("*")
        if path.suffix in (".bin", ".safetensors", ".pt", ".ckpt")
    )
    variants = [each for each in there if each.endswith(".safetensors")]
    if variants:
        variant = variants[0].split(".")[1] if variants[0].count(".") > 1 else None
        how = (
            f"open it once by from_pretrained(..., variant={variant!r}) and"
            if variant
            else "rename them, or"
        )
        return f", but {_listed(variants)}; {how} save it by save_pretrained"
    if there:
        return (
            f", but {_listed(there)}, a pickle, which is never read; open it where you trust it and save it by "
            "save_pretrained(..., safe_serialization=True)"
        )
    return ", nor any other weights; fetch them, or copy the whole folder"


def _check_network(net: UNet2DModel, size: tuple[int, int] | None, name: str) -> None:
    """Check what the network's config says of its images and labels; fill in the size of the images where it says none."""
    config = net.config
    channels, out = config["in_channels"], config["out_channels"]
    if channels not in (1, 3):
        raise ArtifactError(
            f"{name}: its network takes {channels} channels; allowed are 1 (grey) and 3 (RGB)"
        )
    if out not in (channels, 2 * channels):
        raise ArtifactError(
            f"{name}: its network makes {out} channels of {channels}; allowed are as many, or twice as many "
            "(a learned variance)"
        )
    if classes_of(net) == 0:
        raise ArtifactError(
            f"{name}: its network has num_class_embeds = {config['num_class_embeds']}; at least one label is needed"
        )
    stored = config["sample_size"]
    if stored is None and size is None:
        raise ArtifactError(
            f"{name}: its network's config has no sample_size (null), and no images say which is meant"
        )
    stored = tuple(size) if stored is None and size is not None else stored
    sides = (
        (stored, stored)
        if isinstance(stored, int)
        else tuple(stored)
        if isinstance(stored, list | tuple)
        else (stored,)
    )
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ArtifactError(
            f"{name}: its network's sample_size is {stored!r}; allowed are a side, or height and width, in pixels"
        )
    if config["sample_size"] is None:
        net.register_to_config(sample_size=sides)


@torch.inference_mode()
def _try(net: UNet2DModel, scheduler_config: dict[str, Any], name: str) -> None:
    """Take one image of noise through the network at its own size, and through a step of the sampler."""
    size = net.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(
        (1, net.config["in_channels"], height, width), generator=torch.Generator().manual_seed(0)
    )
    labels = {} if classes_of(net) is None else {"class_labels": torch.zeros(1, dtype=torch.int64)}
    last = scheduler_config["num_train_timesteps"] - 1
    try:
        prediction = net(x, torch.tensor(last), return_dict=False, **labels)[0]
    except BAD_CONFIG as error:
        levels = len(net.config["block_out_channels"])
        raise ArtifactError(
            f"{name}: its network cannot take images of its own sample_size, {height} x {width}, at timestep {last}: "
            f"with {levels} levels both sides must as a rule be multiples of {2 ** (levels - 1)} ({_first_line(error)})"
        ) from error
    if prediction.shape[2:] != x.shape[2:]:
        raise ArtifactError(
            f"{name}: its network makes images of {prediction.shape[2]} x {prediction.shape[3]} from {height} x {width}"
        )
    if not torch.isfinite(prediction).all():
        raise ArtifactError(
            f"{name}: its network's prediction for noise at timestep {last} is not finite (NaN or infinite)"
        )
    try:
        scheduler = DDIMScheduler.from_config(scheduler_config)
        scheduler.set_timesteps(1)
        scheduler.step(prediction[:, : x.shape[1]], scheduler.timesteps[0], x)
    except BAD_CONFIG as error:
        raise ArtifactError(
            f"{name}: its scheduler_config.json cannot be sampled with: {_first_line(error)}"
        ) from error
