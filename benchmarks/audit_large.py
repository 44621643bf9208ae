"""Time and memory of an audit of large images: 10,000 of 512 x 512 pixels against 10,000, with a network of ResNet-50's size.

    python benchmarks/audit_large.py FOLDER [--images 10000] [--holdout 1000] [--side 512] [--threads 2]

JPEG files of smooth random pictures are made in FOLDER, where they stay, and a ResNet-50 with random weights as TorchScript. Then
``afterimage audit --space sscd --match-size 64`` reads them in this process; an interrupted audit goes on. Printed are seconds, the
verdict, and the largest memory that cannot be given back (``RssAnon``, looked at every 0.2 s).
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
from images_memory import pictures
from scores_memory import Peak
from transformers import ResNetConfig, ResNetModel

from afterimage.cli import main as afterimage


class Descriptor(torch.nn.Module):
    """ResNet-50 and a projection to 512 values, as SSCD has."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ResNetModel(ResNetConfig(return_dict=False))
        self.projection = torch.nn.Linear(2048, 512)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return descriptors, (B, 512), of normalised images (B, 3, H, W)."""
        return self.projection(self.trunk(pixels)[1].flatten(1))


def network(file: Path) -> str:
    """Write the network, unless it is there, and return the sha256 of its file."""
    if not file.exists():
        torch.manual_seed(0)
        traced = torch.jit.trace(Descriptor().eval(), torch.zeros(1, 3, 288, 288))
        traced.save(str(file))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000, help="of each of the two sets")
    parser.add_argument("--holdout", type=int, default=1_000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sets = {"train": args.images, "samples": args.images, "holdout": args.holdout}
    first = 0
    for name, count in sets.items():
        pictures(args.folder / name, count, args.side, first)
        first += count
    weights = args.folder / "network.pt"
    command = ["audit", "--out", str(args.folder / "audit"), "--match-size", "64"]
    command += [word for name in sets for word in (f"--{name}", str(args.folder / name))]
    command += ["--space", "sscd", "--space-weights", str(weights)]
    command += ["--space-sha256", network(weights)]
    started, used = time.perf_counter(), time.process_time()
    peak = Peak()
    peak.start()
    status = afterimage(command)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    record = json.loads((args.folder / "audit" / "audit.json").read_text())
    print(
        f"{args.images} images of {args.side} x {args.side} against {args.images}, "
        f"{args.holdout} held out, {args.threads} threads: {seconds:.0f} s, processor {used:.0f} s, "
        f"at most {peak.gigabytes:.2f} GB, exit status {status}, {record['verdict']['outcome']}"
    )


if __name__ == "__main__":
    main()
