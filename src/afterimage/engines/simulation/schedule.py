"""List scheduling: whatever is ready starts as soon as there are GPUs for it.

Jobs start in the order in which they became ready, as SLURM starts those of one user; a job that
does not fit lets later ones pass, which stands for its backfilling. For jobs that need one GPU each
this takes at most 2 - 1/G times as long as the best order (Graham 1969).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from afterimage.config import ConfigError


class Task(NamedTuple):
    """One job.

    Attributes:
        minutes: How long it runs.
        gpu: GPUs that it holds meanwhile.
        needs: Positions of the tasks that come before it; all smaller than its own.
        submitted: Whether the cluster runs it, or the host that submits.
    """

    minutes: float
    gpu: int = 0
    needs: tuple[int, ...] = ()
    submitted: bool = True


class Span(NamedTuple):
    """When a task runs, in minutes from the beginning."""

    start: float
    end: float


def schedule(
    tasks: Sequence[Task], gpus: float = math.inf, jobs: float = math.inf, notice: float = 0.0
) -> list[Span]:
    """Return when each task runs.

    Args:
        tasks: The tasks, each after those that it needs.
        gpus: GPUs of the cluster.
        jobs: Submitted tasks that may run at once.
        notice: Minutes until the end of a submitted task is seen, and what needs it is ready.

    Raises:
        ConfigError: for a task that needs more GPUs than there are.
    """
    most = max((task.gpu for task in tasks), default=0)
    if most > gpus:
        raise ConfigError(f"a job asks for {most} GPUs, but there are {gpus:g}")
    after: list[list[int]] = [[] for _ in tasks]
    missing = [len(set(task.needs)) for task in tasks]
    for at, task in enumerate(tasks):
        for before in set(task.needs):
            after[before].append(at)
    spans = [Span(0.0, 0.0)] * len(tasks)
    ready = [(0.0, at) for at, count in enumerate(missing) if not count]
    events: list[
        tuple[float, int, bool]
    ] = []  # time, task, and whether its end is seen then, or takes place
    free, room, now = gpus, jobs, 0.0
    while ready or events:
        waiting = []
        for since, at in ready:
            task = tasks[at]
            if task.submitted and (task.gpu > free or room < 1):
                waiting.append((since, at))
                continue
            if task.submitted:
                free, room = free - task.gpu, room - 1
            spans[at] = Span(now, now + task.minutes)
            heapq.heappush(events, (spans[at].end, at, False))
        ready = waiting
        now = events[0][0]
        while events and events[0][0] <= now:
            _, at, seen = heapq.heappop(events)
            if not seen and tasks[at].submitted:
                free, room = free + tasks[at].gpu, room + 1
                heapq.heappush(events, (now + notice, at, True))
                continue
            for later in after[at]:
                missing[later] -= 1
                if not missing[later]:
                    ready.append((now, later))
        ready.sort()
    return spans


def longest_chain(tasks: Sequence[Task], notice: float = 0.0) -> list[int]:
    """Return the tasks, first to last, that no number of GPUs can make shorter: the critical
    path."""
    length: list[float] = []
    before: list[int | None] = []
    for task in tasks:
        longest = max(task.needs, key=length.__getitem__, default=None)
        before.append(longest)
        length.append(
            task.minutes + notice * task.submitted + (0.0 if longest is None else length[longest])
        )
    chain: list[int] = []
    at: int | None = max(range(len(tasks)), key=length.__getitem__, default=None)
    while at is not None:
        chain.append(at)
        at = before[at]
    return chain[::-1]


def busy(tasks: Sequence[Task], spans: Sequence[Span]) -> list[tuple[float, int]]:
    """Return the times at which the number of busy GPUs changes, each with the number from then
    on."""
    changes: dict[float, int] = {}
    for task, span in zip(tasks, spans, strict=True):
        if task.gpu and task.minutes:
            changes[span.start] = changes.get(span.start, 0) + task.gpu
            changes[span.end] = changes.get(span.end, 0) - task.gpu
    held, found = 0, []
    for at in sorted(changes):
        held += changes[at]
        found.append((at, held))
    return found
