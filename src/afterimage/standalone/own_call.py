"""Draw from any diffusers pipeline by its own call: its scheduler, guidance and post-processing.

What a call asks for is read off its signature, so that a class that nobody listed works, or is
refused by the name of the input that is missing. ``asks`` needs the class alone, ``OwnCall`` the
opened pipeline.

Every image has its own random generator, so that the batch size changes no more than rounding. A
call that takes one generator for all images, or draws noise past its generators, is made for one
image at a time.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from diffusers import SchedulerMixin

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion.stored_files import BAD_CONFIG, OWN_CODE, first_line, listed

Condition = Literal["none", "class", "text"]

MOVING = re.compile(r"(^|_)(num_frames|frames?|video|videos|audio|video_length)(_|$)")
"""Names of parameters of calls that draw videos, turntables or sound."""

PICTURE = re.compile(r"^(.*_)?(image|images|mask)$")

GIVEN = ("prompt", "class_labels", "batch_size")
"""Parameters that this module fills."""

CLASSES = ("num_class_embeds", "num_embeds_ada_norm", "num_classes")
"""Keys of a network's config that hold its number of classes."""

GUIDANCE = ("guidance_scale", "true_cfg_scale")


@dataclass(frozen=True)
class Asks:
    """What a pipeline's call asks for.

    Attributes:
        name: Name of the pipeline's class.
        parameters: Its parameters.
        pictures: Parameters for images that may be left out.
    """

    name: str
    parameters: Mapping[str, inspect.Parameter]
    pictures: tuple[str, ...]

    @property
    def text(self) -> bool:
        """Whether images are drawn from prompts."""
        return "prompt" in self.parameters

    def default(self, name: str) -> Any:
        """Return the call's own value of a parameter; None if it has none."""
        if name not in self.parameters:
            return None
        default = self.parameters[name].default
        return None if default is inspect.Parameter.empty else default

    @property
    def generators(self) -> Literal["one per image", "one for all", "none"]:
        """How many random generators a call takes."""
        if "generator" not in self.parameters:
            return "none"
        annotation = str(self.parameters["generator"].annotation).lower()
        return "one per image" if "list" in annotation else "one for all"


def asks(pipeline_class: type, name: str) -> Asks:
    """Return what the call of a pipeline's class asks for.

    Args:
        pipeline_class: A subclass of ``DiffusionPipeline``.
        name: Name of the pipeline in messages.

    Raises:
        ArtifactError: naming the input, if images cannot be drawn from noise, labels or prompts
            alone.
    """
    parameters = {
        parameter.name: parameter
        for parameter in inspect.signature(pipeline_class.__call__).parameters.values()
        if parameter.name != "self"
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    kind = pipeline_class.__name__
    if moving := [name for name in parameters if MOVING.search(name)]:
        raise ArtifactError(
            f"{name}: a {kind} draws videos or sound, not images: its call takes {listed(moving)}"
        )
    pictures = {name: p for name, p in parameters.items() if _is_picture(p)}
    needed = [
        name
        for name, parameter in parameters.items()
        if name not in GIVEN
        and (
            parameter.default is parameter.empty
            or (name in pictures and _needs_picture(pipeline_class, parameter))
        )
    ]
    if not set(GIVEN) & set(parameters):
        needed = needed or [*pictures, *parameters]
    if needed:
        raise ArtifactError(
            f"{name}: a {kind} draws from more than noise, labels or prompts: its call needs "
            f"{listed(needed)}; {OWN_CODE}"
        )
    return Asks(kind, parameters, tuple(pictures))


def _is_picture(parameter: inspect.Parameter) -> bool:
    return "attention_mask" not in parameter.name and bool(
        PICTURE.match(parameter.name) or "PIL.Image" in str(parameter.annotation)
    )


def _needs_picture(pipeline_class: Any, parameter: inspect.Parameter) -> bool:
    """Say whether a call cannot do without an image.

    Neither annotations nor docstrings of diffusers are right everywhere. An image may be left out
    if the docstring calls it *optional*, unless it is a control that the annotation does not let be
    None; or if the annotation allows None and diffusers lists the class for text-to-image.
    """
    annotation = str(parameter.annotation)
    nullable = "None" in annotation or "Optional" in annotation
    if parameter.name.startswith("control") and not nullable:
        return True
    documented = re.search(
        rf"^\s*{parameter.name}\s*\((.*(?:\n.*)??)\)?:?\s*$",
        pipeline_class.__call__.__doc__ or "",
        re.MULTILINE,
    )
    if documented is None:
        return not nullable
    if "optional" in documented[1] or not nullable:
        return "optional" not in documented[1]
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    return pipeline_class not in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()


# ---- settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CallSettings:
    """What is asked of every call; None leaves it to the call's own default.

    Attributes:
        steps: Denoising steps.
        guidance: Guidance scale.
        negative_prompt: What prompts are guided away from.
        height: Of the images, in pixels.
        width: The same.
    """

    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None


def arguments(asked: Asks, settings: CallSettings, distilled: bool = False) -> dict[str, Any]:
    """Return the arguments of a call that settings mean, without those of single images.

    Args:
        asked: What the call asks for.
        settings: The settings.
        distilled: Whether the network takes the guidance as an input, where a call has both
            ``guidance_scale`` and ``true_cfg_scale``.

    Raises:
        ConfigError: naming the flag, if the call takes no such argument.
    """
    known = asked.parameters
    both = all(name in known for name in GUIDANCE)
    scale = GUIDANCE[1] if (both and not distilled) or GUIDANCE[0] not in known else GUIDANCE[0]
    chosen = {
        "--steps": ("num_inference_steps", settings.steps),
        "--guidance": (scale, settings.guidance),
        "--negative-prompt": ("negative_prompt", settings.negative_prompt),
        "--height": ("height", settings.height),
        "--width": ("width", settings.width),
    }
    given: dict[str, Any] = {}
    for flag, (name, value) in chosen.items():
        if value is None:
            continue
        if name not in known:
            raise ConfigError(
                f"{flag} = {value}: the call of a {asked.name} takes no {name}; leave {flag} out"
            )
        given[name] = value
    if GUIDANCE[1] in given and settings.negative_prompt is None:
        raise ConfigError(
            f"--guidance = {settings.guidance}: this {asked.name} guides away from a negative "
            "prompt only; add --negative-prompt, which may be empty"
        )
    if settings.negative_prompt is not None:
        away = GUIDANCE[1] if both else GUIDANCE[0]
        strength = given.get(away, asked.default(away))
        if isinstance(strength, int | float) and strength <= 1:
            raise ConfigError(
                f"--negative-prompt = {settings.negative_prompt}: it has no effect, since "
                + (
                    f"the network of this {asked.name} takes the guidance as an input"
                    if both and distilled
                    else f"the guidance is {strength}; allowed is a --guidance above 1"
                )
            )
    if ("height" in given or "width" in given) and "use_resolution_binning" in known:
        given["use_resolution_binning"] = False  # exactly the size that was asked for
    return given


def facts(asked: Asks, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of every call for a record, with the call's own defaults."""
    names = ("num_inference_steps", *GUIDANCE, "negative_prompt", "height", "width", "eta")
    return {
        name: given.get(name, asked.default(name)) for name in names if name in asked.parameters
    }


# ---- calls ---------------------------------------------------------------------------------------


Conditions = Sequence[str] | Sequence[int]


@dataclass(frozen=True)
class Batch:
    """Drawn images.

    Attributes:
        pixels: uint8, (n, H, W, 1 or 3).
        blackened: bool, (n,): the pipeline's safety checker put a black image in its place.
    """

    pixels: np.ndarray
    blackened: np.ndarray


ROUNDING = 2
"""Of 255 levels: by how much an image may differ between batch sizes before that is said."""


class _CallError(ArtifactError):
    """A pipeline's call failed; the cause is its own error."""


@dataclass
class OwnCall:
    """An opened pipeline, ready to draw.

    Attributes:
        pipeline: The pipeline, on its device.
        asked: What its call asks for.
        arguments: Arguments of every call, as ``arguments`` returns them.
        name: Name of the pipeline in messages.
        one_at_a_time: Why images are drawn one at a time; empty if they are not.
        difference: By how many of 255 levels the first image differed at most when it was drawn
            alone, not in a batch; None before that was tried.
    """

    pipeline: Any
    asked: Asks
    arguments: dict[str, Any]
    name: str
    one_at_a_time: str = ""
    difference: int | None = None

    def __post_init__(self) -> None:
        if self.asked.generators != "one per image":
            self.one_at_a_time = {
                "one for all": "its call takes one random generator for all images",
                "none": "its call takes no random generator",
            }[self.asked.generators]

    def draw(self, seeds: Sequence[int], conditions: Conditions | None) -> Batch:
        """Return the images of a batch.

        Args:
            seeds: One per image.
            conditions: A prompt or a label for each image; None for unconditional pipelines.

        Raises:
            ConfigError: naming ``--batch-size``, if there is no memory for the batch.
            ArtifactError: if the call fails, returns no images, or a value is not finite, then
                naming the step.
        """

        def alone(row: int) -> Batch:
            return self._call(seeds[row : row + 1], conditions and conditions[row : row + 1])[0]

        if not self.one_at_a_time:
            try:
                batch, past_generators = self._call(seeds, conditions)
            except _CallError as error:
                if len(seeds) == 1 or self.difference is not None:
                    raise
                alone(0)  # if it fails too, the number of images is not the reason
                past_generators = False
                self.one_at_a_time = (
                    f"its call fails for several: {first_line(error.__cause__ or error)}"
                )
            if past_generators and len(seeds) > 1:
                self.one_at_a_time = "noise is drawn without the images' random generators"
            if not self.one_at_a_time:
                if self.difference is None and len(seeds) > 1:
                    single = alone(0).pixels[0].astype(int)
                    self.difference = int(np.abs(single - batch.pixels[0]).max())
                return batch
        singles = [alone(row) for row in range(len(seeds))]
        return Batch(
            np.concatenate([single.pixels for single in singles]),
            np.concatenate([single.blackened for single in singles]),
        )

    def _call(self, seeds: Sequence[int], conditions: Conditions | None) -> tuple[Batch, bool]:
        """Return the images of one call, and whether it drew noise without their generators."""
        count = len(seeds)
        given = dict(self.arguments)
        if conditions is not None:
            given["prompt" if self.asked.text else "class_labels"] = list(conditions)
        if "batch_size" in self.asked.parameters:
            given["batch_size"] = count
        if "negative_prompt" in given:
            given["negative_prompt"] = [given["negative_prompt"]] * count
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if self.asked.generators != "none":
            per_image = self.asked.generators == "one per image"
            given["generator"] = generators if per_image else generators[0]
        if "output_type" in self.asked.parameters:
            given["output_type"] = "np"
        device = self.pipeline.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._watched():
            torch.manual_seed(seeds[0])
            before = _random_state(device)
            try:
                result = self.pipeline(**given)
            except (ArtifactError, ConfigError):
                raise
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise ConfigError(_no_memory(count, error)) from error
            except BAD_CONFIG as error:
                if "can't allocate memory" in str(error):
                    raise ConfigError(_no_memory(count, error)) from error
                missing = ", ".join(self.asked.pictures)
                dtype = str(self.pipeline.dtype).removeprefix("torch.")
                raise _CallError(
                    f"{self.name}: the call of its {self.asked.name} fails: {first_line(error)}"
                    + (f"; not given were {missing}" if missing else "")
                    + (f"; this was in {dtype}, try --dtype float32" * (dtype != "float32"))
                    + f"; {OWN_CODE}"
                ) from error
            past_generators = not torch.equal(before, _random_state(device))
        images = getattr(result, "images", None)
        if images is None:
            raise ArtifactError(
                f"{self.name}: the call of a {self.asked.name} returns "
                f"{listed(list(result.keys())) if hasattr(result, 'keys') else type(result)}, not "
                "images"
            )
        pixels = self._pixels(images, count)
        for side, drawn in (("height", pixels.shape[1]), ("width", pixels.shape[2])):
            if given.get(side, drawn) != drawn:
                raise ConfigError(
                    f"--{side} = {given[side]}: a {self.asked.name} cannot draw it, it draws "
                    f"{drawn} instead; give a {side} that it takes"
                )
        blackened = getattr(result, "nsfw_content_detected", None) or [False] * count
        return Batch(pixels, np.array(blackened, bool)), past_generators

    def _pixels(self, images: Any, count: int) -> np.ndarray:
        """Return what a call returned as uint8, (n, H, W, 1 or 3)."""
        if isinstance(images, torch.Tensor):
            images = images.float().cpu().numpy()
        try:
            array = np.stack([np.asarray(image) for image in images])
        except ValueError as error:
            raise ArtifactError(
                f"{self.name}: the call of its {self.asked.name} returns images of several sizes"
            ) from error
        if array.ndim == 3 and len(array) == count:
            array = array[..., None]
        if array.ndim != 4 or len(array) != count or array.shape[-1] not in (1, 3):
            raise ArtifactError(
                f"{self.name}: the call of its {self.asked.name} returns an array of shape "
                f"{array.shape} for {count} images; allowed are images of 1 or 3 channels"
            )
        if array.dtype == np.uint8:
            return array
        if not np.isfinite(array).all():
            raise ArtifactError(
                f"{self.name}: the image after the last step is not finite, though all steps are: "
                f"the decoder gives NaN or infinite values; {WIDER}"
            )
        return (array * 255).round().clip(0, 255).astype(np.uint8)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Have the pipeline's schedulers check every step of a call."""
        watched: list[Any] = []
        for name, part in self.pipeline.components.items():
            if isinstance(part, SchedulerMixin) and hasattr(part, "step") and part not in watched:
                of = "" if name == "scheduler" else f" of {name}"
                part.step = _checked(part.step, of, self.name)
                watched.append(part)
        try:
            yield
        finally:
            for scheduler in watched:
                del scheduler.step


WIDER = "--dtype float32 and bfloat16 have a wider range than float16"


def _checked(step: Callable[..., Any], of: str, name: str) -> Callable[..., Any]:
    """Return a scheduler's step that checks what goes in and what comes out.

    Discrete schedulers, whose samples are integers, are given log-probabilities, which may be
    infinite.
    """
    taken = 0
    signature = inspect.signature(step)

    @functools.wraps(step)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        given = signature.bind(*args, **kwargs).arguments
        timestep = given.get("timestep")
        at = f"step {taken}{of}" + ("" if timestep is None else f" (timestep {_number(timestep)})")
        result = step(*args, **kwargs)
        after = result[0] if isinstance(result, tuple) else getattr(result, "prev_sample", None)
        if _is_float(after):
            for what, values in (
                ("prediction of the network", given.get("model_output")),
                ("image", after),
            ):
                if _is_float(values) and not torch.isfinite(values).all():
                    raise ArtifactError(
                        f"{name}: the {what} at {at} is not finite: it has NaN or infinite values; "
                        f"{WIDER}"
                    )
        return result

    return checked


def _number(timestep: Any) -> str:
    """Return a timestep, which may be one for each image, as text."""
    return f"{float(torch.as_tensor(timestep).reshape(-1)[0]):.6g}"


def _is_float(values: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(values, torch.Tensor) and values.is_floating_point()


def _random_state(device: torch.device) -> torch.Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def _no_memory(count: int, error: BaseException) -> str:
    return (
        f"--batch-size: no memory for {count} images at a time ({first_line(error)}); a smaller "
        "one, or --dtype bfloat16, needs less, and the drawing goes on from here"
    )


# ---- classes -------------------------------------------------------------------------------------


def classes_of(pipeline: Any) -> int | None:
    """Return the number of classes of a pipeline's network; None if it takes no labels, or its
    config does not tell."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for key in CLASSES:
                if isinstance(number := getattr(part.config, key, None), int):
                    return number
    return None
