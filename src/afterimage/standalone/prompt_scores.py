"""Scores of prompts by the network: draw from a text-to-image pipeline while it is observed.

The images of all prompts have the same noise, so that prompts differ in nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from afterimage import seeds
from afterimage.artifacts import ArtifactError
from afterimage.attacks.prompts import one_step
from afterimage.standalone import (
    drawing,
    drawing_flags,
    generations,
    own_call,
    prompts,
    stored_pipeline,
)
from afterimage.standalone.conditions import Conditions
from afterimage.standalone.generations import Own
from afterimage.standalone.observed_call import Observation, ObservedCall

STATISTICS = ("noise_difference", "first_difference", "one_step", "alignment")
"""Statistics of single images."""


@dataclass(frozen=True)
class Observed:
    """What was observed of the network.

    Attributes:
        of_images: One of ``STATISTICS`` -> float64 (images,); ``noise_difference`` is the mean over
            steps.
        edges: Share of common edges of each prompt, float64 (prompts,); None if not observed.
        blackened: Rows of images that the pipeline's safety checker replaced.
        missing: Detector -> why it was not observed.
        settings: Facts for the record.
        notes: Sentences for the user.
    """

    of_images: dict[str, np.ndarray]
    edges: np.ndarray | None
    blackened: set[int]
    missing: dict[str, str]
    settings: dict[str, Any]
    notes: list[str]


@dataclass(frozen=True)
class Model:
    """An opened text-to-image pipeline.

    Attributes:
        args: The command's arguments.
        own: The pipeline.
        device: Where it is.
        call: Its call, observed.
    """

    args: argparse.Namespace
    own: Own
    device: torch.device
    call: ObservedCall

    @classmethod
    def of(cls, args: argparse.Namespace) -> Model:
        """Open the pipeline.

        Raises:
            ConfigError: naming the flag that does not fit.
            ArtifactError: if it cannot be opened, or takes no prompts.
        """
        with generations.named():
            own = Own.of(args, stored_pipeline.locate(args.pipeline, args.revision))
            if not own.asked.text:
                raise ArtifactError(f"{own.stored.name}: a {own.asked.name} takes no prompts")
        device = generations.device_of(args)
        call = ObservedCall(own.opened(device), own.asked, own.arguments(), own.stored.name)
        return cls(args, own, device, call)

    def first_steps(self, asked: Conditions) -> Observed:
        """Take the first step of every image alone."""
        notes = self._check(asked)
        self.call.only_first = True
        seen: dict[str, Any] = {}
        size = self._batch_size(asked)
        rows = np.arange(asked.count).reshape(-1, size)
        for ids in tqdm(rows, desc="first steps", unit_scale=size, unit=" images", disable=None):
            with generations.named():
                observation = self.call.observe(self._seeds(ids, asked), asked.of(ids) or [])
            _keep(seen, ids, [observation], asked)
        return self._observed(seen, asked, notes)

    def draw(self, asked: Conditions, out: Path) -> Observed:
        """Draw every image into ``out``; go on with a drawing that was interrupted."""
        notes = self._check(asked)
        size = self._batch_size(asked)
        made_from = generations.made_from(self.args, asked, self.device, size) | {
            "weights": self.own.weights(),
            "dtype": self.args.dtype or "float32",
            "arguments": self.own.arguments(),
            "purpose": "prompts",
        }
        before = drawing.earlier(out, made_from)
        self.call.difference = before.seen.get("batch_difference")
        self.call.one_at_a_time = self.call.one_at_a_time or before.seen.get("one_at_a_time", "")

        def batch(ids: np.ndarray) -> np.ndarray:
            with generations.named():
                images, observations = self.call.draw_observed(
                    self._seeds(ids, asked), asked.of(ids) or []
                )
            _keep(before.seen, ids, observations, asked)
            blackened = {*before.seen.get("blackened", []), *ids[images.blackened].tolist()}
            before.seen.update(
                one_at_a_time=self.call.one_at_a_time,
                batch_difference=self.call.difference,
                blackened=sorted(blackened),
            )
            return images.pixels

        drawing.draw(out, made_from, before, asked.count, size, batch)
        texts = asked.of(np.arange(asked.count)) or []
        drawing.captions(out, asked.count, [{"text": text} for text in texts])
        notes += generations.observations(before.seen, asked.count)
        return self._observed(before.seen, asked, notes)

    def _check(self, asked: Conditions) -> list[str]:
        """Check the prompts; return notes for the user."""
        truncate = bool(self.args.truncate_prompts)
        notes = [
            *self.own.stored.notes,
            *prompts.check(self.call.pipeline, asked.values, self.own.asked, truncate),
        ]
        if (size := self._batch_size(asked)) < one_step.SEEDS:
            notes.append(
                f"edges are those that {size} images have in common, not {one_step.SEEDS} as "
                f"published: a batch has {size} images of one prompt (--batch-size, --per-prompt)"
            )
        return notes

    def _batch_size(self, asked: Conditions) -> int:
        """Return the largest number of images that divides those of a prompt, so that no batch has
        two prompts."""
        most = self.args.batch_size or drawing_flags.BATCH["own"]
        return max(n for n in range(1, asked.each + 1) if asked.each % n == 0 and n <= most)

    def _seeds(self, ids: np.ndarray, asked: Conditions) -> list[int]:
        return [seeds.derive(self.args.seed, "prompts", int(row) % asked.each) for row in ids]

    def _observed(self, seen: dict[str, Any], asked: Conditions, notes: list[str]) -> Observed:
        count, missing = asked.count, seen["missing"]
        kept = seen.get("of_images", {})
        of_images = {
            name: np.array([kept[name][str(row)] for row in range(count)], float)
            for name in STATISTICS
            if len(kept.get(name, {})) == count
        }
        edges = None
        if "edges" not in missing:
            edges = np.array([seen["edges"][str(row)] for row in range(len(asked.values))], float)
        given = self.own.arguments()
        facts = {
            "pipeline_class": self.own.asked.name,
            "arguments": own_call.facts(self.own.asked, given),
            "dtype": self.args.dtype or "float32",
            "device": str(self.device),
            "batch_size": self._batch_size(asked),
            "sha256": self.own.weights(),
        }
        blackened = set(seen.get("blackened", []))
        return Observed(of_images, edges, blackened, missing, facts, notes)


def _keep(
    seen: dict[str, Any], ids: np.ndarray, observations: list[Observation], asked: Conditions
) -> None:
    """Add what was observed of some images to what an interrupted run goes on with."""
    missing = seen.setdefault("missing", {})
    for observation in observations:
        missing |= observation.missing

    def keep(name: str, of: Callable[[Observation], np.ndarray]) -> None:
        values = np.concatenate([of(observation) for observation in observations])
        kept = seen.setdefault("of_images", {}).setdefault(name, {})
        kept |= {str(row): float(value) for row, value in zip(ids, values, strict=True)}

    if "noise_difference" not in missing:
        keep("noise_difference", lambda each: np.mean(each.magnitudes, axis=0))
        keep("first_difference", lambda each: each.magnitudes[0])
    if "one_step" not in missing:
        keep("one_step", lambda each: each.confidence)  # type: ignore[arg-type,return-value]
    if "anisotropy" not in missing:
        keep("alignment", lambda each: each.alignment)  # type: ignore[arg-type,return-value]
    prompt, position = divmod(int(ids[0]), asked.each)
    if "edges" not in missing and position == 0:
        first = np.concatenate([each.first for each in observations if each.first is not None])
        shares = seen.setdefault("edges", {})
        shares[str(prompt)] = one_step.edge_consistency(first[: one_step.SEEDS])
