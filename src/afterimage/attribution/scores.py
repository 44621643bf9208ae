"""``afterimage attribution scores``: compute the scores of every attributor and evaluate them.

Three evaluations: the linear data-modelling score (LDS) against retrained networks
(``judges.lds``), for each set of queries; for extracted generations, whether the copies of the
training image that they show come first (``judges.copies``); and, for captions that are composed of
concepts, whether images with those of a query do (``judges.concepts``). Regularisers and empirical influences are fitted to
the first half of the subsets; results are reported on the second. Retraining is measured by two
targets (``judges.retraining_effect``): the loss, as published, and the shift of the prediction.
Empirical influences, and the scores that are stored, are those for the loss.

The result:

- ``lds.csv``: one row per attributor, set of queries and target: regulariser, lds with low and
  high, undefined (queries without a rank correlation), oracle_regulariser, oracle, seconds (for
  scoring), and with several seeds ceiling (with low and high), between_seeds and of_ceiling (lds /
  ceiling), and repeatability (``judges.repeatability``), NaN for attributors that do not come from
  the gradients of one network;
- ``differences.csv``: one row per pair of attributors, set of queries and target: difference of the
  two scores with low and high, paired by subset and query, p and p_adjusted
  (``judges.differences``);
- ``units.parquet``: what each reported subset says of every score in ``lds.csv``, attributor,
  queries, target, subset, lds and ceiling (NaN with one seed); ``paired.parquet``: the
  same of every difference. They are pseudo-values of the jackknife (``lds.pseudo_values``), from
  which the scores of several networks are combined;
- ``regularisers.csv``: the score for every regulariser, on the first and on the second half of the
  subsets;
- ``copies.csv``: one row per attributor and extracted query: copies, recall (the share of the m
  copies among the m top-ranked images), chance;
- ``concepts.csv``: one row per attributor, query and concept: queries, query, word, combination,
  area, images_error (``judges.concepts``); empty unless the study names concepts;
- ``first.parquet``: the top-ranked training images of every query, for every attributor:
  attributor, queries, query, rank, id, score;
- ``leverage.csv``: for every regulariser, how well a low leverage separates images with copies from
  images without (area under the ROC curve); empty unless there are both;
- ``scores.safetensors``: ``<attributor>/<set>``, float32 (Q, N), with the chosen regulariser.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from afterimage import artifacts, config
from afterimage.attribution import attributors
from afterimage.attribution.attributors.inputs import AttributionInputs, ImageFeatures
from afterimage.attribution.consistency import (
    check_consistent,
    read_features,
    read_retraining_effects,
)
from afterimage.attribution.flags import add_inputs
from afterimage.attribution.judges import concepts, copies, differences, lds, subsets
from afterimage.attribution.judges.repeatability import Draws
from afterimage.attribution.queries import EXTRACTED, SETS
from afterimage.attribution.ranking import check_finite, top_images
from afterimage.attribution.replicate import root_seed
from afterimage.config.attribution import ATTRIBUTOR_TABLE, TARGETS
from afterimage.data.members import trained_rows
from afterimage.images import Images, load_images
from afterimage.metrics import classifier

STEP = "attribution/scores"
NOT_OF_FEATURES = ("network", "block", "images_per_job", "queries", "journey")
"""Settings of features that say which images they are of, or whose network."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_inputs(parser, "train", "members", "queries")
    parser.add_argument(
        "--features",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="features at the final network, training blocks in order",
    )
    parser.add_argument(
        "--states",
        type=Path,
        nargs="*",
        default=[],
        metavar="DIR",
        help="features at earlier checkpoints, in order",
    )
    parser.add_argument(
        "--repeat",
        type=Path,
        nargs="*",
        default=[],
        metavar="DIR",
        help="features of some images under other noise",
    )
    parser.add_argument(
        "--retrain",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="losses under retrained networks",
    )
    parser.add_argument(
        "--classifier",
        type=Path,
        required=True,
        metavar="DIR",
        help="classifier for the feature similarity",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def image_features(
    images: Images,
    stored: dict[str, np.ndarray],
    sets: tuple[str, ...],
    embedding: np.ndarray | None = None,
) -> ImageFeatures:
    """Return the stored features of some sets, concatenated.

    Where a set lacks a feature (``journey``), it is 0.

    Args:
        images: The images of the sets, concatenated.
        stored: ``<set>/<feature>`` -> array, from ``read_features``.
        sets: Names of the sets.
        embedding: A classifier's features of the images, or None.
    """
    sizes = {name: len(stored[f"{name}/residual"]) for name in sets}
    features = dict.fromkeys(
        feature for name, _, feature in (key.partition("/") for key in stored) if name in sets
    )

    def concatenated(feature: str) -> np.ndarray:
        if len(sets) == 1:
            return stored[f"{sets[0]}/{feature}"]
        example = next(
            stored[f"{name}/{feature}"] for name in sets if f"{name}/{feature}" in stored
        )
        return np.concatenate(
            [
                stored.get(f"{name}/{feature}", np.zeros((size, *example.shape[1:]), example.dtype))
                for name, size in sizes.items()
            ]
        )

    gradients = {
        feature: concatenated(feature)
        for feature in features
        if feature not in ("rows", "residual")
    }
    return ImageFeatures(
        images, gradients, concatenated("rows"), concatenated("residual"), embedding
    )


@dataclass(frozen=True)
class Evaluation:
    """The data that scores are evaluated on, and the rows of the result's tables.

    Attributes:
        seed: Root seed of the replicate.
        confidence: Coverage of intervals.
        train: The training images.
        queries: Set -> its queries.
        columns: Set -> the slice of its queries among those of all sets.
        masks: Which training images each subset keeps, bool (M, N).
        effects: ``<set>/<target>`` -> measurements of the retrained networks, float64 (S, M, Q).
        concepts: Concept -> its words.
        lds_rows: Rows of ``lds.csv``.
        correlations: (set, target) -> attributor -> its correlations with the measurements.
        repeatability: (attributor, set) -> agreement of its scores under two draws of the noise,
            with the regulariser chosen for the loss.
        regulariser_tables: Parts of ``regularisers.csv``.
        copies_tables: Parts of ``copies.csv``.
        concept_tables: Parts of ``concepts.csv``.
        first_tables: Parts of ``first.parquet``.
        scores: Tensors of ``scores.safetensors``.
    """

    seed: int
    confidence: float
    train: Images
    queries: dict[str, Images]
    columns: dict[str, slice]
    masks: np.ndarray
    effects: dict[str, np.ndarray]
    concepts: dict[str, list[str]]
    lds_rows: list[dict[str, object]] = field(default_factory=list)
    correlations: dict[tuple[str, str], dict[str, lds.Correlations]] = field(default_factory=dict)
    repeatability: dict[tuple[str, str], float] = field(default_factory=dict)
    regulariser_tables: list[pd.DataFrame] = field(default_factory=list)
    copies_tables: list[pd.DataFrame] = field(default_factory=list)
    concept_tables: list[pd.DataFrame] = field(default_factory=list)
    first_tables: list[pd.DataFrame] = field(default_factory=list)
    scores: dict[str, np.ndarray] = field(default_factory=dict)

    def add(
        self,
        name: str,
        scores_at: Callable[[float], np.ndarray],
        regularisers: list[float],
        predicted: np.ndarray,
        seconds: float,
    ) -> dict[str, float]:
        """Evaluate the scores of one attributor.

        Args:
            name: The attributor.
            scores_at: Relative lambda -> scores of all queries, float64 (Q, N).
            regularisers: The L lambdas to choose from.
            predicted: What the scores predict for every subset, float64 (L, M, Q).
            seconds: Time that the scores took.

        Returns:
            Set -> the lambda that is chosen for the loss of its queries.
        """
        chosen: dict[str, float] = {}
        for set_name, columns in self.columns.items():
            if columns.start == columns.stop:
                continue
            choices = {
                target: self._choose(name, set_name, target, regularisers, predicted, seconds)
                for target in TARGETS
            }
            chosen[set_name] = choices["loss"].regulariser
            scores = scores_at(chosen[set_name])[columns]
            # safetensors ignores strides: the array has to be contiguous.
            self.scores[f"{name}/{set_name}"] = np.ascontiguousarray(scores, np.float32)
            top = top_images(scores, self.train.ids)
            self.first_tables.append(top.assign(attributor=name, queries=set_name))
            if set_name == EXTRACTED:
                recall = copies.recall(scores, self.train.sources, self.queries[set_name].sources)
                self.copies_tables.append(recall.assign(attributor=name))
            if self.concepts:
                asked = self.queries[set_name].captions
                areas = concepts.areas(scores, self.train.captions, asked, self.concepts)
                self.concept_tables.append(areas.assign(attributor=name, queries=set_name))
        return chosen

    def _choose(
        self,
        name: str,
        set_name: str,
        target: str,
        regularisers: list[float],
        predicted: np.ndarray,
        seconds: float,
    ) -> lds.Choice:
        """Choose a regulariser for one set of queries and one target, and record the scores."""
        predicted = predicted[:, :, self.columns[set_name]]
        effects = self.effects[f"{set_name}/{target}"].mean(axis=0)
        choice = lds.choose_regulariser(
            predicted,
            effects,
            regularisers,
            self.confidence,
        )
        self.correlations.setdefault((set_name, target), {})[name] = choice.correlations
        key = {"attributor": name, "queries": set_name, "target": target}
        self.lds_rows.append({**key, **choice_columns(choice), "seconds": seconds})
        for half, label in zip(lds.halves(len(effects)), ("first", "second"), strict=True):
            # pandas leaves out the queries without a rank correlation.
            mean = pd.DataFrame(lds.spearman(predicted[:, half], effects[half])).mean(axis=1)
            self.regulariser_tables.append(
                pd.DataFrame({**key, "half": label, "regulariser": regularisers, "lds": mean})
            )
        return choice

    def lds_table(self) -> pd.DataFrame:
        """Return ``lds.csv``: the recorded rows and, with several seeds, their ceilings."""
        table = pd.DataFrame(self.lds_rows)
        keys = zip(table["attributor"], table["queries"], strict=True)
        table["repeatability"] = [self.repeatability.get(key, np.nan) for key in keys]
        if len(next(iter(self.effects.values()))) == 1:
            return table
        ceilings = [
            {"queries": set_name, "target": target, **self._ceiling_columns(set_name, target)}
            for set_name, target in self.correlations
        ]
        table = table.merge(pd.DataFrame(ceilings), how="left", on=["queries", "target"])
        table["of_ceiling"] = table["lds"] / table["ceiling"].where(table["ceiling"] > 0)
        return table

    def _ceiling_columns(self, set_name: str, target: str) -> dict[str, float]:
        """Return the columns of ``lds.csv`` about the best possible score."""
        ceiling = self._ceiling(set_name, target)
        return {
            "ceiling": ceiling.value,
            "ceiling_low": ceiling.low,
            "ceiling_high": ceiling.high,
            "between_seeds": ceiling.between_seeds,
        }

    def _ceiling(self, set_name: str, target: str) -> lds.Ceiling:
        """Return the best possible score on the reported subsets."""
        reported = lds.halves(len(self.masks))[1]
        return lds.ceiling(self.effects[f"{set_name}/{target}"][:, reported], self.confidence)

    def units_table(self) -> pd.DataFrame:
        """Return ``units.parquet``."""
        several = len(next(iter(self.effects.values()))) > 1
        parts = []
        for (set_name, target), by_name in self.correlations.items():
            best = self._ceiling(set_name, target).units if several else np.nan
            for name, correlations in by_name.items():
                units = correlations.units()
                part = {"lds": units, "ceiling": best, "subset": np.arange(len(units))}
                key = {"attributor": name, "queries": set_name, "target": target}
                parts.append(pd.DataFrame(key | part))
        return pd.concat(parts, ignore_index=True)

    def paired_table(self) -> pd.DataFrame:
        """Return ``paired.parquet``."""
        return pd.concat(
            (
                differences.units(correlations).assign(queries=set_name, target=target)
                for (set_name, target), correlations in self.correlations.items()
            ),
            ignore_index=True,
        )

    def differences_table(self) -> pd.DataFrame:
        """Return ``differences.csv``."""
        return pd.concat(
            differences.between_attributors(correlations, self.confidence).assign(
                queries=set_name, target=target
            )
            for (set_name, target), correlations in self.correlations.items()
        )

    def copies_table(self) -> pd.DataFrame:
        """Return ``copies.csv``."""
        if not self.copies_tables:
            return pd.DataFrame(columns=[*copies.COLUMNS, "attributor"])
        return pd.concat(self.copies_tables)

    def concepts_table(self) -> pd.DataFrame:
        """Return ``concepts.csv``."""
        if not self.concept_tables:
            return pd.DataFrame(columns=[*concepts.COLUMNS, "attributor", "queries"])
        return pd.concat(self.concept_tables)


def run(args: argparse.Namespace) -> None:
    """Score with all attributors, evaluate, and store the results."""
    # Name all inputs, and the modules that determine the result.
    resolved = artifacts.read_config(args.config, STEP)
    settings, seed = resolved["settings"], root_seed(resolved["seed"], resolved["replicate"])
    names, subset_count = settings["attributors"], settings["subsets"]
    paths = {name: args.queries / f"{name}.npz" for name in SETS}
    inputs = {
        "train": args.train,
        "members": args.members,
        **paths,
        "classifier": args.classifier / classifier.WEIGHTS,
    }
    stores = [*args.features, *args.states, *args.repeat, *args.retrain]
    inputs |= {"/".join(store.parts[-4:]): store / artifacts.RUN for store in stores}
    entries = (__name__, *dict.fromkeys(config.ATTRIBUTORS[name] for name in names))

    with artifacts.step(resolved, args.out, inputs, entries) as step:
        # Read images and the effects of retraining.
        artifacts.check_file(args.members)
        train = trained_rows(load_images(args.train), pd.read_parquet(args.members))
        queries = {name: load_images(path) for name, path in paths.items()}
        ends = np.cumsum([len(images) for images in queries.values()]).tolist()
        evaluation = Evaluation(
            seed=seed,
            confidence=settings["confidence"],
            train=train,
            queries=queries,
            columns={
                name: slice(start, end)
                for name, start, end in zip(SETS, [0, *ends[:-1]], ends, strict=True)
            },
            masks=subsets.masks(train.labels, settings["share"], subset_count, seed),
            effects=read_retraining_effects(args.retrain, subset_count, settings["seeds"]),
            concepts=settings["concepts"],
        )

        # Score and evaluate.
        attribution_inputs = read_attribution_inputs(args, evaluation)
        draws = read_draws(args, attribution_inputs, evaluation.columns) if args.repeat else None
        for name in names:
            started = time.monotonic()
            scores_at = attributors.scorer(name, attribution_inputs)
            regularised = ATTRIBUTOR_TABLE[name].regularised
            grid = settings["regularisers"] if regularised else [1.0]
            predicted = np.stack(
                [
                    lds.predictions(
                        check_finite(scores_at(relative), name, relative), evaluation.masks
                    )
                    for relative in grid
                ]
            )
            seconds = time.monotonic() - started
            chosen = evaluation.add(name, scores_at, grid, predicted, seconds)
            if draws is not None:
                for set_name, value in draws.of(name, chosen).items():
                    evaluation.repeatability[name, set_name] = value

        # Write the tables and report the metrics.
        table, copies_table = evaluation.lds_table(), evaluation.copies_table()
        table.to_csv(step.folder / "lds.csv", index=False)
        evaluation.differences_table().to_csv(step.folder / "differences.csv", index=False)
        evaluation.units_table().to_parquet(step.folder / "units.parquet", index=False)
        evaluation.paired_table().to_parquet(step.folder / "paired.parquet", index=False)
        pd.concat(evaluation.regulariser_tables).to_csv(
            step.folder / "regularisers.csv", index=False
        )
        copies_table.to_csv(step.folder / "copies.csv", index=False)
        concepts_table = evaluation.concepts_table()
        concepts_table.to_csv(step.folder / "concepts.csv", index=False)
        pd.concat(evaluation.first_tables).to_parquet(step.folder / "first.parquet", index=False)
        save_file(evaluation.scores, step.folder / "scores.safetensors")
        leverage_table(attribution_inputs, settings["regularisers"]).to_csv(
            step.folder / "leverage.csv", index=False
        )
        for set_name, name, target, value in table[
            ["queries", "attributor", "target", "lds"]
        ].itertuples(index=False, name=None):
            step.metric(f"{'lds' if target == 'loss' else 'lds_shift'}/{set_name}/{name}", value)
        mean_recall = copies_table.groupby("attributor", sort=False)["recall"].mean()
        for name, value in mean_recall.items():
            step.metric(f"copies_first/{name}", value)
        known = concepts_table.dropna(subset="area")
        by_concept = known.groupby(["queries", "concept", "attributor"], sort=False)
        for *names_of_area, value in by_concept["area"].mean().reset_index().to_numpy():
            step.metric("/".join(["concepts", *names_of_area]), value)
        step.note(
            training_images=len(train),
            reported_subsets=subset_count - subset_count // 2,
            queries={name: len(images) for name, images in queries.items()},
        )


def read_attribution_inputs(args: argparse.Namespace, evaluation: Evaluation) -> AttributionInputs:
    """Return what scores are computed from: stored features, and the first half of the subsets."""
    train = evaluation.train
    query_pixels = np.concatenate([images.pixels for images in evaluation.queries.values()])
    final = read_features(args.features)
    earlier = [
        read_features(list(stores))
        for _, stores in groupby(args.states, key=lambda store: store.parent)
    ]
    fitted = lds.halves(len(evaluation.masks))[0]
    losses = [evaluation.effects[f"{name}/loss"].mean(axis=0) for name in SETS]
    return AttributionInputs(
        train=image_features(
            train, final, ("train",), classifier.embed(args.classifier, train.pixels)
        ),
        queries=image_features(
            Images.of(query_pixels), final, SETS, classifier.embed(args.classifier, query_pixels)
        ),
        checkpoints=tuple(
            (state["train/loss"], np.concatenate([state[f"{name}/loss"] for name in SETS]))
            for state in [*earlier, final]
        ),
        masks=evaluation.masks[fitted],
        losses=np.concatenate(losses, axis=1)[fitted],
        seed=evaluation.seed,
    )


def read_draws(
    args: argparse.Namespace, inputs: AttributionInputs, columns: dict[str, slice]
) -> Draws:
    """Return what the scores of the first images and queries are computed from, drawn twice.

    Args:
        args: Of the command.
        inputs: What all scores are computed from.
        columns: Set -> the slice of its queries among those of all sets.
    """
    check_consistent([args.features[0], *args.repeat], ["model"], ignored=NOT_OF_FEATURES)
    stored = read_features(args.repeat)
    sizes = {name: len(stored[f"{name}/residual"]) for name in SETS}
    ends = np.cumsum(list(sizes.values())).tolist()
    rows = np.concatenate(
        [np.arange(columns[name].start, columns[name].start + sizes[name]) for name in SETS]
    )
    train = inputs.train.take(np.arange(len(stored["train/residual"])))
    queries = inputs.queries.take(rows)
    return Draws(
        AttributionInputs.from_gradients(train, queries, inputs.seed),
        AttributionInputs.from_gradients(
            image_features(train.images, stored, ("train",)),
            image_features(queries.images, stored, SETS),
            inputs.seed,
        ),
        {
            name: slice(start, end)
            for name, start, end in zip(SETS, [0, *ends[:-1]], ends, strict=True)
        },
    )


def leverage_table(inputs: AttributionInputs, regularisers: list[float]) -> pd.DataFrame:
    """Return ``leverage.csv``; no row unless some training images have copies and others do not."""
    images = inputs.train.images
    copy_counts = np.array([(images.sources == source).sum() for source in images.sources])
    rows = []
    if inputs.train.rows.shape[1] and copy_counts.max() > 1 and copy_counts.min() == 1:
        for relative in regularisers:
            leverage = inputs.curvature.leverage(relative).reshape(len(images), -1).sum(axis=1)
            rows.append((relative, copies.leverage_auc(leverage, copy_counts)))
    return pd.DataFrame(rows, columns=["regulariser", "auc"])


def choice_columns(choice: lds.Choice) -> dict[str, float]:
    """Return the columns of ``lds.csv`` for a chosen regulariser."""
    return {
        "regulariser": choice.regulariser,
        "lds": choice.score.value,
        "low": choice.score.low,
        "high": choice.score.high,
        "undefined": choice.score.undefined,
        "oracle_regulariser": choice.oracle_regulariser,
        "oracle": choice.oracle.value,
    }
