"""The one training loop: budget, curves, progress, saved states, signals.

What an update does is the method's affair: the loop calls ``update(s)`` for s = 0, 1, ... and keeps
the state of the ``parts`` that it is given. As ``update`` draws everything from (seed, s), a run
that was stopped anywhere and started again with the same command ends with the same bits on a CPU
(with the same number of threads).

SIGTERM, SIGUSR1 (SLURM's early warning) and the first SIGINT let the running update finish, save
the state, and leave with exit status 75 (``EX_TEMPFAIL``: put the job in the queue again). A second
SIGINT stops at once. A process that is to spend only a share of the budget leaves in the same way
when it has, but with status 0.

Where a method trains in several processes, all of them call ``run``. ``update`` must return the
same numbers in each. The first writes, and saves what ``tensors`` returns to it; a signal to any
stops all after the same update.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from tqdm import tqdm

from afterimage.artifacts import ArtifactError
from afterimage.training import distributed
from afterimage.training.checkpoint import Store
from afterimage.training.learner import NonFiniteError

REQUEUE = 75
LINE_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class DivergedError(ArtifactError):
    """A run whose loss or gradient is no longer a number."""


class Part(Protocol):
    """Something with a state of its own: a learner, or what a method remembers between updates."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state."""

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the state back."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        update: Finished updates.
        seconds: Time in the loop, over all attempts up to their last saved state.
        resumed_at: Updates at which saved states were taken up.
        pending: Name -> the values since the last point of the curves.
    """

    update: int = 0
    seconds: float = 0.0
    resumed_at: list[int] = field(default_factory=list)
    pending: dict[str, list[float]] = field(default_factory=dict)


def run(
    update: Callable[[int], Mapping[str, float]],
    parts: Mapping[str, Part],
    store: Store,
    *,
    updates: int,
    batch_size: int,
    log_every: int,
    checkpoint_every: int,
    share: tuple[int, int] = (1, 1),
) -> Progress:
    """Call ``update`` until the budget is spent, or a share of it, going on from the last saved
    state.

    Args:
        update: Does update s and returns numbers; the curves get their means over ``log_every``
            updates.
        parts: Name -> part; all that ``update`` changes.
        store: Where the states and the curves are kept.
        updates: The budget.
        batch_size: Images per update, for the speed.
        log_every: Updates between two points of the curves.
        checkpoint_every: Updates between two saved states. The last update is always saved.
        share: (k, K): stop when k/K of the budget, rounded up, is spent. Processes that do the
            shares tell each other nothing but the state, so that it does not matter how many there
            are, or whether one is left out.

    Raises:
        DivergedError: naming the update and the last saved state.
        SystemExit: with status 75 after a signal, with 0 when a share that is not the whole is
            spent, the state being saved.
    """
    progress = _resume(parts, store)
    goal = -(-updates * share[0] // share[1])
    started, counted = time.monotonic() - progress.seconds, progress.update
    mark, line = time.monotonic(), -math.inf  # the first point is told at once, with the budget
    with (
        _stop_signals() as stop,
        (store.curves if distributed.first() else Path(os.devnull)).open("a") as curves,
        tqdm(
            total=updates,
            initial=progress.update,
            unit="update",
            disable=None if distributed.first() else True,
        ) as bar,
    ):
        while progress.update < goal:
            s = progress.update
            try:
                values = update(s)
            except NonFiniteError as error:
                good = store.saved()
                raise DivergedError(
                    f"training diverged: at update {s + 1} {error}; "
                    + (
                        f"the last good state is {good[0]}"
                        if good
                        else "no state was saved before it"
                    )
                ) from error
            progress.update += 1
            for name, value in values.items():
                progress.pending.setdefault(name, []).append(value)
            bar.update()
            stopping = distributed.anywhere(bool(stop))
            now = time.monotonic()
            if progress.update % log_every == 0 or progress.update == updates:
                point = {name: fmean(values) for name, values in progress.pending.items()}
                point["images_per_second"] = (progress.update - counted) * batch_size / (now - mark)
                for name, value in sorted(point.items()):
                    curves.write(
                        json.dumps({"step": progress.update, "name": name, "value": value}) + "\n"
                    )
                curves.flush()
                bar.set_postfix_str(
                    f"loss {point['loss']:.4f}, {point['images_per_second']:.0f} images/s"
                )
                if (
                    bar.disable
                    and distributed.first()
                    and (now - line > LINE_EVERY or progress.update == goal)
                ):
                    text = ", ".join(f"{name} {value:.4g}" for name, value in point.items())
                    print(
                        f"update {progress.update} of {updates}: {text}",
                        file=sys.stderr,
                        flush=True,
                    )
                    line = now
                progress.pending, counted, mark = {}, progress.update, now
            if progress.update % checkpoint_every == 0 or progress.update == goal or stopping:
                progress.seconds = now - started
                tensors = _gather(parts)
                if distributed.first():
                    os.fsync(curves.fileno())
                    saved = store.save(
                        progress.update, tensors, {"curves": curves.tell(), **vars(progress)}
                    )
                if stopping and progress.update < goal:
                    if distributed.first():
                        reason = stop[0] if stop else "a signal to another process"
                        print(
                            f"stopped by {reason} after update {progress.update}; saved {saved}",
                            file=sys.stderr,
                        )
                    raise SystemExit(REQUEUE)
    if share[0] < share[1]:
        if distributed.first():
            print(
                f"part {share[0]} of {share[1]} ends here, after {progress.update} of {updates} "
                "updates",
                file=sys.stderr,
            )
        raise SystemExit(0)
    return progress


def _gather(parts: Mapping[str, Part]) -> dict[str, torch.Tensor]:
    return {
        f"{part}/{name}": tensor
        for part, owner in parts.items()
        for name, tensor in owner.tensors().items()
    }


def _resume(parts: Mapping[str, Part], store: Store) -> Progress:
    """Bring the parts and the curves to the newest saved state, or empty the curves if there is
    none."""
    if not distributed.first():
        distributed.wait()  # until the first process has removed what is damaged
    found = store.load()
    if distributed.first():
        length = found.facts["curves"] if found else 0
        with store.curves.open("ab") as curves:
            if curves.tell() < length:
                raise ArtifactError(
                    f"{store.curves} is shorter than its saved state says; delete {store.folder} "
                    "to start afresh"
                )
            curves.truncate(length)
        distributed.wait()
    distributed.wait()  # until all have read what the first may remove when it is done
    if found is None:
        return Progress()
    for part, owner in parts.items():
        prefix = f"{part}/"
        owner.load(
            {
                name.removeprefix(prefix): value
                for name, value in found.tensors.items()
                if name.startswith(prefix)
            }
        )
    facts: dict[str, Any] = {name: value for name, value in found.facts.items() if name != "curves"}
    progress = Progress(**facts)
    progress.resumed_at.append(progress.update)
    return progress


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """Collect the names of stop signals in the yielded list instead of dying of them."""
    received: list[str] = []

    def note(number: int, frame: object) -> None:
        received.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
