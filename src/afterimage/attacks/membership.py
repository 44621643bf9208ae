"""``afterimage attack membership``: infer from the loss which images were trained on.

The global loss threshold of Yeom et al. 2018, as used by Carlini et al. 2023, section 5.2.1: an
image is called a member if its loss (see ``losses``) is small. Members are the images that the arm
trained on, once per source regardless of its copies; non-members are held-out images. Twins, which
no arm trains on either, are the control: their area under the curve should be one half.

The store of the command:

- ``losses.parquet``: one row per source of the training split, held-out image and twin: set (train,
  holdout, twin), id, source, copies, repeat, times (as planted, see ``twins.Planted``; for a twin
  those of its planted counterpart; 0, neither and 0 for a held-out image), label, trained (bool),
  loss (mean over levels and draws) and ``loss_<t>`` (at timestep t alone);
- ``results.csv``: the numbers, with the columns of ``results``: ``roc_auc`` and ``tpr@<rate>`` for
  each of ``false_positive_rates``; the same with ``_by_copies`` for members with so many copies
  (subsets ``copies=<n>``) and ``_by_repeat`` for what was planted (``twins.subsets``),
  ``_by_level`` for the loss at one level (``t=<timestep>``) and
  ``_twins`` for twins instead of members. Intervals of shares hold the threshold fixed: only
  members are resampled.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from accelerate import PartialState

from afterimage import artifacts, config
from afterimage.attacks import losses, twins
from afterimage.attacks.flags import add_flags, add_latents, add_texts, files_of
from afterimage.attacks.table import Results
from afterimage.data.members import seen, trained_mask
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.latents import FILE as LATENTS
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.noising import levels
from afterimage.diffusion.sample import load_trained, trained_pipeline
from afterimage.diffusion.texts import FILE, Texts
from afterimage.images import Images, load_images
from afterimage.metrics import ranking

STEP = "attack/membership"
INPUTS = ("train", "members", "holdout", "twins", "index")
"""Files and folders that are read besides the network."""


def found(members: np.ndarray, others: np.ndarray, rate: float) -> np.ndarray:
    """Return the mask of members, bool (M,), detected by a threshold that calls at most a share
    ``rate`` of the non-members ``others``, (N,), members.

    The threshold lies below the first loss of ``others`` that is one too many; a member with
    exactly that loss is not detected.
    """
    allowed = math.floor(round(rate * len(others), 9))
    return members < np.partition(others, allowed)[allowed]


def separate(
    table: Results,
    members: np.ndarray,
    others: np.ndarray,
    rates: list[float],
    subset: str = "all",
    kind: str = "",
) -> None:
    """Add how well losses separate members, (M,), from non-members, (N,): ``roc_auc<kind>`` and
    ``tpr<kind>@<rate>``."""
    table.contrast(f"roc_auc{kind}", ranking.area, members, others, subset)
    for rate in rates:
        table.share(f"tpr{kind}@{rate:g}", found(members, others, rate), subset=subset)


def one_per_source(images: Images, trained: np.ndarray) -> np.ndarray:
    """Return one row per source, ascending: its first row in the mask ``trained``, bool (N,), or
    else its first row."""
    order = np.argsort(~trained, kind="stable")
    _, first = np.unique(images.sources[order], return_index=True)
    return np.sort(order[first])


@dataclass(frozen=True)
class Known:
    """What is known of an arm's training images, and the images that it was not trained on.

    Attributes:
        train: Training images of the planting.
        trained: Mask of those that the arm's weights have seen, bool (N,).
        holdout: Held-out images.
        planted: The planted ground truth, with the twins.
    """

    train: Images
    trained: np.ndarray
    holdout: Images
    planted: twins.Planted

    @classmethod
    def read(cls, args: argparse.Namespace) -> Known:
        """Load the files ``INPUTS`` of a command.

        Raises:
            ArtifactError: if a file is damaged.
        """
        artifacts.check_file(args.index)
        train, holdout = load_images(args.train), load_images(args.holdout)
        trained = trained_mask(train, seen(args.members))
        planted = twins.read(pd.read_parquet(args.index), load_images(args.twins))
        return cls(train, trained, holdout, planted)

    def sets(self) -> dict[str, tuple[Images, pd.DataFrame]]:
        """Return the sets train (one row per source), holdout and twin: their images, and set, id,
        source, copies, repeat, times, label and trained of each."""
        rows = one_per_source(self.train, self.trained)
        unplanted = {"copies": 0, "repeat": "neither", "times": 0}
        sets = {
            "train": (
                self.train.take(rows),
                self.planted.of(self.train.sources[rows]),
                self.trained[rows],
            ),
            "holdout": (
                self.holdout,
                pd.DataFrame(unplanted, index=range(len(self.holdout))),
                False,
            ),
            "twin": (self.planted.twins, self.planted.of(self.planted.sources), False),
        }
        described = {}
        for name, (images, as_planted, is_member) in sets.items():
            table = pd.DataFrame({"set": name, "id": images.ids, "source": images.sources})
            table = table.join(as_planted).assign(label=images.labels, trained=is_member)
            described[name] = images, table
        return described


def attack(
    scores: pd.DataFrame, rates: list[float], statistics: config.Statistics, seed: int
) -> pd.DataFrame:
    """Return the table of numbers for the rows of ``losses.parquet``."""
    table = Results(statistics, seed, "membership")
    members = scores[(scores["set"] == "train") & scores["trained"]]
    others = scores[scores["set"] == "holdout"]
    separate(table, members["loss"].to_numpy(), others["loss"].to_numpy(), rates)
    for kind, subset, mask in twins.subsets(members):
        group = members["loss"].to_numpy()[mask]
        separate(table, group, others["loss"].to_numpy(), rates, subset, kind)
    for column in scores.columns[scores.columns.str.startswith("loss_")]:
        level = f"t={column.removeprefix('loss_')}"
        separate(
            table, members[column].to_numpy(), others[column].to_numpy(), rates, level, "_by_level"
        )
    twin_losses = scores.loc[scores["set"] == "twin", "loss"].to_numpy()
    if len(twin_losses):
        separate(table, twin_losses, others["loss"].to_numpy(), rates, kind="_twins")
    return table.frame()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_flags(parser, "model", *INPUTS)
    add_texts(parser)
    add_latents(parser)


def run(args: argparse.Namespace) -> None:
    """Attack one arm and store losses and numbers."""
    # Read the settings.
    resolved = artifacts.read_config(args.config, STEP)
    keys = dict(resolved["settings"])
    pipeline = trained_pipeline(args.model, keys.pop("weights"))
    flips, statistics = keys.pop("flips"), config.Statistics(**keys.pop("statistics"))
    settings = config.Membership(**keys)
    inputs = files_of(args, INPUTS) | {"model": pipeline}
    inputs |= {"texts": args.texts / FILE} if args.texts else {}
    inputs |= {"latents": args.latents / LATENTS} if args.latents else {}
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        # Load the images.
        known = Known.read(args)
        sets = known.sets()

        # Measure the losses.
        net, scheduler_config = load_trained(pipeline, resolved["seed"], resolved["replicate"])
        net.to(PartialState().device)
        texts = Texts.load(args.texts) if args.texts else None
        latents = EncodedImages.load(args.latents) if args.latents else None
        timesteps = levels(settings.timesteps, scheduler_config["num_train_timesteps"])
        tables = []
        for set_name, (images, described) in sets.items():
            if not len(images):
                continue
            measured = losses.measure(
                net,
                task_of(net, scheduler_config, images, texts, latents),
                images.ids,
                set_name,
                timesteps,
                settings.draws,
                resolved["seed"],
                flips=flips,
            )
            columns = [f"loss_{t}" for t in timesteps]
            table = described.assign(loss=measured.mean(axis=1))
            table = table.join(pd.DataFrame(measured, columns=columns))
            tables.append(table)
        scores = pd.concat(tables, ignore_index=True)

        # Attack, and write the results.
        results = attack(scores, settings.false_positive_rates, statistics, resolved["seed"])
        scores.to_parquet(step.folder / "losses.parquet", index=False)
        results.to_csv(step.folder / "results.csv", index=False)
        overall = results[results["subset"] == "all"]
        for metric, value in zip(overall["metric"], overall["value"], strict=True):
            step.metric(metric, value)
        step.note(
            members=int(sets["train"][1]["trained"].sum()),
            non_members=len(known.holdout),
            twins=len(known.planted.twins),
            timesteps=timesteps,
        )
