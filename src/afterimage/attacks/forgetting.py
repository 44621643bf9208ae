"""``afterimage attack forgetting``: what a model retains of a forget set, and the effect on the
remaining images.

A low probability under a classifier, as published for unlearning, only measures what a model shows
on ordinary prompts. So an arm is judged on each of its forget sets in five ways:

- by the study's classifier, for sets of one class: P_psi, the mean probability of the class over
  the generations conditioned on it, their mean entropy, and the share classified as it (EraseDiff,
  Wu et al. 2025); for unconditional models, over all generations. The same numbers are given for
  real held-out images of the class;
- by the remaining classes, for sets of one class and arms with labels, and for sets by class or by
  caption and arms with captions: the accuracy of the classifier on the requested labels, class by
  class, and the quality metrics of those generations against reference images of the same classes.
  A prompt asks for the label that all training images with this caption have; where they have
  several, it asks for none;
- by extraction: how many of the forgotten images are extracted from the generations (see
  ``extraction``), and how many of the others, among all planted training images. The extractions
  from a retrained arm, which never saw them, are the false alarms. A set that an attack chose, from
  the first half of an arm's generations, is judged on the second half of every arm's, the chosen
  one's too: those have other starting noise;
- by membership inference: do the losses separate forgotten images from held-out images, of the same
  class if the set is one, with the same words in their captions if it is a set by caption?
- by relearning (see ``relearning``): the mean loss of the forgotten images and, for sets of one
  class, the probability of the class over new generations, along a short training on the forgotten
  images.

Prompts of arms that are conditioned on captions need not ask for forgotten images. For such arms
``relearn_images`` generations are drawn for captions of forgotten images, those of all sources in
turn, and

- the classifier judges these, for a set of one class and for a set by caption whose images all have
  one label, before and along the relearning;
- they are compared with the training images, under the thresholds of the extraction attack: how
  many of them are copies of forgotten images, and how many of the forgotten images do they copy?
- for the forgotten images with the most copies an embedding is sought that brings them back, and for
  held-out images (see ``dori``);
- the remaining images' accuracy and quality, for sets by class or by caption, are those of the
  arm's generations for prompts that no forgotten image has, against reference images outside the
  set.

Losses are measured, and images relearned, with their captions. Where no held-out image has the
words of a set by caption, it is not compared with any: the numbers of membership are missing.

The store of the command:

- ``results.csv``: set, then the columns of ``results``. Metrics of subset ``forget``: probability,
  entropy, classified, extracted_images (units: different images), with captions copied (units:
  generations), copied_images and brought_back (units: different images), roc_auc, tpr@<rate>,
  relearn_updates (first evaluation at which the class is back, units: generations per evaluation;
  value empty if it never is); of subset ``remain``: accuracy, extracted_images and the quality
  metrics; of subsets ``label=<n>``: accuracy_by_label. ``_holdout`` marks the same metric on real
  held-out images. For an unconditional arm the subset of generations judged by the classifier is
  ``all`` instead of ``forget``;
- ``relearning.csv``: set, update, probability (empty for sets of more than one class), loss.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.utils.logging import disable_progress_bar
from scipy.special import entr

from afterimage import artifacts, config, seeds
from afterimage.artifacts import ArtifactError
from afterimage.attacks import adaptive, dori, losses, membership, quality
from afterimage.attacks.extraction import Extraction, extract
from afterimage.attacks.flags import add_flags, add_latents, add_texts, files_of
from afterimage.attacks.relearning import relearn
from afterimage.attacks.table import Results
from afterimage.attacks.target import Target
from afterimage.config import ConfigError
from afterimage.data import forget
from afterimage.data.members import seen, trained_mask
from afterimage.diffusion.autoencoder import Autoencoder
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.latents import FILE as LATENTS
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.noising import levels
from afterimage.diffusion.sample import generate, load_trained, trained_pipeline
from afterimage.diffusion.texts import FILE, Texts
from afterimage.images import Images, load_images
from afterimage.metrics import classifier, spaces
from afterimage.training.determinism import same_bits

STEP = "attack/forgetting"
INPUTS = ("samples", "train", "members", "holdout", "reference", "classifier")
"""Files and folders that are read besides the network."""

Classify = Callable[[np.ndarray], np.ndarray]
"""Maps uint8 images, (N, H, W, C), to probabilities, (N, L), column l for label l."""


def label_classifier(network: Path) -> Classify | None:
    """Return the study's classifier; None if it was trained without labels."""
    _, description = classifier.load(network)
    if description.task != "labels":
        return None

    def classify(pixels: np.ndarray) -> np.ndarray:
        probabilities = np.zeros((len(pixels), max(description.classes) + 1))
        probabilities[:, description.classes] = classifier.predict(network, pixels)
        return probabilities

    return classify


def recognised(
    table: Results, probabilities: np.ndarray, label: int, subset: str, kind: str = ""
) -> None:
    """Add how far the classifier sees the class ``label`` in images with these probabilities, (N,
    L): its mean probability, the entropy, and the share classified as it."""
    table.mean(f"probability{kind}", probabilities[:, label], subset)
    table.mean(f"entropy{kind}", entr(probabilities).sum(axis=1), subset)
    table.share(f"classified{kind}", probabilities.argmax(axis=1) == label, subset=subset)


def by_class(
    table: Results, probabilities: np.ndarray, asked: np.ndarray, label: int, kind: str = ""
) -> None:
    """Add the classifier's numbers for generations, or for real images.

    Args:
        table: Table that the numbers are added to.
        probabilities: (N, L), column l for label l.
        asked: int64, (N,): the label that each image is conditioned on, or has; all -1 for
            unconditional generations.
        label: The forgotten class.
        kind: Suffix of the metrics' names.
    """
    labelled = asked.min() >= 0
    forgotten = probabilities[asked == label] if labelled else probabilities
    recognised(table, forgotten, label, "forget" if labelled else "all", kind)
    if labelled:
        accuracy(table, probabilities[asked != label], asked[asked != label], kind)


def accuracy(table: Results, probabilities: np.ndarray, asked: np.ndarray, kind: str = "") -> None:
    """Add how often the classifier sees the label that remaining images were asked for, or have.

    Args:
        table: Table that the numbers are added to.
        probabilities: (N, L), column l for label l.
        asked: int64, (N,): their labels.
        kind: Suffix of the metrics' names.
    """
    right = probabilities.argmax(axis=1) == asked
    table.share(f"accuracy{kind}", right, subset="remain")
    for label in np.unique(asked):
        table.share(f"accuracy_by_label{kind}", right[asked == label], subset=f"label={label}")


def labels_of(prompts: np.ndarray, captions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the label that a prompt asks for, int64 (G,): that of all training images with this
    caption; -1 where they have several, or none.

    Args:
        prompts: text, (G,).
        captions: text, (N,), of the training images.
        labels: int64, (N,), of the training images.
    """
    of_caption = pd.Series(labels).groupby(captions)
    least, most = of_caption.min(), of_caption.max()
    only = least.where(least == most, -1)
    return only.reindex(prompts, fill_value=-1).to_numpy(np.int64)


def by_extraction(
    table: Results,
    extraction: Extraction,
    sources: np.ndarray,
    anchor: str,
    generations: np.ndarray,
) -> None:
    """Add how many of the forgotten ``sources``, (S,), and of the others were extracted from some
    generations, given as a mask, bool, (G,), with the headline anchor."""
    forgotten = extraction.images["source"].isin(sources).to_numpy()
    for reading in extraction.readings:
        if reading.anchor == anchor:
            flagged = extraction.pairs[f"flagged_{reading.name}"].to_numpy(bool)
            shown = extraction.pairs["nearest_source"][flagged & generations]
            flags = extraction.images["source"].isin(shown).to_numpy()
            table.share("extracted_images", flags[forgotten], reading, "forget")
            table.share("extracted_images", flags[~forgotten], reading, "remain")


def only_label(labels: np.ndarray) -> int | None:
    """Return the label that all images have, int64 (N,); None if they differ or have none."""
    different = np.unique(labels)
    return int(different[0]) if len(different) == 1 and different[0] >= 0 else None


def back_at(curve: pd.DataFrame, probability: float) -> int | None:
    """Return the first update of a relearning curve at which the class has at least this mean
    probability; None if there is none."""
    reached = curve.loc[curve["probability"] >= probability, "update"]
    return int(reached.iloc[0]) if len(reached) else None


class Judge:
    """One trained arm and everything it is judged with.

    Args:
        resolved: Resolved config of the step.
        pipeline: Folder of the arm's pipeline.
        network: Folder of the study's classifier.
        samples: The arm's generations.
        train: The training split.
        trained: bool, (N,): mask of the rows that the arm's weights have seen.
        holdout: Real images that no arm saw: the control.
        reference: Other real images, against which quality is measured.
        texts: Embeddings of captions, for an arm that is conditioned on them.
        latents: Latents of the images, for an arm that denoises those.
    """

    def __init__(
        self,
        resolved: dict[str, Any],
        pipeline: Path,
        network: Path,
        samples: Images,
        train: Images,
        trained: np.ndarray,
        holdout: Images,
        reference: Images,
        texts: Texts | None = None,
        latents: EncodedImages | None = None,
    ) -> None:
        settings = resolved["settings"]
        self.settings = config.Forgetting(
            **{key: settings[key] for key in config.Forgetting.model_fields}
        )
        self.sample = config.Sample(**settings["sample"])
        self.membership = config.Membership(**settings["membership"])
        self.extraction = config.Extraction(**settings["extraction"])
        self.quality = config.Quality(**settings["quality"])
        self.statistics = config.Statistics(**settings["statistics"])
        self.flips, self.mirrors = settings["flips"], settings["mirrors"]
        self.seed, self.replicate = resolved["seed"], resolved["replicate"]
        self.pipeline, self.samples, self.train, self.trained = pipeline, samples, train, trained
        self.holdout, self.reference = holdout, reference
        self.texts, self.latents = texts, latents
        self.autoencoder = Autoencoder.of(pipeline)
        self.classify, self.space = label_classifier(network), spaces.find(self.quality, network)
        self.classes = spaces.classes(network)
        self.extracted = extract(
            samples,
            train,
            self.extraction,
            self.statistics,
            self.seed,
            flips=self.mirrors,
            holdout=holdout,
        )

    def judge(
        self,
        name: str,
        rows: np.ndarray,
        label: int | None,
        generations: np.ndarray,
        words: str | None = None,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the numbers and the relearning curve of one set.

        Args:
            name: The set's name.
            rows: bool, (N,): mask of its rows in the training split.
            label: The class of the set, if it is one class.
            generations: bool, (G,): mask of the generations that extraction is judged on.
            words: What the set's captions contain, if it is a set by caption.

        Raises:
            ConfigError: if no generation is conditioned on the class.
            ArtifactError: if the held-out or the reference split has no image of the class.
        """
        # Judge the generations by the classifier and by the extraction attack.
        table = Results(self.statistics, self.seed, "forgetting", name)
        others = self.holdout
        if label is not None:
            for split, images in (("holdout", self.holdout), ("reference", self.reference)):
                if label not in images.labels:
                    raise ArtifactError(
                        f"forget.{name}.label = {label}: no image of the {split} split has it"
                    )
            others = others.take(others.labels == label)
            if self.texts is not None:
                self._other_prompts(table, rows, lambda images: images.labels != label)
            elif self.samples.labels.max() >= 0:
                self._asked_for(table, name, label)
            elif self.classify is not None:
                by_class(table, self.classify(self.samples.pixels), self.samples.labels, label)
                by_class(
                    table,
                    self.classify(self.holdout.pixels),
                    np.full(len(self.holdout), -1),
                    label,
                    "_holdout",
                )
        if words is not None:
            others = others.take(forget.mentions(others.captions, words))
            if self.texts is not None:
                self._other_prompts(
                    table, rows, lambda images: ~forget.mentions(images.captions, words)
                )
        sources = np.unique(self.train.sources[rows])
        by_extraction(table, self.extracted, sources, self.extraction.anchor, generations)

        # Infer membership from the losses.
        net, scheduler_config = load_trained(self.pipeline, self.seed, self.replicate)
        net.to(PartialState().device)
        timesteps = levels(self.membership.timesteps, scheduler_config["num_train_timesteps"])
        unique_rows = membership.one_per_source(self.train, self.trained)
        forgotten = self.train.take(unique_rows[rows[unique_rows]])

        def loss_of(images: Images, split: str) -> np.ndarray:
            draws = self.membership.draws
            task = task_of(net, scheduler_config, images, self.texts, self.latents)
            return losses.measure(
                net, task, images.ids, split, timesteps, draws, self.seed, flips=self.flips
            ).mean(axis=1)

        rates = self.membership.false_positive_rates
        if len(others):
            membership.separate(
                table, loss_of(forgotten, "train"), loss_of(others, "holdout"), rates, "forget"
            )

        # Draw generations for the forgotten captions.
        seen_as, prompts = label, None
        if self.texts is not None:
            prompts = self._prompts(name, rows)
            pixels = self._drawn(net, scheduler_config, label, prompts)
            self._copied(table, pixels, sources)
            self._brought_back(table, net, scheduler_config, rows, others)
            if words is not None:
                seen_as = only_label(self.train.labels[rows])
            if seen_as is not None and self.classify is not None:
                recognised(table, self.classify(pixels), seen_as, "forget")
                if len(others):
                    held_out = self.classify(others.pixels)
                    recognised(table, held_out, seen_as, "forget", "_holdout")

        # Relearn the set.
        def look() -> dict[str, float]:
            probability = math.nan
            if seen_as is not None and self.classify is not None:
                drawn = self._drawn(net, scheduler_config, label, prompts)
                probability = float(self.classify(drawn)[:, seen_as].mean())
            return {"probability": probability, "loss": loss_of(forgotten, "train").mean()}

        path = ("forgetting", name, self.replicate)
        images = self.train.take(rows)
        curve = relearn(
            net,
            scheduler_config,
            images,
            self.settings,
            look,
            self.seed,
            path,
            flips=self.flips,
            texts=self.texts,
            latents=self.latents,
        )
        if curve["probability"].notna().all():
            back = back_at(curve, self.settings.relearn_probability)
            table.number("relearn_updates", back, self.settings.relearn_images, subset="forget")
        return table.frame(), curve

    def _asked_for(self, table: Results, name: str, label: int) -> None:
        """Add the classifier's numbers for the generations of an arm with labels, and the quality
        of those with other labels."""
        asked = self.samples.labels
        if label not in asked:
            raise ConfigError(
                f"forget.{name}.label = {label}: none of the {len(asked)} generations "
                "(sample.images) has it"
            )
        if self.classify is not None:
            by_class(table, self.classify(self.samples.pixels), asked, label)
            by_class(
                table, self.classify(self.holdout.pixels), self.holdout.labels, label, "_holdout"
            )
        rest, reference, holdout = (
            images.take(images.labels != label)
            for images in (self.samples, self.reference, self.holdout)
        )
        self._quality(table, rest, reference, holdout)

    def _other_prompts(
        self, table: Results, rows: np.ndarray, outside: Callable[[Images], np.ndarray]
    ) -> None:
        """Add the quality of the generations whose prompts are no captions of forgotten images, and
        the classifier's accuracy on those whose prompts ask for one label.

        Args:
            table: Table that the numbers are added to.
            rows: bool, (N,): mask of the set's rows in the training split.
            outside: Returns the mask of the images that do not belong to the set.
        """
        assert self.texts is not None
        captions = self.texts.captions_of(self.train)
        rest = self.samples.take(~np.isin(self.samples.captions, captions[rows]))
        reference, holdout = (
            images.take(outside(images)) for images in (self.reference, self.holdout)
        )
        asked = labels_of(rest.captions, captions, self.train.labels)
        if self.classify is not None and (asked >= 0).any():
            accuracy(table, self.classify(rest.pixels[asked >= 0]), asked[asked >= 0])
            accuracy(table, self.classify(holdout.pixels), holdout.labels, "_holdout")
        self._quality(table, rest, reference, holdout)

    def _quality(self, table: Results, rest: Images, reference: Images, holdout: Images) -> None:
        """Add the quality of the generations ``rest``, and of held-out images."""
        measured = quality.measure(
            rest,
            reference,
            self.quality,
            self.statistics,
            self.seed,
            self.space,
            self.classes,
            holdout=holdout,
        )
        for metric, of, value, low, high in measured.itertuples(index=False):
            kind, images = {"generations": ("", rest), "holdout": ("_holdout", holdout)}[of]
            table.number(f"{metric}{kind}", value, len(images), (low, high), "remain")

    def _prompts(self, name: str, rows: np.ndarray) -> tuple[Texts, torch.Tensor]:
        """Return the embeddings, and the row of each prompt: the captions of the sources of a set
        in random order and in turn, the same for every arm."""
        assert self.texts is not None
        _, first = np.unique(self.train.sources[rows], return_index=True)
        captions = self.texts.captions_of(self.train)[rows][first]
        rng = seeds.numpy_rng(self.seed, "forgetting", name, self.replicate, "prompts")
        order = np.resize(rng.permutation(len(captions)), self.settings.relearn_images)
        return self.texts, self.texts.rows(captions[order])

    def _drawn(
        self,
        net: UNet2DModel,
        scheduler_config: dict[str, Any],
        label: int | None,
        prompts: tuple[Texts, torch.Tensor] | None,
    ) -> np.ndarray:
        """Return new generations of the class, or for the prompts, uint8 (M, H, W, C).

        Those for prompts have other starting noise than the arm's own, which may have chosen the
        set.
        """
        ids = np.arange(self.settings.relearn_images)
        labels = None if classes_of(net) is None else np.full(len(ids), label)
        prompted = seeds.derive(self.seed, "forgetting", "prompted")
        seed = self.seed if prompts is None else prompted
        return generate(
            net,
            scheduler_config,
            ids,
            self.sample,
            seed,
            self.replicate,
            labels,
            prompts,
            self.autoencoder,
        )

    def _copied(self, table: Results, pixels: np.ndarray, sources: np.ndarray) -> None:
        """Add how many generations, uint8 (M, H, W, C), are copies of the forgotten ``sources``,
        (S,), and how many of those they copy, with the headline anchor."""
        scores = Target(self.train.pixels, self.extraction, self.mirrors).score(pixels)
        nearest = self.train.sources[scores.row]
        for reading in self.extracted.readings:
            if reading.anchor == self.extraction.anchor:
                flagged = adaptive.flagged(scores.relative[reading.anchor], reading.value)
                copies = flagged & np.isin(nearest, sources)
                table.share("copied", copies, reading, "forget")
                copied = np.isin(sources, nearest[copies])
                table.share("copied_images", copied, reading, "forget")

    def _brought_back(
        self,
        table: Results,
        net: UNet2DModel,
        scheduler_config: dict[str, Any],
        rows: np.ndarray,
        others: Images,
    ) -> None:
        """Add how many forgotten images some embedding brings back (``dori``), and how many
        held-out ones: an image is back if one of the generations for its embedding is a copy of it,
        among the training images and these held-out ones.

        Args:
            table: Table that the numbers are added to.
            net: The network.
            scheduler_config: Config of its scheduler.
            rows: bool, (N,): mask of the set's rows in the training split.
            others: Held-out images like those of the set; where there are too few, others.
        """
        most, each = self.settings.embedding_images, self.settings.embedding_generations
        if not most:
            return
        forgotten = self._most_copied(rows, most)
        control = others if len(others) >= len(forgotten) else self.holdout
        control = control.take(np.arange(len(control)) < len(forgotten))
        gallery = np.concatenate([self.train.pixels, control.pixels])
        target = Target(gallery, self.extraction, self.mirrors)
        numbers = {
            "": np.concatenate([self.train.sources, np.full(len(control), -1)]),
            "_holdout": np.concatenate([np.full(len(self.train), -1), control.ids]),
        }
        for kind, images, names in (
            ("", forgotten, forgotten.sources),
            ("_holdout", control, control.ids),
        ):
            scores = target.score(self._for_embeddings(net, scheduler_config, images))
            shown = numbers[kind][scores.row] == names.repeat(each)
            for reading in self.extracted.readings:
                if reading.anchor == self.extraction.anchor:
                    copies = shown & adaptive.flagged(
                        scores.relative[reading.anchor], reading.value
                    )
                    back = copies.reshape(len(images), each).any(axis=1)
                    table.share(f"brought_back{kind}", back, reading, "forget")

    def _most_copied(self, rows: np.ndarray, most: int) -> Images:
        """Return one row of each forgotten source, at most ``most``, those with the most copies
        first, of equally many in random order."""
        sources, first, copies = np.unique(
            self.train.sources[rows], return_index=True, return_counts=True
        )
        rng = seeds.numpy_rng(self.seed, "forgetting", self.replicate, "embeddings")
        order = np.lexsort((rng.permutation(len(sources)), -copies))[:most]
        return self.train.take(np.flatnonzero(rows)[first[order]])

    def _for_embeddings(
        self, net: UNet2DModel, scheduler_config: dict[str, Any], images: Images
    ) -> np.ndarray:
        """Return generations for an embedding optimised for each image, uint8 (N * G, H, W, C), G
        for each, one image after the other."""
        assert self.texts is not None
        task = task_of(net, scheduler_config, images, self.texts, self.latents)
        found = dori.optimised(net, task, images.ids, self.texts.null, self.settings, self.seed)
        texts = replace(self.texts, embeddings=found)
        each = self.settings.embedding_generations
        prompts = texts, torch.arange(len(images)).repeat_interleave(each)
        seed = seeds.derive(self.seed, "forgetting", "embeddings")
        ids = np.arange(len(images) * each)
        return generate(
            net,
            scheduler_config,
            ids,
            self.sample,
            seed,
            self.replicate,
            None,
            prompts,
            self.autoencoder,
        )


def headline(numbers: pd.DataFrame) -> dict[str, float]:
    """Return flat name -> number of one set: counts of images, values of all other metrics, without
    controls and missing numbers."""
    flat = {}
    for row in numbers[numbers["subset"].isin(["forget", "all", "remain"])].to_dict("records"):
        value = row["count"] if row["metric"] == "extracted_images" else row["value"]
        if not row["metric"].endswith("_holdout") and pd.notna(value):
            suffix = ("_calibrated" if row["alpha"] == "calibrated" else "") + (
                "_remain" if row["subset"] == "remain" else ""
            )
            flat[row["metric"] + suffix] = float(value)
    return flat


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_flags(parser, "model", *INPUTS)
    add_texts(parser)
    add_latents(parser)
    parser.add_argument(
        "--extraction",
        action="append",
        default=[],
        metavar="SET=DIR",
        help="extraction attack that defines this set, once for every set of extracted images",
    )


def extractions(flags: list[str], sets: dict[str, dict[str, Any]]) -> dict[str, Path]:
    """Return set -> store of the attack that defines it, from flags of the form ``SET=DIR``.

    Raises:
        ConfigError: unless there is exactly one for every set of extracted images.
    """
    stores = {name: Path(folder) for name, _, folder in (flag.partition("=") for flag in flags)}
    required = [name for name, block in sets.items() if block["extracted_from"] is not None]
    if sorted(stores) != sorted(required):
        raise ConfigError(
            f"--extraction SET=DIR must be given for: {', '.join(required) or 'no set'}; given: "
            f"{flags or 'none'}"
        )
    return stores


def run(args: argparse.Namespace) -> None:
    """Judge one arm on its forget sets."""
    resolved = artifacts.read_config(args.config, STEP)
    sets = resolved["settings"]["sets"]
    stores = extractions(args.extraction, sets)
    pipeline = trained_pipeline(args.model, resolved["settings"]["sample"]["weights"])
    inputs = files_of(args, INPUTS) | {"model": pipeline}
    inputs |= {f"extraction/{name}": folder / "pairs.parquet" for name, folder in stores.items()}
    inputs |= {"texts": args.texts / FILE} if args.texts else {}
    inputs |= {"latents": args.latents / LATENTS} if args.latents else {}
    same_bits()
    disable_progress_bar()
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        train = load_images(args.train)
        trained = trained_mask(train, seen(args.members))
        images = {
            name: load_images(getattr(args, name)) for name in ("samples", "holdout", "reference")
        }
        arm = Judge(
            resolved,
            pipeline,
            args.classifier,
            train=train,
            trained=trained,
            texts=Texts.load(args.texts) if args.texts else None,
            latents=EncodedImages.load(args.latents) if args.latents else None,
            **images,
        )
        results: list[pd.DataFrame] = []
        curves: list[pd.DataFrame] = []
        facts = {}
        for name, block in sets.items():
            rows = forget.rows(train, name, block, stores.get(name))
            judging = np.ones(len(images["samples"]), bool)
            if block["extracted_from"] is not None:
                judging = ~forget.choosing(len(judging))
            numbers, curve = arm.judge(name, rows, block["label"], judging, block["caption"])
            results.append(numbers.assign(set=name))
            curves.append(curve.assign(set=name))
            for metric, value in headline(numbers).items():
                step.metric(f"{name}/{metric}", value)
            sources = train.sources[rows]
            facts[name] = {
                "sources": len(np.unique(sources)),
                "trained": len(np.unique(sources[trained[rows]])),
                "generations_judged": int(judging.sum()),
            }
        for file, tables in (("results.csv", results), ("relearning.csv", curves)):
            table = pd.concat(tables, ignore_index=True)
            table[["set", *table.columns.drop("set")]].to_csv(step.folder / file, index=False)
        step.note(sets=facts)
