"""``afterimage attribution remedied``: does the influence of forgotten images fall?

The same scores are computed from the network without a remedy and from the one with it, for the same generations, those of the
first network. A remedy that took an image out of a network, and not only out of its generations, should leave the image no more
influence on them than others have. Scores of two networks have no common unit, so that only comparisons within a network are
reported: the chance that a forgotten image's score is larger than another image's (0.5: none; the area under the ROC curve), and
the share of all scores' absolute sum that forgotten images have, beside their share of the images.

Generations are told apart by what they show: those whose nearest training image is forgotten, and the others. A job is named by the
remedied arm. Scores are those of the main features with the regulariser that was chosen for the explained arm's generations.

The store that the verb leaves: ``influence.csv`` (network: before or after; attributor; queries: forgotten or others; count; auc; share;
chance).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState
from scipy.stats import rankdata

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attribution import attributors
from afterimage.attribution.attributors.inputs import Evidence, Side
from afterimage.attribution.gradients import compute
from afterimage.config.attribution import FROM_ROWS
from afterimage.data.members import trained_rows
from afterimage.diffusion.sample import load_trained, trained_pipeline
from afterimage.images import Images, load_images
from afterimage.metrics.neighbours import Gallery

STEP = "attribution/remedied"
COLUMNS = ["network", "attributor", "queries", "count", "auc", "share", "chance"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--before", type=Path, required=True, metavar="DIR", help="training without the remedy"
    )
    parser.add_argument("--after", type=Path, required=True, metavar="DIR", help="training with it")
    parser.add_argument("--train", type=Path, required=True, metavar="NPZ", help="training images")
    parser.add_argument(
        "--samples",
        type=Path,
        required=True,
        metavar="NPZ",
        help="generations of the first network",
    )
    parser.add_argument(
        "--scores",
        type=Path,
        required=True,
        metavar="DIR",
        help="result of `afterimage attribution scores`",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def separation(scores: np.ndarray, forgotten: np.ndarray) -> np.ndarray:
    """Return for each query the chance that a forgotten image's score is larger than another's; ties count half. float64 (Q,).

    Args:
        scores: (Q, N).
        forgotten: bool, (N,); some, not all.
    """
    several = int(forgotten.sum())
    ranks = rankdata(scores, axis=1)[:, forgotten].sum(axis=1)
    return (ranks - several * (several + 1) / 2) / (several * (len(forgotten) - several))


def share(scores: np.ndarray, forgotten: np.ndarray) -> np.ndarray:
    """Return for each query the share of the scores' absolute sum that forgotten images have, float64 (Q,)."""
    return np.abs(scores[:, forgotten]).sum(axis=1) / np.abs(scores).sum(axis=1)


def evidence_of(
    pipeline: Path,
    train: Images,
    queries: Images,
    settings: config.Features,
    readouts: list[str],
    seed: int,
) -> Evidence:
    """Return the features of one network; nothing is known from retraining."""
    net, scheduler_config = load_trained(pipeline, seed, 0)
    net.to(PartialState().device)

    def side(images: Images, part: str) -> Side:
        made = compute.features(net, scheduler_config, images, part, settings, readouts, seed)
        return Side(images, made.features, made.rows, made.residual, embedding=None)

    masks, losses = np.zeros((0, len(train)), bool), np.zeros((0, len(queries)))
    return Evidence(side(train, "train"), side(queries, "generated"), (), masks, losses, seed)


def run(args: argparse.Namespace) -> None:
    """Compare the influence of forgotten images in two networks."""
    resolved = artifacts.read_config(args.config, STEP)
    own, seed = resolved["settings"], resolved["seed"]
    settings = config.Features.model_validate(own["features"])
    pipelines = {
        network: trained_pipeline(getattr(args, network), own["weights"])
        for network in ("before", "after")
    }
    members = {network: getattr(args, network) / "members.parquet" for network in pipelines}
    chosen = args.scores / "lds.csv"
    inputs = {**pipelines, "members": members["before"], "members_after": members["after"]}
    inputs |= {"train": args.train, "samples": args.samples, "lds": chosen}
    entries = (__name__, *(config.ATTRIBUTORS[name] for name in own["attributors"]))
    with artifacts.step(resolved, args.out, inputs, entries) as step:
        for file in (*members.values(), chosen):
            artifacts.check_file(file)
        train = trained_rows(load_images(args.train), pd.read_parquet(members["before"]))
        after = pd.read_parquet(members["after"])
        forgotten = np.isin(train.ids, after.loc[after["forgotten"], "id"])
        if forgotten.all() or not forgotten.any():
            raise ArtifactError(
                f"{members['after']}: {forgotten.sum()} of {len(train)} training images are forgotten"
            )
        queries = load_images(args.samples).take(np.arange(own["queries"]))
        shown = forgotten[Gallery(train.pixels).nearest(queries.pixels, 1).rows[:, 0]]
        table = pd.read_csv(chosen)
        regulariser = table[
            (table["queries"] == "generated") & (table["target"] == "loss")
        ].set_index("attributor")["regulariser"]
        readouts = [
            name
            for name in compute.READOUTS
            if name != "probe" or set(own["attributors"]) & set(FROM_ROWS)
        ]
        rows = []
        for network, pipeline in pipelines.items():
            evidence = evidence_of(pipeline, train, queries, settings, readouts, seed)
            for name in own["attributors"]:
                scores = attributors.find(name).scores(evidence)(regulariser[name])
                of_query = separation(scores, forgotten), share(scores, forgotten)
                for of, which in (("forgotten", shown), ("others", ~shown)):
                    if which.any():
                        auc, part = (float(values[which].mean()) for values in of_query)
                        rows.append(
                            (network, name, of, int(which.sum()), auc, part, forgotten.mean())
                        )
                        step.metric(f"influence/{network}/{of}/{name}", auc)
        pd.DataFrame(rows, columns=COLUMNS).to_csv(step.folder / "influence.csv", index=False)
        step.note(training_images=len(train), forgotten=int(forgotten.sum()), queries=len(queries))
