"""``afterimage attack prompts``: do detectors of memorised prompts know the captions of training?

Each caption that the arm was trained on is asked for from the same noises, and so are captions of
held-out images. A detector's number is large for a memorised prompt: ``noise_difference`` (Wen et
al. 2024), ``one_step`` (Webster 2023) and ``anisotropy`` (Asthana and Belagiannis 2026) at the
first step of the study's sampler, averaged over the noises; and ``cliques``, if images are drawn,
minus the diameter of those that agree best (Carlini et al. 2023, section 4.2). See
``attacks.prompts``. If images are drawn, they are also searched for training images
(``prompt_extraction``).

Captions are those of the arm's variant, each counted once. A held-out image's caption that an image
of the training set has, too, is no held-out text and is left out, as is a twin's.

The store of the command:

- ``prompts.parquet``: one row per caption: set (train, holdout, twin), id and source of its image,
  copies, repeat and times (as planted, see ``twins.Planted``; 0, neither and 0 for a held-out
  image), prompt, and the number of every detector; if images are drawn, the columns of
  ``prompt_extraction``, too;
- ``results.csv``: with the columns of ``table.Results``, for every detector ``<detector>_auc``, the
  area under the curve of captions of training before held-out ones, and
  ``<detector>_tpr@<rate>``; with ``_by_copies`` or ``_by_repeat`` before the rate for what was
  planted (``twins.subsets``), and ``_twins`` for twins, the control, whose area should be one half.
  If images are drawn, the shares of prompts ``prompt_extraction.SHARES`` of captions of training
  (subset all, and by what was planted), of twins and of held-out images (subsets twins, holdout);
  a caption that no image of the training set has can have no image of its own, and without held-out
  images there is no ``prompts_false``;
- ``ranked.csv``: the captions of training in the order of how well their images agree
  (``prompt_extraction.ranked``); without rows if no images are drawn.

With fewer than ``FEWEST`` captions of training or of held-out images nothing is measured, and the
facts say so. They also have the largest distance of two images that are joined (``edge``), the
number of prompts for which a search for cliques was given up, and how many different training
images and how many held-out ones the medoids are compared with.
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
from afterimage.attacks import membership, prompt_extraction, twins
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
from afterimage.images import different
from afterimage.metrics import near_duplicates, ranking

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

    def drawn(
        self, texts: Texts, prompts: np.ndarray, autoencoder: Autoencoder | None, replicate: int
    ) -> np.ndarray:
        """Return the images of each prompt, uint8 (n, images, H, W, C)."""
        images = self.settings.images
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
        return pixels.reshape(len(prompts), images, *pixels.shape[1:])


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
    if "cliques" in detectors:
        groups = [("all", members)]
        groups += [(subset, members[mask]) for _, subset, mask in twins.subsets(members)]
        groups += [("twins", twin)] if len(twin) else []
        for subset, group in [*groups, ("holdout", others)]:
            for name, mask in prompt_extraction.shares(group).items():
                impossible = name == "prompts_own" and subset in ("twins", "holdout")
                without = name == "prompts_false" and group["holdout_l2"].isna().any()
                if not (impossible or without):
                    table.share(name, mask, subset=subset)
    return table.frame()


def _extracted(
    drawn: np.ndarray,
    prompts: np.ndarray,
    known: membership.Known,
    texts: Texts,
    settings: config.PromptDetection,
    seed: int,
    delta: float,
    flips: bool,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the columns of ``prompts.parquet`` that the images of each prompt give, and facts."""
    across = cliques.across(drawn, seeds.numpy_rng(seed, "prompts", "across"))
    edge = float(np.quantile(across, settings.edge_quantile))
    agreed, given_up = prompt_extraction.agreement(drawn, settings.clique, edge)
    medoids = drawn[np.arange(len(drawn)), agreed["medoid"]]
    train = known.train.take(known.trained)
    alike = near_duplicates.find(known.holdout.pixels, train.pixels, flips).rows >= 0
    holdout = known.holdout.take(~alike)
    near = prompt_extraction.compared(
        medoids, prompts, train, texts.captions_of(train), holdout, delta, flips
    )
    return agreed.join(near), {
        "edge": None if np.isnan(edge) else edge,
        "searches_given_up": given_up,
        "training_images": len(different(train.pixels, flips)[0]),
        "holdout_images": len(holdout),
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_flags(parser, "model", *membership.INPUTS)
    add_texts(parser)


def run(args: argparse.Namespace) -> None:
    """Attack one arm and store the prompts' numbers."""
    # Read the settings.
    resolved = artifacts.read_config(args.config, STEP)
    keys = dict(resolved["settings"])
    delta, flips = keys.pop("delta"), keys.pop("mirrors")
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
        known = membership.Known.read(args)
        prompts = asked(known, texts, settings.prompts, seed)
        counts = {
            name: int((prompts["set"] == name).sum()) for name in ("train", "holdout", "twin")
        }

        # Observe the network, and draw.
        net, scheduler_config = load_trained(pipeline, seed, replicate)
        net.to(PartialState().device)
        observed = Detectors(net, scheduler_config, sample, settings, seed)
        captions = prompts["prompt"].to_numpy(str)
        numbers = observed.numbers(texts, captions)
        prompts, detectors = prompts.assign(**numbers), list(numbers)
        if settings.images:
            drawn = observed.drawn(texts, captions, Autoencoder.of(pipeline), replicate)
            found, facts = _extracted(drawn, captions, known, texts, settings, seed, delta, flips)
            prompts, detectors = prompts.join(found), [*detectors, "cliques"]
            step.note(**facts)
        if not np.isfinite(prompts[detectors].to_numpy()).all():
            raise artifacts.ArtifactError("a detector's number is not finite")

        # Attack, and write the results.
        enough = min(counts["train"], counts["holdout"]) >= FEWEST
        detectors = detectors if enough else []
        results = attack(prompts, detectors, settings.false_positive_rates, statistics, seed)
        ranked = pd.DataFrame(columns=prompt_extraction.RANKED)
        if "cliques" in detectors:
            ranked = prompt_extraction.ranked(prompts[prompts["set"] == "train"])
        ranked.to_csv(step.folder / "ranked.csv", index=False)
        prompts.to_parquet(step.folder / "prompts.parquet", index=False)
        results.to_csv(step.folder / "results.csv", index=False)
        for name, count in counts.items():
            step.metric(f"{name}_prompts", count)
        overall = results[results["subset"] == "all"]
        for metric, value in zip(overall["metric"], overall["value"], strict=True):
            step.metric(metric, value)
        step.note(prompts=counts, measured=enough)
