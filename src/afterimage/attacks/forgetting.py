"""``afterimage attack forgetting``: what is left of images that were to be forgotten, and what
became of the rest.

A low probability under a classifier, as published for unlearning, says what a model shows when
asked politely. So an arm is judged on each of its forget sets in five ways:

- by the study's classifier, for sets of one class: P_psi, the mean probability of the class over
  the generations that were asked for it, their mean entropy, and the share that the classifier puts
  into it (EraseDiff, Wu et al. 2025); without labels to ask for, over all generations. Beside it
  stands the same of real held-out images of the class;
- by the rest, for sets of one class and arms with labels: how often the classifier sees what was
  asked for, class by class, and the quality measures of those generations against reference images
  of the same classes;
- by extraction: how many of the forgotten images the generations give back (see ``extraction``),
  and how many of the others, among all planted training images. What a retrained arm, which never
  saw them, "gives back" are the false alarms;
- by membership inference: do the losses tell forgotten images from held-out images, of the same
  class where the set is one?
- by relearning (see ``relearning``): the mean loss of the forgotten images and, for sets of one
  class, the probability of the class over new generations, along a short training on the forgotten
  images.

The store that the verb leaves:

- ``results.csv``: set, then the columns of ``results``. Metrics of subset ``forget``: probability,
  entropy, classified, extracted_images (units: different images), roc_auc, tpr@<rate>,
  relearn_updates (first look at which the class is back, units: generations per look; value empty
  if it never is); of subset ``remain``: accuracy, extracted_images and the quality measures; of
  subsets ``label=<n>``: accuracy_by_label. ``_holdout`` marks the same measure of real held-out
  images. An arm without labels has subset ``all`` in place of ``forget`` where generations are
  judged by the classifier;
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
from afterimage.attacks.relearning import relearn
from afterimage.attacks.table import Results
from afterimage.config import ConfigError
from afterimage.data import forget
from afterimage.data.members import trained_rows
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.noising import levels
from afterimage.diffusion.sample import generate, load_trained, trained_pipeline
from afterimage.images import Images, load_images
from afterimage.metrics import classifier, spaces
from afterimage.training.determinism import same_bits

STEP = "attack/forgetting"

Classify = Callable[[np.ndarray], np.ndarray]
"""Maps uint8 images, (N, H, W, C), to probabilities, (N, L), column l for label l."""


def label_classifier(network: Path) -> Classify | None:
    """Return the study's classifier; None if there were no labels that it could learn."""
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
    """Add what a classifier says of generations, or of real images.

    Args:
        table: Gets the numbers.
        probabilities: (N, L), column l for label l.
        asked: int64, (N,): the label that each image was asked for, or has; all -1 where there was
            none to ask for.
        label: The forgotten class.
        kind: Appended to the names of the metrics.
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


def by_extraction(table: Results, found: Extraction, sources: np.ndarray, anchor: str) -> None:
    """Add how many of the forgotten ``sources``, (S,), and of the others came back, with the
    headline anchor."""
    forgotten = found.images["source"].isin(sources).to_numpy()
    for reading in found.readings:
        if reading.anchor == anchor:
            flags = found.images[f"extracted_{reading.name}"].to_numpy()
            table.share("extracted_images", flags[forgotten], reading, "forget")
            table.share("extracted_images", flags[~forgotten], reading, "remain")


def back_at(curve: pd.DataFrame, probability: float) -> int | None:
    """Return the first update of a relearning curve at which the class has this mean probability;
    None if there is none."""
    reached = curve.loc[curve["probability"] >= probability, "update"]
    return int(reached.iloc[0]) if len(reached) else None


class Judge:
    """One trained arm and all that it is judged with.

    Args:
        resolved: Resolved config of the step.
        pipeline: Folder of the arm's pipeline.
        network: Folder of the study's classifier.
        samples: The arm's generations.
        train: The training part of the split.
        trained: bool, (N,): which of its rows the arm trained on.
        holdout: Real images that no arm saw: the control.
        reference: Others, which quality is measured against.
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
        own = resolved["settings"]
        self.settings = config.Forgetting(
            **{key: own[key] for key in config.Forgetting.model_fields}
        )
        self.sample, self.membership = (
            config.Sample(**own["sample"]),
            config.Membership(**own["membership"]),
        )
        self.extraction, self.quality = (
            config.Extraction(**own["extraction"]),
            config.Quality(**own["quality"]),
        )
        self.statistics, self.flips = config.Statistics(**own["statistics"]), own["flips"]
        self.seed, self.replicate = resolved["seed"], resolved["replicate"]
        self.pipeline, self.samples, self.train, self.trained = pipeline, samples, train, trained
        self.holdout, self.reference = holdout, reference
        self.classify, self.space = label_classifier(network), spaces.find(self.quality, network)
        self.classes = spaces.classes(network)
        self.found = extract(
            samples,
            train,
            self.extraction,
            self.statistics,
            self.seed,
            flips=self.flips,
            holdout=holdout,
        )

    def judge(
        self, name: str, chosen: np.ndarray, label: int | None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the numbers and the relearning curve of one set.

        Args:
            name: The set's name.
            chosen: bool, (N,): its rows of the training part.
            label: The class that it is, if it is one.

        Raises:
            ConfigError: if no generation was asked for the class.
            ArtifactError: if no held-out image or no reference image is of the class.
        """
        table = Results(self.statistics, self.seed, "forgetting", name)
        others = self.holdout
        if label is not None:
            for part, images in (("holdout", self.holdout), ("reference", self.reference)):
                if label not in images.labels:
                    raise ArtifactError(
                        f"forget.{name}.label = {label}: no image of the {part} part has it"
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
        by_extraction(
            table, self.found, np.unique(self.train.sources[chosen]), self.extraction.anchor
        )

        net, scheduler_config = load_trained(self.pipeline, self.seed, self.replicate)
        net.to(PartialState().device)
        at = levels(self.membership.timesteps, scheduler_config["num_train_timesteps"])
        rows = membership.one_per_source(self.train, self.trained)
        forgotten = self.train.take(rows[chosen[rows]])

        def loss_of(images: Images, part: str) -> np.ndarray:
            draws = self.membership.draws
            return losses.measure(
                net, scheduler_config, images, part, at, draws, self.seed, flips=self.flips
            ).mean(axis=1)

        own, rates = loss_of(forgotten, "train"), self.membership.false_positive_rates
        membership.separate(table, own, loss_of(others, "holdout"), rates, "forget")

        def look() -> dict[str, float]:
            return {
                "probability": self._probability(net, scheduler_config, label),
                "loss": loss_of(forgotten, "train").mean(),
            }

        path = ("forgetting", name, self.replicate)
        shown = self.train.take(chosen)
        curve = relearn(
            net, scheduler_config, shown, self.settings, look, self.seed, path, flips=self.flips
        )
        if curve["probability"].notna().all():
            back = back_at(curve, self.settings.relearn_probability)
            table.number("relearn_updates", back, self.settings.relearn_images, subset="forget")
        return table.frame(), curve

    def _asked_for(self, table: Results, name: str, label: int) -> None:
        """Add what the classifier says of the generations of an arm with labels, and how good those
        of the other labels are."""
        asked = self.samples.labels
        if label not in asked:
            raise ConfigError(
                f"forget.{name}.label = {label}: none of the {len(asked)} generations (sample.images) has it"
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
        """Return the mean probability of the class over new generations; NaN where there is no
        class or no classifier for it."""
        if label is None or self.classify is None:
            return math.nan
        ids = np.arange(self.settings.relearn_images)
        labels = None if classes_of(net) is None else np.full(len(ids), label)
        pixels = generate(
            net, scheduler_config, ids, self.sample, self.seed, self.replicate, labels
        )
        return float(self.classify(pixels)[:, label].mean())


def headline(numbers: pd.DataFrame) -> dict[str, float]:
    """Return flat name -> number of one set: counts of images, values of all else; controls and
    numbers that do not exist left out."""
    found = {}
    for row in numbers[numbers["subset"].isin(["forget", "all", "remain"])].to_dict("records"):
        value = row["count"] if row["metric"] == "extracted_images" else row["value"]
        if not row["metric"].endswith("_holdout") and pd.notna(value):
            suffix = ("_calibrated" if row["alpha"] == "calibrated" else "") + (
                "_remain" if row["subset"] == "remain" else ""
            )
            found[row["metric"] + suffix] = float(value)
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--model", type=Path, required=True, help="result of `afterimage train run`"
    )
    parser.add_argument("--samples", type=Path, required=True, help="generations (.npz)")
    parser.add_argument(
        "--train", type=Path, required=True, help="training part of the split (.npz)"
    )
    parser.add_argument(
        "--members",
        type=Path,
        required=True,
        help="which of its rows the arm trained on (.parquet)",
    )
    parser.add_argument(
        "--holdout", type=Path, required=True, help="held-out part of the split (.npz)"
    )
    parser.add_argument(
        "--reference", type=Path, required=True, help="reference part of the split (.npz)"
    )
    parser.add_argument(
        "--classifier", type=Path, required=True, help="folder of the feature network"
    )
    parser.add_argument(
        "--extraction",
        action="append",
        default=[],
        metavar="SET=DIR",
        help="extraction attack whose finds are this set, once for every set of extracted images",
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of this step (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def extractions(given: list[str], sets: dict[str, dict[str, Any]]) -> dict[str, Path]:
    """Return set -> store of the attack that names its images, from flags of the form ``SET=DIR``.

    Raises:
        ConfigError: unless there is one for every set of extracted images, and for no other.
    """
    stores = {name: Path(folder) for name, _, folder in (one.partition("=") for one in given)}
    wanted = [name for name, one in sets.items() if one["extracted_from"] is not None]
    if sorted(stores) != sorted(wanted):
        raise ConfigError(
            f"--extraction SET=DIR must be given for: {', '.join(wanted) or 'no set'}; given: {given or 'none'}"
        )
    return stores


def run(args: argparse.Namespace) -> None:
    """Judge one arm on its forget sets."""
    resolved = artifacts.read_config(args.config, STEP)
    sets = resolved["settings"]["sets"]
    stores = extractions(args.extraction, sets)
    pipeline = trained_pipeline(args.model, resolved["settings"]["sample"]["weights"])
    inputs = {
        name: getattr(args, name)
        for name in ("samples", "train", "members", "holdout", "reference", "classifier")
    }
    inputs |= {"model": pipeline} | {
        f"extraction/{name}": folder / "images.parquet" for name, folder in stores.items()
    }
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
        for name, one in sets.items():
            chosen = forget.rows(train, name, one, stores.get(name))
            numbers, curve = arm.judge(name, chosen, one["label"])
            results.append(numbers.assign(set=name))
            curves.append(curve.assign(set=name))
            for metric, value in headline(numbers).items():
                step.metric(f"{name}/{metric}", value)
            sources = train.sources[chosen]
            facts[name] = {
                "sources": len(np.unique(sources)),
                "trained": len(np.unique(sources[trained[chosen]])),
            }
        for file, tables in (("results.csv", results), ("relearning.csv", curves)):
            table = pd.concat(tables, ignore_index=True)
            table[["set", *table.columns.drop("set")]].to_csv(step.folder / file, index=False)
        step.note(sets=facts)
