"""LoyalDiffusion (Li et al. 2024; CVPR 2026): two networks that split the timesteps, one or both of
them a RAU-Net.

The front network is trained on t in [0, tau), the tail network on t in [tau, T), each like the
baseline, with its own optimiser, warm-up, order of images and moving average; sampling switches
from one to the other at tau (``diffusion.router``). Both start from the same initial weights, or
from the averaged weights of ``base``; blocks that a base lacks start as initialised.
Without ``rau_net`` neither has blocks: the control for the effect of two half-range networks alone.

An update trains one network. The two take turns, so that a state kept on the way has spent the same
share of both budgets; neither sees the other. ``budget: literal`` gives all updates to each
network, as published; ``matched_total`` splits them in proportion to the timesteps, so that the arm
sees as many images as a single network with that budget. With tau = 0 or tau = T one network covers
all timesteps with the whole budget; the other is stored as initialised and never called. A point of
the training curves averages over updates of both.
"""

from __future__ import annotations

from typing import cast

import torch

from afterimage.config import ConfigError, Loyal
from afterimage.diffusion.model import load_weights
from afterimage.diffusion.noising import Batch
from afterimage.diffusion.router import TimestepRouter, UNet
from afterimage.training import distributed
from afterimage.training.ahead import Ahead
from afterimage.training.job import Spent, Trained, TrainingRun
from afterimage.training.learner import Learner, Networks, Number, plain
from afterimage.training.order import Order


def train(job: TrainingRun) -> Trained:
    """Train the front and the tail network in turn, or resume training.

    Raises:
        ConfigError: if the budget leaves no update for a network that has timesteps.
    """
    arm, settings = job.arm, job.train
    assert isinstance(arm, Loyal)
    tau, timesteps = arm.switch_timestep, job.scheduler.config["num_train_timesteps"]
    shares = budgets(job.updates, arm, timesteps)
    front, tail = (
        job.build(arm.rau_net if arm.blocks_in in (name, "both") else None, "init")
        for name in ("front", "tail")
    )
    raw = TimestepRouter(front, tail, tau)
    if job.base is not None:
        load_weights(raw, job.base)
    learners = {
        name: Learner(net, settings, job.accelerator, shared=True)
        for name, net in (("front", front), ("tail", tail))
    }
    orders = {
        name: Order(job.seed, (*job.path, name), len(job.task), settings.batch_size)
        for name in learners
    }
    ranges = {"front": (0, tau), "tail": (tau, timesteps)}

    updates = sum(shares.values())

    def batch(s: int) -> Batch:
        name, step = turn(s, shares["front"], updates)
        rows, generator = orders[name].rows(step), orders[name].generator(step)
        return job.task.batch(rows, generator, timesteps=ranges[name])

    batches = Ahead(batch, job.accelerator.device)

    def update(s: int) -> dict[str, Number]:
        name, step = turn(s, shares["front"], updates)
        torch.manual_seed(orders[name].dropout_seed(step) + distributed.index())
        return learners[name].update(step, batches(s), plain(job.task))

    front_average, tail_average = (
        cast(UNet, learners[name].average.module) for name in ("front", "tail")
    )
    average = TimestepRouter(front_average, tail_average, tau)
    progress = job.run(update, learners, lambda: Networks(raw, average), updates=updates)
    seen = progress.update * settings.batch_size
    return Trained(
        raw=raw,
        average=average,
        progress=progress,
        spent=Spent(
            updates=progress.update,
            updates_per_model=max(shares.values()),
            images_seen=seen,
            kept_samples=seen,
            backward_passes=progress.update,
        ),
        facts={f"updates_{name}": share for name, share in shares.items()}
        | {f"images_seen_{name}": share * settings.batch_size for name, share in shares.items()},
    )


def turn(s: int, front: int, updates: int) -> tuple[str, int]:
    """Return which network update ``s`` of ``updates`` trains, and which of its own updates that
    is: at any time both have spent the same share of their budgets.

    Args:
        front: The budget of ``front``.
    """
    done, then = (-(-k * front // updates) for k in (s, s + 1))
    return ("front", done) if then > done else ("tail", s - done)


def budgets(updates: int, arm: Loyal, timesteps: int) -> dict[str, int]:
    """Return the updates of ``front`` and ``tail``.

    Args:
        updates: The arm's budget.
        arm: Settings: ``switch_timestep`` and ``budget``.
        timesteps: T.

    Raises:
        ConfigError: if a network with timesteps gets none.
    """
    tau = arm.switch_timestep
    if arm.budget == "literal":
        return {"front": updates if tau > 0 else 0, "tail": updates if tau < timesteps else 0}
    front = round(updates * tau / timesteps)
    shares = {"front": front, "tail": updates - front}
    for name, width in (("front", tau), ("tail", timesteps - tau)):
        if width and not shares[name]:
            raise ConfigError(
                f"a budget of {updates} updates, shared at switch_timestep = {tau} of "
                f"{timesteps}, leaves none for the {name} network; give more updates, or budget: "
                "literal"
            )
    return shares
