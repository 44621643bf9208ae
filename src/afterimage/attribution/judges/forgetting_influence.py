"""``afterimage attribution remedied``: does a remedy reduce the influence of forgotten images?

The same scores are computed from the network without a remedy and from the one with it, for the
same generations, those of the first network. If a remedy removed an image from the network, and not
only from its generations, the image should have no more influence on them than others. Scores of
two networks have different units, so that only comparisons within a network are reported: the
probability that a forgotten image's score is larger than another image's (the area under the ROC
curve; 0.5 without influence), and the share of forgotten images in the sum of all absolute scores,
next to their share of the images.

Generations whose nearest training image is forgotten and other generations are reported separately.
A job is named after the remedied arm. Scores are computed from the main features with the
regulariser that was chosen for the explained arm's generations.

The result is ``influence.csv`` (network: before or after; attributor; queries: forgotten or others;
count; auc; share; chance).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState
from scipy.stats import rankdata

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attribution import attributors
from afterimage.attribution.attributors.inputs import AttributionInputs, ImageFeatures
from afterimage.attribution.flags import add_inputs
from afterimage.attribution.gradients import compute
from afterimage.attribution.queries import latents_for, texts_for
from afterimage.attribution.replicate import root_seed
from afterimage.config.attribution import readouts_of
from afterimage.data.members import trained_rows
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.latents import FILE as LATENTS
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.sample import load_trained, trained_pipeline
from afterimage.diffusion.texts import FILE, Texts
from afterimage.images import Images, load_images
from afterimage.metrics.neighbours import Gallery

STEP = "attribution/remedied"
COLUMNS = ["network", "attributor", "queries", "count", "auc", "share", "chance"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--before",
        type=Path,
        required=True,
        metavar="DIR",
        help="result of `afterimage train run` without the remedy",
    )
    parser.add_argument("--after", type=Path, required=True, metavar="DIR", help="the same with it")
    parser.add_argument(
        "--samples",
        type=Path,
        required=True,
        metavar="NPZ",
        help="generations of the network without the remedy",
    )
    add_inputs(parser, "train", "scores")
    add_inputs(parser, "texts", "latents", required=False)
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def auc_of_forgotten(scores: np.ndarray, forgotten: np.ndarray) -> np.ndarray:
    """Return the probability that a forgotten image scores higher than another, float64 (Q,).

    Ties count half.

    Args:
        scores: (Q, N).
        forgotten: bool, (N,); neither all nor none.
    """
    count = int(forgotten.sum())
    rank_sums = rankdata(scores, axis=1)[:, forgotten].sum(axis=1)
    return (rank_sums - count * (count + 1) / 2) / (count * (len(forgotten) - count))


def share_of_forgotten(scores: np.ndarray, forgotten: np.ndarray) -> np.ndarray:
    """Return the share of forgotten images in each query's sum of absolute scores, float64 (Q,)."""
    return np.abs(scores[:, forgotten]).sum(axis=1) / np.abs(scores).sum(axis=1)


def attribution_inputs(
    pipeline: Path,
    train: Images,
    queries: Images,
    settings: config.Features,
    readouts: Sequence[str],
    seed: int,
    replicate: int,
    texts: Texts | None = None,
    latents: EncodedImages | None = None,
) -> AttributionInputs:
    """Return the features of one network, without checkpoints and retrained networks.

    Args:
        pipeline: The network.
        train: The training images.
        queries: Generations; with texts, with their prompts.
        settings: Of the features.
        readouts: What is read out of the network.
        seed: Root seed of the study.
        replicate: Replicate of the arms.
        texts: Embeddings, for a network that is conditioned on captions.
        latents: Those of the training images, for a network that denoises those.
    """
    net, scheduler_config = load_trained(pipeline, seed, replicate)
    net.to(PartialState().device)
    seed = root_seed(seed, replicate)

    def image_features(images: Images, image_set: str) -> ImageFeatures:
        projected = compute.project_gradients(
            net,
            task_of(
                net,
                scheduler_config,
                images,
                texts_for(image_set, texts),
                latents_for(image_set, images, latents, pipeline),
            ),
            images.ids,
            image_set,
            settings,
            readouts,
            seed,
        )
        return ImageFeatures(
            images, projected.features, projected.rows, projected.residual, embedding=None
        )

    return AttributionInputs.from_gradients(
        image_features(train, "train"), image_features(queries, "generated"), seed
    )


def run(args: argparse.Namespace) -> None:
    """Compare the influence of forgotten images in two networks."""
    # Read the job's settings and name its inputs.
    resolved = artifacts.read_config(args.config, STEP)
    settings, seed = resolved["settings"], resolved["seed"]
    names = settings["attributors"]
    features = config.Features.model_validate(settings["features"])
    stores = {"before": args.before, "after": args.after}
    pipelines = {
        network: trained_pipeline(store, settings["weights"]) for network, store in stores.items()
    }
    members = {network: store / "members.parquet" for network, store in stores.items()}
    lds_path = args.scores / "lds.csv"
    inputs = {**pipelines, "members": members["before"], "members_after": members["after"]}
    inputs |= {"train": args.train, "samples": args.samples, "lds": lds_path}
    inputs |= {"texts": args.texts / FILE} if args.texts else {}
    inputs |= {"latents": args.latents / LATENTS} if args.latents else {}
    entries = (__name__, *dict.fromkeys(config.ATTRIBUTORS[name] for name in names))

    with artifacts.step(resolved, args.out, inputs, entries) as step:
        # Find the forgotten training images and the queries that show them.
        for path in (*members.values(), lds_path):
            artifacts.check_file(path)
        train = trained_rows(load_images(args.train), pd.read_parquet(members["before"]))
        members_after = pd.read_parquet(members["after"])
        forgotten = np.isin(train.ids, members_after.loc[members_after["forgotten"], "id"])
        if forgotten.all() or not forgotten.any():
            raise ArtifactError(
                f"{members['after']}: {forgotten.sum()} of {len(train)} training images are "
                "forgotten; the others are needed to compare with"
            )
        queries = load_images(args.samples).take(np.arange(settings["queries"]))
        shows_forgotten = forgotten[Gallery(train.pixels).nearest(queries.pixels, 1).rows[:, 0]]

        # Look up the regularisers.
        lds_table = pd.read_csv(lds_path)
        of_generations = (lds_table["queries"] == "generated") & (lds_table["target"] == "loss")
        regulariser = lds_table[of_generations].set_index("attributor")["regulariser"]

        # Score with both networks.
        readouts = readouts_of(names)
        texts = Texts.load(args.texts) if args.texts else None
        latents = EncodedImages.load(args.latents) if args.latents else None
        rows = []
        for network, pipeline in pipelines.items():
            network_inputs = attribution_inputs(
                pipeline,
                train,
                queries,
                features,
                readouts,
                seed,
                resolved["replicate"],
                texts,
                latents,
            )
            for name in names:
                scores = attributors.scorer(name, network_inputs)(regulariser[name])
                aucs = auc_of_forgotten(scores, forgotten)
                shares = share_of_forgotten(scores, forgotten)
                for kind, selected in (
                    ("forgotten", shows_forgotten),
                    ("others", ~shows_forgotten),
                ):
                    if selected.any():
                        auc, share = float(aucs[selected].mean()), float(shares[selected].mean())
                        count = int(selected.sum())
                        rows.append((network, name, kind, count, auc, share, forgotten.mean()))
                        step.metric(f"influence/{network}/{kind}/{name}", auc)
        pd.DataFrame(rows, columns=COLUMNS).to_csv(step.folder / "influence.csv", index=False)
        step.note(training_images=len(train), forgotten=int(forgotten.sum()), queries=len(queries))
