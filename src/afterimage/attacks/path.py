"""``afterimage attack path``: copies and quality along a training, not only at its end.

A remedy that trains less well also copies less, so that one point says little: plain training that
is stopped early copies less too. Here the networks that a training kept on the way are sampled
from the same starting noise as the last one, and attacked in the same way, with the threshold of
the extraction attack (``calibration``), which depends on the training images and not on the
network. ``report.frontier`` compares the paths at equal quality.

The store is ``results.csv``, one row per state and number: state (``path1``, ..., ``last``), share
(of the budget spent), metric, value, and for shares count and of. Metrics, with the names of
``report.comparison``: flagged_generations_calibrated, flagged_holdout_calibrated,
planted_extracted_calibrated (images planted with their captions), unique_images_calibrated,
FD_balanced[space] (without classes FD[space]), coverage[space] and class_share_tv[classifier].
Intervals are those between trainings.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState

from afterimage import artifacts, config
from afterimage.attacks import adaptive, calibration, twins
from afterimage.attacks.extraction import match_holdout
from afterimage.attacks.flags import add_flags, add_latents, add_texts, files_of
from afterimage.attacks.quality import ClassShares
from afterimage.attacks.target import Target
from afterimage.data.members import seen, trained_rows
from afterimage.diffusion.autoencoder import Autoencoder
from afterimage.diffusion.latents import FILE as LATENTS
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.prompts import Prompts
from afterimage.diffusion.remedy import Files, modules, remedy_of
from afterimage.diffusion.sample import generate, load_trained, trained_pipeline
from afterimage.diffusion.texts import FILE
from afterimage.images import Images, load_images
from afterimage.metrics import quality, spaces

STEP = "attack/path"
INPUTS = ("samples", "train", "members", "holdout", "reference", "twins", "index", "classifier")
"""Files and folders that are read besides the network."""
LAST = "last"
"""The name of the finished network among the states."""
COLUMNS = ["state", "share", "metric", "value", "count", "of"]


class Copies:
    """The extraction attack's calibrated count of copies, prepared for any number of generations.

    Args:
        train: The images that the arm's weights have seen.
        holdout: Real images that no arm saw.
        planted: The planted images among ``train``.
        settings: Of the attack.
        mirrors: Compare mirror images too.
        seed: Root seed.
    """

    def __init__(
        self,
        train: Images,
        holdout: Images,
        planted: twins.Planted,
        settings: config.Extraction,
        mirrors: bool,
        seed: int,
    ) -> None:
        self._train, self._anchor = train, settings.anchor
        self._planted = planted.with_captions().sources
        self._target = Target(train.pixels, settings, mirrors)
        control = match_holdout(holdout, train, self._target, mirrors).scores
        self._threshold = calibration.cross_fit(
            control.relative[settings.anchor], settings.calibrated_rate, seed
        )

    def numbers(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Return the rows of some generations, uint8 (M, H, W, C)."""
        scores = self._target.score(pixels)
        flags = adaptive.flagged(scores.relative[self._anchor], self._threshold.alpha)
        extracted = np.unique(self._train.sources[scores.row[flags]])
        alarms = self._threshold.flagged
        return [
            _share("flagged_generations_calibrated", int(flags.sum()), len(flags)),
            _share("flagged_holdout_calibrated", int(np.rint(alarms.sum())), len(alarms)),
            _share(
                "planted_extracted_calibrated",
                int(np.isin(self._planted, extracted).sum()),
                len(self._planted),
            ),
            {"metric": "unique_images_calibrated", "value": float(len(extracted))},
        ]


def _share(metric: str, count: int, of: int) -> dict[str, Any]:
    value = count / of if of else np.nan
    return {"metric": metric, "value": value, "count": count, "of": of}


class Quality:
    """The measures of quality that decide, prepared for any number of generations.

    Args:
        reference: Real images that no arm saw.
        settings: Of the measures.
        network: Folder of the feature network.

    Attributes:
        frechet: Name of the Fréchet distance among the metrics: the class-balanced one, without
            classes to learn that of all images.
    """

    def __init__(self, reference: Images, settings: config.Quality, network: Path) -> None:
        self._settings = settings
        self._space = spaces.find(settings, network)
        self._classify = spaces.classes(network)
        self._features = self._space(reference.pixels)
        self._distance = quality.Frechet(self._features)
        self._classes = None if self._classify is None else self._classify(reference.pixels)
        plain = "FID" if settings.features == "inception" else "FD"
        name = plain if self._classes is None else "FD_balanced"
        self.frechet = f"{name}[{settings.features}]"

    def numbers(self, pixels: np.ndarray) -> dict[str, float]:
        """Return metric -> value of some generations, uint8 (M, H, W, C)."""
        features = self._space(pixels)
        distance, rows = self._distance.of_rows(features), np.arange(len(pixels))
        overlap = quality.overlap(features, self._features, self._settings.neighbours)
        coverage = {f"coverage[{self._settings.features}]": float(overlap.coverage.mean())}
        if self._classify is None or self._classes is None:
            return {self.frechet: distance(rows)} | coverage
        shares = ClassShares(self._classify(pixels), self._classes)
        return {
            self.frechet: shares.balanced(distance, rows),
            **coverage,
            "class_share_tv[classifier]": shares.distance(rows),
        }


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_flags(parser, "model", *INPUTS)
    add_texts(parser)
    add_latents(parser)


def run(args: argparse.Namespace) -> None:
    """Sample and attack every kept network of a training, and store the numbers."""
    resolved = artifacts.read_config(args.config, STEP)
    settings = resolved["settings"]
    sample = config.Sample(**settings["sample"])
    states = dict(sorted(settings["states"].items(), key=lambda state: state[1]))
    folders = {
        name: trained_pipeline(args.model, sample.weights, None if name == LAST else name)
        for name in states
    }
    inputs = files_of(args, INPUTS) | folders
    inputs |= {"texts": args.texts / FILE} if args.texts else {}
    inputs |= {"latents": args.latents / LATENTS} if args.latents else {}
    entries = (__name__, *modules(settings))
    with artifacts.step(resolved, args.out, inputs, entries) as step:
        artifacts.check_file(args.index)
        train = trained_rows(load_images(args.train), seen(args.members))
        planted = twins.read(pd.read_parquet(args.index), load_images(args.twins))
        copies = Copies(
            train,
            load_images(args.holdout),
            planted.among(train.sources),
            config.Extraction(**settings["extraction"]),
            settings["mirrors"],
            resolved["seed"],
        )
        measures = Quality(
            load_images(args.reference), config.Quality(**settings["quality"]), args.classifier
        )
        samples = load_images(args.samples).take(np.arange(settings["images"]))
        files = Files(args.texts, args.train, args.members, args.latents)
        prompts = Prompts.of(args.texts, args.train, sample.images, resolved)
        rows = []
        for name, share in states.items():
            pixels = (
                samples.pixels
                if name == LAST
                else _drawn(folders[name], resolved, sample, prompts, files)
            )
            measured = measures.numbers(pixels).items()
            qualities = [{"metric": metric, "value": value} for metric, value in measured]
            for row in [*copies.numbers(pixels), *qualities]:
                rows.append({"state": name, "share": share} | row)
                step.metric(f"{row['metric']}/{name}", row["value"])
        pd.DataFrame(rows, columns=COLUMNS).to_csv(step.folder / "results.csv", index=False)
        step.note(generations=len(samples), states=len(states))


def _drawn(
    pipeline: Path,
    resolved: dict[str, Any],
    sample: config.Sample,
    prompts: Prompts | None,
    files: Files,
) -> np.ndarray:
    """Return the generations of a kept network, from the starting noise of the last one's."""
    net, scheduler_config = load_trained(pipeline, resolved["seed"], resolved["replicate"])
    ids = np.arange(resolved["settings"]["images"])
    classes = classes_of(net)
    return generate(
        net.to(PartialState().device),
        scheduler_config,
        ids,
        sample,
        resolved["seed"],
        resolved["replicate"],
        None if classes is None else ids % classes,
        None if prompts is None else prompts.rows(ids),
        Autoencoder.of(pipeline),
        remedy_of(resolved, scheduler_config, prompts, files),
    )
