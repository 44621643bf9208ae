"""Training: the cost of each method relative to plain training, and our loop against diffusers' own example recipe.

    python benchmarks/training.py [--study params.yaml] [--rounds 20] [--chunks 6] [--threads 2]

Network, batch and arms are the study's (all arms but those that only change the data or the budget of another); images are
digits. Only ratios within one run mean something.

First table: all arms take turns, update by update, and each update is compared with its reference's of the same round (the
first baseline with the same condition). An update is one call of the method's update, which for IET-AGC trains every shard
once; steps and images are counted where they happen: optimiser steps, and images that went through a backward pass. What comes
before the first update (SalUn's mask, the replay and the Fisher information of Selective Amnesia) is given in updates of the
reference. Not counted: the averaging of IET-AGC, which comes ``rounds`` times in a whole run.

Second table: images per second of ``loop.run`` with plain training, against the training loop of diffusers' unconditional
example (accelerate, DataLoader, AdamW, cosine schedule with warm-up, EMAModel, clipping) on the same network, tensors and
batch. They take turns in chunks. Ours writes its curves and saves its state once in each chunk.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from sklearn.datasets import load_digits
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from afterimage import config, methods, seeds
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.diffusion.noising import Pixels
from afterimage.methods.dp_sgd import PrivateLearner
from afterimage.training import loop
from afterimage.training.checkpoint import Store
from afterimage.training.job import TrainingRun
from afterimage.training.learner import Learner

IMAGES = 448
CHUNK = 42
"""Updates per chunk: whole epochs for batches of 64."""
WARM = 3
"""Rounds that are not timed."""
counts: Counter[str] = Counter()


class CapturedError(Exception):
    """Raised in the place of the loop, with what the loop was to do."""


def capture(
    update: Callable[[int], dict[str, float]], parts: dict[str, Any], *_: Any, **__: Any
) -> None:
    raise CapturedError(update, parts)


def captured(training: TrainingRun) -> tuple[Callable[[int], dict[str, float]], dict[str, Any]]:
    """Return the update and the parts that an arm's method hands to the loop."""
    run, loop.run = loop.run, capture
    try:
        methods.find(training.arm.method).train(training)
    except CapturedError as found:
        return found.args
    finally:
        loop.run = run
    raise AssertionError(f"{training.arm} did not come to its loop")


def count(owner: type, name: str, amount: Callable[..., dict[str, int]]) -> None:
    """Have every call of a method add to ``counts``."""
    original = getattr(owner, name)

    def counting(self: Any, first: Any, *rest: Any, **named: Any) -> Any:
        counts.update(amount(first))
        return original(self, first, *rest, **named)

    setattr(owner, name, counting)


def job(study: config.Study, name: str, folder: Path) -> TrainingRun:
    """Return an arm's training of the study, on digits."""
    arm, train = study.arms[name], study.train_of(name)
    digits = load_digits()
    pixels = np.round(digits.images[:IMAGES] * 255 / 16).astype(np.uint8)[..., None]
    labels = digits.target[:IMAGES].astype(np.int64)
    conditional = study.condition_of(name) == "label"
    scheduler = build_scheduler(study.diffusion)

    def build(blocks: config.TransferBlocks | None, stream: str) -> Any:
        return build_unet(
            study.model,
            (8, 8, 1),
            10 if conditional else None,
            seeds.derive(0, name, stream),
            blocks,
        )

    base = None
    if arm.base:
        base = folder / f"base-{name}"
        save_pipeline(build(study.rau_net_of(name), "base"), scheduler, base)
    return TrainingRun(
        seed=0,
        path=("benchmark", name),
        arm=arm.model_copy(update={"rau_net": study.rau_net_of(name)}),
        train=train,
        updates=study.train.updates or 1000,
        net=build(study.rau_net_of(name), "init"),
        build=build,
        scheduler=scheduler,
        task=Pixels(
            pixels,
            scheduler,
            labels if conditional else None,
            10 if conditional else 0,
            train.label_dropout,
        ),
        sources=np.arange(len(labels)),
        labels=labels,
        forgotten=labels == 0,
        base=base,
        accelerator=Accelerator(),
        store=Store(folder / "state", {"arm": name}),
    )


def chosen(study: config.Study) -> dict[str, str]:
    """Return the arms to measure, each with its reference."""
    baselines = {name: arm for name, arm in study.arms.items() if arm.method == "baseline"}
    references = {
        condition: next(
            name
            for name in baselines
            if study.condition_of(name) == condition and not study.rau_net_of(name)
        )
        for condition in {study.condition_of(name) for name in study.arms}
    }
    return {
        name: references[study.condition_of(name)]
        for name, arm in study.arms.items()
        if name in references.values() or arm.method != "baseline" or study.rau_net_of(name)
    }


def overhead(study: config.Study, rounds: int, folder: Path) -> None:
    count(Learner, "step", lambda s: {"steps": 1})
    count(Learner, "gradient", lambda batch: {"images": len(batch)})
    count(PrivateLearner, "private_gradient", lambda batch: {"images": len(batch)})
    arms, updates, setup = chosen(study), {}, {}
    for name in arms:
        training = job(study, name, folder)
        started = time.perf_counter()
        updates[name], _ = captured(training)
        setup[name] = time.perf_counter() - started
    times: dict[str, list[float]] = {name: [] for name in arms}
    done: dict[str, Counter[str]] = {name: Counter() for name in arms}
    order = list(arms)
    for s in range(WARM + rounds):
        order = order[1:] + order[:1]
        for name in order:
            counts.clear()
            started = time.perf_counter()
            updates[name](s)
            if s >= WARM:
                times[name].append(time.perf_counter() - started)
                done[name].update(counts)
    print(
        f"{'arm':20} {'reference':12} {'update':>22} {'per step':>9} {'per image':>10} {'before the first':>17}"
    )
    for name, reference in arms.items():
        ratios = [mine / other for mine, other in zip(times[name], times[reference], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        steps, images = (
            done[name][what] / max(done[reference][what], 1) for what in ("steps", "images")
        )
        before = (setup[name] - setup[reference]) / statistics.median(times[reference])
        print(
            f"{name:20} {reference:12} {middle:6.2f} ({low:5.2f} to {high:5.2f}) {middle / steps:9.2f} {middle / images:10.2f} "
            f"{max(before, 0):9.0f} updates"
        )


def recipe(study: config.Study, net: torch.nn.Module, images: torch.Tensor) -> Iterator[int]:
    """Train as diffusers' unconditional example does; yield the number of images after each update."""
    train, accelerator = study.train, Accelerator()
    scheduler = build_scheduler(study.diffusion)
    ema = EMAModel(
        net.parameters(), decay=train.ema, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay
    )
    loader = DataLoader(TensorDataset(images), batch_size=train.batch_size, shuffle=True)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10_000)
    net, optimizer, loader, rates = accelerator.prepare(net, optimizer, loader, rates)
    ema.to(accelerator.device)
    step = 0
    while True:
        net.train()
        progress = tqdm(total=len(loader), disable=True)
        for (clean,) in loader:
            noise = torch.randn(clean.shape, device=clean.device)
            timesteps = torch.randint(
                0, study.diffusion.timesteps, (len(clean),), device=clean.device
            )
            noisy = scheduler.add_noise(clean, noise, timesteps)
            with accelerator.accumulate(net):
                loss = functional.mse_loss(net(noisy, timesteps).sample.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                ema.step(net.parameters())
                progress.update(1)
                step += 1
            logs = {
                "loss": loss.detach().item(),
                "lr": rates.get_last_lr()[0],
                "step": step,
                "ema_decay": ema.cur_decay_value,
            }
            progress.set_postfix(**logs)
            yield len(clean)
        progress.close()


def against_recipe(study: config.Study, chunks: int, folder: Path) -> None:
    name = next(
        name
        for name, reference in chosen(study).items()
        if name == reference and study.condition_of(name) == "none"
    )
    ours = job(study, name, folder)
    update, parts = captured(ours)
    clean = ours.task.images.float() / 127.5 - 1
    theirs = recipe(study, ours.build(None, "init"), clean)

    def our_chunk(k: int) -> int:
        loop.run(
            lambda s: update(k * CHUNK + s),
            parts,
            Store(folder / "loop", {"chunk": k}),
            updates=CHUNK,
            batch_size=study.train.batch_size,
            log_every=study.train.log_every,
            checkpoint_every=CHUNK,
        )
        return CHUNK * study.train.batch_size

    speeds: dict[str, list[float]] = {"ours": [], "recipe": []}
    for k in range(chunks + 1):  # the first is warm-up
        for which in ("ours", "recipe") if k % 2 else ("recipe", "ours"):
            started = time.perf_counter()
            images = our_chunk(k) if which == "ours" else sum(next(theirs) for _ in range(CHUNK))
            if k:
                speeds[which].append(images / (time.perf_counter() - started))
    ratios = [mine / other for mine, other in zip(speeds["ours"], speeds["recipe"], strict=True)]
    print(
        f"images per second, ours / recipe: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} over "
        f"{chunks} pairs of {CHUNK} updates); medians {statistics.median(speeds['ours']):.0f} and "
        f"{statistics.median(speeds['recipe']):.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default=Path(__file__).parent.parent / "params.yaml")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    study = config.load(args.study)
    with tempfile.TemporaryDirectory() as folder:
        against_recipe(study, args.chunks, Path(folder))
        overhead(study, args.rounds, Path(folder))


if __name__ == "__main__":
    main()
