"""List scheduling: a job starts as soon as it is ready and enough GPUs are free.

Jobs start in the order in which they become ready, as SLURM starts those of one user; a job that
does not fit lets later ones pass, which models backfilling. For jobs that need one GPU each this
takes at most 2 - 1/G times as long as the best order (Graham 1969).
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
        minutes: Run time.
        gpu: Number of GPUs it holds while running.
        needs: Positions of the tasks it depends on; all smaller than its own.
        submitted: Whether it runs on the cluster, rather than on the submitting host.
    """

    minutes: float
    gpu: int = 0
    needs: tuple[int, ...] = ()
    submitted: bool = True


class Span(NamedTuple):
    """Start and end of a task, in minutes from the beginning."""

    start: float
    end: float


def schedule(
    tasks: Sequence[Task], gpus: float = math.inf, jobs: float = math.inf, notice: float = 0.0
) -> list[Span]:
    """Return start and end of each task.

    Args:
        tasks: The tasks, each after its dependencies.
        gpus: GPUs of the cluster.
        jobs: Maximum number of submitted tasks at once.
        notice: Minutes until the end of a submitted task is noticed, and its dependents are ready.

    Raises:
        ConfigError: for a task that needs more GPUs than there are.
    """
    most = max((task.gpu for task in tasks), default=0)
    if most > gpus:
        raise ConfigError(f"a job asks for {most} GPUs, but there are {gpus:g}")
    dependents: list[list[int]] = [[] for _ in tasks]
    missing = [len(set(task.needs)) for task in tasks]
    for i, task in enumerate(tasks):
        for before in set(task.needs):
            dependents[before].append(i)
    spans = [Span(0.0, 0.0)] * len(tasks)
    ready = [(0.0, i) for i, count in enumerate(missing) if not count]
    # Time, task, and whether its end is noticed then, or takes place.
    events: list[tuple[float, int, bool]] = []
    free, room, now = gpus, jobs, 0.0
    while ready or events:
        waiting = []
        for since, i in ready:
            task = tasks[i]
            if task.submitted and (task.gpu > free or room < 1):
                waiting.append((since, i))
                continue
            if task.submitted:
                free, room = free - task.gpu, room - 1
            spans[i] = Span(now, now + task.minutes)
            heapq.heappush(events, (spans[i].end, i, False))
        ready = waiting
        now = events[0][0]
        while events and events[0][0] <= now:
            _, i, noticed = heapq.heappop(events)
            if not noticed and tasks[i].submitted:
                free, room = free + tasks[i].gpu, room + 1
                heapq.heappush(events, (now + notice, i, True))
                continue
            for dependent in dependents[i]:
                missing[dependent] -= 1
                if not missing[dependent]:
                    ready.append((now, dependent))
        ready.sort()
    return spans


def longest_chain(tasks: Sequence[Task], notice: float = 0.0) -> list[int]:
    """Return the critical path, first to last task: the chain that no number of GPUs can
    shorten."""
    length: list[float] = []
    before: list[int | None] = []
    for task in tasks:
        longest = max(task.needs, key=length.__getitem__, default=None)
        before.append(longest)
        length.append(
            task.minutes + notice * task.submitted + (0.0 if longest is None else length[longest])
        )
    chain: list[int] = []
    last: int | None = max(range(len(tasks)), key=length.__getitem__, default=None)
    while last is not None:
        chain.append(last)
        last = before[last]
    return chain[::-1]


def busy(tasks: Sequence[Task], spans: Sequence[Span]) -> list[tuple[float, int]]:
    """Return the times at which the number of busy GPUs changes, each with the new number."""
    changes: dict[float, int] = {}
    for task, span in zip(tasks, spans, strict=True):
        if task.gpu and task.minutes:
            changes[span.start] = changes.get(span.start, 0) + task.gpu
            changes[span.end] = changes.get(span.end, 0) - task.gpu
    count, counts = 0, []
    for time in sorted(changes):
        count += changes[time]
        counts.append((time, count))
    return counts
