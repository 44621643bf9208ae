"""Random projections of gradients to k numbers, parameter by parameter, so that no gradient of a whole network need be formed.

Each keeps inner products on average over seeds, E <Pa, Pb> = <a, b> (Johnson & Lindenstrauss 1984). Its random numbers follow
from the seed and the parameter's name; countsketch and gaussian do the same to a parameter whatever others there are.

- none: all P coordinates.
- countsketch (Charikar, Chen & Farach-Colton 2002): each coordinate is added, with a random sign, to one of k random sums.
- gaussian: a dense matrix of N(0, 1 / k), as TRAK, D-TRAK and DAS use it. Its blocks are drawn anew each time, on the CPU like
  everything random here, so that a large network's take far longer than its gradients.
- srht (Ailon & Chazelle 2006; Tropp 2011): random signs, a Walsh-Hadamard transform, and k coordinates of that. It needs all
  coordinates of a batch at once, padded to a power of two.
- kronecker (LoGra, Choe et al. 2024): the gradient of a matrix of weights, a sum of outer products, is projected on both sides
  before the products are taken. Each matrix has coordinates of its own; vectors of weights (norms, biases) share a countsketch.
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
"""Numbers of a dense projection that are held at once."""


class Projection(Protocol):
    """A linear map from gradients to ``dimension`` numbers."""

    dimension: int

    def __call__(
        self, gradients: Iterable[tuple[str, Gradient]], images: int, readouts: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Project the gradients of some images and readouts.

        Args:
            gradients: Name of a parameter and its gradients; a parameter that is left out has gradient zero.
            images: B.
            readouts: R.

        Returns:
            The projected gradients, float32, (B, R, k), and the norms of the gradients, float32, (B, R): the full ones', or, by
            ``kronecker``, which does not form them, the projected ones'.
        """


def build(
    kind: str, dimension: int, shapes: Shapes, seed: int, device: torch.device | str = "cpu"
) -> Projection:
    """Return a projection.

    Args:
        kind: One of ``KINDS``.
        dimension: k. ``kronecker`` uses at most as many; ``none`` has as many as there are parameters.
        shapes: Of all parameters.
        seed: Root seed.
        device: Where the gradients are.

    Raises:
        ConfigError: if the dimension does not suit the parameters.
    """
    return KINDS[kind](dimension, shapes, seed, torch.device(device))


def _signs(count: int, stream: torch.Generator) -> torch.Tensor:
    return torch.randint(2, (count,), generator=stream) * 2.0 - 1.0


class _Added(ABC):
    """A projection that adds something to a buffer for each parameter, and makes its result of the buffer in the end."""

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

    def stream(self, name: str, *more: str | int) -> torch.Generator:
        """Return the random stream of a parameter, on the CPU."""
        return seeds.torch_rng(self.seed, "attribution", "projection", name, *more)

    @abstractmethod
    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        """Add a parameter's gradients, (B, R, numel), to the buffer, (B, R, width)."""

    def result(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the projected gradients, (B, R, k)."""
        return buffer


def _places(shapes: Shapes) -> dict[str, slice]:
    """Return where each parameter stands when all are laid end to end."""
    places, start = {}, 0
    for name, shape in shapes.items():
        places[name] = slice(start, start := start + math.prod(shape))
    return places


class Identity(_Added):
    """All coordinates, laid end to end."""

    def __init__(self, dimension: int, shapes: Shapes, seed: int, device: torch.device) -> None:
        self.places = _places(shapes)
        super().__init__(sum(math.prod(shape) for shape in shapes.values()), shapes, seed, device)

    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        buffer[..., self.places[name]] = values


class CountSketch(_Added):
    """See the module. Parameters of fewer than k coordinates, many and small, wait in the buffer and are summed together."""

    def __init__(self, dimension: int, shapes: Shapes, seed: int, device: torch.device) -> None:
        super().__init__(dimension, shapes, seed, device)
        small = {name: shape for name, shape in shapes.items() if math.prod(shape) < dimension}
        self.waiting = {
            name: slice(at.start + dimension, at.stop + dimension)
            for name, at in _places(small).items()
        }
        self.width = dimension + sum(math.prod(shape) for shape in small.values())
        self.sums = {name: self._sums([name]) for name in shapes if name not in small}
        self.last = self._sums(list(small))

    def _sums(self, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what makes up the sums over parameters laid end to end: coordinates, where each sum's begin, and signs."""
        chosen, signs = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
        for name in names:
            stream, count = self.stream(name), math.prod(self.shapes[name])
            chosen.append(torch.randint(self.dimension, (count,), generator=stream))
            signs.append(_signs(count, stream))
        ascending, order = torch.cat(chosen).sort(stable=True)
        begin = torch.searchsorted(ascending, torch.arange(self.dimension))
        return order.to(self.device), begin.to(self.device), torch.cat(signs)[order].to(self.device)

    def _sum(
        self, values: torch.Tensor, order: torch.Tensor, begin: torch.Tensor, signs: torch.Tensor
    ) -> torch.Tensor:
        columns = values.flatten(0, 1).T.contiguous()
        sums = functional.embedding_bag(order, columns, begin, mode="sum", per_sample_weights=signs)
        return sums.T.view(*values.shape[:2], self.dimension)

    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        if name in self.waiting:
            buffer[..., self.waiting[name]] = values
        else:
            buffer[..., : self.dimension] += self._sum(values, *self.sums[name])

    def result(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[..., : self.dimension] + self._sum(buffer[..., self.dimension :], *self.last)


class Gaussian(_Added):
    """See the module."""

    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        for i, chunk in enumerate(values.split(max(1, BLOCK // self.dimension), dim=2)):
            block = torch.randn(chunk.shape[2], self.dimension, generator=self.stream(name, i))
            buffer += chunk @ block.to(self.device)

    def result(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer / math.sqrt(self.dimension)


class Srht(_Added):
    """See the module. The transform is taken image by image, so that only the buffer is as large as a batch of gradients."""

    def __init__(self, dimension: int, shapes: Shapes, seed: int, device: torch.device) -> None:
        super().__init__(dimension, shapes, seed, device)
        self.places = _places(shapes)
        self.width = 1 << (sum(math.prod(shape) for shape in shapes.values()) - 1).bit_length()
        if dimension > self.width:
            raise ConfigError(
                f"attribution.features.dimension = {dimension}: srht can choose from {self.width} coordinates; "
                "projection none has all"
            )
        self.signs = {
            name: _signs(math.prod(shape), self.stream(name)).to(device)
            for name, shape in shapes.items()
        }
        self.chosen = torch.randperm(self.width, generator=self.stream("chosen"))[:dimension].to(
            device
        )

    def add(self, buffer: torch.Tensor, name: str, values: torch.Tensor) -> None:
        torch.mul(values, self.signs[name], out=buffer[..., self.places[name]])

    def result(self, buffer: torch.Tensor) -> torch.Tensor:
        return torch.stack([walsh_hadamard(image)[:, self.chosen] for image in buffer]) / math.sqrt(
            self.dimension
        )


def walsh_hadamard(x: torch.Tensor) -> torch.Tensor:
    """Return the unscaled Walsh-Hadamard transform of the last dimension, a power of two.

    The matrix is a Kronecker product of small ones, which are applied in turn: each to the last 6 bits of the position, which
    then move to the front.
    """
    shape, left = x.shape, x.shape[-1]
    while left > 1:
        size = min(left, 64)
        matrix = torch.from_numpy(hadamard(size)).to(x)
        x = (x.reshape(*shape[:-1], -1, size) @ matrix).mT.reshape(shape)
        left //= size
    return x


class Kronecker:
    """See the module. Each matrix, and all vectors together, get equally many coordinates; what has no more is kept as it is.

    Attributes:
        places: Name of a matrix -> where its coordinates stand in the result.
    """

    def __init__(self, dimension: int, shapes: Shapes, seed: int, device: torch.device) -> None:
        matrices = {
            name: (shape[0], math.prod(shape[1:]))
            for name, shape in shapes.items()
            if len(shape) > 1
        }
        vectors = {name: shape for name, shape in shapes.items() if len(shape) < 2}
        sizes = [out * inside for out, inside in matrices.values()]
        length = sum(math.prod(shape) for shape in vectors.values())
        *due, rest = shares([*sizes, length], dimension)
        if min(due, default=1) == 0 or (vectors and not rest):
            raise ConfigError(
                f"attribution.features.dimension = {dimension} is too small for kronecker: each of {len(matrices)} matrices "
                "needs a coordinate, and all vectors together one"
            )
        ranks = {
            name: _ranks(*matrices[name], most) for name, most in zip(matrices, due, strict=True)
        }
        self.places = _places(ranks)
        self.dimension = sum(left * right for left, right in ranks.values()) + rest
        self.vectors = (Identity if rest == length else CountSketch)(rest, vectors, seed, device)
        self.device = device

        def side(name: str, which: str, width: int, rank: int) -> torch.Tensor:
            if rank == width:
                return torch.eye(width, device=device)
            return torch.randn(width, rank, generator=self.vectors.stream(name, which)).to(
                device
            ) / math.sqrt(rank)

        self.sides = {
            name: (side(name, "out", out, ranks[name][0]), side(name, "in", inside, ranks[name][1]))
            for name, (out, inside) in matrices.items()
        }

    def __call__(
        self, gradients: Iterable[tuple[str, Gradient]], images: int, readouts: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        result = torch.zeros(images, readouts, self.dimension, device=self.device)
        vectors = torch.zeros(images, readouts, self.vectors.width, device=self.device)
        for name, gradient in gradients:
            if name not in self.sides:
                self.vectors.add(vectors, name, dense(gradient))
                continue
            left, right = self.sides[name]
            if isinstance(gradient, Factors):
                small = Factors(gradient.inputs @ right, gradient.outputs @ left).dense()
            else:
                small = (left.T @ gradient.unflatten(2, (len(left), len(right))) @ right).flatten(2)
            result[..., self.places[name]] = small
        result[..., self.dimension - self.vectors.dimension :] = self.vectors.result(vectors)
        return result, torch.linalg.vector_norm(result, dim=2)


def shares(sizes: Sequence[int], total: int) -> list[int]:
    """Deal out ``total`` so that all get equally many, but none more than its size; the rounding is lost."""
    given, left = [0] * len(sizes), total
    for position, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        given[i] = min(sizes[i], left // (len(sizes) - position))
        left -= given[i]
    return given


def _ranks(out: int, inside: int, most: int) -> tuple[int, int]:
    """Return how many coordinates each side of a matrix keeps: as near to equally many as the matrix allows."""
    left = min(out, math.isqrt(most))
    right = min(inside, most // left)
    return min(out, most // right), right


KINDS: dict[str, type[Identity | CountSketch | Gaussian | Srht | Kronecker]] = {
    "none": Identity,
    "countsketch": CountSketch,
    "gaussian": Gaussian,
    "srht": Srht,
    "kronecker": Kronecker,
}
"""Name of a kind -> its class, called with (k, shapes, seed, device)."""
