"""``afterimage train run``: train one replicate of one arm, or resume it with the same command.

Exit status 75 means that a signal stopped the run and its state is saved. A run resumes only from a
checkpoint of the same config, inputs and code; after a change in any of them it starts over.

``--part k/K`` ends a run when k/K of its updates are done, for jobs with less time than the
training takes: the state is saved, nothing is written into ``--out``, and the status is 0. The last
part, or the same command without the flag, trains the remaining updates and finishes. The bits are
those of an uninterrupted run, whatever parts there were.

``--processes W`` splits the work between W processes on one machine, with a GPU each, if the method
supports it (``shares`` in its settings). Where processes share a run's networks the result has the
same bits; where they share every batch, it has the same data in the same order, but sums in a
different order. A checkpoint can be resumed with any number of processes. They may also be started
by ``torchrun -m afterimage.cli train run``; after a signal the state is saved in the same way, but
torchrun itself exits with status 1.

The store of a finished run:

- ``pipeline/``: diffusers pipeline with the averaged weights; ``raw/``: the same with the last
  weights; of a training with ``model.lora`` each has its adapter beside it
  (``pytorch_lora_weights.safetensors``);
- ``states/<state>/``: the same two folders of the networks kept on the way, where the study's
  attribution (``state<k>``) or its ``paths`` (``path<k>``) need them; otherwise ``states/`` is
  empty;
- ``members.parquet``: id, source, trained and forgotten (bool) of every row of ``--train``;
- ``tables/``: the tables that the arm's method documents in its module; for most methods empty;
- ``metrics.jsonl``: training curves (loss, grad_norm, learning_rate; images_per_second is the only
  value that varies between runs).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from pyarrow import parquet
from pydantic import TypeAdapter

from afterimage import artifacts, config, methods, provenance, seeds
from afterimage.config import (
    AnyArm,
    AnyModel,
    Arm,
    ConfigError,
    Diffusion,
    Train,
    TransferBlocks,
    Unlearning,
)
from afterimage.config.stored import validated
from afterimage.data import forget
from afterimage.data.members import members
from afterimage.diffusion.autoencoder import FOLDER
from afterimage.diffusion.denoising import denoising, fusion_with
from afterimage.diffusion.latents import FILE as LATENTS
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.model import build_scheduler, save_pipeline
from afterimage.diffusion.router import UNet
from afterimage.diffusion.start import facts, start, stored_input
from afterimage.diffusion.texts import FILE, Texts, embedded_captions
from afterimage.images import load_images
from afterimage.training import distributed
from afterimage.training.checkpoint import Store
from afterimage.training.determinism import same_bits
from afterimage.training.job import (
    Trained,
    TrainingRun,
    accelerator_for,
    budget,
    classes_of,
    stream_path,
)
from afterimage.training.launch import launch


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=Path, required=True, metavar="NPZ", help="training images")
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="folder of the checkpoints"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="finished training of the arm that this arm starts from",
    )
    parser.add_argument(
        "--matched",
        type=Path,
        metavar="DIR",
        help="finished training of the arm whose budget is matched",
    )
    parser.add_argument(
        "--extraction",
        type=Path,
        metavar="DIR",
        help="extraction attack whose extracted images are to be forgotten",
    )
    parser.add_argument(
        "--texts",
        type=Path,
        metavar="DIR",
        help="embeddings of captions, for an arm that is conditioned on them",
    )
    parser.add_argument(
        "--latents",
        type=Path,
        metavar="DIR",
        help="latents of the images, for a study with an autoencoder",
    )
    parser.add_argument(
        "--others",
        type=Path,
        metavar="NPZ",
        help="images that are mixed into the training images, for an arm with dual_fusion",
    )
    parser.add_argument(
        "--part",
        type=share,
        default=(1, 1),
        metavar="k/K",
        help="end when this share of the updates is done; default: all",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="W",
        help="processes that share the work (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the result; replaced as a whole",
    )


def share(text: str) -> tuple[int, int]:
    """Read ``k/K``.

    Raises:
        argparse.ArgumentTypeError: unless 1 <= k <= K.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    k, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= k <= parts:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of a run, such as 2/3")
    return k, parts


def run(args: argparse.Namespace) -> int | None:
    if args.processes > 1 and "RANK" not in os.environ:
        return launch([sys.executable, "-m", "afterimage.cli", *args.argv], args.processes)

    # Read the settings.
    resolved = artifacts.read_config(args.config, "train")
    model = validated(AnyModel, resolved["settings"]["model"], "model")
    arm: Arm = TypeAdapter(AnyArm).validate_python(resolved["settings"]["arm"])
    train = Train.model_validate(arm.train)

    # Set up the device, which makes the processes known to each other, and the inputs.
    same_bits(train.deterministic)
    accelerator = accelerator_for(train)
    _check(args, arm, train, resolved["settings"])
    method = methods.find(arm.method)
    inputs = {"train": args.train} | stored_input(model)
    inputs |= {"base": args.base / "pipeline"} if args.base else {}
    inputs |= {"matched": args.matched / artifacts.RUN} if args.matched else {}
    inputs |= {"extraction": args.extraction / "pairs.parquet"} if args.extraction else {}
    inputs |= {"texts": args.texts / FILE} if args.texts else {}
    inputs |= {"latents": args.latents / LATENTS} if args.latents else {}
    inputs |= {"others": args.others} if args.others else {}
    entries = (__name__, config.METHODS[arm.method])

    def prepare(hashes: dict[str, str]) -> tuple[TrainingRun, pa.Table]:
        code = provenance.fingerprint(*entries)
        store = Store(args.state, {"config": resolved, "inputs": hashes, "code": code})
        return _prepare(args, resolved, arm, train, model, accelerator, store)

    # Train; the main process writes the result.
    if not distributed.first():
        method.train(prepare({name: artifacts.sha256(path) for name, path in inputs.items()})[0])
        distributed.leave()
        return None
    with artifacts.step(resolved, args.out, inputs, entries) as step:
        job, table = prepare(step.input_sha256)
        result = method.train(job)
        _write(step.folder, job, result, table)
        progress = result.progress
        step.note(
            **asdict(result.spent),
            training_images=len(job.task),
            parameters=sum(p.numel() for p in result.raw.parameters()),
            device=str(accelerator.device),
            processes=distributed.count(),
            parts=[f"{k}of{args.part[1]}" for k in range(1, args.part[1])],
            threads=torch.get_num_threads(),
            training_seconds=round(progress.seconds, 3),
            images_per_second=round(result.spent.images_seen / (progress.seconds or 1), 1),
            resumed_at=progress.resumed_at,
            **facts(model, result.raw),
            **result.facts,
        )
    job.store.remove()
    distributed.leave()
    return None


def _check(args: argparse.Namespace, arm: Arm, train: Train, settings: dict[str, Any]) -> None:
    """Compare the flags and the number of processes with the settings.

    Raises:
        ConfigError: if a flag is missing or superfluous, or the processes cannot share the work.
    """
    for flag, setting in (
        ("base", arm.base),
        ("matched", arm.matched_to),
        ("extraction", any(chosen["extracted_from"] for chosen in settings["forget"].values())),
        ("texts", arm.condition == "text"),
        ("latents", settings["latents"]),
        ("others", arm.dual_fusion),
    ):
        if bool(setting) != bool(getattr(args, flag)):
            raise ConfigError(
                f"the arm says {flag} = {setting!r}, but --{flag} is {getattr(args, flag)}: give "
                "both or neither"
            )
    if distributed.count() > 1 and arm.shares is None:
        raise ConfigError(
            f"started with {distributed.count()} processes, but method {arm.method} trains in one; "
            "train arms and replicates in parallel"
        )
    if arm.shares == "batch" and train.batch_size % (distributed.count() * train.accumulation):
        raise ConfigError(
            f"train.batch_size = {train.batch_size} is not a multiple of {distributed.count()} "
            f"processes x accumulation = {train.accumulation}"
        )


def _prepare(
    args: argparse.Namespace,
    resolved: dict[str, Any],
    arm: Arm,
    train: Train,
    model: AnyModel,
    accelerator: Accelerator,
    store: Store,
) -> tuple[TrainingRun, pa.Table]:
    """Return the run and the table of its members."""
    settings, seed = resolved["settings"], resolved["seed"]
    path = stream_path(arm, resolved["replicate"])

    # Load the training split and the base.
    split = load_images(args.train)
    if args.base:
        for name in artifacts.read_run(args.base)["outputs"]:
            artifacts.check_file(args.base / name)

    # Choose the images that the arm trains on, and those that it forgets.
    trained_on = members(split, arm.fraction, seeds.numpy_rng(seed, *path, "members"))
    forgotten = np.zeros(len(split), bool)
    for name, forget_set in settings["forget"].items():
        forgotten |= forget.rows(split, name, forget_set, args.extraction)
    if arm.without:
        trained_on &= ~forgotten
    images = split.take(trained_on)

    # Build the forward process and the networks.
    classes = classes_of(split, arm)
    labels = None if classes is None else images.labels
    texts = Texts.load(args.texts) if args.texts else None
    latents, frozen = None, {}
    if args.latents:
        latents = EncodedImages.load(args.latents)
        frozen = {FOLDER: args.latents / FOLDER}
        frozen |= {part: args.texts / part for part in ("text_encoder", "tokenizer")}
    diffusion = Diffusion.model_validate(settings["diffusion"])
    scheduler = build_scheduler(diffusion, latents=latents is not None)
    surrogate = None
    if texts is not None and isinstance(arm, Unlearning):
        surrogate = texts.embedding(settings["forget"][arm.forget]["surrogate"])
    fusion = None
    if arm.dual_fusion is not None and texts is not None:
        others = load_images(args.others)
        fusion = fusion_with(others, arm.dual_fusion, texts, latents, scheduler)

    def build(blocks: TransferBlocks | None, stream: str) -> UNet:
        network_seed = seeds.derive(seed, *path, stream)
        shape = split.pixels.shape[1:] if latents is None else latents.shape
        width = None if texts is None else texts.width
        return start(model, shape, classes, seed=network_seed, blocks=blocks, text_width=width)

    job = TrainingRun(
        seed=seed,
        path=path,
        arm=arm,
        train=train,
        updates=budget(train, len(images), arm.matched_to, args.matched),
        net=build(arm.rau_net, "init"),
        build=build,
        scheduler=scheduler,
        task=denoising(
            images.pixels,
            latents,
            scheduler,
            labels,
            classes or 0,
            train.label_dropout,
            settings["flips"],
            embedded_captions(texts, images),
            surrogate,
            fusion,
        ),
        sources=images.sources,
        labels=images.labels,
        forgotten=forgotten[trained_on],
        base=args.base / "pipeline" if args.base else None,
        accelerator=accelerator,
        store=store,
        frozen=frozen,
        states=settings["states"],
        share=args.part,
    )
    columns = {"id": split.ids, "source": split.sources}
    return job, pa.table(columns | {"trained": trained_on, "forgotten": forgotten})


def _write(folder: Path, job: TrainingRun, result: Trained, table: pa.Table) -> None:
    """Write the networks, the tables and the curves of a finished run."""
    save_pipeline(result.average, job.scheduler, folder / "pipeline", job.frozen)
    save_pipeline(result.raw, job.scheduler, folder / "raw", job.frozen)
    for name in ("states", "tables"):
        (folder / name).mkdir()
    if job.kept.is_dir():
        artifacts.link(job.kept, folder / "states")
    parquet.write_table(table, folder / "members.parquet")
    for name, rows in result.tables.items():
        parquet.write_table(rows, folder / "tables" / f"{name}.parquet")
    shutil.copyfile(job.store.curves, folder / "metrics.jsonl")
