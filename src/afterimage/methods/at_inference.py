"""The training of a remedy at inference, which is none: the networks are the base's."""

from __future__ import annotations

import copy

from afterimage import artifacts
from afterimage.diffusion.model import load_weights
from afterimage.training.job import Spent, Trained, TrainingRun
from afterimage.training.learner import Networks


def train(job: TrainingRun) -> Trained:
    """Return the base's networks, last and averaged, after no update; the states that it kept are
    kept here too."""
    assert job.base is not None
    store = job.base.parent
    for name in job.states:
        artifacts.link(store / "states" / name, job.kept / name)
    raw = copy.deepcopy(job.net)
    load_weights(raw, store / "raw")
    load_weights(job.net, job.base)
    progress = job.run(lambda s: {}, {}, lambda: Networks(raw, job.net), updates=0)
    return Trained(raw, job.net, progress, Spent(0, 0, 0, 0, 0))
