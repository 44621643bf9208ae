"""``afterimage attribution counterfactual``: train without what is said to have made a generation, and generate it again.

The test of D-TRAK (Zheng et al., ICLR 2024) and DAS (Lin et al., ICLR 2025): the first images of an attributor's ranking for one
generated query are taken out, a network is trained on the others as the explained arm was, and the same noise is denoised again.
A job is named ``<choice>/<query>``. Beside the attributors, ``random`` takes out as many images by chance. The job ``again`` takes none
out and generates every query: it differs from the arm in its random numbers alone, and shows what any retraining changes. The other
networks start from the arm's own initial weights.

Change is measured in four ways, since they disagree in the literature: normalised l2 between the pictures, cosine similarity of
their classifier features, and the loss of the query and the shift of its prediction (``truth``).

The store that the verb leaves: ``changes.csv`` (choice, query, removed, l2, cosine, loss, shift) and ``regenerated.npz``, the pictures in the
order of the rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.numpy import load_file

from afterimage import artifacts, config, provenance, seeds
from afterimage.attribution.judges import retraining_effect
from afterimage.attribution.judges.retrain import Recipe
from afterimage.config import ConfigError, GroundTruth, Sample
from afterimage.diffusion.sample import generate, load_trained, trained_pipeline
from afterimage.images import Images, load_images
from afterimage.methods import baseline
from afterimage.metrics import classifier, distances
from afterimage.training.checkpoint import Store
from afterimage.training.determinism import same_bits

STEP = "attribution/counterfactual"
AGAIN, RANDOM = "again", "random"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="training of the explained arm"
    )
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
        "--scores",
        type=Path,
        required=True,
        metavar="DIR",
        help="result of `afterimage attribution scores`",
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
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="where unfinished states are kept"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def taken_out(
    choice: str, query: int, count: int, scores: np.ndarray | None, images: int, seed: int
) -> np.ndarray:
    """Return which of the N training images are removed, bool (N,).

    Args:
        choice: ``again``, ``random`` or the name of an attributor.
        query: Position of the generated query.
        count: How many.
        scores: The attributor's, (Q, N); not needed by the other two.
        images: N.
        seed: Root seed.
    """
    removed = np.zeros(images, bool)
    if choice == RANDOM:
        removed[
            seeds.numpy_rng(seed, "attribution", "counterfactual", query).permutation(images)[
                :count
            ]
        ] = True
    elif choice != AGAIN:
        assert scores is not None
        removed[np.argsort(-scores[query], kind="stable")[:count]] = True
    return removed


def run(args: argparse.Namespace) -> None:
    """Train one network, generate again, and store what changed."""
    resolved = artifacts.read_config(args.config, STEP)
    own, seed = resolved["settings"], resolved["seed"]
    settings = config.Counterfactual.model_validate(own["counterfactual"])
    choice, _, number = resolved["job"].partition("/")
    asked = range(settings.queries) if choice == AGAIN else [int(number)]
    path = args.queries / "generated.npz"
    pipeline = trained_pipeline(args.model, own["sample"]["weights"])
    inputs = {
        "model": pipeline,
        "train": args.train,
        "members": args.members,
        "queries": path,
        "classifier": args.classifier / classifier.WEIGHTS,
    }
    inputs |= {} if choice in (AGAIN, RANDOM) else {"scores": args.scores / "scores.safetensors"}
    entries = (__name__, config.METHODS["baseline"])
    same_bits()
    with artifacts.step(resolved, args.out, inputs, entries) as step:
        scores = None
        if "scores" in inputs:
            artifacts.check_file(inputs["scores"])
            scores = load_file(inputs["scores"])[f"{choice}/generated"]
        recipe = Recipe.read(resolved, args.train, args.members)
        removed = taken_out(
            choice, int(number or 0), settings.remove, scores, len(recipe.images), seed
        )
        if removed.all():
            raise ConfigError(
                f"attribution.counterfactual.remove = {settings.remove}: some of the {len(removed)} training images must be left"
            )
        where = (
            ("attribution", "counterfactual", AGAIN)
            if choice == AGAIN
            else ("train", own["name"], 0)
        )
        identity = {
            "config": resolved,
            "inputs": step.input_sha256,
            "code": provenance.fingerprint(*entries),
        }
        job = recipe.job(~removed, where, Store(args.state, identity))
        trained = baseline.train(job)
        net = cast(
            UNet2DModel,
            {"ema": trained.average, "raw": trained.raw}[own["sample"]["weights"]].eval(),
        )
        scheduler = dict(recipe.scheduler.config)
        queries = load_images(path).take(np.array(asked))
        labels = None if recipe.classes is None else queries.labels
        pictures = generate(
            net, scheduler, queries.ids, Sample.model_validate(own["sample"]), seed, 0, labels
        )
        explained, _ = load_trained(pipeline, seed, 0)
        explained.to(recipe.accelerator.device).eval()
        levels = GroundTruth.model_validate(own["ground_truth"])
        measured = retraining_effect.measure(
            net, explained, scheduler, queries, "generated", levels, seed
        )
        before, after = (
            classifier.embed(args.classifier, pixels) for pixels in (queries.pixels, pictures)
        )
        length = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        changes = pd.DataFrame(
            {
                "choice": choice,
                "query": list(asked),
                "removed": int(removed.sum()),
                "l2": distances.between(queries.pixels, pictures),
                "cosine": (before * after).sum(axis=1) / length,
                **measured,
            }
        )
        changes.to_csv(step.folder / "changes.csv", index=False)
        Images.of(pictures, queries.ids, queries.labels).save(step.folder / "regenerated.npz")
        step.note(
            training_seconds=round(trained.progress.seconds, 3),
            updates=trained.spent.updates,
            removed=int(removed.sum()),
        )
    job.store.remove()
