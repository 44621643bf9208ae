"""``afterimage attack prompts``: do detectors of memorised prompts know the captions of training?

Each caption that the arm was trained on is asked for from the same noises, and so are captions of
held-out images. A detector's number is large for a memorised prompt: ``noise_difference`` (Wen et
al. 2024), ``one_step`` (Webster 2023) and ``anisotropy`` (Asthana and Belagiannis 2026) at the
first step of the study's sampler, averaged over the noises; and ``cliques``, if images are drawn,
minus the diameter of those that agree best (Carlini et al. 2023, section 4.2). See
``attacks.prompts``.

Captions are those of the arm's variant, each counted once. A held-out image's caption that an image
of the training set has, too, is no held-out text and is left out, as is a twin's.

The store of the command:

- ``prompts.parquet``: one row per caption: set (train, holdout, twin), id and source of its image,
  copies, repeat and times (as planted, see ``twins.Planted``; 0, neither and 0 for a held-out
  image), prompt, and the number of every detector;
- ``results.csv``: with the columns of ``table.Results``, for every detector ``<detector>_auc``, the
  area under the curve of captions of training before held-out ones, and
  ``<detector>_tpr@<rate>``; with ``_by_copies`` or ``_by_repeat`` before the rate for what was
  planted (``twins.subsets``), and ``_twins`` for twins, the control, whose area should be one half.

With fewer than ``FEWEST`` captions of training or of held-out images nothing is measured, and the
facts say so.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState

from afterimage import artifacts, config, seeds
from afterimage.attacks import membership, twins
from afterimage.attacks.flags import add_flags, add_texts, files_of
from afterimage.attacks.prompts import anisotropy, cliques, noise_difference, one_step
from afterimage.attacks.table import Results
from afterimage.diffusion.autoencoder import Autoencoder
from afterimage.diffusion.guidance import Guided
from afterimage.diffusion.model import shape_of
from afterimage.diffusion.prediction import clean_image
from afterimage.diffusion.router import UNet
from afterimage.diffusion.sample import generate, load_trained, scheduler_of, trained_pipeline
from afterimage.diffusion.texts import FILE, TEXT, Texts
from afterimage.metrics import ranking

STEP = "attack/prompts"
FEWEST = 2
"""Captions of a set."""
BATCH = 64
"""Prompts that the network sees at once."""


def asked(known: membership.Known, texts: Texts, most: int, seed: int) -> pd.DataFrame:
    """Return the prompts: the rows of ``prompts.parquet`` without the detectors' numbers.

    Args:
        known: The images.
        texts: Embeddings of the arm's variant of the captions.
        most: Unplanted captions, and held-out ones, of which more are drawn from.
        seed: Root seed.
    """
    of_training = set(texts.captions_of(known.train))
    tables = []
    for name, (images, described) in known.sets().items():
        table = described.assign(prompt=texts.captions_of(images))
        if name == "train":
            table = table[table["trained"]]
        table = table.drop(columns=["label", "trained"])
        # Of the images with one caption, the one that was planted most often speaks for it, not
        # those that carry its caption.
        order = table.assign(carrier=table["repeat"] == "carrier", often=-table["times"])
        table = table.loc[order.sort_values(["carrier", "often", "id"]).index]
        table = table.drop_duplicates("prompt").sort_values("id")
        if name != "train":
            table = table[~table["prompt"].isin(of_training)]
        single = table[table["times"] <= 1] if name != "twin" else table.iloc[:0]
        rng = seeds.numpy_rng(seed, "prompts", name)
        kept = rng.permutation(len(single))[:most]
        tables.append(table.drop(single.index.difference(single.index[kept])))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Detectors:
    """A network that is observed at the first step of a drawing.

    Attributes:
        net: The network, on the device to use.
        scheduler_config: Config of the scheduler that it was trained with.
        sample: The study's drawing.
        settings: Of the detectors.
        seed: Root seed of the noises.
    """

    net: UNet
    scheduler_config: dict[str, Any]
    sample: config.Sample
    settings: config.PromptDetection
    seed: int

    @torch.inference_mode()
    def numbers(self, texts: Texts, prompts: np.ndarray) -> dict[str, np.ndarray]:
        """Return detector -> its number for each prompt, float64 (n,), averaged over the noises.

        Args:
            texts: Embeddings of the prompts.
            prompts: text, (n,).
        """
        device, rows = self.net.device, texts.rows(prompts)
        scheduler, noises = scheduler_of(self.scheduler_config, self.sample), self._noises()
        found = {name: np.zeros(len(rows)) for name in ("noise_difference", "one_step", "cosine")}
        for start in range(0, len(rows), BATCH):
            some = slice(start, start + BATCH)
            given = {TEXT: texts.embeddings[rows[some]].to(device)}
            nulls = {TEXT: texts.null.to(device).expand_as(given[TEXT])}
            guided = Guided(self.net, given, nulls, self.sample.guidance, self.sample.precision)
            for noise in noises:
                x = noise.expand(len(given[TEXT]), -1, -1, -1)
                for name, values in _observed(guided, scheduler, x).items():
                    found[name][some] += values.double().cpu().numpy() / len(noises)
        cosine = found.pop("cosine")
        weight = self.settings.alignment_weight
        return found | {"anisotropy": found["noise_difference"] + weight * cosine}

    def _noises(self) -> list[torch.Tensor]:
        """Return the noises that every prompt starts from, each (1, C, H, W)."""
        height, width, channels = shape_of(self.net)
        return [
            torch.randn(
                (1, channels, height, width),
                generator=seeds.torch_rng(self.seed, "prompts", "noise", draw),
            ).to(self.net.device)
            for draw in range(self.settings.draws)
        ]

    def diameters(
        self, texts: Texts, prompts: np.ndarray, autoencoder: Autoencoder | None, replicate: int
    ) -> np.ndarray:
        """Return the diameter of the images of each prompt that agree best, float64 (n,)."""
        images, size = self.settings.images, self.settings.clique
        ids = np.tile(np.arange(images), len(prompts))  # the same noises for every prompt
        rows = texts.rows(np.repeat(prompts, images))
        pixels = generate(
            self.net,
            self.scheduler_config,
            ids,
            self.sample,
            self.seed,
            replicate,
            texts=(texts, rows),
            autoencoder=autoencoder,
        )
        of_prompts = pixels.reshape(len(prompts), images, *pixels.shape[1:])
        return np.array(
            [cliques.tightest(cliques.pairwise(own), size).diameter for own in of_prompts]
        )


def _observed(guided: Guided, scheduler: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what is seen of each prompt at the first step from noise ``x``, (n, C, H, W)."""
    first, channels = scheduler.timesteps[0], x.shape[1]
    late = torch.tensor(round(anisotropy.LATE * scheduler.config["num_train_timesteps"]))
    conditional, unconditional = (part[:, :channels] for part in guided.branches(x, first))
    signal = float(scheduler.alphas_cumprod[first].sqrt())
    prediction = guided.combined(conditional, unconditional)
    image = clean_image(x, prediction, signal, scheduler.config["prediction_type"])
    conditional_late, unconditional_late = (part[:, :channels] for part in guided.branches(x, late))
    return {
        "noise_difference": noise_difference.magnitude(unconditional, conditional),
        "one_step": one_step.confidence(x / signal, image),
        "cosine": anisotropy.alignment(unconditional_late, conditional_late),
    }


def attack(
    prompts: pd.DataFrame,
    detectors: list[str],
    rates: list[float],
    statistics: config.Statistics,
    seed: int,
) -> pd.DataFrame:
    """Return the table of numbers for the rows of ``prompts.parquet``."""
    table = Results(statistics, seed, "prompts")
    members, others, twin = (
        prompts[prompts["set"] == name] for name in ("train", "holdout", "twin")
    )
    for detector in detectors:

        def separate(
            group: pd.DataFrame, subset: str = "all", kind: str = "", detector: str = detector
        ) -> None:
            # Small numbers come first in a ranking.
            known, unknown = -group[detector].to_numpy(), -others[detector].to_numpy()
            table.contrast(f"{detector}_auc{kind}", ranking.area, known, unknown, subset)
            for rate in rates:
                found = membership.found(known, unknown, rate)
                table.share(f"{detector}_tpr{kind}@{rate:g}", found, subset=subset)

        separate(members)
        for kind, subset, mask in twins.subsets(members):
            separate(members[mask], subset, kind)
        if len(twin):
            separate(twin, kind="_twins")
    return table.frame()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_flags(parser, "model", *membership.INPUTS)
    add_texts(parser)


def run(args: argparse.Namespace) -> None:
    """Attack one arm and store the prompts' numbers."""
    # Read the settings.
    resolved = artifacts.read_config(args.config, STEP)
    keys = dict(resolved["settings"])
    sample = config.Sample(**keys.pop("sample"))
    statistics = config.Statistics(**keys.pop("statistics"))
    settings = config.PromptDetection(arms=[resolved["arm"]], **keys)
    pipeline = trained_pipeline(args.model, sample.weights)
    inputs = files_of(args, membership.INPUTS) | {"model": pipeline}
    inputs |= {"texts": args.texts / FILE}
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        # Choose the prompts.
        texts = Texts.load(args.texts)
        seed, replicate = resolved["seed"], resolved["replicate"]
        prompts = asked(membership.Known.read(args), texts, settings.prompts, seed)
        counts = {
            name: int((prompts["set"] == name).sum()) for name in ("train", "holdout", "twin")
        }

        # Observe the network, and draw.
        net, scheduler_config = load_trained(pipeline, seed, replicate)
        net.to(PartialState().device)
        observed = Detectors(net, scheduler_config, sample, settings, seed)
        captions = prompts["prompt"].to_numpy(str)
        numbers = observed.numbers(texts, captions)
        if settings.images:
            drawn = observed.diameters(texts, captions, Autoencoder.of(pipeline), replicate)
            numbers["cliques"] = -drawn
        prompts = prompts.assign(**numbers)
        if not np.isfinite(prompts[list(numbers)].to_numpy()).all():
            raise artifacts.ArtifactError("a detector's number is not finite")

        # Attack, and write the results.
        enough = min(counts["train"], counts["holdout"]) >= FEWEST
        detectors = list(numbers) if enough else []
        results = attack(prompts, detectors, settings.false_positive_rates, statistics, seed)
        prompts.to_parquet(step.folder / "prompts.parquet", index=False)
        results.to_csv(step.folder / "results.csv", index=False)
        for name, count in counts.items():
            step.metric(f"{name}_prompts", count)
        overall = results[results["subset"] == "all"]
        for metric, value in zip(overall["metric"], overall["value"], strict=True):
            step.metric(metric, value)
        step.note(prompts=counts, measured=enough)
