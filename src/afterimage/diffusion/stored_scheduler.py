"""The scheduler of a stored pipeline: which are allowed, its betas, and its sampler.

Schedulers of the DDPM family are allowed, by name. The scheduler's own betas are kept, whatever
scheduler is used for sampling.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion.stored_files import BAD_CONFIG, OWN_CODE, first_line, read_json

Sampler = Literal["ddim", "ddpm"]

OWN_SAMPLER: dict[str, Sampler] = {
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
}
"""Scheduler of a pipeline -> the sampler that it implements."""

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
"""Other solvers for networks trained as a DDPM. Their betas are used, not their steps."""

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def read_scheduler(folder: Path, index_class: str | None, name: str) -> tuple[str, dict[str, Any]]:
    """Return the scheduler's class, and a config for DDPMScheduler and DDIMScheduler with its own
    betas.

    Args:
        folder: Folder with ``scheduler_config.json``.
        index_class: The class in the pipeline's index, which diffusers uses.
        name: Name of the pipeline in messages.

    Raises:
        ArtifactError: if the scheduler is not allowed, or its config is impossible.
    """
    # Refuse schedulers of other families.
    stored = read_json(folder / "scheduler_config.json", name)
    kind = index_class or str(stored.get("_class_name"))
    for class_name in (kind, str(stored.get("_class_name", kind))):
        if class_name not in OWN_SAMPLER and class_name not in SOLVERS:
            raise ArtifactError(
                f"{name}: its scheduler is {class_name}, which is not known to be of the DDPM "
                f"family; allowed are {', '.join((*OWN_SAMPLER, *SOLVERS))}; {OWN_CODE}"
            )
    for key, plain in (
        ("use_flow_sigmas", False),
        ("use_dynamic_shifting", False),
        ("timestep_type", "discrete"),
    ):
        if stored.get(key, plain) != plain:
            raise ArtifactError(
                f"{name}: its scheduler {kind} has {key} = {stored[key]}: that is not the forward "
                f"process of a DDPM; {OWN_CODE}"
            )

    # Let the scheduler compute its betas, and keep the settings that DDPM and DDIM share with it.
    try:
        scheduler = getattr(diffusers, kind).from_config(stored)
        targets = (DDPMScheduler, DDIMScheduler)
        keys = set().union(*(inspect.signature(target).parameters for target in targets))
        config = {
            key: scheduler.config[key] for key in keys if scheduler.config.get(key) is not None
        }
        betas = scheduler.betas.reshape(-1)
    except BAD_CONFIG as error:
        raise ArtifactError(
            f"{name}: {kind} cannot be made of its scheduler_config.json: {first_line(error)}"
        ) from error
    for key, allowed in (
        ("prediction_type", PREDICTIONS),
        ("timestep_spacing", ("leading", "linspace", "trailing")),
    ):
        if key in config and config[key] not in allowed:
            raise ArtifactError(
                f"{name}: its scheduler has {key} = {config[key]!r}; allowed are "
                f"{', '.join(allowed)}; {OWN_CODE}"
            )
    if (
        not 0 < len(betas) == config["num_train_timesteps"]
        or not ((betas >= 0) & (betas <= 1)).all()
        or betas[0] == 1
    ):
        ends = f" from {betas.min():.4g} to {betas.max():.4g}" if len(betas) else ""
        raise ArtifactError(
            f"{name}: the betas of its scheduler must be num_train_timesteps = "
            f"{config['num_train_timesteps']} numbers from 0 to 1, at least one and the first "
            f"below 1, but are {len(betas)}{ends}"
        )

    # Store the betas themselves if DDIMScheduler would compute others from the settings.
    known = "trained_betas" in config or config.get("beta_schedule") in (
        "linear",
        "scaled_linear",
        "squaredcos_cap_v2",
    )
    if not known or not torch.equal(DDIMScheduler.from_config(config).betas, betas):
        # The betas are already rescaled.
        config |= {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}
    return kind, config


def choose_sampler(
    asked: Sampler | None,
    scheduler_class: str,
    config: dict[str, Any],
    default: Sampler | None,
    predicts_variance: bool,
) -> Sampler:
    """Return the sampler to draw with: the requested one, or else the pipeline's own.

    Args:
        asked: The requested sampler, if any.
        scheduler_class: Name of the pipeline's scheduler.
        config: As ``read_scheduler`` returns it.
        default: The sampler that the pipeline uses with any scheduler; None derives it from the
            scheduler.
        predicts_variance: Whether the network predicts a variance.

    Raises:
        ConfigError: naming ``--sampler``, if none is requested and the scheduler is one of
            ``SOLVERS``, or if ancestral sampling needs a variance that the network lacks.
    """
    sampler = asked or default or OWN_SAMPLER.get(scheduler_class)
    if sampler is None:
        raise ConfigError(
            f"--sampler is needed: the pipeline's own {scheduler_class} is not supported for "
            f"drawing; allowed are ddim and ddpm, which use its betas, or {OWN_CODE}"
        )
    variance = str(config.get("variance_type"))
    if sampler == "ddpm" and variance.startswith("learned") and not predicts_variance:
        raise ConfigError(
            f"--sampler ddpm: the scheduler's variance_type is {variance}, but the network has as "
            "many output as input channels and so predicts no variance; allowed is --sampler ddim"
        )
    return sampler
