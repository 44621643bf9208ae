"""The one training loop: budget, curves, progress, checkpoints, signals.

What an update does is up to the method: the loop calls ``update(s)`` for s = 0, 1, ... and saves
the state of the ``parts`` passed to it. As ``update`` draws everything from (seed, s), a run
that was stopped anywhere and resumed with the same command ends with the same bits on a CPU
(with the same number of threads).

SIGTERM, SIGUSR1 (SLURM's early warning) and the first SIGINT let the current update finish, save
the state, and exit with status 75 (``EX_TEMPFAIL``: requeue the job). A second SIGINT stops at
once. A process that is to spend only a share of the budget exits in the same way when it has, but
with status 0.

The numbers of an update may be tensors on a device, which goes on meanwhile: they are read for a
point of the curves and before a state is saved, and a loss that is not finite ends the run there.

Where a method trains in several processes, all of them call ``run``. ``update`` must return the
same numbers in each. The main process writes, and saves what ``tensors`` returns in it; a signal to
any process stops all of them after the same update, soon after.
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
from afterimage.training.learner import NonFiniteError, Number

REQUEUE = 75
ASK_EVERY = 8
"""Updates between two questions of several processes whether one got a signal, for which they and
their devices wait for each other; those that wait in every update ask in every update."""
FINITE = ("loss", "grad_norm", "overflow")
"""Numbers without which a run cannot go on."""
LINE_EVERY = 30.0
"""Minimum seconds between two lines of progress when there is no terminal."""


class DivergedError(ArtifactError):
    """A run whose loss or gradient became NaN or infinite."""


class Part(Protocol):
    """Something with state: a learner, or what a method remembers between updates."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state."""

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the state."""


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        update: Finished updates.
        seconds: Time in the loop, over all attempts up to their last checkpoint.
        resumed_at: Updates at which the run was resumed from a checkpoint.
        pending: Name -> the values since the last point of the curves; floats in a saved state.
    """

    update: int = 0
    seconds: float = 0.0
    resumed_at: list[int] = field(default_factory=list)
    pending: dict[str, list[Number]] = field(default_factory=dict)


def run(
    update: Callable[[int], Mapping[str, Number]],
    parts: Mapping[str, Part],
    store: Store,
    *,
    updates: int,
    batch_size: int,
    log_every: int,
    checkpoint_every: int,
    share: tuple[int, int] = (1, 1),
) -> Progress:
    """Call ``update`` until the budget, or a share of it, is spent, from the last checkpoint on.

    Args:
        update: Performs update s and returns numbers; the curves get their means over ``log_every``
            updates.
        parts: Name -> part, for everything that ``update`` changes.
        store: Where the checkpoints and the curves are kept.
        updates: The budget.
        batch_size: Images per update, for the reported throughput.
        log_every: Updates between two points of the curves.
        checkpoint_every: Updates between two checkpoints. The last update is always saved.
        share: (k, K): stop when k/K of the budget, rounded up, is spent. The processes that train
            the shares exchange nothing but the checkpoint, so that neither their number nor a
            skipped share matters.

    Raises:
        DivergedError: naming the update and the last checkpoint.
        SystemExit: after saving the state, with status 75 after a signal and with 0 when a share
            other than the last is spent.
    """
    # Resume from the last checkpoint.
    progress = _resume(parts, store)
    goal = -(-updates * share[0] // share[1])
    started, counted = time.monotonic() - progress.seconds, progress.update
    mark, line = time.monotonic(), -math.inf  # the first point is printed, with the budget
    main = distributed.first()
    hidden = None if main else True
    with (
        _stop_signals() as stop,
        (store.curves if main else Path(os.devnull)).open("a") as curves,
        tqdm(total=updates, initial=progress.update, unit="update", disable=hidden) as bar,
    ):
        while progress.update < goal:
            # Perform one update.
            try:
                values = update(progress.update)
            except NonFiniteError as error:
                raise _diverged(error, progress.update, store) from error
            progress.update += 1
            for name, value in values.items():
                progress.pending.setdefault(name, []).append(value)
            bar.update()
            asking = distributed.count() == 1 or progress.update % ASK_EVERY == 0
            asking |= progress.update == goal or _read_at_once(values)
            stopping = asking and distributed.anywhere(bool(stop))
            logging = progress.update % log_every == 0 or progress.update == updates
            saving = progress.update % checkpoint_every == 0 or progress.update == goal or stopping
            if logging or saving:
                _read(progress, store)
            now = time.monotonic()

            # Add a point to the curves.
            if logging:
                point = {
                    name: fmean(map(float, values)) for name, values in progress.pending.items()
                }
                point["images_per_second"] = (progress.update - counted) * batch_size / (now - mark)
                for name, value in sorted(point.items()):
                    curves.write(
                        json.dumps({"step": progress.update, "name": name, "value": value}) + "\n"
                    )
                curves.flush()
                bar.set_postfix_str(
                    f"loss {point['loss']:.4f}, {point['images_per_second']:.0f} images/s"
                )
                due = now - line > LINE_EVERY or progress.update == goal
                if bar.disable and main and due:
                    text = ", ".join(f"{name} {value:.4g}" for name, value in point.items())
                    _tell(f"update {progress.update} of {updates}: {text}")
                    line = now
                progress.pending, counted, mark = {}, progress.update, now

            # Save a checkpoint; exit after a signal.
            if saving:
                progress.seconds = now - started
                tensors = _gather(parts)
                if main:
                    os.fsync(curves.fileno())
                    facts = {"curves": curves.tell(), **vars(progress)}
                    last = progress.update == goal or stopping
                    meanwhile = not (last or _read_at_once(values))
                    saved = store.save(progress.update, tensors, facts, meanwhile=meanwhile)
                # After the last update, too: a job past its time limit is lost whole if it ends.
                if stopping and (progress.update < goal or goal == updates):
                    if main:
                        reason = stop[0] if stop else "a signal to another process"
                        _tell(f"stopped by {reason} after update {progress.update}; saved {saved}")
                    raise SystemExit(REQUEUE)
    if share[0] < share[1]:
        if main:
            _tell(
                f"part {share[0]} of {share[1]} ends here, after {progress.update} of {updates} "
                "updates"
            )
        raise SystemExit(0)
    return progress


def _read_at_once(values: Mapping[str, Number]) -> bool:
    return not any(isinstance(value, torch.Tensor) for value in values.values())


def _read(progress: Progress, store: Store) -> None:
    """Replace the tensors among the numbers since the last point by what is in them; the device is
    waited for once.

    Raises:
        DivergedError: if one that must be finite is not.
    """
    for name, values in progress.pending.items():
        unread = [i for i, value in enumerate(values) if isinstance(value, torch.Tensor)]
        if not unread:
            continue
        numbers = torch.stack([torch.as_tensor(values[i]).double() for i in unread]).tolist()
        for i, number in zip(unread, numbers, strict=True):
            values[i] = number
            if name in FINITE and not math.isfinite(number):
                s = progress.update - len(values) + i
                raise _diverged(
                    NonFiniteError(f"the {name.replace('_', ' ')} is {number}"), s, store
                )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _diverged(error: NonFiniteError, s: int, store: Store) -> DivergedError:
    """Return the error of update ``s``, which names the last checkpoint."""
    checkpoints = store.saved()
    last = (
        f"the last good state is {checkpoints[0]}"
        if checkpoints
        else ("no state was saved before it")
    )
    return DivergedError(f"training diverged: at update {s + 1} {error}; {last}")


def _gather(parts: Mapping[str, Part]) -> dict[str, torch.Tensor]:
    return {
        f"{part}/{name}": tensor
        for part, owner in parts.items()
        for name, tensor in owner.tensors().items()
    }


def _resume(parts: Mapping[str, Part], store: Store) -> Progress:
    """Restore the parts and the curves from the newest checkpoint, or empty the curves if there is
    none."""
    if not distributed.first():
        distributed.wait()  # until the main process has removed damaged checkpoints
    checkpoint = store.load()
    if distributed.first():
        length = checkpoint.facts["curves"] if checkpoint else 0
        with store.curves.open("ab") as curves:
            if curves.tell() < length:
                raise ArtifactError(
                    f"{store.curves} is shorter than its saved state says; delete {store.folder} "
                    "to start over"
                )
            curves.truncate(length)
        distributed.wait()
    distributed.wait()  # until all have read what the main process may remove when it is done
    if checkpoint is None:
        return Progress()
    for part, owner in parts.items():
        prefix = f"{part}/"
        owner.load(
            {
                name.removeprefix(prefix): value
                for name, value in checkpoint.tensors.items()
                if name.startswith(prefix)
            }
        )
    facts: dict[str, Any] = {
        name: value for name, value in checkpoint.facts.items() if name != "curves"
    }
    progress = Progress(**facts)
    progress.resumed_at.append(progress.update)
    return progress


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """Collect the names of received stop signals in the yielded list instead of exiting."""
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
