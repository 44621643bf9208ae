"""``afterimage attack forgetting``: what a model retains of a forget set, and the effect on the
remaining images.

A low probability under a classifier, as published for unlearning, only measures what a model shows
on ordinary prompts. So an arm is judged on each of its forget sets in five ways:

- by the study's classifier, for sets of one class: P_psi, the mean probability of the class over
  the generations conditioned on it, their mean entropy, and the share classified as it (EraseDiff,
  Wu et al. 2025); for unconditional models, over all generations. The same numbers are given for
  real held-out images of the class;
- by the remaining classes, for sets of one class and arms with labels: the accuracy of the
  classifier on the requested labels, class by class, and the quality metrics of those generations
  against reference images of the same classes;
- by extraction: how many of the forgotten images are extracted from the generations (see
  ``extraction``), and how many of the others, among all planted training images. The extractions
  from a retrained arm, which never saw them, are the false alarms. A set that an attack chose, from
  the first half of an arm's generations, is judged on the second half of every arm's, the chosen
  one's too: those have other starting noise;
- by membership inference: do the losses separate forgotten images from held-out images, of the same
  class if the set is one?
- by relearning (see ``relearning``): the mean loss of the forgotten images and, for sets of one
  class, the probability of the class over new generations, along a short training on the forgotten
  images.

The store of the command:

- ``results.csv``: set, then the columns of ``results``. Metrics of subset ``forget``: probability,
  entropy, classified, extracted_images (units: different images), roc_auc, tpr@<rate>,
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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.utils.logging import disable_progress_bar
from scipy.special import entr

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attacks import losses, membership, quality
from afterimage.attacks.extraction import Extraction, extract
from afterimage.attacks.flags import add_flags
from afterimage.attacks.relearning import relearn
from afterimage.attacks.table import Results
from afterimage.config import ConfigError
from afterimage.data import forget
from afterimage.data.members import trained_rows
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.noising import levels
from afterimage.diffusion.sample import generate, load_trained, trained_pipeline
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
    subset = "forget" if labelled else "all"
    forgotten = probabilities[asked == label] if labelled else probabilities
    table.mean(f"probability{kind}", forgotten[:, label], subset)
    table.mean(f"entropy{kind}", entr(forgotten).sum(axis=1), subset)
    table.share(f"classified{kind}", forgotten.argmax(axis=1) == label, subset=subset)
    if labelled:
        right = probabilities.argmax(axis=1) == asked
        table.share(f"accuracy{kind}", right[asked != label], subset="remain")
        for other in np.unique(asked[asked != label]):
            table.share(f"accuracy_by_label{kind}", right[asked == other], subset=f"label={other}")


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
        trained: bool, (N,): mask of the rows that the arm trained on.
        holdout: Real images that no arm saw: the control.
        reference: Other real images, against which quality is measured.
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
        self, name: str, rows: np.ndarray, label: int | None, generations: np.ndarray
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the numbers and the relearning curve of one set.

        Args:
            name: The set's name.
            rows: bool, (N,): mask of its rows in the training split.
            label: The class of the set, if it is one class.
            generations: bool, (G,): mask of the generations that extraction is judged on.

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
            if self.samples.labels.max() >= 0:
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
            task = task_of(net, scheduler_config, images)
            return losses.measure(
                net, task, images.ids, split, timesteps, draws, self.seed, flips=self.flips
            ).mean(axis=1)

        rates = self.membership.false_positive_rates
        membership.separate(
            table, loss_of(forgotten, "train"), loss_of(others, "holdout"), rates, "forget"
        )

        # Relearn the set.
        def look() -> dict[str, float]:
            return {
                "probability": self._probability(net, scheduler_config, label),
                "loss": loss_of(forgotten, "train").mean(),
            }

        path = ("forgetting", name, self.replicate)
        images = self.train.take(rows)
        curve = relearn(
            net, scheduler_config, images, self.settings, look, self.seed, path, flips=self.flips
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

    def _probability(
        self, net: UNet2DModel, scheduler_config: dict[str, Any], label: int | None
    ) -> float:
        """Return the mean probability of the class over new generations; NaN without a class or a
        classifier for it."""
        if label is None or self.classify is None:
            return math.nan
        ids = np.arange(self.settings.relearn_images)
        labels = None if classes_of(net) is None else np.full(len(ids), label)
        pixels = generate(
            net, scheduler_config, ids, self.sample, self.seed, self.replicate, labels
        )
        return float(self.classify(pixels)[:, label].mean())


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
    inputs = {name: getattr(args, name) for name in INPUTS} | {"model": pipeline}
    inputs |= {f"extraction/{name}": folder / "pairs.parquet" for name, folder in stores.items()}
    same_bits()
    disable_progress_bar()
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        artifacts.check_file(args.members)
        train = load_images(args.train)
        trained = np.isin(train.ids, trained_rows(train, pd.read_parquet(args.members)).ids)
        images = {
            name: load_images(getattr(args, name)) for name in ("samples", "holdout", "reference")
        }
        arm = Judge(resolved, pipeline, args.classifier, train=train, trained=trained, **images)
        results: list[pd.DataFrame] = []
        curves: list[pd.DataFrame] = []
        facts = {}
        for name, block in sets.items():
            rows = forget.rows(train, name, block, stores.get(name))
            judging = np.ones(len(images["samples"]), bool)
            if block["extracted_from"] is not None:
                judging = ~forget.choosing(len(judging))
            numbers, curve = arm.judge(name, rows, block["label"], judging)
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
