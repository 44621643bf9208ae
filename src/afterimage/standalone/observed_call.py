"""Draw by a pipeline's own call while its network is observed, for the detectors of prompts.

With guidance above 1 the network is evaluated for all images of a batch without the prompt and with
it, in this order. The pipelines of ``IN_TURN`` evaluate it twice at every step instead. A pipeline
that calls its network in another way is drawn from all the same; what cannot be observed is named
with its reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from afterimage.attacks.prompts import anisotropy, noise_difference, one_step
from afterimage.diffusion.prediction import clean_image
from afterimage.standalone.own_call import GUIDANCE, Batch, Conditions, OwnCall

NETWORKS = ("unet", "transformer")
"""Parts of a pipeline that predict noise."""


@dataclass(frozen=True)
class InTurn:
    """How a pipeline uses two evaluations of its network, with the prompt and then without it.

    Attributes:
        packed: Whether latents are (n, tokens, channels x ``_PATCH``).
        rescaled: Whether the guided prediction gets the norm of the one with the prompt.
        backwards: Whether its timesteps go from 0, noise, to 1, and predictions point to the image.
    """

    packed: bool = False
    rescaled: bool = False
    backwards: bool = False


IN_TURN = {
    "FluxPipeline": InTurn(packed=True),
    "ChromaPipeline": InTurn(packed=True),
    "QwenImagePipeline": InTurn(packed=True, rescaled=True),
    "Lumina2Pipeline": InTurn(rescaled=True, backwards=True),
}
"""Pipelines whose order of evaluations is known, from the code of diffusers 0.42."""


class _FirstStepError(Exception):
    """Ends a call of which only the first step is of interest."""


@dataclass
class Observation:
    """What was observed during one call.

    Attributes:
        magnitudes: Norm of the noise difference, for each step float32 (n,).
        confidence: Denoising confidence score, float32 (n,); None if it was not observed.
        alignment: Of the guidance at a timestep of little noise, float32 (n,); likewise.
        first: Images of one step, uint8 (n, H, W, C); likewise.
        waiting: Arguments and prediction of an evaluation with the prompt, until that without it.
        missing: Detector -> why it was not observed; empty if it was.
    """

    magnitudes: list[np.ndarray] = field(default_factory=list)
    confidence: np.ndarray | None = None
    alignment: np.ndarray | None = None
    first: np.ndarray | None = None
    waiting: tuple[inspect.BoundArguments, torch.Tensor] | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass
class ObservedCall(OwnCall):
    """An opened text-to-image pipeline that is observed while it draws.

    Attributes:
        only_first: End every call after the first evaluation of the network.
        observations: One for each call so far.
    """

    only_first: bool = False
    observations: list[Observation] = field(default_factory=list)

    def observe(self, seeds: Sequence[int], prompts: Sequence[str]) -> Observation:
        """Take the first step of a drawing alone; arguments as those of ``draw``."""
        with suppress(_FirstStepError):
            self._call(seeds, prompts)
        return self.observations.pop()

    def draw_observed(
        self, seeds: Sequence[int], prompts: Sequence[str]
    ) -> tuple[Batch, list[Observation]]:
        """Draw images; return them and what was observed, in the order of the images.

        Arguments and errors as those of ``draw``.
        """
        self.observations.clear()
        batch = self.draw(seeds, prompts)
        of_images = self.observations[-len(seeds) :] if self.one_at_a_time else self.observations
        return batch, of_images if self.one_at_a_time else of_images[:1]

    def _call(self, seeds: Sequence[int], conditions: Conditions | None) -> tuple[Batch, bool]:
        name = next((name for name in NETWORKS if hasattr(self.pipeline, name)), None)
        network = None if name is None else getattr(self.pipeline, name)
        observation = Observation()
        self.observations.append(observation)
        if network is None:
            _miss_all(observation, f"the pipeline has no {' or '.join(NETWORKS)}")
            return super()._call(seeds, conditions)

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            _observe(observation, self, len(seeds), module, args, kwargs, output)
            if self.only_first and observation.waiting is None:
                raise _FirstStepError

        handle = network.register_forward_hook(hook, with_kwargs=True)
        try:
            return super()._call(seeds, conditions)
        finally:
            handle.remove()
            if observation.waiting is not None and not observation.magnitudes:
                _miss_all(observation, _UNGUIDED)
            observation.waiting = None


DETECTORS = ("noise_difference", "one_step", "edges", "anisotropy")
"""Detectors that need the network."""


def _miss_all(observation: Observation, reason: str) -> None:
    for detector in DETECTORS:
        observation.missing.setdefault(detector, reason)


def _observe(
    observation: Observation,
    call: ObservedCall,
    count: int,
    network: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    """Observe one evaluation of the network."""
    bound = inspect.signature(network.forward).bind(*args, **kwargs)
    noisy = next(iter(bound.arguments.values()))
    prediction = _prediction(output)
    if not isinstance(noisy, torch.Tensor) or not noisy.is_floating_point() or prediction is None:
        _miss_all(observation, "its network does not map noisy images to predictions")
    elif len(noisy) == len(prediction) == 2 * count:
        pair = _without_variance(prediction, noisy).chunk(2)
        _observe_pair(observation, call, network, [bound], noisy[:count], pair)
    elif len(noisy) == len(prediction) == count and call.asked.name in IN_TURN:
        before, observation.waiting = observation.waiting, (bound, prediction)
        if before is not None and _same_step(before[0], bound):
            observation.waiting = None
            pair = (prediction, before[1])
            _observe_pair(observation, call, network, [bound, before[0]], noisy, pair)
        elif before is not None and not observation.magnitudes:  # that of the next step already
            observation.waiting = None
            _miss_all(observation, _UNGUIDED)
    elif not observation.magnitudes:
        _miss_all(observation, _UNGUIDED)


_UNGUIDED = (
    "its network is not evaluated with and without the prompt at each step; where there is "
    "guidance, a --guidance above 1 is needed, and a --negative-prompt if it guides away from one"
)


def _same_step(a: inspect.BoundArguments, b: inspect.BoundArguments) -> bool:
    """Say whether a network was given the same noisy images at the same timesteps."""
    noisy, other = (next(iter(bound.arguments.values())) for bound in (a, b))
    time, again = (torch.as_tensor(bound.arguments["timestep"]) for bound in (a, b))
    return torch.equal(noisy, other) and torch.equal(time, again)


def _observe_pair(
    observation: Observation,
    call: ObservedCall,
    network: Any,
    evaluations: list[inspect.BoundArguments],
    noisy: torch.Tensor,
    pair: Sequence[torch.Tensor],
) -> None:
    """Observe the predictions of one step without the prompt and with it.

    Args:
        observation: Receives what is observed.
        call: The call.
        network: Its network.
        evaluations: Arguments of the evaluation of both, or of that of each.
        noisy: What was denoised, (n, ...).
        pair: The predictions, each of its shape.
    """
    unconditional, conditional = pair
    observation.magnitudes.append(_numbers(noise_difference.magnitude(unconditional, conditional)))
    if len(observation.magnitudes) > 1:
        return
    how = IN_TURN.get(call.asked.name, InTurn())
    timestep = evaluations[0].arguments.get("timestep")
    late = _late(timestep, call.pipeline.scheduler, how.backwards)
    if late is None:
        observation.missing["anisotropy"] = "its network takes no timesteps of the scheduler"
    else:
        evaluated = []
        for bound in evaluations:
            bound.arguments["timestep"] = late
            prediction = _prediction(network.forward(*bound.args, **bound.kwargs))
            assert prediction is not None
            evaluated += _without_variance(prediction, noisy).split(len(noisy))
        if how.packed:
            evaluated = [_unpacked(prediction) for prediction in evaluated]
        without, given = evaluated
        observation.alignment = _numbers(anisotropy.alignment(without, given))
    guided = unconditional + _scale(call) * (conditional - unconditional)
    if how.rescaled:
        guided = guided * (
            conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        )
    if how.backwards:
        guided = -guided
    _observe_one_step(observation, call.pipeline, noisy, guided, timestep)


_PATCH = 4
"""Positions whose channels stand in one token of packed latents."""


def _unpacked(latents: torch.Tensor) -> torch.Tensor:
    """Return packed latents as (n, channels, tokens, ``_PATCH``)."""
    return latents.unflatten(2, (-1, _PATCH)).movedim(2, 1)


def _observe_one_step(
    observation: Observation, pipeline: Any, noisy: torch.Tensor, guided: torch.Tensor, at: Any
) -> None:
    """Observe the image that the first step predicts."""
    scheduler = pipeline.scheduler
    kind = scheduler.config.get("prediction_type", "epsilon")
    if hasattr(scheduler, "alphas_cumprod") and isinstance(scheduler.alphas_cumprod, torch.Tensor):
        row = int(torch.as_tensor(at).reshape(-1)[0])
        signal = float(scheduler.alphas_cumprod[row].sqrt())
    elif type(scheduler).__name__.startswith("FlowMatch"):
        kind, signal = "flow", 1 - float(scheduler.sigmas[0])
    else:
        signal = None
    if signal is None or (signal == 0 and kind == "epsilon"):
        reason = f"the image of one step of a {type(scheduler).__name__} is not known"
        observation.missing |= {"one_step": reason, "edges": reason}
        return
    image = clean_image(noisy.float(), guided.float(), signal, kind)
    noise = noisy if kind == "flow" or signal == 0 else noisy / signal
    observation.confidence = _numbers(one_step.confidence(noise, image))
    vae = getattr(pipeline, "vae", None)
    known = image.shape[1] in (1, 3) if vae is None else "scaling_factor" in vae.config
    if image.ndim != 4 or not known:
        observation.missing["edges"] = "how its latents become images is not known"
        return
    if vae is not None:
        latents = image / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
        image = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    pixels = ((image.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    observation.first = pixels.permute(0, 2, 3, 1).cpu().numpy()


def _prediction(output: Any) -> torch.Tensor | None:
    first = output[0] if isinstance(output, tuple) else getattr(output, "sample", None)
    return first if isinstance(first, torch.Tensor) else None


def _without_variance(prediction: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """Return a prediction without the variances that some networks give as further channels."""
    return prediction[:, : noisy.shape[1]]


def _late(timestep: Any, scheduler: Any, backwards: bool) -> torch.Tensor | None:
    """Return a timestep of little noise in the form in which the network was given one.

    None unless that was a timestep of the scheduler, or its share of all, or what is left of it
    where time goes ``backwards``.
    """
    steps = scheduler.config.get("num_train_timesteps")
    if timestep is None or steps is None:
        return None
    given = torch.as_tensor(timestep)
    first = float(scheduler.timesteps[0])
    if backwards:
        noisiest = torch.full_like(given, 1 - first / steps)
        late = torch.full_like(given, 1 - round(anisotropy.LATE * steps) / steps)
        return late if torch.allclose(given, noisiest) else None
    for unit in (1.0, float(steps)):
        if torch.allclose(given.double() * unit, torch.tensor(first, dtype=torch.float64)):
            return torch.full_like(given, round(anisotropy.LATE * steps) / unit)
    return None


def _scale(call: OwnCall) -> float:
    """Return the scale of the guidance between predictions with and without the prompt."""
    for name in reversed(GUIDANCE):
        scale = call.arguments.get(name, call.asked.default(name))
        if isinstance(scale, int | float):
            return float(scale)
    return 1.0


def _numbers(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
