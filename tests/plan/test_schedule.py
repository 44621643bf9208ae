"""List scheduling against closed forms and bounds that are theorems."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterimage.config import ConfigError
from afterimage.engines.simulation.schedule import Span, Task, busy, longest_chain, schedule


def makespan(spans):
    return max(span.end for span in spans)


@pytest.mark.parametrize("gpus", [1, 3, math.inf])
def test_a_chain_takes_the_sum(gpus):
    tasks = [
        Task(minutes, 1, (at - 1,) if at else ()) for at, minutes in enumerate([3.0, 5.0, 2.0])
    ]
    assert schedule(tasks, gpus) == [Span(0, 3), Span(3, 8), Span(8, 10)]
    assert longest_chain(tasks) == [0, 1, 2]


@pytest.mark.parametrize(("count", "gpus"), [(32, 1), (32, 8), (32, 32), (33, 32), (5, 128)])
def test_equal_tasks_run_in_waves(count, gpus):
    spans = schedule([Task(7.0, 1)] * count, gpus)
    assert makespan(spans) == 7 * math.ceil(count / gpus)


def test_a_diamond_by_hand():
    """0 before 1, 2 and 3, all before 4; on two GPUs 3 waits for 1, the shorter of the first
    two."""
    tasks = [
        Task(1, 1),
        Task(2, 1, (0,)),
        Task(5, 1, (0,)),
        Task(4, 1, (0,)),
        Task(1, 1, (1, 2, 3)),
    ]
    assert schedule(tasks, 2) == [Span(0, 1), Span(1, 3), Span(1, 6), Span(3, 7), Span(7, 8)]
    assert schedule(tasks) == [Span(0, 1), Span(1, 3), Span(1, 6), Span(1, 5), Span(6, 7)]
    assert longest_chain(tasks) == [0, 2, 4]


def test_first_come_first_served():
    """Two tasks become ready one after the other; the later one is shorter, but waits."""
    tasks = [Task(1, 1), Task(2, 1), Task(9, 1, (0,)), Task(1, 1, (1,)), Task(1, 1, (1,))]
    assert schedule(tasks, 2) == [Span(0, 1), Span(0, 2), Span(1, 10), Span(2, 3), Span(3, 4)]


def test_what_does_not_fit_lets_others_pass():
    tasks = [Task(5, 2), Task(5, 4), Task(3, 1), Task(1, 1)]
    assert schedule(tasks, 4) == [Span(0, 5), Span(5, 10), Span(0, 3), Span(0, 1)]


def test_tasks_without_gpus_do_not_wait_for_any():
    assert schedule([Task(5, 1), Task(5, 0), Task(5, 1)], 1) == [
        Span(0, 5),
        Span(0, 5),
        Span(5, 10),
    ]


def test_at_most_so_many_submitted_at_once():
    tasks = [Task(2)] * 5 + [Task(2, submitted=False)] * 5
    spans = schedule(tasks, jobs=2)
    assert [span.start for span in spans] == [0, 0, 2, 2, 4] + [0] * 5


def test_ends_are_noticed_late():
    """What follows starts later; the GPU is free at once, and nobody waits for a local task's
    end."""
    tasks = [
        Task(3, 1),
        Task(2, 1, (0,)),
        Task(4, 1),
        Task(1, 0, (1,), submitted=False),
        Task(1, 0, (3,), submitted=False),
    ]
    assert schedule(tasks, 1, notice=0.5) == [
        Span(0, 3),
        Span(7, 9),
        Span(3, 7),
        Span(9.5, 10.5),
        Span(10.5, 11.5),
    ]
    assert longest_chain(tasks, notice=0.5) == [0, 1, 3, 4]


def test_more_gpus_than_there_are():
    with pytest.raises(ConfigError, match="asks for 4 GPUs, but there are 2"):
        schedule([Task(1, 4)], 2)


def test_nothing_to_do():
    assert schedule([], 1) == []
    assert longest_chain([]) == []


def test_busy_gpus_over_time():
    tasks = [Task(2, 1), Task(4, 3), Task(9, 0), Task(1, 1, (0,))]
    assert busy(tasks, schedule(tasks)) == [(0, 4), (2, 4), (3, 3), (4, 0)]


@st.composite
def graphs(draw, gpu=None):
    """Draw tasks that need one GPU each, or as many as ``gpu`` draws."""
    count = draw(st.integers(1, 20))
    return [
        Task(
            draw(st.integers(0, 9)),
            1 if gpu is None else draw(gpu),
            tuple(draw(st.sets(st.integers(0, at - 1), max_size=3)) if at else ()),
        )
        for at in range(count)
    ]


@given(graphs(st.integers(0, 3)), st.integers(3, 8), st.integers(1, 5), st.integers(0, 2))
def test_every_schedule_is_one(tasks, gpus, jobs, notice):
    """Nothing starts before its needs are seen to be done; GPUs and jobs suffice at all times."""
    spans = schedule(tasks, gpus, jobs, notice)
    for task, span in zip(tasks, spans, strict=True):
        assert span.end - span.start == task.minutes
        assert all(spans[before].end + notice <= span.start for before in task.needs)
        running = [
            other
            for other, own in zip(tasks, spans, strict=True)
            if own.start <= span.start < own.end
        ]
        assert sum(other.gpu for other in running) <= gpus
        assert len(running) <= jobs


@given(graphs(), st.integers(1, 6))
def test_bounds_of_graham(tasks, gpus):
    """Graham 1969: not below the longest chain or the work of all GPUs, and at most 2 - 1/G times
    the larger of the two."""
    chain = sum(tasks[at].minutes for at in longest_chain(tasks))
    work = sum(task.minutes for task in tasks)
    bound = max(chain, work / gpus)
    found = makespan(schedule(tasks, gpus))
    assert bound <= found + 1e-9
    assert found <= (2 - 1 / gpus) * bound + 1e-9


@given(graphs())
def test_without_limits_the_longest_chain_decides(tasks):
    assert makespan(schedule(tasks)) == sum(tasks[at].minutes for at in longest_chain(tasks))


@given(graphs(), st.integers(1, 6))
def test_busy_gpus_add_up_to_the_work(tasks, gpus):
    changes = busy(tasks, schedule(tasks, gpus))
    area = sum(held * (end - start) for (start, held), (end, _) in pairwise(changes))
    assert area == sum(task.minutes for task in tasks)
    assert max((held for _, held in changes), default=0) <= gpus
