"""``afterimage attribution retrain``: train one bundle of networks on subsets of the training images; run it again after a stop.

The ground truth of the linear data-modelling score (Park et al. 2023; D-TRAK, Zheng et al. 2024; DAS, Lin et al. 2025): every network
is trained as the explained arm was, on the images that one subset keeps (``subsets.masks`` of the arm's training images in their
order), for the same number of epochs. Then it is measured what that did to every query (``truth``: its loss, and how far the
prediction moved from the explained network's) under noise that is the same for all networks. Each of the M subsets is trained on S times, with other initial weights, order and
noise.

The networks are numbered s M + m, all subsets of the first seed first, and job j trains the j-th bundle of them: one after the
other, or at once (``training.stacked``). Exit status 75 means that a signal stopped the training and its state is saved.

The store that the verb leaves holds no weights:

- ``losses.npz``: ``subset`` and ``seed``, int64 (J,), which name each network; for each set of queries (``queries.SETS``)
  ``<set>/loss`` and ``<set>/shift`` of its Q images, float64 (J, Q);
- ``metrics.jsonl``: training curves, means over the job's networks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pydantic import TypeAdapter

from afterimage import artifacts, provenance, seeds
from afterimage.artifacts import ArtifactError
from afterimage.attribution.judges import retraining_effect, subsets
from afterimage.attribution.queries import SETS
from afterimage.config import AnyArm, Baseline, ConfigError, Diffusion, Model, Train, TransferBlocks
from afterimage.config.attribution import GroundTruth
from afterimage.diffusion.model import build_scheduler, build_unet
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.sample import load_trained, trained_pipeline
from afterimage.images import Images, load_images
from afterimage.methods import baseline
from afterimage.training import stacked
from afterimage.training.checkpoint import Store
from afterimage.training.determinism import same_bits
from afterimage.training.job import Trained, TrainingRun, accelerator_for, budget, classes_of

STEP = "attribution/retrain"


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
        help="images whose origin is asked for",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="where unfinished states are kept"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the result; replaced as a whole",
    )


@dataclass(frozen=True)
class Recipe:
    """How the explained arm was trained, to do the same with some of its images.

    Attributes:
        seed: Root seed of the study.
        arm: The arm's settings.
        train: Its optimisation settings.
        model: The network.
        scheduler: The forward process.
        flips: Mirror half of the images.
        classes: Number of labels, or None.
        images: The arm's training images, N.
        accelerator: Device and precision.
    """

    seed: int
    arm: Baseline
    train: Train
    model: Model
    scheduler: DDPMScheduler
    flips: bool
    classes: int | None
    images: Images
    accelerator: Accelerator

    @classmethod
    def read(cls, resolved: dict[str, Any], train: Path, members: Path) -> Recipe:
        """Return the recipe of a resolved config with the arm's ``arm``, ``model``, ``diffusion`` and ``flips``.

        Args:
            train: Training images (.npz).
            members: Which of them the arm trained on (.parquet).

        Raises:
            ConfigError: if the arm is not one network trained plainly, from the start, with a budget of its own.
            ArtifactError: if ``members`` belongs to other images, or labels are missing.
        """
        settings = resolved["settings"]
        arm = TypeAdapter(AnyArm).validate_python(settings["arm"])
        if not isinstance(arm, Baseline) or arm.base is not None or arm.matched_to is not None:
            raise ConfigError(
                f"attribution.arm: only an arm of method baseline without base and matched_to can be retrained, not one of method "
                f"{arm.method} with base = {arm.base!r} and matched_to = {arm.matched_to!r}"
            )
        everything = load_images(train)
        artifacts.check_file(members)
        table = pd.read_parquet(members)
        if not np.array_equal(table["id"], everything.ids):
            raise ArtifactError(f"{members} does not name the images of {train}")
        optimisation = Train.model_validate(arm.train)
        return cls(
            seed=resolved["seed"],
            arm=arm,
            train=optimisation,
            model=Model.model_validate(settings["model"]),
            scheduler=build_scheduler(Diffusion.model_validate(settings["diffusion"])),
            flips=settings["flips"],
            classes=classes_of(everything, arm),
            images=everything.take(table["trained"].to_numpy()),
            accelerator=accelerator_for(optimisation),
        )

    def job(self, kept: np.ndarray, path: tuple[str | int, ...], store: Store) -> TrainingRun:
        """Return the run on the ``kept`` images, bool (N,), for as many epochs as the arm's own.

        Args:
            path: Address of the run's random streams: initial weights, order, noise.
            store: Where its unfinished states go.
        """
        images = self.images.take(kept)

        def build(blocks: TransferBlocks | None, stream: str) -> UNet2DModel:
            start = seeds.derive(self.seed, *path, stream)
            return build_unet(
                self.model, images.pixels.shape[1:], self.classes, seed=start, blocks=blocks
            )

        labels = None if self.classes is None else images.labels
        dropout = self.train.label_dropout
        return TrainingRun(
            seed=self.seed,
            path=path,
            arm=self.arm,
            train=self.train,
            updates=-(-budget(self.train, len(kept), None, None) * len(images) // len(kept)),
            net=build(self.arm.rau_net, "init"),
            build=build,
            scheduler=self.scheduler,
            task=Pixels(
                images.pixels, self.scheduler, labels, self.classes or 0, dropout, self.flips
            ),
            labels=images.labels,
            forgotten=np.zeros(len(images), bool),
            base=None,
            accelerator=self.accelerator,
            store=store,
        )


def bundle(count: int, repeats: int, size: int, job: int) -> list[tuple[int, int]]:
    """Return subset and seed of the networks of one job.

    Args:
        count: M, subsets.
        repeats: S, trainings of each.
        size: Networks per job; the last job may have fewer.
        job: Number of the job, from 0.

    Raises:
        ConfigError: if there is no such job.
    """
    numbers = range(count * repeats)[job * size : (job + 1) * size] if job >= 0 else range(0)
    if not numbers:
        raise ConfigError(
            f"job = {job}: {count} subsets x {repeats} seeds are {-(-count * repeats // size)} jobs, from 0"
        )
    return [(number % count, number // count) for number in numbers]


def run(args: argparse.Namespace) -> None:
    """Train the networks of one job and store the losses of the queries under each."""
    resolved = artifacts.read_config(args.config, STEP)
    own, weights = resolved["settings"]["attribution"], resolved["settings"]["weights"]
    settings = GroundTruth.model_validate(own["ground_truth"])
    networks = bundle(own["subsets"], own["seeds"], own["networks_per_job"], int(resolved["job"]))
    same_bits()
    entries = (__name__,)
    pipeline = trained_pipeline(args.model, weights)
    paths = {name: args.queries / f"{name}.npz" for name in SETS}
    inputs = {"model": pipeline, "train": args.train, "members": args.members} | paths
    with artifacts.step(resolved, args.out, inputs, entries) as step:
        recipe = Recipe.read(resolved, args.train, args.members)
        queries = {name: load_images(path) for name, path in paths.items()}
        scheduler = dict(recipe.scheduler.config)
        at = retraining_effect.timesteps(settings, scheduler["num_train_timesteps"])
        explained, _ = load_trained(pipeline, resolved["seed"], 0)
        explained.to(recipe.accelerator.device).eval()
        masks = subsets.masks(recipe.images.labels, own["share"], own["subsets"], recipe.seed)
        identity = {
            "config": resolved,
            "inputs": step.input_sha256,
            "code": provenance.fingerprint(*entries),
        }

        def job(network: tuple[int, int], store: Store) -> TrainingRun:
            return recipe.job(masks[network[0]], ("attribution", own["arm"], *network), store)

        # A finished network keeps its state until all are, so that a stop in a later one costs nothing of it.
        trained: Iterable[Trained]
        if own["stacked"]:
            stores = [Store(args.state, identity)]
            trained = stacked.train([job(network, stores[0]) for network in networks])
        else:
            stores = [
                Store(args.state, identity | {"network": list(network)}) for network in networks
            ]
            trained = (
                baseline.train(job(network, store))
                for network, store in zip(networks, stores, strict=True)
            )

        measured = {
            f"{name}/{target}": np.zeros((len(networks), len(images)))
            for name, images in queries.items()
            for target in retraining_effect.TARGETS
        }
        progress, spent = {}, []
        for row, result in enumerate(trained):
            net = cast(UNet2DModel, {"ema": result.average, "raw": result.raw}[weights].eval())
            for name, images in queries.items():
                found = retraining_effect.measure(
                    net, explained, scheduler, images, name, settings, recipe.seed
                )
                for target, values in found.items():
                    measured[f"{name}/{target}"][row] = values
            progress[id(result.progress)] = result.progress  # a stack has one for all its networks
            spent.append(result.spent)

        which = np.array(networks, np.int64)
        np.savez(step.folder / "losses.npz", subset=which[:, 0], seed=which[:, 1], **measured)  # type: ignore[arg-type]
        for update, name, value in mean_curves([store.curves for store in stores]):
            step.metric(name, value, update)
        seen, seconds = (
            sum(one.images_seen for one in spent),
            sum(one.seconds for one in progress.values()),
        )
        step.note(
            networks=len(networks),
            updates=sum(one.updates for one in spent),
            updates_per_model=spent[0].updates,
            images_seen=seen,
            training_images=int(masks[0].sum()),
            timesteps=at,
            device=str(recipe.accelerator.device),
            threads=torch.get_num_threads(),
            training_seconds=round(seconds, 3),
            images_per_second=round(seen / seconds, 1),
            resumed_at=[one.resumed_at for one in progress.values()],
        )
    for store in stores:
        store.remove()


def mean_curves(files: list[Path]) -> Iterator[tuple[int, str, float]]:
    """Yield update, name and value of the mean of curves with the same points."""
    curves = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    for points in zip(*curves, strict=True):
        yield (
            points[0]["step"],
            points[0]["name"],
            float(np.mean([point["value"] for point in points])),
        )
