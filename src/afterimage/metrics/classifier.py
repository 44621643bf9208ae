"""The feature network: a small convolutional classifier trained on the reference split only.

Its penultimate layer is the feature space of the quality metrics and of the near-duplicate
proposals. No arm trains on the reference split, and this network sees nothing else, so that neither
memorised nor held-out images have shaped the space. On data without labels, or with a single class,
it is trained to distinguish four rotations instead (Gidaris et al. 2018); ``classifier.json``
records the task.

A stored network is two files: ``classifier.safetensors`` (weights) and ``classifier.json``
(architecture, classes, normalisation, task).
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from afterimage import artifacts, seeds
from afterimage.artifacts import ArtifactError
from afterimage.config import Classifier, ConfigError
from afterimage.images import Images, load_images

STEP = "data/classifier"
WEIGHTS, DESCRIPTION = "classifier.safetensors", "classifier.json"
SMALLEST_SIDE = 8
VALIDATION_SHARE = 0.1
PIXELS = 2**19
"""Maximum pixels per forward pass without gradients: 512 images of 32 x 32."""


@dataclass(frozen=True)
class Description:
    """Everything needed to rebuild and use the network.

    Attributes:
        task: ``labels`` or ``rotations`` (0, 90, 180 and 270 degrees, distinguished where there are
            no labels to learn).
        classes: The labels, in the order of the outputs; degrees for rotations.
        input_channels: 1 or 3.
        channels: Width of each convolutional block.
        features: Dimension of the feature space.
        mean: Per-channel mean of the training pixels, in [0, 1].
        std: Per-channel standard deviation of the same pixels.
    """

    task: str
    classes: list[int]
    input_channels: int
    channels: list[int]
    features: int
    mean: list[float]
    std: list[float]


class Network(nn.Module):
    """Convolutional blocks, global average pooling, a feature layer and a linear classifier.

    Each block is two 3x3 convolutions with group normalisation and SiLU, then 2x2 average pooling
    with rounding up, so that any side works.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, description: Description):
        super().__init__()
        blocks: list[nn.Module] = []
        width = description.input_channels
        for channels in description.channels:
            for _ in range(2):
                groups = max(1, math.gcd(8, channels) // 2)  # of two channels or more
                norm = nn.GroupNorm(groups, channels)
                blocks += [nn.Conv2d(width, channels, 3, padding=1, bias=False), norm, nn.SiLU()]
                width = channels
            blocks.append(nn.AvgPool2d(2, ceil_mode=True))
        self.body = nn.Sequential(
            *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, description.features)
        )
        self.head = nn.Sequential(
            nn.SiLU(), nn.Linear(description.features, len(description.classes))
        )
        self.register_buffer("mean", torch.tensor(description.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(description.std).view(1, -1, 1, 1))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 pixels, (N, C, H, W), to features, float32 (N, D)."""
        return self.body((pixels / 255 - self.mean) / self.std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 pixels, (N, C, H, W), to logits, float32 (N, classes)."""
        return self.head(self.embed(pixels))


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    # Rows are copied where they are used.
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)


def _centre_square(pixels: torch.Tensor) -> torch.Tensor:
    height, width = pixels.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[..., top : top + side, left : left + side]


def _task(labels: np.ndarray) -> tuple[str, list[int]]:
    classes = np.unique(labels[labels >= 0]).tolist()
    return ("labels", classes) if len(classes) > 1 else ("rotations", [0, 90, 180, 270])


def _turned(pixels: torch.Tensor, quarters: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [
            torch.rot90(image, int(turn), (-2, -1))
            for image, turn in zip(pixels, quarters, strict=True)
        ]
    )


def fit(
    images: Images, settings: Classifier, seed: int
) -> tuple[Network, Description, list[dict[str, float]]]:
    """Train the network on nine tenths of ``images`` and validate it on the last tenth after each
    epoch.

    Args:
        images: The reference split. Rows without a label (-1) are dropped if there are labels to
            learn.
        settings: Width, length and pace of the training.
        seed: The study's root seed.

    Returns:
        The network (on the CPU), its description, and per epoch ``loss``, ``accuracy`` (both over
        the epoch's training batches) and ``validation_accuracy``.

    Raises:
        ConfigError: for images smaller than 8x8 or fewer than two usable images.
    """
    # Choose the task and check the images.
    task, classes = _task(images.labels)
    if task == "labels":
        images = images.take(images.labels >= 0)
    pixels = _to_tensor(images.pixels)
    if min(pixels.shape[-2:]) < SMALLEST_SIDE:
        raise ConfigError(
            f"the classifier needs images of side {SMALLEST_SIDE} or more, not "
            f"{tuple(pixels.shape[-2:])}"
        )
    if len(pixels) < 2:
        raise ConfigError(f"the classifier needs at least 2 reference images, not {len(pixels)}")

    # Split them into training and validation images.
    rng = seeds.torch_rng(seed, "classifier")
    order = torch.randperm(len(pixels), generator=rng)
    validation_images = max(1, round(VALIDATION_SHARE * len(pixels)))
    train, validation = order[validation_images:], order[:validation_images]
    if task == "labels":
        targets = torch.from_numpy(np.searchsorted(classes, images.labels))
    else:
        pixels = _centre_square(pixels)
        # Fixed rotations for validation; training draws its own.
        targets = torch.randint(4, (len(pixels),), generator=rng)
    check = (
        pixels[validation] if task == "labels" else _turned(pixels[validation], targets[validation])
    )

    # Build the network.
    levels = np.arange(256) / 255
    counts = np.zeros((pixels.shape[1], 256), np.int64)  # exact, and no floating copy of the images
    for row in train:
        counts += [np.bincount(channel.ravel(), minlength=256) for channel in pixels[row].numpy()]
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ levels
    deviation = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(axis=1))
    description = Description(
        task=task,
        classes=classes,
        input_channels=pixels.shape[1],
        channels=settings.channels,
        features=settings.features,
        mean=mean.tolist(),
        std=deviation.clip(1 / 255).tolist(),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=rng)))
        network = Network(description).to(device)

    # Train it.
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    per_epoch = math.ceil(len(train) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * per_epoch)
    history = []
    for _ in range(settings.epochs):
        total_loss, hits = 0.0, 0
        network.train()
        for rows in train[torch.randperm(len(train), generator=rng)].split(settings.batch_size):
            batch, target = pixels[rows].contiguous(), targets[rows]
            if task == "rotations":
                target = torch.randint(4, (len(rows),), generator=rng)
                batch = _turned(batch, target)
            batch, target = batch.to(device), target.to(device)
            logits = network(batch)
            loss = nn.functional.cross_entropy(logits, target)
            if not torch.isfinite(loss):
                raise ConfigError(
                    f"classifier.learning_rate = {settings.learning_rate}: the loss is no longer "
                    "finite; lower it"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total_loss += loss.item() * len(rows)
            hits += int((logits.argmax(1) == target).sum())
        guesses = _apply(network, check, 512, network.forward).argmax(1)
        history.append(
            {
                "loss": total_loss / len(train),
                "accuracy": hits / len(train),
                "validation_accuracy": float((guesses == targets[validation]).float().mean()),
            }
        )
    return network.cpu(), description, history


@torch.no_grad()
def _apply(network: Network, pixels: torch.Tensor, batch: int, function: Any) -> torch.Tensor:
    network.eval()
    device = next(network.parameters()).device
    batch = max(1, min(batch, PIXELS // pixels[0, 0].numel()))
    parts = (part.contiguous().to(device) for part in pixels.split(batch))
    return torch.cat([function(part).cpu() for part in parts])


def load(folder: Path) -> tuple[Network, Description]:
    """Open a stored network, first checking its files against the store's ``run.json``.

    Raises:
        ArtifactError: if a file is missing, has been changed or does not fit its description.
    """
    folder = Path(folder)
    for name in (WEIGHTS, DESCRIPTION):
        artifacts.check_file(folder / name)
    description = Description(**json.loads((folder / DESCRIPTION).read_text()))
    network = Network(description)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise ArtifactError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {error}") from error
    return network, description


def _open_for(folder: Path, pixels: np.ndarray) -> tuple[Network, torch.Tensor]:
    network, description = load(folder)
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 4
        or pixels.shape[-1] != description.input_channels
    ):
        raise ArtifactError(
            f"the classifier in {folder} takes uint8 images of shape (N, H, W, "
            f"{description.input_channels}), not {pixels.dtype} {pixels.shape}"
        )
    if not len(pixels):
        raise ArtifactError(f"no images to show to the classifier in {folder}")
    return network.to("cuda" if torch.cuda.is_available() else "cpu"), _to_tensor(pixels)


def embed(folder: Path, pixels: np.ndarray, batch: int = 512) -> np.ndarray:
    """Return the penultimate features of images.

    Args:
        folder: A stored network.
        pixels: uint8, (N, H, W, C) with the network's number of channels.
        batch: Largest number of images per forward pass, of at most ``PIXELS`` in all.

    Returns:
        float32, (N, D).

    Raises:
        ArtifactError: for a damaged store or images of another dtype or shape.
    """
    network, tensor = _open_for(folder, pixels)
    return _apply(network, tensor, batch, network.embed).numpy()


def embed_with(network: Network, pixels: np.ndarray, batch: int = 512) -> np.ndarray:
    """Return the penultimate features of images in a freshly trained network; otherwise as
    ``embed``."""
    return _apply(network, _to_tensor(pixels), batch, network.embed).numpy()


def predict(folder: Path, pixels: np.ndarray, batch: int = 512) -> np.ndarray:
    """Return class probabilities, float32 (N, classes), in the order of the description's
    ``classes``; otherwise as ``embed``."""
    network, tensor = _open_for(folder, pixels)
    return _apply(network, tensor, batch, network.forward).softmax(1).numpy()


def classes_with(network: Network, pixels: np.ndarray, batch: int = 512) -> np.ndarray:
    """Return the most probable class of images by a network that was just trained, int64 (N,),
    counted in the order of the description's ``classes``."""
    return _apply(network, _to_tensor(pixels), batch, network.forward).argmax(1).numpy()


def save(folder: Path, network: Network, description: Description) -> None:
    """Write the two files of a network into ``folder``."""
    save_file(network.state_dict(), folder / WEIGHTS)
    artifacts.write_json(folder / DESCRIPTION, asdict(description))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument("--reference", type=Path, required=True, help="reference split (.npz)")
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of this step (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Train and store the network."""
    config = artifacts.read_config(args.config, STEP)
    with artifacts.step(
        config, args.out, inputs={"reference": args.reference}, entries=(__name__,)
    ) as step:
        images = load_images(args.reference)
        network, description, history = fit(images, Classifier(**step.settings), config["seed"])
        save(step.folder, network, description)
        for epoch, row in enumerate(history, start=1):
            for name, value in row.items():
                step.metric(f"classifier/{name}", value, epoch)
        step.note(task=description.task, classes=len(description.classes), **history[-1])
