"""An update on one CPU core: ours beside the same by diffusers' network as it is and torch's own helpers.

    python benchmarks/update.py [--study params.yaml] [--arm baseline] [--rounds 60]

Plain is diffusers' network, ``clip_grad_norm_``, fused AdamW and ``AveragedModel.update_parameters``, on the same batches. Between
plain and ours each part is tried alone: cheap layers, the kept memory, and the step (norm, clipping and average). Every variant has
a process of its own, as memory is kept by a process; they take turns in chunks of a few updates, and each chunk is compared with
the plain one of the same round. Processor time is measured, so that others on the machine disturb little. Network, batch and arm
are the study's; images are digits. Only ratios within one run mean something.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn
from training import captured, job

from afterimage import config
from afterimage.training import learner
from afterimage.training.determinism import same_bits
from afterimage.training.learner import Learner, learning_rate

PARTS = ("layers", "memory", "step")
CHUNK = 4
WARM = 2
"""Rounds that are not timed."""


def plain_step(self: Any, s: int) -> dict[str, float]:
    """``Learner.step`` by torch's own helpers."""
    rate = learning_rate(self.settings, s, self.updates)
    for group in self.optimizer.param_groups:
        group["lr"] = rate
    norm = clip_grad_norm_(self.net.parameters(), self.settings.clip or float("inf")).item()
    self.optimizer.step()
    self.average.multi_avg_fn = get_ema_multi_avg_fn(self.settings.ema)
    self.average.update_parameters(self.net)
    return {"grad_norm": norm, "learning_rate": rate}


def work(study: config.Study, arm: str, parts: list[str]) -> None:
    """Do a chunk of updates for every line read; write each chunk's seconds and its last loss."""
    if "layers" not in parts:
        learner.use_cheap_layers = lambda net: None
    if "memory" not in parts:
        learner.keep_freed_memory = lambda: None
    if "step" not in parts:
        Learner.step = plain_step
    torch.set_num_threads(1)
    same_bits()
    with tempfile.TemporaryDirectory() as folder:
        update, _ = captured(job(study, arm, Path(folder)))
        for chunk, _ in enumerate(sys.stdin):
            started = time.process_time()
            for s in range(chunk * CHUNK, (chunk + 1) * CHUNK):
                loss = update(s)["loss"]
            print(json.dumps([time.process_time() - started, loss]), flush=True)


def compare(study: Path, arm: str, rounds: int) -> None:
    variants = {"plain": [], **{f"{part} alone": [part] for part in PARTS}, "ours": list(PARTS)}
    command = [sys.executable, __file__, "--study", str(study), "--arm", arm, "--parts"]
    workers = {
        name: subprocess.Popen(
            [*command, *parts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name, parts in variants.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    losses: dict[str, float] = {}
    order = list(variants)
    for k in range(WARM + rounds):
        order = order[1:] + order[:1]
        for name in order:
            worker = workers[name]
            print("go", file=worker.stdin, flush=True)
            spent, losses[name] = json.loads(worker.stdout.readline())
            if k >= WARM:
                seconds[name].append(spent / CHUNK)
    for worker in workers.values():
        worker.communicate()
    print(f"{arm}: {rounds} rounds of {CHUNK} updates, one thread")
    print(
        f"{'':14} {'ms (median, least)':>19} {'times as fast as plain (quartiles)':>36} {'last loss':>10}"
    )
    for name in variants:
        ratios = [plain / mine for plain, mine in zip(seconds["plain"], seconds[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median, least = 1e3 * statistics.median(seconds[name]), 1e3 * min(seconds[name])
        print(
            f"{name:14} {median:10.1f} {least:8.1f} {middle:20.2f} ({low:.2f} to {high:.2f}) {losses[name]:10.5f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=Path(__file__).parent.parent / "params.yaml")
    parser.add_argument("--arm", default="baseline")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--parts", nargs="*", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.parts is None:
        compare(args.study, args.arm, args.rounds)
    else:
        work(config.load(args.study), args.arm, args.parts)


if __name__ == "__main__":
    main()
