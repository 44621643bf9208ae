"""Features of images, computed in batches while the images are read, and kept.

Images arrive one at a time, so memory is bounded by a few batches of inputs and by the features.
Kept features are found by what an image looks like: files in ``features/`` of the output folder
have the digests of images and their features, and are named by the network and by their own bytes.
So an audit that was interrupted goes on, and equal images are computed once.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from afterimage import artifacts, progress
from afterimage.artifacts import ArtifactError
from afterimage.attacks.feature_networks import FeatureNetwork

FOLDER = "features"
BATCH = 4
"""Inputs per forward pass. The activations of more leave a processor's cache: a ResNet-50 takes 1.5
times as long for batches of 16."""
PENDING = 32 * BATCH
"""Maximum number of inputs that wait for others of their size."""
SAVED, SECONDS = 64 * BATCH, 60.0
"""Features are written when so many are new, or after so many seconds."""

_NAME = re.compile(r"\.?([0-9a-f]{16})-([0-9a-f]{64})\.safetensors(?:\.\d+\.partial)?")

Digest = bytes


def files(out: Path) -> set[str]:
    """Return the names, relative to ``out``, of the kept features in it."""
    folder = out / FOLDER
    if not folder.is_dir():
        return set()
    return {f"{FOLDER}/{path.name}" for path in folder.iterdir() if _NAME.fullmatch(path.name)}


class KeptFeatures:
    """The features of one network in a folder, by digest of the image."""

    def __init__(self, out: Path, network: FeatureNetwork) -> None:
        """Open the features that earlier runs left.

        Raises:
            ArtifactError: naming the file, if one was changed or is damaged.
        """
        self._folder, self._key = out / FOLDER, network.sha256[:16]
        self._features: dict[Digest, np.ndarray] = {}
        self._unsaved: list[Digest] = []
        self._saved = time.monotonic()
        for name in sorted(files(out)):
            match = _NAME.fullmatch(Path(name).name)
            if match and match[1] == self._key and name.endswith(".safetensors"):
                self._read(out / name, match[2])
        self.there = len(self._features)

    def _read(self, path: Path, expected: str) -> None:
        try:
            raw = path.read_bytes()
            if (actual := hashlib.sha256(raw).hexdigest()) != expected:
                raise ValueError(f"it has sha256 {actual}, not that of its name")
            arrays = load(raw)
            digests, features = arrays["digests"], arrays["features"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ArtifactError(
                f"--out: {path} is not what an earlier run kept; remove it to have its features "
                f"computed again: {error}"
            ) from error
        self._features |= {
            digest.tobytes(): row for digest, row in zip(digests, features, strict=True)
        }

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._features

    def __getitem__(self, digest: Digest) -> np.ndarray:
        return self._features[digest]

    def add(self, digest: Digest, feature: np.ndarray) -> None:
        """Add the feature, (D,), of one image."""
        self._features[digest] = feature
        self._unsaved.append(digest)

    def save(self, now: bool = True) -> None:
        """Write all features that are not in a file yet, or only if it is time for a file."""
        due = len(self._unsaved) >= SAVED or time.monotonic() - self._saved >= SECONDS
        if not self._unsaved or not (now or due):
            return
        digests = np.stack([np.frombuffer(digest, np.uint8) for digest in self._unsaved])
        features = np.stack([self._features[digest] for digest in self._unsaved])
        raw = save({"digests": digests, "features": features})
        name = f"{self._key}-{hashlib.sha256(raw).hexdigest()}.safetensors"
        artifacts.write_atomically(self._folder / name, raw)
        self._unsaved, self._saved = [], time.monotonic()


class FeatureReader:
    """Computes the features of one set of images, which are passed to ``add`` in order."""

    def __init__(
        self, network: FeatureNetwork, kept: KeptFeatures, flag: str, mirrored: bool
    ) -> None:
        """Prepare an empty set.

        Args:
            network: The network.
            kept: Its features so far; new ones are added.
            flag: The flag that named the set, e.g. ``--train``, for messages.
            mirrored: Whether to compute the features of mirror images too.
        """
        self._network, self._kept, self._flag = network, kept, flag
        self._views: list[Callable[[np.ndarray], np.ndarray]] = [lambda pixels: pixels]
        if mirrored:
            self._views.append(lambda pixels: pixels[:, ::-1])
        self._digests: list[list[Digest]] = [[] for _ in self._views]
        self._waiting: dict[tuple[int, ...], list[tuple[Digest, str, np.ndarray]]] = {}
        self._queued: set[Digest] = set()
        self._progress = _Progress(flag)
        self.enlarged = 0
        """Images whose shorter side is below that of the network's input."""

    def add(self, name: str, pixels: np.ndarray) -> None:
        """Add one image, uint8 (H, W, 1 or 3).

        Raises:
            ArtifactError: naming the image, if the network does not take it, or its features are
                NaN, infinite or all zero.
        """
        self.enlarged += min(pixels.shape[:2]) < self._network.smallest
        for view, digests in zip(self._views, self._digests, strict=True):
            seen = np.ascontiguousarray(view(pixels))
            digest = hashlib.blake2b(
                repr(seen.shape).encode() + seen.tobytes(), digest_size=16
            ).digest()
            digests.append(digest)
            if digest in self._kept or digest in self._queued:
                continue
            try:
                prepared = self._network.prepare(seen)
            except ArtifactError as error:
                raise ArtifactError(
                    f"{self._flag}: {name} cannot go through {self._network.flag}: {error}"
                ) from error
            self._queued.add(digest)
            queue = self._waiting.setdefault(prepared.shape, [])
            queue.append((digest, name, prepared))
            if len(queue) == BATCH or len(self._queued) >= PENDING:
                self._run(max(self._waiting, key=lambda shape: len(self._waiting[shape])))
        self._progress.advance()

    def finish(self) -> np.ndarray:
        """Return the features of all images, of unit length, float32 (V, N, D), V = 2 with mirror
        images."""
        for shape in list(self._waiting):
            self._run(shape)
        self._kept.save()
        self._progress.close()
        return np.stack(
            [np.stack([self._kept[digest] for digest in digests]) for digests in self._digests]
        )

    def _run(self, shape: tuple[int, ...]) -> None:
        queue = self._waiting.pop(shape)
        features = self._network.embed(np.stack([prepared for *_, prepared in queue]))
        lengths = np.linalg.norm(features.astype(np.float64), axis=1)
        for (digest, name, _), feature, length in zip(queue, features, lengths, strict=True):
            if not np.isfinite(length) or length == 0:
                what = "all zero" if length == 0 else "NaN or infinite"
                raise ArtifactError(
                    f"{self._flag}: the features of {name} are {what} by {self._network.flag}"
                )
            self._kept.add(digest, (feature / length).astype(np.float32))
            self._queued.discard(digest)
        self._kept.save(now=False)


class _Progress:
    """Images read so far: a counter on a terminal, else lines."""

    def __init__(self, flag: str) -> None:
        self._flag, self._done = flag, 0
        self._started = self._printed = time.monotonic()
        self._bar = tqdm(desc=f"features of {flag}", unit=" images", disable=None)

    def advance(self) -> None:
        self._done += 1
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and now - self._printed >= progress.EVERY:
            self._printed = now
            rate = self._done / (now - self._started)
            print(
                f"features of {self._flag}: {self._done} images, {rate:.3g} images/s",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self._bar.close()
