"""Random projections of gradients to k dimensions, parameter by parameter.

The gradient of the whole network need not be formed. Each projection preserves inner products in
expectation over seeds, E <Pa, Pb> = <a, b> (Johnson & Lindenstrauss 1984). Its random numbers are
seeded by the parameter's name; for countsketch and gaussian they do not depend on the other
parameters.

- none: all P coordinates.
- countsketch (Charikar, Chen & Farach-Colton 2002): each coordinate is added, with a random sign,
  to one of k sums chosen at random.
- gaussian: a dense matrix of N(0, 1 / k), as in TRAK, D-TRAK and DAS. Its blocks are generated
  again for each batch, on the CPU like all random numbers here; for a large network this takes far
  longer than its gradients.
- srht (Ailon & Chazelle 2006; Tropp 2011): random signs, a Walsh-Hadamard transform, and k of the
  resulting coordinates. It needs all coordinates of a batch at once, padded to a power of two.
- kronecker (LoGra, Choe et al. 2024): the gradient of a weight matrix, a sum of outer products, is
  projected on both sides before the products are taken. Each matrix has its own coordinates of the
  result; weight vectors (norms, biases) share a countsketch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from scipy.linalg import hadamard
from torch.nn import functional

from afterimage import seeds
from afterimage.attribution.gradients.layers import Factors, Gradient, dense
from afterimage.config import ConfigError

Shapes = Mapping[str, Sequence[int]]
"""Name of a parameter -> its shape."""

BLOCK = 2**24
"""Entries of a dense projection that are held in memory at a time."""


class Projection(Protocol):
    """A linear map from gradients to ``dimension`` numbers."""

    dimension: int

    def __call__(
        self, gradients: Iterable[tuple[str, Gradient]], images: int, readouts: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Project the gradients of some images and readouts.

        Args:
            gradients: Name of a parameter and its gradients; a missing parameter has gradient zero.
            images: B.
            readouts: R.

        Returns:
            The projected gradients, float32 (B, R, k), and the norms of the gradients, float32
            (B, R): of the full ones or, with ``kronecker``, which does not form them, of the
            projected ones.
        """


def build(
    kind: str, dimension: int, shapes: Shapes, seed: int, device: torch.device | str = "cpu"
) -> Projection:
    """Return a projection.

    Args:
        kind: One of ``KINDS``.
        dimension: k. For ``kronecker`` an upper bound; ``none`` ignores it.
        shapes: Shapes of all parameters.
        seed: Root seed.
        device: Device of the gradients.

    Raises:
        ConfigError: if the dimension does not suit the parameters.
    """
    return KINDS[kind](dimension, shapes, seed, torch.device(device))


def _signs(count: int, stream: torch.Generator) -> torch.Tensor:
    return torch.randint(2, (count,), generator=stream) * 2.0 - 1.0


class _Accumulated(ABC):
    """A projection that accumulates all parameters in a buffer and computes its result from it."""

    def __init__(self, dimension: int, shapes: Shapes, seed: int, device: torch.device) -> None:
        self.dimension = self.width = dimension
        self.shapes, self.seed, self.device = shapes, seed, device

    def __call__(
        self, gradients: Iterable[tuple[str, Gradient]], images: int, readouts: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        buffer = torch.zeros(images, readouts, self.width, device=self.device)
        squares = torch.zeros(images, readouts, device=self.device)
        for name, gradient in gradients:
            values = dense(gradient)
            squares += torch.linalg.vector_norm(values, dim=2).square()
            self.add(buffer, name, values)
        return self.result(buffer), squares.sqrt()

    def stream(self, name: str, *address: str | int) -> torch.Generator:
        """Return the random stream of a parameter, on the CPU."""
        return seeds.torch_rng(self.seed, "attribution", "projection", name, *address)

    @abstractmethod
    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        """Add a parameter's gradients, (B, R, numel), to the buffer, (B, R, width)."""

    def result(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the projected gradients, (B, R, k)."""
        return buffer


def _slices(shapes: Shapes) -> dict[str, slice]:
    """Return the slice of each parameter in the concatenation of all, flattened."""
    slices, start = {}, 0
    for name, shape in shapes.items():
        slices[name] = slice(start, start := start + math.prod(shape))
    return slices


class Identity(_Accumulated):
    """All coordinates, concatenated."""

    def __init__(self, dimension: int, shapes: Shapes, seed: int, device: torch.device) -> None:
        self.slices = _slices(shapes)
        super().__init__(sum(math.prod(shape) for shape in shapes.values()), shapes, seed, device)

    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        buffer[..., self.slices[name]] = values


class CountSketch(_Accumulated):
    """See the module. Parameters with fewer than k coordinates are collected and added together."""

    def __init__(self, dimension: int, shapes: Shapes, seed: int, device: torch.device) -> None:
        super().__init__(dimension, shapes, seed, device)
        small = {name: shape for name, shape in shapes.items() if math.prod(shape) < dimension}
        self.collected = {
            name: slice(columns.start + dimension, columns.stop + dimension)
            for name, columns in _slices(small).items()
        }
        self.width = dimension + sum(math.prod(shape) for shape in small.values())
        self.sketches = {name: self._sketch([name]) for name in shapes if name not in small}
        self.collected_sketch = self._sketch(list(small))

    def _sketch(self, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the sketch of the concatenation of some parameters.

        Returns:
            The coordinates, sorted by the sum that they are added to; the position of each sum's
            first; and their signs, in the same order.
        """
        sums, signs = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
        for name in names:
            stream, count = self.stream(name), math.prod(self.shapes[name])
            sums.append(torch.randint(self.dimension, (count,), generator=stream))
            signs.append(_signs(count, stream))
        ascending, order = torch.cat(sums).sort(stable=True)
        begin = torch.searchsorted(ascending, torch.arange(self.dimension))
        return order.to(self.device), begin.to(self.device), torch.cat(signs)[order].to(self.device)

    def _sum(
        self, values: torch.Tensor, order: torch.Tensor, begin: torch.Tensor, signs: torch.Tensor
    ) -> torch.Tensor:
        columns = values.flatten(0, 1).T.contiguous()
        sums = functional.embedding_bag(order, columns, begin, mode="sum", per_sample_weights=signs)
        return sums.T.view(*values.shape[:2], self.dimension)

    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        if name in self.collected:
            buffer[..., self.collected[name]] = values
        else:
            buffer[..., : self.dimension] += self._sum(values, *self.sketches[name])

    def result(self, buffer: torch.Tensor) -> torch.Tensor:
        collected = self._sum(buffer[..., self.dimension :], *self.collected_sketch)
        return buffer[..., : self.dimension] + collected


class Gaussian(_Accumulated):
    """See the module."""

    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        for i, chunk in enumerate(values.split(max(1, BLOCK // self.dimension), dim=2)):
            block = torch.randn(chunk.shape[2], self.dimension, generator=self.stream(name, i))
            buffer += chunk @ block.to(self.device)

    def result(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer / math.sqrt(self.dimension)


class Srht(_Accumulated):
    """See the module. Images are transformed one at a time, to save memory."""

    def __init__(self, dimension: int, shapes: Shapes, seed: int, device: torch.device) -> None:
        super().__init__(dimension, shapes, seed, device)
        self.slices = _slices(shapes)
        self.width = 1 << (sum(math.prod(shape) for shape in shapes.values()) - 1).bit_length()
        if dimension > self.width:
            raise ConfigError(
                f"attribution.features.dimension = {dimension}: srht has only {self.width} "
                "coordinates to choose from; projection none keeps all"
            )
        self.signs = {
            name: _signs(math.prod(shape), self.stream(name)).to(device)
            for name, shape in shapes.items()
        }
        self.subsample = torch.randperm(self.width, generator=self.stream("chosen"))[:dimension].to(
            device
        )

    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        torch.mul(values, self.signs[name], out=buffer[..., self.slices[name]])

    def result(self, buffer: torch.Tensor) -> torch.Tensor:
        transformed = [walsh_hadamard(image)[:, self.subsample] for image in buffer]
        return torch.stack(transformed) / math.sqrt(self.dimension)


def walsh_hadamard(x: torch.Tensor) -> torch.Tensor:
    """Return the unscaled Walsh-Hadamard transform of the last dimension, a power of two.

    The matrix is a Kronecker product of small ones, which are applied in turn: each to the last 6
    bits of the index, which then move to the front.
    """
    shape, remaining = x.shape, x.shape[-1]
    while remaining > 1:
        size = min(remaining, 64)
        matrix = torch.from_numpy(hadamard(size)).to(x)
        x = (x.reshape(*shape[:-1], -1, size) @ matrix).mT.reshape(shape)
        remaining //= size
    return x


class Kronecker:
    """See the module. Each matrix, and all vectors together, get the same number of coordinates.

    Those with no more coordinates than that are not projected.

    Attributes:
        slices: Name of a matrix -> its coordinates in the result.
    """

    def __init__(self, dimension: int, shapes: Shapes, seed: int, device: torch.device) -> None:
        matrices = {
            name: (shape[0], math.prod(shape[1:]))
            for name, shape in shapes.items()
            if len(shape) > 1
        }
        vectors = {name: shape for name, shape in shapes.items() if len(shape) < 2}
        sizes = [out * inputs for out, inputs in matrices.values()]
        length = sum(math.prod(shape) for shape in vectors.values())
        *budgets, rest = allocate([*sizes, length], dimension)
        if min(budgets, default=1) == 0 or (vectors and not rest):
            raise ConfigError(
                f"attribution.features.dimension = {dimension} is too small for kronecker: each of "
                f"{len(matrices)} matrices, and all vectors together, need one or more"
            )
        widths = {
            name: _factor_widths(*matrices[name], budget)
            for name, budget in zip(matrices, budgets, strict=True)
        }
        self.slices = _slices(widths)
        self.dimension = sum(left * right for left, right in widths.values()) + rest
        self.vectors = (Identity if rest == length else CountSketch)(rest, vectors, seed, device)
        self.device = device

        def factor(name: str, side: str, size: int, width: int) -> torch.Tensor:
            if width == size:
                return torch.eye(size, device=device)
            gaussian = torch.randn(size, width, generator=self.vectors.stream(name, side))
            return gaussian.to(device) / math.sqrt(width)

        self.factors = {
            name: (
                factor(name, "out", out, widths[name][0]),
                factor(name, "in", inputs, widths[name][1]),
            )
            for name, (out, inputs) in matrices.items()
        }

    def __call__(
        self, gradients: Iterable[tuple[str, Gradient]], images: int, readouts: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        result = torch.zeros(images, readouts, self.dimension, device=self.device)
        vectors = torch.zeros(images, readouts, self.vectors.width, device=self.device)
        for name, gradient in gradients:
            if name not in self.factors:
                self.vectors.add(vectors, name, dense(gradient))
                continue
            left, right = self.factors[name]
            if isinstance(gradient, Factors):
                small = Factors(gradient.inputs @ right, gradient.outputs @ left).dense()
            else:
                small = (left.T @ gradient.unflatten(2, (len(left), len(right))) @ right).flatten(2)
            result[..., self.slices[name]] = small
        result[..., self.dimension - self.vectors.dimension :] = self.vectors.result(vectors)
        return result, torch.linalg.vector_norm(result, dim=2)


def allocate(sizes: Sequence[int], total: int) -> list[int]:
    """Divide ``total`` equally, but give none more than its size; rounding down."""
    budgets, remaining = [0] * len(sizes), total
    for position, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        budgets[i] = min(sizes[i], remaining // (len(sizes) - position))
        remaining -= budgets[i]
    return budgets


def _factor_widths(out: int, inputs: int, budget: int) -> tuple[int, int]:
    """Return the coordinates kept of a matrix's outputs and inputs, as equal as it allows."""
    left = min(out, math.isqrt(budget))
    right = min(inputs, budget // left)
    return min(out, budget // right), right


KINDS: dict[str, type[Identity | CountSketch | Gaussian | Srht | Kronecker]] = {
    "none": Identity,
    "countsketch": CountSketch,
    "gaussian": Gaussian,
    "srht": Srht,
    "kronecker": Kronecker,
}
"""Name of a kind -> its class, called with (k, shapes, seed, device)."""
