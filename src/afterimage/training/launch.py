"""Several processes of one training on one machine, with one exit status.

torchrun and ``accelerate launch`` start processes in the same way, but exit with status 1 for any
reason; here a training that was stopped by a signal and saved its state exits with its own status,
75.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

import torch

from afterimage.training.loop import REQUEUE

GRACE = 10.0
"""Seconds that the other processes have to exit after one has failed; they may be waiting for it
forever."""


def launch(command: list[str], count: int) -> int:
    """Run ``command`` in ``count`` processes that find each other (``training.distributed``).

    They share the threads of this process. SIGTERM and SIGUSR1 are forwarded to each of them;
    SIGINT is not, as a terminal sends it to all.

    Returns:
        The exit status of the first process that failed, 128 + n for one killed by signal n;
        otherwise 75 if a process was stopped.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, torch.get_num_threads() // count)
    shared = os.environ | {"OMP_NUM_THREADS": str(threads), "WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running: list[subprocess.Popen] = []

    def forward(number: int, frame: object) -> None:
        for process in running if number != signal.SIGINT else ():
            process.send_signal(number)

    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, forward) for number in handled}
    try:
        for rank in range(count):
            running.append(
                subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            )
        return _wait(running)
    finally:
        for process in running:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(running: list[subprocess.Popen]) -> int:
    """Return the common exit status, once all have exited or one has failed and the grace period
    of the others is over."""
    failed: list[int] = []
    since = 0.0
    while None in (statuses := [process.poll() for process in running]) and (
        not failed or time.monotonic() < since + GRACE
    ):
        if not failed:
            failed, since = _failures(statuses), time.monotonic()
        time.sleep(0.1)
    worst = [*failed, *_failures(statuses), *filter(None, statuses), 0][0]
    return worst if worst >= 0 else 128 - worst


def _failures(statuses: list[int | None]) -> list[int]:
    return [status for status in statuses if status not in (None, 0, REQUEUE)]
