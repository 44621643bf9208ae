"""``afterimage attribution scores``: which training images made each query, by every attributor, and how far that can be trusted.

Three judges: the linear data-modelling score against retrained networks (``lds``), for held-out images and generations apart; copies
of known number, of which the generations that show them were made (``duplicates``); and, in the report, the eye. What is learned
from retraining (regularisers, empirical influences) comes from the first half of the subsets; what is reported, from the second.
Retraining is judged by two targets (``truth``): the loss, as published, and the shift of the prediction. Empirical influences, and the
scores that are stored, are those for the loss.

The store that the verb leaves:

- ``lds.csv``: one row per attributor, set of queries and target: regulariser, lds with low and high, undefined (queries without a rank
  correlation), oracle_regulariser, oracle, seconds (of scoring), and with several seeds ceiling (with low and high), between_seeds and
  of_ceiling (lds / ceiling);
- ``regularisers.csv``: the score at every regulariser, on the first and on the second half of the subsets;
- ``copies.csv``: one row per attributor and extracted query: copies, recall (share of the copies among the first so many), chance;
- ``first.parquet``: the first training images of every query, by every attributor: attributor, queries, query, rank, id, score;
- ``leverage.csv``: how well a low leverage tells images with copies from those without, by regulariser; no row unless there are both;
- ``scores.safetensors``: ``<attributor>/<set>``, float32 (Q, N), at the chosen regulariser.
"""

from __future__ import annotations

import argparse
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from afterimage import artifacts, config, seeds
from afterimage.artifacts import ArtifactError
from afterimage.attribution import attributors, features
from afterimage.attribution.attributors.inputs import Evidence, Side
from afterimage.attribution.consistency import check_alike
from afterimage.attribution.judges import copies, lds, subsets
from afterimage.attribution.judges.retraining_effect import TARGETS
from afterimage.attribution.queries import EXTRACTED, SETS
from afterimage.data.members import trained_rows
from afterimage.images import Images, load_images
from afterimage.metrics import classifier

STEP = "attribution/scores"
FIRST = 16
"""Training images named per query."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument("--train", type=Path, required=True, metavar="NPZ", help="training images")
    parser.add_argument(
        "--members",
        type=Path,
        required=True,
        metavar="PARQUET",
        help="which of them the arm trained on",
    )
    parser.add_argument(
        "--queries",
        type=Path,
        required=True,
        metavar="DIR",
        help="result of `afterimage attribution queries`",
    )
    parser.add_argument(
        "--features",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="features, training blocks in order",
    )
    parser.add_argument(
        "--states",
        type=Path,
        nargs="*",
        default=[],
        metavar="DIR",
        help="the same of earlier states, in order",
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
        help="network for the feature similarity",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def measured(stores: list[Path], count: int, repeats: int) -> dict[str, np.ndarray]:
    """Return ``<set>/<target>`` of each set of queries, float64 (S, M, Q), from the stores of all retraining jobs.

    Raises:
        ArtifactError: if a network is missing, there twice, of other settings or for other queries, or a file is not as it was left.
    """
    check_alike(stores, ["model", "train", "members", *SETS])
    parts = []
    for store in stores:
        artifacts.check_file(store / "losses.npz")
        with np.load(store / "losses.npz", allow_pickle=False) as arrays:
            parts.append(dict(arrays))
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((together["subset"], together["seed"]))
    named = list(
        zip(together["seed"][order].tolist(), together["subset"][order].tolist(), strict=True)
    )
    if named != [(seed, subset) for seed in range(repeats) for subset in range(count)]:
        raise ArtifactError(
            f"the retrained networks in {stores[0].parent} are not {count} subsets x {repeats} seeds, each once"
        )
    names = [f"{part}/{target}" for part in SETS for target in TARGETS]
    return {name: together[name][order].reshape(repeats, count, -1) for name in names}


def side(
    images: Images, stored: dict[str, np.ndarray], sets: tuple[str, ...], embedding: np.ndarray
) -> Side:
    """Return one side of the evidence: the features of some sets, one after the other; 0 where a set lacks one (a journey)."""
    sizes = {part: len(stored[f"{part}/residual"]) for part in sets}
    names = dict.fromkeys(key.partition("/")[2] for key in stored if key.partition("/")[0] in sets)

    def of(name: str) -> np.ndarray:
        like = next(stored[f"{part}/{name}"] for part in sets if f"{part}/{name}" in stored)
        return np.concatenate(
            [
                stored.get(f"{part}/{name}", np.zeros((size, *like.shape[1:]), like.dtype))
                for part, size in sizes.items()
            ]
        )

    gradients = {name: of(name) for name in names if name not in ("rows", "residual")}
    return Side(images, gradients, of("rows"), of("residual"), embedding)


def run(args: argparse.Namespace) -> None:
    """Score all attributors and store what came out."""
    resolved = artifacts.read_config(args.config, STEP)
    own, seed = resolved["settings"], resolved["seed"]
    stores = [*args.features, *args.states, *args.retrain]
    paths = {name: args.queries / f"{name}.npz" for name in SETS}
    inputs = {
        "train": args.train,
        "members": args.members,
        **paths,
        "classifier": args.classifier / classifier.WEIGHTS,
    }
    inputs |= {"/".join(store.parts[-4:]): store / artifacts.RUN for store in stores}
    entries = (__name__, *(config.ATTRIBUTORS[name] for name in own["attributors"]))
    with artifacts.step(resolved, args.out, inputs, entries) as step:
        artifacts.check_file(args.members)
        train = trained_rows(load_images(args.train), pd.read_parquet(args.members))
        asked = {name: load_images(path) for name, path in paths.items()}
        everything = Images.of(np.concatenate([images.pixels for images in asked.values()]))
        truth = measured(args.retrain, own["subsets"], own["seeds"])
        masks = subsets.masks(train.labels, own["share"], own["subsets"], seed)
        first, second = lds.halves(own["subsets"])
        losses = np.concatenate([truth[f"{name}/loss"].mean(axis=0) for name in SETS], axis=1)
        final = features.read(args.features)
        earlier = [
            features.read(list(group))
            for _, group in groupby(args.states, key=lambda store: store.parent)
        ]
        evidence = Evidence(
            train=side(train, final, ("train",), classifier.embed(args.classifier, train.pixels)),
            queries=side(
                everything, final, SETS, classifier.embed(args.classifier, everything.pixels)
            ),
            checkpoints=tuple(
                (state["train/loss"], np.concatenate([state[f"{name}/loss"] for name in SETS]))
                for state in [*earlier, final]
            ),
            masks=masks[first],
            losses=losses[first],
            seed=seed,
        )
        ends = np.cumsum([len(images) for images in asked.values()])
        starts = ends - [len(images) for images in asked.values()]
        statistics = config.Statistics(**own["statistics"])
        rows, regularisers, recalls, firsts = [], [], [], []
        kept: dict[str, np.ndarray] = {}
        for name in own["attributors"]:
            started = time.monotonic()
            module = attributors.find(name)
            scores = module.scores(evidence)
            grid = own["regularisers"] if module.REGULARISED else [1.0]
            predicted = np.stack(
                [lds.predictions(finite(scores(at), name, at), masks) for at in grid]
            )
            seconds = time.monotonic() - started
            for part, start, end in zip(SETS, starts, ends, strict=True):
                if start == end:
                    continue
                mine = predicted[:, :, start:end]
                choices = {}
                for target in TARGETS:
                    measure = truth[f"{part}/{target}"].mean(axis=0)
                    rng = seeds.numpy_rng(seed, "attribution", "lds", part)
                    choices[target] = lds.choose(
                        mine, measure, grid, statistics.bootstrap, statistics.confidence, rng
                    )
                    about = {"attributor": name, "queries": part, "target": target}
                    rows.append({**about, **flat(choices[target]), "seconds": seconds})
                    for half, label in ((first, "first"), (second, "second")):
                        each = pd.DataFrame(lds.spearman(mine[:, half], measure[half])).mean(
                            axis=1
                        )  # of the queries that have one
                        regularisers.append(
                            pd.DataFrame({**about, "half": label, "regulariser": grid, "lds": each})
                        )
                chosen = scores(choices["loss"].regulariser)[start:end]
                kept[f"{name}/{part}"] = np.ascontiguousarray(
                    chosen, np.float32
                )  # safetensors writes bytes as they lie
                firsts.append(leaders(chosen, train.ids).assign(attributor=name, queries=part))
                if part == EXTRACTED:
                    found = copies.recall(chosen, train.sources, asked[part].sources)
                    recalls.append(found.assign(attributor=name))
        table = pd.DataFrame(rows)
        if own["seeds"] > 1:
            best = [
                {
                    "queries": part,
                    "target": target,
                    **ceiling(truth[f"{part}/{target}"][:, second], part, statistics, seed),
                }
                for part, target in dict.fromkeys(
                    zip(table["queries"], table["target"], strict=True)
                )
            ]
            table = table.merge(pd.DataFrame(best), how="left", on=["queries", "target"])
            table["of_ceiling"] = table["lds"] / table["ceiling"].where(table["ceiling"] > 0)
        table.to_csv(step.folder / "lds.csv", index=False)
        pd.concat(regularisers).to_csv(step.folder / "regularisers.csv", index=False)
        recalled = (
            pd.concat(recalls) if recalls else pd.DataFrame(columns=[*copies.COLUMNS, "attributor"])
        )
        recalled.to_csv(step.folder / "copies.csv", index=False)
        pd.concat(firsts).to_parquet(step.folder / "first.parquet", index=False)
        save_file(kept, step.folder / "scores.safetensors")
        times = np.array([(train.sources == source).sum() for source in train.sources])
        of_leverage = []
        if evidence.train.rows.shape[1] and times.max() > 1 and times.min() == 1:
            of_images = [
                evidence.curvature.leverage(at).reshape(len(train), -1).sum(axis=1)
                for at in own["regularisers"]
            ]
            aucs = [copies.leverage_auc(leverage, times) for leverage in of_images]
            of_leverage = list(zip(own["regularisers"], aucs, strict=True))
        pd.DataFrame(of_leverage, columns=["regulariser", "auc"]).to_csv(
            step.folder / "leverage.csv", index=False
        )
        for part, name, target, value in table[
            ["queries", "attributor", "target", "lds"]
        ].itertuples(index=False, name=None):
            step.metric(f"{'lds' if target == 'loss' else 'lds_shift'}/{part}/{name}", value)
        for name, mean in recalled.groupby("attributor", sort=False)["recall"].mean().items():
            step.metric(f"copies_first/{name}", mean)
        step.note(
            training_images=len(train),
            reported_subsets=own["subsets"] - own["subsets"] // 2,
            queries={part: len(images) for part, images in asked.items()},
        )


def finite(scores: np.ndarray, name: str, regulariser: float) -> np.ndarray:
    """Return ``scores``.

    Raises:
        ArtifactError: naming the attributor, if one is no number.
    """
    if not np.isfinite(scores).all():
        raise ArtifactError(
            f"attributor {name} gives scores that are no numbers (regulariser {regulariser:g})"
        )
    return scores


def flat(choice: lds.Choice) -> dict[str, float]:
    """Return the columns of ``lds.csv`` that a choice fills."""
    score = choice.score
    return {
        "regulariser": choice.regulariser,
        "lds": score.value,
        "low": score.low,
        "high": score.high,
        "undefined": score.undefined,
        "oracle_regulariser": choice.oracle_regulariser,
        "oracle": choice.oracle.value,
    }


def ceiling(
    losses: np.ndarray, part: str, statistics: config.Statistics, seed: int
) -> dict[str, float]:
    """Return the columns of ``lds.csv`` about what can be predicted of a set's losses, (S, M, Q)."""
    rng = seeds.numpy_rng(seed, "attribution", "ceiling", part)
    best = lds.ceiling(losses, statistics.bootstrap, statistics.confidence, rng)
    return {
        "ceiling": best.value,
        "ceiling_low": best.low,
        "ceiling_high": best.high,
        "between_seeds": best.between_seeds,
    }


def leaders(scores: np.ndarray, ids: np.ndarray, count: int = FIRST) -> pd.DataFrame:
    """Return the first ``count`` training images of each query: query (its position), rank (from 0), id, score."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    queries, ranks = order.shape
    return pd.DataFrame(
        {
            "query": np.repeat(np.arange(queries), ranks),
            "rank": np.tile(np.arange(ranks), queries),
            "id": ids[order].ravel(),
            "score": np.take_along_axis(scores, order, axis=1).ravel(),
        }
    )
