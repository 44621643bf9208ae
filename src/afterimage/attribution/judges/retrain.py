"""``afterimage attribution retrain``: train networks on subsets of the training images; resumable.

The ground truth of the linear data-modelling score (Park et al. 2023; D-TRAK, Zheng et al. 2024;
DAS, Lin et al. 2025): every network is trained as the explained arm was, for the same number of
epochs, on the images of one subset (``subsets.masks`` of the arm's training images in their order).
Then the effect on every query is measured (``retraining_effect``: its loss, and the shift of the
prediction from the explained network's), with the same noise for all networks. Each of the M
subsets is trained on S times, with other initial weights, order and noise.

The networks are numbered s M + m, so that all subsets of the first seed come first. Job j trains
the j-th group of them, one after the other or simultaneously (``training.stacked``). Exit status 75
means that a signal stopped the training and its state was saved; the same command resumes it.

The result contains no weights:

- ``losses.npz``: ``subset`` and ``seed``, int64 (J,), which name each network; for each set of
  queries (``queries.SETS``) ``<set>/loss`` and ``<set>/shift`` of its Q images, float64 (J, Q);
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
from afterimage.attribution.flags import add_explained
from afterimage.attribution.judges import retraining_effect, subsets
from afterimage.attribution.queries import SETS, latents_for, texts_for
from afterimage.attribution.replicate import root_seed
from afterimage.config import (
    AnyArm,
    AnyModel,
    Baseline,
    ConfigError,
    Diffusion,
    Train,
    TransferBlocks,
)
from afterimage.config.attribution import TARGETS, GroundTruth
from afterimage.config.stored import validated
from afterimage.diffusion.denoising import denoising, fusion_with
from afterimage.diffusion.fusion import Fusion
from afterimage.diffusion.latents import FILE as LATENTS
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.model import build_scheduler
from afterimage.diffusion.router import UNet
from afterimage.diffusion.sample import load_trained, trained_pipeline
from afterimage.diffusion.start import start, stored_input
from afterimage.diffusion.texts import FILE, Texts, embedded_captions
from afterimage.images import Images, load_images
from afterimage.methods import baseline
from afterimage.training import stacked
from afterimage.training.checkpoint import Store
from afterimage.training.determinism import same_bits
from afterimage.training.job import Trained, TrainingRun, accelerator_for, budget, classes_of

STEP = "attribution/retrain"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_explained(parser)
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument(
        "--state",
        type=Path,
        required=True,
        metavar="DIR",
        help="where the state of unfinished trainings is kept",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write",
    )


@dataclass(frozen=True)
class Recipe:
    """How the explained arm was trained, to repeat it on some of its images.

    Attributes:
        arm: The arm's settings.
        train: Its optimisation settings.
        model: The network.
        scheduler: The forward process.
        flips: Whether images are mirrored at random.
        classes: Number of labels, or None.
        images: The arm's training images, N.
        texts: Embeddings of their captions, if the arm is conditioned on them.
        latents: Their latents, if the arm denoises those.
        fusion: What is mixed into training batches, if the arm has dual fusion.
        accelerator: Device and precision.
    """

    arm: Baseline
    train: Train
    model: AnyModel
    scheduler: DDPMScheduler
    flips: bool
    classes: int | None
    images: Images
    texts: Texts | None
    latents: EncodedImages | None
    fusion: Fusion | None
    accelerator: Accelerator

    @classmethod
    def from_config(
        cls,
        resolved: dict[str, Any],
        train: Path,
        members: Path,
        texts: Texts | None,
        latents: EncodedImages | None = None,
        others: Path | None = None,
    ) -> Recipe:
        """Return the recipe of a resolved config.

        Args:
            resolved: Resolved config whose settings have ``arm``, ``model``, ``diffusion`` and
                ``flips``.
            train: Training images (.npz).
            members: Which of them the arm was trained on (.parquet).
            texts: Embeddings of captions, if the arm is conditioned on them.
            latents: Latents of the images, if the arm denoises those.
            others: Pictures for dual fusion (.npz), if the arm has it.

        Raises:
            ConfigError: unless the arm is trained from scratch by the baseline method, with its own
                budget.
            ArtifactError: if ``members`` does not match the images, or labels are missing.
        """
        settings = resolved["settings"]
        arm = TypeAdapter(AnyArm).validate_python(settings["arm"])
        if not isinstance(arm, Baseline) or arm.base is not None or arm.matched_to is not None:
            raise ConfigError(
                "attribution.arm: only an arm of method baseline without base and matched_to can "
                f"be retrained, not one of method {arm.method} with base = {arm.base!r} and "
                f"matched_to = {arm.matched_to!r}"
            )
        if arm.weights != "none":
            raise ConfigError(
                f"attribution.arm: weights = {arm.weights!r} cannot be retrained, only 'none'"
            )
        images = load_images(train)
        artifacts.check_file(members)
        table = pd.read_parquet(members)
        if not np.array_equal(table["id"], images.ids):
            raise ArtifactError(f"{members} does not list the images of {train}")
        train_settings = Train.model_validate(arm.train)
        diffusion = Diffusion.model_validate(settings["diffusion"])
        scheduler = build_scheduler(diffusion, latents=latents is not None)
        fusion = None
        if (arm.dual_fusion is None) != (others is None):
            raise ConfigError(
                f"the arm has dual_fusion = {arm.dual_fusion!r}, but --others is {others}: give "
                "both or neither"
            )
        if arm.dual_fusion is not None and texts is not None and others is not None:
            fusion = fusion_with(load_images(others), arm.dual_fusion, texts, latents, scheduler)
        return cls(
            arm=arm,
            train=train_settings,
            model=validated(AnyModel, settings["model"], "model"),
            scheduler=scheduler,
            flips=settings["flips"],
            classes=classes_of(images, arm),
            images=images.take(table["trained"].to_numpy()),
            texts=texts,
            latents=latents,
            fusion=fusion,
            accelerator=accelerator_for(train_settings),
        )

    def training_run(
        self, kept: np.ndarray, seed: int, path: tuple[str | int, ...], store: Store
    ) -> TrainingRun:
        """Return a run on some of the images, for as many epochs as the arm was trained.

        Args:
            kept: The images to train on, bool (N,).
            seed: Root seed of the run.
            path: Address of the run's random streams: initial weights, order, noise.
            store: Where the state of the unfinished run is kept.
        """
        images = self.images.take(kept)
        shape = images.pixels.shape[1:] if self.latents is None else self.latents.shape

        def build(blocks: TransferBlocks | None, stream: str) -> UNet:
            init_seed = seeds.derive(seed, *path, stream)
            return start(
                self.model,
                shape,
                self.classes,
                seed=init_seed,
                blocks=blocks,
                text_width=None if self.texts is None else self.texts.width,
            )

        labels = None if self.classes is None else images.labels
        dropout = self.train.label_dropout
        return TrainingRun(
            seed=seed,
            path=path,
            arm=self.arm,
            train=self.train,
            updates=-(-budget(self.train, len(kept), None, None) * len(images) // len(kept)),
            net=build(self.arm.rau_net, "init"),
            build=build,
            scheduler=self.scheduler,
            task=denoising(
                images.pixels,
                self.latents,
                self.scheduler,
                labels,
                self.classes or 0,
                dropout,
                self.flips,
                embedded_captions(self.texts, images),
                fusion=self.fusion,
            ),
            sources=images.sources,
            labels=images.labels,
            forgotten=np.zeros(len(images), bool),
            base=None,
            accelerator=self.accelerator,
            store=store,
        )


def networks_of_job(subset_count: int, repeats: int, size: int, job: int) -> list[tuple[int, int]]:
    """Return the subset and the seed of each network of a job.

    Args:
        subset_count: M, subsets.
        repeats: S, trainings of each.
        size: Networks per job; the last job may have fewer.
        job: Index of the job, from 0.

    Raises:
        ConfigError: if the index is out of range.
    """
    numbers = range(subset_count * repeats)[job * size : (job + 1) * size] if job >= 0 else range(0)
    if not numbers:
        raise ConfigError(
            f"job = {job}: {subset_count} subsets x {repeats} seeds are "
            f"{-(-subset_count * repeats // size)} jobs, from 0"
        )
    return [(number % subset_count, number // subset_count) for number in numbers]


def run(args: argparse.Namespace) -> None:
    """Train the networks of one job and store their effects on the queries."""
    # Read the job's settings and name its inputs.
    resolved = artifacts.read_config(args.config, STEP)
    settings, weights = resolved["settings"]["attribution"], resolved["settings"]["weights"]
    replicate = resolved["replicate"]
    root = root_seed(resolved["seed"], replicate)
    networks = networks_of_job(
        settings["subsets"], settings["seeds"], settings["networks_per_job"], int(resolved["job"])
    )
    entries = (__name__,)
    pipeline = trained_pipeline(args.model, weights)
    paths = {name: args.queries / f"{name}.npz" for name in SETS}
    inputs = {"model": pipeline, "train": args.train, "members": args.members} | paths
    inputs |= stored_input(validated(AnyModel, resolved["settings"]["model"], "model"))
    inputs |= {"texts": args.texts / FILE} if args.texts else {}
    inputs |= {"latents": args.latents / LATENTS} if args.latents else {}
    inputs |= {"others": args.others} if args.others else {}

    with artifacts.step(resolved, args.out, inputs, entries) as step:
        # Read what is measured: the queries, under the retrained networks and the explained one.
        texts = Texts.load(args.texts) if args.texts else None
        latents = EncodedImages.load(args.latents) if args.latents else None
        recipe = Recipe.from_config(resolved, args.train, args.members, texts, latents, args.others)
        same_bits(recipe.train.deterministic)
        queries = {name: load_images(path) for name, path in paths.items()}
        encoded = {
            name: latents_for(name, images, latents, pipeline) for name, images in queries.items()
        }
        scheduler_config = dict(recipe.scheduler.config)
        ground_truth = GroundTruth.model_validate(settings["ground_truth"])
        levels = retraining_effect.noise_levels(
            ground_truth, scheduler_config["num_train_timesteps"]
        )
        explained, _ = load_trained(pipeline, resolved["seed"], replicate)
        explained.to(recipe.accelerator.device).eval()

        # Set up the trainings. A finished network keeps its state until all are finished, so that
        # stopping during a later one loses nothing.
        masks = subsets.masks(recipe.images.labels, settings["share"], settings["subsets"], root)
        identity = {
            "config": resolved,
            "inputs": step.input_sha256,
            "code": provenance.fingerprint(*entries),
        }

        def training_run(network: tuple[int, int], store: Store) -> TrainingRun:
            path = ("attribution", settings["arm"], *network)
            return recipe.training_run(masks[network[0]], root, path, store)

        trainings: Iterable[Trained]
        if settings["stacked"]:
            stores = [Store(args.state, identity)]
            trainings = stacked.train([training_run(network, stores[0]) for network in networks])
        else:
            stores = [
                Store(args.state, identity | {"network": list(network)}) for network in networks
            ]
            trainings = (
                baseline.train(training_run(network, store))
                for network, store in zip(networks, stores, strict=True)
            )

        # Train and measure.
        measured = {
            f"{name}/{target}": np.zeros((len(networks), len(images)))
            for name, images in queries.items()
            for target in TARGETS
        }
        progress, spent = {}, []
        for row, trained in enumerate(trainings):
            net = cast(UNet2DModel, {"ema": trained.average, "raw": trained.raw}[weights].eval())
            for name, images in queries.items():
                effects = retraining_effect.measure_effects(
                    net,
                    explained,
                    scheduler_config,
                    images,
                    name,
                    ground_truth,
                    root,
                    texts_for(name, texts),
                    encoded[name],
                )
                for target, values in effects.items():
                    measured[f"{name}/{target}"][row] = values
            progress[id(trained.progress)] = trained.progress  # stacked networks share one
            spent.append(trained.spent)

        # Store the effects, the mean training curves and the facts.
        subset, seed = np.array(networks, np.int64).T
        arrays = {"subset": subset, "seed": seed, **measured}
        np.savez(step.folder / "losses.npz", **arrays)
        for update, name, value in mean_curves([store.curves for store in stores]):
            step.metric(name, value, update)
        images_seen = sum(run.images_seen for run in spent)
        seconds = sum(run.seconds for run in progress.values())
        step.note(
            networks=len(networks),
            updates=sum(run.updates for run in spent),
            updates_per_model=spent[0].updates,
            images_seen=images_seen,
            training_images=int(masks[0].sum()),
            timesteps=levels,
            device=str(recipe.accelerator.device),
            threads=torch.get_num_threads(),
            training_seconds=round(seconds, 3),
            images_per_second=round(images_seen / seconds, 1),
            resumed_at=[run.resumed_at for run in progress.values()],
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
