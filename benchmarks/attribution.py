"""Gradient features: their cost compared with the usual method, and how projections keep scores.

    python benchmarks/attribution.py [--study params.yaml] [--images 128] [--timesteps 10]
        [--dimension 4096] [--rounds 3] [--batch-size 64] [--threads 2] [--model PIPELINE]
        [--channels 16 32] [--kinds countsketch srht]

Network and forward process are the study's, untrained, or those of a stored pipeline;
``--channels`` makes the study's network wider; the images are digits. The usual method is that of
D-TRAK's code: ``vmap(grad)`` of one readout, the mean of f^2, per timestep, then one dense Gaussian
projection of the average, generated again block by block. It is compared with ``project_gradients``
for each projection, at the same dimension, timesteps and noise, which also computes the features of
normalised gradients. All methods take turns, and each is compared with the usual method of the same
round; only ratios within one run are meaningful.

``single``: seconds with that readout alone, and next to it the ratio of the usual method's time to
it. ``all``: seconds with all readouts, from the same forward passes. ``memory``: peak memory of a
separate process with that readout, minus what it had at the start. ``exact`` and ``usual``:
Spearman correlation of the kernel scores with those of unprojected gradients, and with those of the
usual method: the last quarter of the images are queries, the others training images, lambda is the
mean eigenvalue; mean over queries.
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
from afterimage.attribution.gradients.noise import gaussian_noise, timestep_grid
from afterimage.attribution.gradients.readouts import READOUTS
from afterimage.config.attribution import Features
from afterimage.diffusion.model import build_scheduler, build_unet
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.sample import load_denoiser
from afterimage.images import Images

READOUT = "square"
USUAL = "usual"


class Bench:
    """One network and some images, and both methods to compute their features."""

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

    def projected(self, kind: str, readouts: tuple[str, ...]) -> np.ndarray:
        settings = self.settings.model_copy(update={"projection": kind})
        return compute.project_gradients(
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

        timesteps = timestep_grid(
            self.settings.timesteps, self.scheduler["num_train_timesteps"], "regular", 0
        )
        features = []
        for rows in torch.arange(len(self.images)).split(self.settings.batch_size):
            sums: dict[str, torch.Tensor] = {}
            for t in timesteps:
                noise = gaussian_noise(0, "train", self.images.ids[rows], t, task.images.shape[1:])
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
                sums = {name: sums.get(name, 0) + gradient for name, gradient in gradients.items()}
            gradients_of = (
                (name, total.flatten(1)[:, None] / len(timesteps)) for name, total in sums.items()
            )
            features.append(project(gradients_of, len(rows), 1)[0][:, 0])
        return torch.cat(features).numpy()

    def run(self, case: str, readouts: tuple[str, ...] = (READOUT,)) -> np.ndarray:
        return self.usual() if case == USUAL else self.projected(case, readouts)


def scores(features: np.ndarray) -> np.ndarray:
    """Return the kernel scores of the last quarter of the images as queries, (Q, N)."""
    gram = features.astype(np.float64) @ features.T
    known = len(features) * 3 // 4
    train_gram = gram[:known, :known]
    regulariser = np.trace(train_gram) / known
    return gram[known:, :known] @ np.linalg.inv(train_gram + regulariser * np.eye(known))


def agreement(features: np.ndarray, reference: np.ndarray) -> float:
    """Return Spearman's correlation of the scores of two features, mean over queries."""
    return float(
        np.mean(
            [
                spearmanr(a, b).statistic
                for a, b in zip(scores(features), scores(reference), strict=True)
            ]
        )
    )


def timed(bench: Bench, case: str, readouts: tuple[str, ...]) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    features = bench.run(case, readouts)
    return features, time.perf_counter() - started


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default=str(Path(__file__).parent.parent / "params.yaml"))
    parser.add_argument(
        "--model",
        help="folder of a stored unconditional pipeline (default: an untrained network)",
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
    parser.add_argument("--case", help="run only this case and print its peak memory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    if args.case:
        before = peak()
        bench.run(args.case)
        print(peak() - before)
        return
    # No projection is always included, as the reference.
    cases = [USUAL, *dict.fromkeys(["none", *args.kinds])]
    # Memory comes first, since a child process inherits its parent's peak.
    command = [sys.executable, __file__, *sys.argv[1:], "--case"]
    memory = {
        case: float(
            subprocess.run([*command, case], check=True, stdout=subprocess.PIPE, text=True).stdout
        )
        for case in cases
    }
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    all_seconds: dict[str, list[float]] = {case: [] for case in cases}
    features: dict[str, np.ndarray] = {}
    for r in range(args.rounds):
        for case in cases[r % len(cases) :] + cases[: r % len(cases)]:
            features[case], elapsed = timed(bench, case, (READOUT,))
            seconds[case].append(elapsed)
            if case != USUAL:
                all_seconds[case].append(timed(bench, case, tuple(READOUTS))[1])
    print(
        f"{bench.net.num_parameters()} parameters, {len(bench.images)} images, "
        f"{args.timesteps} timesteps, k = {args.dimension}, batches of {args.batch_size}, "
        f"{args.threads} threads, {args.rounds} rounds"
    )
    print(
        f"{'method':12} {'k':>7} {'single':>9} {'usual / this':>26} {'all':>9} {'memory':>9} "
        f"{'exact':>7} {'usual':>7}"
    )
    for case in cases:
        ratios = [a / b for a, b in zip(seconds[USUAL], seconds[case], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        single = statistics.median(seconds[case])
        whole = f"{statistics.median(all_seconds[case]):.2f} s" if case != USUAL else ""
        exact, usual = (agreement(features[case], features[name]) for name in ("none", USUAL))
        print(
            f"{case:12} {features[case].shape[1]:7} {single:7.2f} s {ratio:>26} {whole:>9} "
            f"{memory[case]:6.0f} MB {exact:7.3f} {usual:7.3f}"
        )


if __name__ == "__main__":
    main()
