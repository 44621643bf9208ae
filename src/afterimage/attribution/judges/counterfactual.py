"""``afterimage attribution counterfactual``: retrain without the top-ranked images, sample again.

The counterfactual evaluation of D-TRAK (Zheng et al., ICLR 2024) and DAS (Lin et al., ICLR 2025):
the top-ranked training images of an attributor for one generated query are removed, a network is
trained on the others as the explained arm was, and the same noise is denoised again. A job is named
``<choice>/<query>``. Besides the attributors, ``random`` removes as many images at random. The job
``again`` removes none and samples every query: it differs from the arm in its random numbers only,
and shows how much any retraining changes. The other networks start from the arm's own initial
weights.

The change is measured in four ways, which disagree in the literature: normalised l2 distance of the
images, cosine similarity of their classifier features, and the loss of the query and the shift of
its prediction (``retraining_effect``).

The result is ``changes.csv`` (choice, query, removed, l2, cosine, loss, shift) and
``regenerated.npz``, the images in the order of the rows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.numpy import load_file

from afterimage import artifacts, config, provenance, seeds
from afterimage.attribution.flags import add_explained, add_inputs
from afterimage.attribution.judges import retraining_effect
from afterimage.attribution.judges.retrain import Recipe
from afterimage.attribution.queries import latents_for, texts_for
from afterimage.attribution.replicate import root_seed
from afterimage.config import ConfigError, GroundTruth, Sample
from afterimage.config.stored import validated
from afterimage.diffusion.autoencoder import Autoencoder
from afterimage.diffusion.latents import FILE as LATENTS
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.sample import generate, load_trained, trained_pipeline
from afterimage.diffusion.start import stored_input
from afterimage.diffusion.texts import FILE, Texts, embedded_captions
from afterimage.images import load_images
from afterimage.methods import baseline
from afterimage.metrics import classifier, distances
from afterimage.training.checkpoint import Store
from afterimage.training.determinism import same_bits
from afterimage.training.job import stream_path

STEP = "attribution/counterfactual"
AGAIN, RANDOM = "again", "random"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_explained(parser)
    add_inputs(parser, "scores")
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
    parser.add_argument(
        "--state",
        type=Path,
        required=True,
        metavar="DIR",
        help="where the state of the unfinished training is kept",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def images_to_remove(
    choice: str, query: int, count: int, scores: np.ndarray | None, images: int, seed: int
) -> np.ndarray:
    """Return which of the N training images to remove, bool (N,).

    Args:
        choice: ``again``, ``random`` or the name of an attributor.
        query: Position of the generated query.
        count: Number of images to remove.
        scores: Scores of the attributor, (Q, N); not needed for ``again`` and ``random``.
        images: N.
        seed: Root seed.
    """
    removed = np.zeros(images, bool)
    if choice == RANDOM:
        rng = seeds.numpy_rng(seed, "attribution", "counterfactual", query)
        removed[rng.permutation(images)[:count]] = True
    elif choice != AGAIN:
        assert scores is not None
        removed[np.argsort(-scores[query], kind="stable")[:count]] = True
    return removed


def run(args: argparse.Namespace) -> None:
    """Train one network, sample again, and store the changes."""
    # Read the job's settings and name its inputs.
    resolved = artifacts.read_config(args.config, STEP)
    settings, seed, replicate = resolved["settings"], resolved["seed"], resolved["replicate"]
    root = root_seed(seed, replicate)
    weights = settings["sample"]["weights"]
    counterfactual = config.Counterfactual.model_validate(settings["counterfactual"])
    choice, _, number = resolved["job"].partition("/")
    positions = range(counterfactual.queries) if choice == AGAIN else [int(number)]
    queries_path = args.queries / "generated.npz"
    pipeline = trained_pipeline(args.model, weights)
    inputs = {
        "model": pipeline,
        "train": args.train,
        "members": args.members,
        "queries": queries_path,
        "classifier": args.classifier / classifier.WEIGHTS,
    }
    inputs |= stored_input(validated(config.AnyModel, settings["model"], "model"))
    inputs |= {"texts": args.texts / FILE} if args.texts else {}
    inputs |= {"latents": args.latents / LATENTS} if args.latents else {}
    inputs |= {"others": args.others} if args.others else {}
    inputs |= {} if choice in (AGAIN, RANDOM) else {"scores": args.scores / "scores.safetensors"}
    entries = (__name__, config.METHODS["baseline"])

    with artifacts.step(resolved, args.out, inputs, entries) as step:
        # Choose the images to remove.
        scores = None
        if "scores" in inputs:
            artifacts.check_file(inputs["scores"])
            scores = load_file(inputs["scores"])[f"{choice}/generated"]
        texts = Texts.load(args.texts) if args.texts else None
        latents = EncodedImages.load(args.latents) if args.latents else None
        recipe = Recipe.from_config(resolved, args.train, args.members, texts, latents, args.others)
        same_bits(recipe.train.deterministic)
        removed = images_to_remove(
            choice, int(number or 0), counterfactual.remove, scores, len(recipe.images), root
        )
        if removed.all():
            raise ConfigError(
                f"attribution.counterfactual.remove = {counterfactual.remove}: some of the "
                f"{len(removed)} training images must remain"
            )

        # Train on the others.
        address = (seed, stream_path(recipe.arm, replicate))
        if choice == AGAIN:
            address = (root, ("attribution", "counterfactual", AGAIN))
        identity = {
            "config": resolved,
            "inputs": step.input_sha256,
            "code": provenance.fingerprint(*entries),
        }
        training_run = recipe.training_run(~removed, *address, Store(args.state, identity))
        trained = baseline.train(training_run)
        net = cast(UNet2DModel, {"ema": trained.average, "raw": trained.raw}[weights].eval())

        # Sample the same noise again and measure the changes.
        scheduler_config = dict(recipe.scheduler.config)
        queries = load_images(queries_path).take(np.array(positions))
        labels = None if recipe.classes is None else queries.labels
        encoded = texts_for("generated", texts)
        prompts = embedded_captions(encoded, queries)
        sampling = Sample.model_validate(settings["sample"])
        regenerated = generate(
            net,
            scheduler_config,
            queries.ids,
            sampling,
            seed,
            replicate,
            labels,
            prompts,
            Autoencoder.of(pipeline),
        )
        explained, _ = load_trained(pipeline, seed, replicate)
        explained.to(recipe.accelerator.device).eval()
        ground_truth = GroundTruth.model_validate(settings["ground_truth"])
        effects = retraining_effect.measure_effects(
            net,
            explained,
            scheduler_config,
            queries,
            "generated",
            ground_truth,
            root,
            encoded,
            latents_for("generated", queries, latents, pipeline),
        )
        before, after = (
            classifier.embed(args.classifier, pixels) for pixels in (queries.pixels, regenerated)
        )
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        changes = pd.DataFrame(
            {
                "choice": choice,
                "query": list(positions),
                "removed": int(removed.sum()),
                "l2": distances.between(queries.pixels, regenerated),
                "cosine": (before * after).sum(axis=1) / norms,
                **effects,
            }
        )

        # Store them.
        changes.to_csv(step.folder / "changes.csv", index=False)
        replace(queries, pixels=regenerated).save(step.folder / "regenerated.npz")
        step.note(
            training_seconds=round(trained.progress.seconds, 3),
            updates=trained.spent.updates,
            removed=int(removed.sum()),
        )
    training_run.store.remove()
