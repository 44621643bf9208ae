"""Open a diffusers pipeline from any source, and check it before any work starts.

A pipeline can be opened if it is a pixel-space network (``UNet2DModel``, or one of this package)
with a scheduler of the DDPM family, stored as safetensors; code that comes with a pipeline is never
executed. Anything that would silently turn the model into a different one (a scheduler of another
family, weights that do not fill the network, a network that cannot take images of its own size) is
an error of one sentence.

A network of this package names its null label in its config (``router.NULL``). For any other
network every embedding is a label.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from afterimage.artifacts import ArtifactError
from afterimage.diffusion.model import FROZEN, classes_of, null_of, reads_texts, shape_of
from afterimage.diffusion.rau_net import redraw
from afterimage.diffusion.stored_files import (
    BAD_CONFIG,
    OWN_CODE,
    WHAT_OPENS,
    first_line,
    listed,
    read_json,
)
from afterimage.diffusion.stored_network import (
    SHARDS,
    WEIGHTS,
    Size,
    check_network,
    networks,
    predicts_variance,
    read_network,
)
from afterimage.diffusion.stored_scheduler import Sampler, choose_sampler, read_scheduler
from afterimage.diffusion.texts import TEXT


@dataclass(frozen=True)
class Opened:
    """An opened pipeline.

    Attributes:
        net: The network, float32 on the CPU, in evaluation mode; its config has the size of its
            images.
        scheduler_config: Config for ``DDPMScheduler`` and ``DDIMScheduler``, both of which then
            have the pipeline's own betas.
        scheduler_class: Name of the pipeline's own scheduler.
        weights: Which weights were opened: ``ema`` or ``raw`` of a checkpoint (or on request), or
            ``pipeline`` for the ``unet`` that a pipeline's index names.
        weights_sha256: Over names, dtypes, shapes and bytes of the stored tensors.
        pipeline_class: Name of the pipeline's class; None for a trainer's checkpoint.
        notes: Sentences for the user: which weights were opened, and which others exist.
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
        """Number of labels that the network takes, excluding a null label; None for an
        unconditional network."""
        return classes_of(self.net)

    @property
    def null(self) -> int | None:
        """The null label; None if the network has none, or none is known."""
        return null_of(self.net)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of its images."""
        return shape_of(self.net)

    @property
    def timesteps(self) -> int:
        """Number of training timesteps."""
        return self.scheduler_config["num_train_timesteps"]

    def sampler(self, asked: Sampler | None = None) -> Sampler:
        """Return the sampler to draw with: ``asked``, or else the pipeline's own.

        Raises:
            ConfigError: naming ``--sampler``, if the pipeline's scheduler is an unsupported solver,
                or if ancestral sampling needs a variance that the network does not predict.
        """
        return choose_sampler(
            asked,
            self.scheduler_class,
            self.scheduler_config,
            # DDIMPipeline converts any scheduler to DDIM.
            default="ddim" if self.pipeline_class == "DDIMPipeline" else None,
            predicts_variance=predicts_variance(self.net),
        )

    def facts(self) -> dict[str, Any]:
        """Return the pipeline's description for a record, as JSON values."""
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
    size: Size | Callable[[], Size] | None = None,
    texts: bool = False,
) -> Opened:
    """Open a pipeline and check it.

    Args:
        pipeline: A pipeline folder, a Hub id (owner/name, or owner/name@revision) or a trainer's
            ``checkpoint-N`` folder. The last has ``unet/``, ``unet_ema/`` or both; its scheduler
            may lie in the folder above.
        weights: Averaged weights (``unet_ema/``) or those of the last update (``unet/``). None
            opens the averaged weights of a checkpoint that has them, and the ``unet`` that a
            pipeline's index names.
        seed: For the blocks that a RAU-Net redraws whenever it is loaded (variant
            ``frozen_redrawn``); no other network uses it.
        size: Height and width of the images, or a function that returns them; used only if the
            network's config has none.
        texts: Whether the network may be conditioned on texts and denoise latents, as those of
            studies.

    Raises:
        ArtifactError: naming the files found, why they cannot be opened, and what to do.
    """
    # Find the folders of the network and of the scheduler.
    name, latents = str(pipeline), False
    folder = _folder(name, weights)
    if (folder / "model_index.json").exists():
        index = read_json(folder / "model_index.json", name)
        _check_index(index, name, texts)
        latents = "vae" in index
        unet, label, notes = _of_pipeline(folder, weights, name)
        net_class, scheduler_class, pipeline_class = (
            index["unet"][1],
            index["scheduler"][1],
            str(index.get("_class_name")),
        )
        if pipeline_class not in ("DDPMPipeline", "DDIMPipeline") and not latents:
            notes.append(
                f"its class is {pipeline_class}, of which only the unet and the scheduler are "
                "used, as DDPMPipeline does"
            )
        scheduler_folder = folder / "scheduler"
    else:
        unet, label, notes = _of_checkpoint(folder, weights, name)
        net_class = scheduler_class = pipeline_class = None
        scheduler_folder = next(
            (
                candidate
                for candidate in (folder / "scheduler", folder.resolve().parent / "scheduler")
                if candidate.is_dir()
            ),
            folder,
        )
        if scheduler_folder == folder:
            raise ArtifactError(
                f"{name} has {unet.name}/, but no scheduler/ is in it or in the folder above; copy "
                "the scheduler/ of the training's pipeline into either"
            )

    # Open both, and run them once.
    scheduler_class, scheduler_config = read_scheduler(scheduler_folder, scheduler_class, name)
    net, sha256 = read_network(unet, net_class, name, texts)
    if reads_texts(net) and not texts:  # a router has networks of either kind
        raise ArtifactError(
            f"{name}: its networks are conditioned on texts, and it has no text encoder; "
            f"{WHAT_OPENS}; {OWN_CODE}"
        )
    check_network(net, size, name, latents)
    redraw(net, seed)
    net.eval()
    _run_once(net, scheduler_config, name)
    return Opened(
        net, scheduler_config, scheduler_class, label, sha256, pipeline_class, tuple(notes)
    )


# ---- which files ---------------------------------------------------------------------------------


def _folder(name: str, weights: str | None) -> Path:
    """Return the folder of a pipeline, fetched from the Hub if it is an id."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise ArtifactError(
            f"{name} cannot be opened as a diffusers pipeline: it is a file; give the folder, or a "
            "Hub id"
        )
    hub_id = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if hub_id is None or name.startswith("."):
        raise ArtifactError(
            f"{name} cannot be opened as a diffusers pipeline: there is no such folder, and it is "
            "no Hub id (owner/name, or owner/name@revision)"
        )
    return _fetched(hub_id[1], hub_id[2], weights, name)


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
        _check_index(read_json(index, name), name)  # before any weights are fetched
        shards = f"{unet}/diffusion_pytorch_model-*-of-*.safetensors"
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=[*patterns, shards])
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ArtifactError(
            f"{name} cannot be opened as a diffusers pipeline: there is no such folder, and as a "
            "Hub id it is neither in the local cache nor can the Hub be reached (no network, or "
            "HF_HUB_OFFLINE is set); give a folder, or fetch it first"
        ) from error
    except EntryNotFoundError as error:
        raise ArtifactError(
            f"{name} cannot be opened as a diffusers pipeline: the Hub's repository has no "
            "model_index.json"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        raise ArtifactError(
            f"there is no folder {name}, and it cannot be fetched from the Hub: {first_line(error)}"
        ) from error


def _check_index(index: dict[str, Any], name: str, texts: bool = False) -> None:
    """Check that a pipeline's index names a pixel-space network and a scheduler, both from known
    libraries, and nothing else; with ``texts`` also the parts of a study's network of latents."""
    parts = {
        key: value
        for key, value in index.items()
        if not key.startswith("_")
        and isinstance(value, list)
        and any(part is not None for part in value)
    }
    kind = index.get("_class_name", "pipeline without a class")
    made_of = f"{name} is a {kind} of {', '.join(sorted(parts)) or 'no parts'}"
    others = sorted(set(parts) - {"unet", "scheduler"})
    known = set(parts) == {"unet", "scheduler"} | (set(FROZEN) if texts and others else set())
    if not known:
        family = ""
        if any(part.startswith(("text_encoder", "tokenizer", "bert")) for part in others):
            family = ", a text-to-image pipeline"
        elif any(part.startswith(("vae", "vq", "movq")) for part in others):
            family = ", a pipeline of latents"
        raise ArtifactError(f"{made_of}{family}; {WHAT_OPENS}; {OWN_CODE}")
    for part, libraries in (("unet", ("diffusers", "afterimage")), ("scheduler", ("diffusers",))):
        if (
            len(parts[part]) != 2
            or parts[part][0] not in libraries
            or not isinstance(parts[part][1], str)
        ):
            raise ArtifactError(
                f"{name}: its {part} is {'.'.join(map(str, parts[part]))}, code of its own, which "
                f"is never run; {WHAT_OPENS}; {OWN_CODE}"
            )
    if parts["unet"][1] not in networks(texts):
        raise ArtifactError(f"{name}: its unet is a {parts['unet'][1]}; {WHAT_OPENS}; {OWN_CODE}")


def _of_pipeline(
    folder: Path, weights: Literal["ema", "raw"] | None, name: str
) -> tuple[Path, Literal["ema", "raw", "pipeline"], list[str]]:
    """Return the folder of the weights to open, their kind, and notes for the user."""
    averaged = folder / "unet_ema"
    if weights is None:
        note = "it has averaged weights too (unet_ema/): --weights ema opens them"
        return folder / "unet", "pipeline", [note] if averaged.is_dir() else []
    if not averaged.is_dir():
        raise ArtifactError(
            f"{name} has one set of weights, unet/, and nothing says whether they are averaged: "
            f"--weights {weights} cannot be told from the other; leave --weights out, or give a "
            "trainer's checkpoint-N folder with unet/ and unet_ema/"
        )
    return (averaged if weights == "ema" else folder / "unet"), weights, []


def _of_checkpoint(
    folder: Path, weights: Literal["ema", "raw"] | None, name: str
) -> tuple[Path, Literal["ema", "raw"], list[str]]:
    """Do the same as ``_of_pipeline`` for a folder without an index."""
    available: dict[Literal["ema", "raw"], Path] = {}
    if (folder / "unet_ema").is_dir():
        available["ema"] = folder / "unet_ema"
    if (folder / "unet").is_dir():
        available["raw"] = folder / "unet"
    if not available:
        names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
        why = (
            f"there is no model_index.json, but {listed(names) or 'nothing'}; give the folder of a "
            "pipeline, or a trainer's checkpoint-N folder with unet/ or unet_ema/"
        )
        if "config.json" in names:
            why = (
                "it is a network alone (config.json), without a scheduler; give the folder above "
                "it, or save both by DDPMPipeline(unet, scheduler).save_pretrained"
            )
        elif checkpoints := [entry for entry in names if entry.startswith("checkpoint-")]:
            why = (
                "there is no model_index.json; name one of the training's states: "
                f"{listed(checkpoints)}"
            )
        raise ArtifactError(f"{name} cannot be opened as a diffusers pipeline: {why}")
    label = weights or next(iter(available))
    if label not in available:
        only = next(iter(available))
        raise ArtifactError(
            f"{name} has no {'unet_ema' if label == 'ema' else 'unet'}/, which --weights {label} "
            f"asks for; allowed is --weights {only}"
        )
    notes = []
    if weights is None:
        other = (
            f"; --weights {'raw' if label == 'ema' else 'ema'} opens the others"
            if len(available) > 1
            else ""
        )
        notes = [f"{label} weights ({available[label].name}/) were opened{other}"]
    return available[label], label, notes


# ---- one trial run -------------------------------------------------------------------------------


@torch.inference_mode()
def _run_once(net: UNet2DModel, scheduler_config: dict[str, Any], name: str) -> None:
    """Run the network once on noise of its own image size, and one step of the sampler."""
    height, width, channels = shape_of(net)
    x = torch.randn((1, channels, height, width), generator=torch.Generator().manual_seed(0))
    condition: dict[str, torch.Tensor] = {}
    if classes_of(net) is not None:
        condition["class_labels"] = torch.zeros(1, dtype=torch.int64)
    if reads_texts(net):
        condition[TEXT] = torch.zeros(1, 1, net.config["cross_attention_dim"])
    last = scheduler_config["num_train_timesteps"] - 1
    try:
        prediction = net(x, torch.tensor(last), return_dict=False, **condition)[0]
    except BAD_CONFIG as error:
        levels = len(net.config["block_out_channels"])
        raise ArtifactError(
            f"{name}: its network cannot take images of its own sample_size, {height} x {width}, "
            f"at timestep {last}: with {levels} levels both sides must usually be multiples of "
            f"{2 ** (levels - 1)} ({first_line(error)})"
        ) from error
    if prediction.shape[2:] != x.shape[2:]:
        raise ArtifactError(
            f"{name}: its network makes images of {prediction.shape[2]} x {prediction.shape[3]} "
            f"from {height} x {width}"
        )
    if not torch.isfinite(prediction).all():
        raise ArtifactError(
            f"{name}: its network's prediction for noise at timestep {last} is not finite (NaN or "
            "infinite)"
        )
    try:
        scheduler = DDIMScheduler.from_config(scheduler_config)
        scheduler.set_timesteps(1)
        scheduler.step(prediction[:, : x.shape[1]], scheduler.timesteps[0], x)
    except BAD_CONFIG as error:
        raise ArtifactError(
            f"{name}: its scheduler_config.json cannot be sampled with: {first_line(error)}"
        ) from error
