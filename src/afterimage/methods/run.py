"""``afterimage train run``: train one replicate of one arm, or continue it; run the same command
again after a stop.

Exit status 75 means that a signal stopped the run and its state is saved. A run goes on only from a
state of the same config, inputs and code; after a change of any it starts afresh.

``--part k/K`` ends a run when k/K of its updates are done, for jobs that have less time than it
takes: the state is saved, nothing is written into ``--out``, and the status is 0. The last part, or
the same command without the flag, does what is left and finishes. The bits are those of an
uninterrupted run, whatever parts there were.

``--processes W`` shares the work among W processes on one machine, a GPU for each, if the method
can (``shares`` of its settings). Where they share a run's networks the result has the same bits;
where they share every batch, the same data in the same order, and sums of another order. A state
goes on with any number of processes. They may also be started by ``torchrun -m afterimage.cli train
run``; after a signal the state is saved in the same way, but torchrun itself ends with status 1.

The store that a finished run leaves:

- ``pipeline/``: diffusers pipeline with the averaged weights; ``raw/``: the same with the last
  weights;
- ``states/state<k>/``: the same two folders of earlier states, where the study's attribution wants
  them; else ``states/`` is empty;
- ``members.parquet``: id, source, trained and forgotten (bool) of every row of ``--train``;
- ``tables/``: what the arm's method tells of its work, as its module says; for most nothing;
- ``metrics.jsonl``: training curves (loss, grad_norm, learning_rate; images_per_second is the only
  value that varies).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from pydantic import TypeAdapter

from afterimage import artifacts, config, methods, provenance, seeds
from afterimage.config import (
    AnyArm,
    Arm,
    ConfigError,
    Diffusion,
    Model,
    Train,
    TransferBlocks,
)
from afterimage.data import forget
from afterimage.data.members import members
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.diffusion.noising import Pixels
from afterimage.images import load_images
from afterimage.training import distributed
from afterimage.training.checkpoint import Store
from afterimage.training.determinism import same_bits
from afterimage.training.job import TrainingRun, accelerator_for, budget, classes_of
from afterimage.training.launch import launch


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=Path, required=True, metavar="NPZ", help="training images")
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="where unfinished states are kept"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="finished training of the arm that this one starts from",
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
        help="extraction attack whose finds are to be forgotten",
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
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    k, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= k <= parts:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of a run, such as 2/3")
    return k, parts


def run(args: argparse.Namespace) -> int | None:
    if args.processes > 1 and "RANK" not in os.environ:
        return launch([sys.executable, "-m", "afterimage.cli", *args.argv], args.processes)
    resolved = artifacts.read_config(args.config, "train")
    settings = resolved["settings"]
    arm: Arm = TypeAdapter(AnyArm).validate_python(settings["arm"])
    train = Train.model_validate(arm.train)
    sets = settings["forget"]
    wants_extraction = any(one["extracted_from"] for one in sets.values())
    for flag, wanted in (
        ("base", arm.base),
        ("matched", arm.matched_to),
        ("extraction", wants_extraction),
    ):
        if bool(wanted) != bool(getattr(args, flag)):
            raise ConfigError(
                f"the arm says {flag} = {wanted!r}, but --{flag} is {getattr(args, flag)}: give "
                "both or neither"
            )

    same_bits()
    accelerator = accelerator_for(train)
    method = methods.find(arm.method)
    if distributed.count() > 1 and arm.shares is None:
        raise ConfigError(
            f"started with {distributed.count()} processes, but method {arm.method} trains in one; "
            "train arms and replicates in parallel"
        )
    if arm.shares == "batch" and train.batch_size % (distributed.count() * train.accumulation):
        raise ConfigError(
            f"train.batch_size = {train.batch_size} is no multiple of {distributed.count()} "
            f"processes x accumulation = {train.accumulation}"
        )

    inputs = {"train": args.train}
    inputs |= {"base": args.base / "pipeline"} if args.base else {}
    inputs |= {"matched": args.matched / artifacts.RUN} if args.matched else {}
    inputs |= {"extraction": args.extraction / "images.parquet"} if args.extraction else {}
    entries = (__name__, config.METHODS[arm.method])

    def prepare(hashes: dict[str, str]) -> tuple[TrainingRun, pd.DataFrame]:
        """Return the run and the table of its members."""
        everything = load_images(args.train)
        if args.base:
            for name in artifacts.read_run(args.base)["outputs"]:
                artifacts.check_file(args.base / name)
        path = ("train", resolved["arm"], resolved["replicate"])
        trained_on = members(
            everything, arm.fraction, seeds.numpy_rng(resolved["seed"], *path, "members")
        )
        forgotten = np.zeros(len(everything), bool)
        for name, one in sets.items():
            forgotten |= forget.rows(everything, name, one, args.extraction)
        if arm.without:
            trained_on &= ~forgotten
        images = everything.take(trained_on)
        classes = classes_of(everything, arm)
        labels = None if classes is None else images.labels
        scheduler = build_scheduler(Diffusion.model_validate(settings["diffusion"]))
        model = Model.model_validate(settings["model"])

        def build(blocks: TransferBlocks | None, stream: str) -> UNet2DModel:
            seed = seeds.derive(resolved["seed"], *path, stream)
            return build_unet(model, everything.pixels.shape[1:], classes, seed=seed, blocks=blocks)

        job = TrainingRun(
            seed=resolved["seed"],
            path=path,
            arm=arm,
            train=train,
            updates=budget(train, len(images), arm.matched_to, args.matched),
            net=build(arm.rau_net, "init"),
            build=build,
            scheduler=scheduler,
            task=Pixels(
                images.pixels,
                scheduler,
                labels,
                classes or 0,
                train.label_dropout,
                settings["flips"],
            ),
            labels=images.labels,
            forgotten=forgotten[trained_on],
            base=args.base / "pipeline" if args.base else None,
            accelerator=accelerator,
            store=Store(
                args.state,
                {"config": resolved, "inputs": hashes, "code": provenance.fingerprint(*entries)},
            ),
            states=settings["states"],
            share=args.part,
        )
        table = pd.DataFrame(
            {
                "id": everything.ids,
                "source": everything.sources,
                "trained": trained_on,
                "forgotten": forgotten,
            }
        )
        return job, table

    if not distributed.first():
        method.train(prepare({name: artifacts.sha256(path) for name, path in inputs.items()})[0])
        distributed.leave()
        return None
    with artifacts.step(resolved, args.out, inputs, entries) as step:
        job, table = prepare(step.input_sha256)
        result = method.train(job)
        save_pipeline(result.average, job.scheduler, step.folder / "pipeline")
        save_pipeline(result.raw, job.scheduler, step.folder / "raw")
        for name in ("states", "tables"):
            (step.folder / name).mkdir()
        if job.kept.is_dir():
            shutil.copytree(job.kept, step.folder / "states", dirs_exist_ok=True)
        table.to_parquet(step.folder / "members.parquet", index=False)
        for name, rows in result.tables.items():
            rows.to_parquet(step.folder / "tables" / f"{name}.parquet", index=False)
        shutil.copyfile(job.store.curves, step.folder / "metrics.jsonl")
        done = result.progress
        step.note(
            **asdict(result.spent),
            training_images=len(job.task),
            parameters=sum(p.numel() for p in result.raw.parameters()),
            device=str(accelerator.device),
            processes=distributed.count(),
            parts=[f"{k}of{args.part[1]}" for k in range(1, args.part[1])],
            threads=torch.get_num_threads(),
            training_seconds=round(done.seconds, 3),
            images_per_second=round(result.spent.images_seen / done.seconds, 1),
            resumed_at=done.resumed_at,
            **result.facts,
        )
    job.store.remove()
    distributed.leave()
    return None
