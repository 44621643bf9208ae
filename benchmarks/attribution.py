"""Gradient features: what they cost beside the usual way, and how well each projection keeps the scores.

    python benchmarks/attribution.py [--study params.yaml] [--images 128] [--timesteps 10] [--dimension 4096] [--rounds 3]
        [--batch-size 64] [--threads 2] [--model PIPELINE] [--channels 16 32] [--kinds countsketch srht]

Network and forward process are the study's, untrained, or those of a stored pipeline; ``--channels`` makes the study's network
wider; images are digits. The usual way is that
of D-TRAK's code: ``vmap(grad)`` of one readout, the mean of f^2, per timestep, then one dense Gaussian projection of the
average, drawn anew block by block. Ours is ``compute.features`` with each projection, at equal dimension and on the same
timesteps and noise, which also gives the features of normalised gradients. All take turns, and each is compared with the usual
way of the same round; only ratios within one run mean something.

``one``: seconds with that readout alone; beside it, how many times as long the usual way took. ``all``: seconds with all
readouts, from the same forward passes. ``memory``: how far the peak of a process of its own, with that readout, lies above what
it began with. ``exact`` and ``usual``: Spearman correlation with the kernel scores of unprojected gradients, and with those of the usual
way: the last quarter of the images are queries, the others training images, lambda is the mean eigenvalue; mean over queries.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterimage import config
from afterimage.attribution.gradients import compute, projection
from afterimage.attribution.gradients.noise import gaussian, timesteps
from afterimage.attribution.gradients.readouts import READOUTS
from afterimage.config.attribution import Features
from afterimage.diffusion.model import build_scheduler, build_unet
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.sample import load_denoiser
from afterimage.images import Images

READOUT = "square"
USUAL = "usual"


class Bench:
    """One network and some images, and both ways to their features."""

    def __init__(self, args: argparse.Namespace) -> None:
        study = config.load(args.study)
        if args.model:
            self.net, self.scheduler = load_denoiser(args.model)
        else:
            model = study.model.model_copy(
                update={"channels": args.channels or study.model.channels}
            )
            self.net, self.scheduler = (
                build_unet(model, (8, 8, 1)).eval(),
                dict(build_scheduler(study.diffusion).config),
            )
        pixels = np.round(load_digits().images[: args.images] * 255 / 16).astype(np.uint8)[
            ..., None
        ]
        self.images = Images.of(pixels)
        self.settings = Features(
            timesteps=args.timesteps, dimension=args.dimension, batch_size=args.batch_size
        )

    def ours(self, kind: str, readouts: tuple[str, ...]) -> np.ndarray:
        settings = self.settings.model_copy(update={"projection": kind})
        return compute.features(
            self.net, self.scheduler, self.images, "train", settings, readouts, 0
        ).features[READOUT]

    def usual(self) -> np.ndarray:
        weights = {name: weight.detach() for name, weight in self.net.named_parameters()}
        shapes = {name: weight.shape for name, weight in weights.items()}
        project = projection.build("gaussian", self.settings.dimension, shapes, 0)
        task = Pixels(
            self.images.pixels, build_scheduler(config.Diffusion()).from_config(self.scheduler)
        )

        def readout(
            weights: dict[str, torch.Tensor], noisy: torch.Tensor, t: torch.Tensor
        ) -> torch.Tensor:
            return functional_call(self.net, weights, (noisy[None], t[None])).sample.square().mean()

        at = timesteps(self.settings.timesteps, self.scheduler["num_train_timesteps"], "regular", 0)
        found = []
        for rows in torch.arange(len(self.images)).split(self.settings.batch_size):
            sums: dict[str, torch.Tensor] = {}
            for t in at:
                noise = gaussian(0, "train", self.images.ids[rows], t, task.images.shape[1:])
                batch = task.noised(
                    rows,
                    torch.full_like(rows, t),
                    noise,
                    torch.zeros(len(rows), dtype=torch.bool),
                    None,
                )
                with sdpa_kernel(SDPBackend.MATH):
                    gradients = vmap(grad(readout), in_dims=(None, 0, 0))(
                        weights, batch.noisy, batch.timesteps
                    )
                sums = {name: sums.get(name, 0) + each for name, each in gradients.items()}
            gradients_of = (
                (name, each.flatten(1)[:, None] / len(at)) for name, each in sums.items()
            )
            found.append(project(gradients_of, len(rows), 1)[0][:, 0])
        return torch.cat(found).numpy()

    def run(self, case: str, readouts: tuple[str, ...] = (READOUT,)) -> np.ndarray:
        return self.usual() if case == USUAL else self.ours(case, readouts)


def scores(features: np.ndarray) -> np.ndarray:
    """Return the kernel scores of the last quarter of the images as queries, (Q, N)."""
    gram = features.astype(np.float64) @ features.T
    known = len(features) * 3 // 4
    among = gram[:known, :known]
    return gram[known:, :known] @ np.linalg.inv(among + np.trace(among) / known * np.eye(known))


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    return float(
        np.mean(
            [spearmanr(a, b).statistic for a, b in zip(scores(one), scores(other), strict=True)]
        )
    )


def timed(bench: Bench, case: str, readouts: tuple[str, ...]) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    found = bench.run(case, readouts)
    return found, time.perf_counter() - started


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default=str(Path(__file__).parent.parent / "params.yaml"))
    parser.add_argument(
        "--model",
        help="folder of a stored pipeline without labels; without it the network is untrained",
    )
    parser.add_argument("--channels", type=int, nargs="+")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--timesteps", type=int, default=10)
    parser.add_argument("--dimension", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=projection.KINDS,
        default=list(projection.KINDS),
        help="projections to time",
    )
    parser.add_argument("--case", help="run this one alone, for its memory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    if args.case:
        before = peak()
        bench.run(args.case)
        print(peak() - before)
        return
    # Without a projection in any case: what the others are compared with.
    cases = [USUAL, *dict.fromkeys(["none", *args.kinds])]
    # First, since a process passes its own peak on to those it starts.
    alone = [sys.executable, __file__, *sys.argv[1:], "--case"]
    memory = {
        case: float(
            subprocess.run([*alone, case], check=True, stdout=subprocess.PIPE, text=True).stdout
        )
        for case in cases
    }
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    every: dict[str, list[float]] = {case: [] for case in cases}
    found: dict[str, np.ndarray] = {}
    for r in range(args.rounds):
        for case in cases[r % len(cases) :] + cases[: r % len(cases)]:
            found[case], took = timed(bench, case, (READOUT,))
            seconds[case].append(took)
            if case != USUAL:
                every[case].append(timed(bench, case, tuple(READOUTS))[1])
    print(
        f"{bench.net.num_parameters()} parameters, {len(bench.images)} images, {args.timesteps} timesteps, "
        f"k = {args.dimension}, batches of {args.batch_size}, {args.threads} threads, {args.rounds} rounds"
    )
    print(
        f"{'way':12} {'k':>7} {'one':>9} {'usual / this':>26} {'all':>9} {'memory':>9} {'exact':>7} {'usual':>7}"
    )
    for case in cases:
        ratios = [usual / mine for usual, mine in zip(seconds[USUAL], seconds[case], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        whole = f"{statistics.median(every[case]):.2f} s" if case != USUAL else ""
        print(
            f"{case:12} {found[case].shape[1]:7} {statistics.median(seconds[case]):7.2f} s {ratio:>26} {whole:>9} "
            f"{memory[case]:6.0f} MB {agreement(found[case], found['none']):7.3f} {agreement(found[case], found[USUAL]):7.3f}"
        )


if __name__ == "__main__":
    main()
