"""The generations of an audit, drawn from ``--pipeline``: which way, its checks, the drawing.

A U-Net of pixels with a scheduler of the DDPM family is drawn from by ``diffusion.sample``, as in a
study, so that ``--sampler`` and a trainer's checkpoint folder work; any other pipeline by its own
call.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from afterimage import artifacts, config, provenance, seeds
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.data.pictures import Transform
from afterimage.diffusion import pipelines, sample
from afterimage.diffusion.pixels import to_uint8
from afterimage.diffusion.stored_network import NETWORKS
from afterimage.images import Images
from afterimage.standalone import (
    captions,
    conditions,
    drawing,
    drawing_flags,
    flags,
    lora,
    own_call,
    prompts,
    stored_pipeline,
)
from afterimage.standalone import images as image_sets
from afterimage.standalone.conditions import Conditions
from afterimage.standalone.images import ImageSet
from afterimage.standalone.own_call import Asks, CallSettings
from afterimage.standalone.stored_pipeline import Located, StoredPipeline


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Attributes:
        images: The generations.
        conditions: What they were drawn from.
        settings: Facts for the record.
        notes: Sentences for the user.
    """

    images: ImageSet
    conditions: Conditions
    settings: dict[str, Any]
    notes: list[str]


def device_of(args: argparse.Namespace) -> torch.device:
    """Return the device to draw on.

    Raises:
        ConfigError: naming ``--device``, if there is none of that name.
    """
    if args.device is None:
        from accelerate import PartialState

        return PartialState().device
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ConfigError(
            f"--device = {args.device}: it cannot be used: {str(error).splitlines()[0]}"
        ) from error
    return device


# ---- which way -----------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> Pixels | Own:
    """Find the pipeline and check everything that can be checked before the images are read.

    Raises:
        ConfigError: naming the flag.
        ArtifactError: naming ``--pipeline``.
    """
    with named():
        folder = Path(args.pipeline)
        is_hub = stored_pipeline.pinned(args.pipeline, args.revision) is not None
        if not is_hub and not (folder / stored_pipeline.INDEX).is_file():
            return Pixels(args, args.pipeline)
        located = stored_pipeline.locate(args.pipeline, args.revision)
        if _is_of_pixels(located.index, args):
            return Pixels(args, _reopened(located))
        return Own.of(args, located)


def _reopened(located: Located) -> str:
    """Return what ``open_pipeline`` is to open."""
    return located.name if located.commit is None else f"{located.repository}@{located.commit}"


def _is_of_pixels(index: dict[str, Any], args: argparse.Namespace) -> bool:
    """Say whether a pipeline is drawn from by ``diffusion.sample``."""
    parts = stored_pipeline.parts_of(index)
    if set(parts) != {"unet", "scheduler"} or parts["unet"][1] not in NETWORKS:
        return False
    kind = index.get("_class_name")
    known = isinstance(kind, str) and hasattr(diffusers, kind)
    return args.sampler is not None or not known or kind in ("DDPMPipeline", "DDIMPipeline")


@contextmanager
def named() -> Iterator[None]:
    """Begin messages about a pipeline with its flag."""
    try:
        yield
    except ArtifactError as error:
        if str(error).startswith("--"):
            raise
        raise ArtifactError(f"--pipeline: {error}") from error


# ---- U-Nets of pixels ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels:
    """A U-Net of pixels with a scheduler of the DDPM family, or a trainer's checkpoint folder.

    Attributes:
        args: The command's arguments.
        pipeline: The folder, or the pinned Hub id.
    """

    args: argparse.Namespace
    pipeline: str

    def __post_init__(self) -> None:
        for flag in drawing_flags.OWN:
            if (value := getattr(self.args, flag)) is not None:
                raise ConfigError(
                    f"{flags.flag(flag)} = {value}: it is not for --pipeline {self.args.pipeline}, "
                    "a U-Net of pixels"
                )

    def draw(self, train: ImageSet, out: Path) -> Drawn:
        """Draw generations of the size of the training images.

        Raises:
            ConfigError: if the shapes differ, or a flag does not fit.
            ArtifactError: if the pipeline cannot be opened, or gives values that are not finite.
        """
        args = self.args
        shape = train.images.pixels.shape[1:]
        with named():
            opened = pipelines.open_pipeline(self.pipeline, args.weights, size=shape[:2])
        if opened.shape != shape:
            drawn_shape, train_shape = (
                "x".join(map(str, sides)) for sides in (opened.shape, shape)
            )
            raise ConfigError(
                f"--pipeline {args.pipeline} draws {drawn_shape}, but --train has {train_shape}; "
                "--resize and --colour convert them"
            )
        if opened.classes is not None:
            asked = conditions.by_label(opened.classes, args.labels, args.generate)
        elif args.labels is None:
            asked = conditions.unconditional(args.generate)
        else:
            raise ConfigError("--labels: the pipeline is unconditional; leave --labels out")
        sampler = opened.sampler(args.sampler)
        settings = config.Sample(
            images=asked.count,
            sampler=sampler,
            steps=args.steps or sample.default_steps(sampler, opened.timesteps),
            batch_size=args.batch_size or drawing_flags.BATCH["pixels"],
        )
        device = device_of(args)
        net = cast(torch.nn.Module, opened.net).to(device)

        def batch(ids: np.ndarray) -> np.ndarray:
            generators = [seeds.torch_rng(args.seed, "sample", 0, int(row)) for row in ids]
            height, width, channels = opened.shape
            start = randn_tensor(
                (len(ids), channels, height, width), generator=generators, device=device
            )
            labels = asked.of(ids)
            with flags.named("sample"), named():
                images = sample.denoise(
                    net,
                    opened.scheduler_config,
                    start,
                    generators,
                    settings,
                    None if labels is None else torch.tensor(labels, device=device),
                    opened.null,
                )
            return to_uint8(images)

        facts = {
            "sampler": sampler,
            "steps": settings.steps,
            "generate": asked.count,
            "batch_size": settings.batch_size,
            "network": opened.facts(),
            "device": str(device),
        }
        basis = made_from(args, asked, device, settings.batch_size) | {
            "weights": opened.weights_sha256,
            "scheduler": provenance.digest(opened.scheduler_config),
            "sampler": sampler,
            "steps": settings.steps,
        }
        drawn = _Drawing.of(out, basis, asked, settings.batch_size)
        images, continued = drawn.finish(batch, Transform())
        notes = [*opened.notes, *continued]
        return Drawn(images, asked, facts, [f"--pipeline: {note}" for note in notes])


def made_from(
    args: argparse.Namespace, asked: Conditions, device: torch.device, batch_size: int
) -> dict[str, Any]:
    """Return what every drawn image depends on, besides its network."""
    return {
        "seed": args.seed,
        "batch_size": batch_size,
        "device": str(device),
        "condition": asked.kind,
        "conditions_sha256": provenance.digest({"values": list(asked.values)}),
        "images_per_condition": asked.each,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


@dataclass(frozen=True)
class _Drawing:
    """A drawing in the folder of a command.

    Attributes:
        out: The folder.
        made_from: Everything that an image depends on, besides its id.
        asked: What the images are drawn from.
        batch_size: Images per batch.
        before: What an earlier run left there; what was seen is added to it.
    """

    out: Path
    made_from: dict[str, Any]
    asked: Conditions
    batch_size: int
    before: drawing.Earlier

    @classmethod
    def of(
        cls, out: Path, made_from: dict[str, Any], asked: Conditions, batch_size: int
    ) -> _Drawing:
        """Return the drawing; refuse a folder with images of another one that was interrupted."""
        return cls(out, made_from, asked, batch_size, drawing.earlier(out, made_from))

    def finish(self, batch: drawing.Draw, transform: Transform) -> tuple[ImageSet, list[str]]:
        """Draw what is missing; return all images, and notes on those that were there before."""
        count, asked = self.asked.count, self.asked
        there = drawing.draw(self.out, self.made_from, self.before, count, self.batch_size, batch)
        ids = np.arange(count)
        values = asked.of(ids)
        key = {"prompt": "text", "class": "label", "none": ""}[asked.kind]
        rows = [{key: value} for value in values] if values else [{}] * count
        drawing.captions(self.out, count, rows)
        pixels = drawing.read(self.out, count, transform)
        labels = np.array(values, np.int64) if asked.kind == "class" else None
        texts = tuple(values) if asked.kind == "prompt" and values else None
        images = ImageSet(
            "samples",
            Images.of(pixels, ids, labels),
            ids,
            {},
            image_sets.sha256(pixels),
            texts,
        )
        notes = [f"{there} of {count} generations were drawn by an earlier run"] if there else []
        if self.before.difference:
            notes.append(f"the images of an earlier audit were replaced: {self.before.difference}")
        return images, notes


# ---- any other pipeline --------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """A pipeline that is drawn from by its own call.

    Attributes:
        args: The command's arguments.
        stored: The pipeline.
        asked: What its call asks for.
        prompts: The prompts of ``--prompts``; None without it.
    """

    args: argparse.Namespace
    stored: StoredPipeline
    asked: Asks
    prompts: list[str] | None

    @classmethod
    def of(cls, args: argparse.Namespace, located: Located) -> Own:
        """Check the flags against the pipeline's class, its call and its files."""
        for flag in drawing_flags.PIXELS:
            if (value := getattr(args, flag)) is not None:
                raise ConfigError(
                    f"{flags.flag(flag)} = {value}: it is for U-Nets of pixels; a "
                    f"{located.index.get('_class_name')} is drawn from by its own call"
                )
        stored = stored_pipeline.find(located, args.variant)
        asked = own_call.asks(stored.pipeline_class, stored.name)
        if not asked.text:
            for flag in ("prompts", "per_prompt", "negative_prompt", "truncate_prompts"):
                if (value := getattr(args, flag)) is not None:
                    raise ConfigError(
                        f"{flags.flag(flag)} = {value}: a {asked.name} takes no prompts"
                    )
        elif args.labels is not None:
            raise ConfigError(f"--labels: a {asked.name} takes prompts, not labels")
        if args.lora is not None:
            lora.check(args.lora, stored.pipeline_class)
        given = None if args.prompts is None else conditions.read_prompts(args.prompts)
        own = cls(args, stored, asked, given)
        own.arguments()
        return own

    def draw(self, train: ImageSet, out: Path) -> Drawn:
        """Draw generations, each from its prompt or label.

        Raises:
            ConfigError: naming the flag that does not fit.
            ArtifactError: if the pipeline cannot be opened, or gives values that are not finite.
        """
        args, stored = self.args, self.stored
        device = device_of(args)
        texts = self._prompts(train) if self.asked.text else None
        pipeline = self.opened(device)
        conditioned, notes = self._conditions(pipeline, texts)
        if conditioned.kind == "prompt":
            notes += prompts.check(
                pipeline, conditioned.values, self.asked, bool(args.truncate_prompts)
            )
        given = self.arguments()
        batch_size = args.batch_size or drawing_flags.BATCH["own"]
        weights = self.weights()
        basis = made_from(args, conditioned, device, batch_size) | {
            "weights": weights,
            "dtype": args.dtype or "float32",
            "arguments": given,
        }
        drawn = _Drawing.of(out, basis, conditioned, batch_size)
        seen = drawn.before.seen
        call = own_call.OwnCall(pipeline, self.asked, given, stored.name)
        call.difference = seen.get("batch_difference")
        call.one_at_a_time = call.one_at_a_time or seen.get("one_at_a_time", "")

        def batch(ids: np.ndarray) -> np.ndarray:
            derived = [seeds.derive(args.seed, "sample", 0, int(row)) for row in ids]
            with named():
                images = call.draw(derived, conditioned.of(ids))
            self._check_shape(images.pixels, train)
            blackened = {*seen.get("blackened", []), *ids[images.blackened].tolist()}
            seen.update(
                one_at_a_time=call.one_at_a_time,
                batch_difference=call.difference,
                blackened=sorted(blackened),
            )
            return images.pixels

        transform = Transform(
            args.colour, args.resize, args.resize_filter or "bilinear", args.crop or "centre"
        )
        images, continued = drawn.finish(batch, transform)
        notes = [*stored.notes, *notes, *continued, *observations(seen, conditioned.count)]
        if args.resize is not None:
            notes.append(
                f"generations were resized like the training images, by --resize {args.resize}"
            )
        facts = {
            "generate": conditioned.count,
            "batch_size": batch_size,
            "drawing": self._facts(pipeline, given, conditioned)
            | {"dtype": args.dtype or "float32", "sha256": weights}
            | seen
            | {"blackened": len(seen["blackened"])},
            "device": str(device),
        }
        return Drawn(images, conditioned, facts, [f"--pipeline: {note}" for note in notes])

    def opened(self, device: torch.device) -> Any:
        """Return the pipeline on a device, with its LoRA weights.

        Raises:
            ConfigError: naming the flag, if there is no memory for it, or the LoRA does not fit.
            ArtifactError: if it cannot be opened.
        """
        with named():
            pipeline = stored_pipeline.load(self.stored, self.args.dtype or "float32", device)
            if self.args.lora is not None:
                lora.load(pipeline, self.args.lora)
        return pipeline

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of every call."""
        return own_call.arguments(self.asked, _settings(self.args), self.stored.is_distilled())

    def weights(self) -> dict[str, str]:
        """Return the sha256 of the pipeline and of its LoRA."""
        sums = {"pipeline": self.stored.sha256()}
        if self.args.lora is not None:
            sums["lora"] = artifacts.sha256(self.args.lora)
        return sums

    def _check_shape(self, drawn: np.ndarray, train: ImageSet) -> None:
        """Check that drawn images can be compared with the training images as they are read."""
        (height, width, channels), expected = drawn.shape[1:], train.images.pixels.shape[1:]
        if self.args.resize is not None:
            height, width = expected[:2]
        if self.args.colour != "keep":
            channels = expected[2]
        if (height, width, channels) != expected:
            drawn_shape, train_shape = (
                "x".join(map(str, sides)) for sides in ((height, width, channels), expected)
            )
            raise ConfigError(
                f"--pipeline {self.args.pipeline} draws {drawn_shape}, but --train has "
                f"{train_shape}; --resize and --colour convert both"
            )

    @property
    def _source(self) -> str:
        return "captions of --train" if self.args.prompts is None else str(self.args.prompts)

    def _prompts(self, train: ImageSet) -> list[str]:
        if self.prompts is not None:
            return self.prompts
        texts = captions.of(train, self.args)
        if texts is None:
            raise ConfigError(
                f"--prompts is needed: a {self.asked.name} draws from prompts, and --train "
                f"{self.args.train} has no captions ({captions.WHERE})"
            )
        return list(dict.fromkeys(texts))

    def _conditions(self, pipeline: Any, texts: list[str] | None) -> tuple[Conditions, list[str]]:
        args = self.args
        if texts is not None:
            seed = args.seed if self.prompts is None else None
            return conditions.by_prompt(texts, args.per_prompt or 1, args.generate, seed)
        classes = own_call.classes_of(pipeline)
        known = self.asked.parameters
        if "class_labels" in known and (classes is not None or "batch_size" not in known):
            return conditions.by_label(classes, args.labels, args.generate), []
        if args.labels is not None:
            raise ConfigError(f"--labels: this {self.asked.name} takes no labels; leave them out")
        return conditions.unconditional(args.generate), []

    def _facts(
        self, pipeline: Any, given: dict[str, Any], conditioned: Conditions
    ) -> dict[str, Any]:
        schedulers = {
            name: type(part).__name__
            for name, part in pipeline.components.items()
            if isinstance(part, diffusers.SchedulerMixin)
        }
        return {
            "pipeline_class": self.asked.name,
            "schedulers": schedulers,
            "parts": {name: ".".join(part) for name, part in self.stored.parts.items()},
            "known_loss": stored_pipeline.has_known_loss(pipeline)
            and hasattr(pipeline.scheduler, "alphas_cumprod"),
            "commit": self.stored.commit,
            "variant": self.stored.variant,
            "lora": None if self.args.lora is None else str(self.args.lora),
            "arguments": own_call.facts(self.asked, given),
            "condition": conditioned.kind,
            "prompts": self._source if conditioned.kind == "prompt" else None,
            "different_conditions": len(conditioned.values),
            "images_per_condition": conditioned.each,
            "seeds": f"derived from --seed {self.args.seed} and the number of the image",
        }


def observations(seen: dict[str, Any], count: int) -> list[str]:
    """Return what was observed while images were drawn, in sentences."""
    notes = []
    if reason := seen["one_at_a_time"]:
        notes.append(f"images were drawn one at a time, whatever --batch-size: {reason}")
    if (seen["batch_difference"] or 0) > own_call.ROUNDING:
        notes.append(
            f"images depend on --batch-size: the first one differs by up to "
            f"{seen['batch_difference']} of 255 levels when it is drawn alone; --batch-size 1 "
            "draws each alone"
        )
    if blackened := len(seen["blackened"]):
        notes.append(
            f"{blackened} of {count} images were replaced by black ones by the pipeline's own "
            "safety checker"
        )
    return notes


def _settings(args: argparse.Namespace) -> CallSettings:
    return CallSettings(args.steps, args.guidance, args.negative_prompt, args.height, args.width)
