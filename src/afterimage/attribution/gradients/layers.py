"""The gradient of every single image, from one forward pass of a whole batch and one backward pass per readout.

A layer's gradient for one image follows from what went into the layer and from the gradient of what came out of it (Goodfellow
2015 for linear layers, Rochette et al. 2019 for convolutions). Forward hooks keep the one; ``torch.autograd.grad`` with respect
to the layers' outputs gives the other, and spends nothing on the weights' own, summed gradients. The known alternative,
``vmap(grad)``, turns every convolution into a grouped one and holds all gradients of a batch at once.

The weight gradient of a linear layer or convolution is handed on as its two factors, so that a projection may work on these and
never form the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from afterimage.config import ConfigError


@dataclass(frozen=True)
class Factors:
    """Gradients of a matrix of weights, each a sum of outer products over the L places at which the layer was applied.

    Attributes:
        inputs: (B, L, in), of B images.
        outputs: (B, R, L, out), gradients of the layer's output, for R readouts.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor

    def dense(self) -> torch.Tensor:
        """Return the gradients themselves, (B, R, out * in), in the order of the weights."""
        images, readouts, _, out = self.outputs.shape
        product = self.outputs.mT.flatten(1, 2) @ self.inputs
        return product.view(images, readouts, out * self.inputs.shape[-1])


Gradient = Factors | torch.Tensor
"""Gradients of one parameter: factors, or (B, R, numel)."""


def dense(gradient: Gradient) -> torch.Tensor:
    """Return (B, R, numel)."""
    return gradient.dense() if isinstance(gradient, Factors) else gradient


def _linear(layer: nn.Module, x: torch.Tensor, outputs: torch.Tensor) -> dict[str, Gradient]:
    outputs = outputs.reshape(*outputs.shape[:2], -1, outputs.shape[-1])
    inputs = x.to(outputs.dtype).reshape(len(x), -1, x.shape[-1])
    return {"weight": Factors(inputs, outputs), "bias": outputs.sum(2)}


def _conv2d(layer: nn.Module, x: torch.Tensor, outputs: torch.Tensor) -> dict[str, Gradient]:
    assert isinstance(layer, nn.Conv2d)
    assert not isinstance(layer.padding, str)
    outputs = outputs.flatten(3)
    patches = functional.unfold(
        x.to(outputs.dtype), layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )
    return {"weight": Factors(patches.mT, outputs.mT), "bias": outputs.sum(3)}


def _group_norm(layer: nn.Module, x: torch.Tensor, outputs: torch.Tensor) -> dict[str, Gradient]:
    assert isinstance(layer, nn.GroupNorm)
    outputs = outputs.flatten(3)
    normal = functional.group_norm(x.to(outputs.dtype), layer.num_groups, eps=layer.eps).flatten(2)
    return {"weight": torch.einsum("brcl,bcl->brc", outputs, normal), "bias": outputs.sum(3)}


def _embedding(layer: nn.Module, x: torch.Tensor, outputs: torch.Tensor) -> dict[str, Gradient]:
    assert isinstance(layer, nn.Embedding)
    outputs = outputs.reshape(*outputs.shape[:2], -1, layer.embedding_dim)
    taken = functional.one_hot(x.reshape(len(x), -1), layer.num_embeddings).to(outputs.dtype)
    return {"weight": torch.einsum("bln,brld->brnd", taken, outputs).flatten(2)}


Form = Callable[[nn.Module, torch.Tensor, torch.Tensor], dict[str, Gradient]]
"""(layer, its input (B, ...), gradients of its output (B, R, ...)) -> its own names of its parameters -> their gradients."""

FORMS: dict[type[nn.Module], Form] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
}


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        plain = (
            layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
        return type(layer) is nn.Conv2d and plain
    return type(layer) in FORMS


@dataclass(frozen=True)
class _Call:
    """What a layer did in a forward pass: its input, and where its output stands in the graph, whatever is done to it later."""

    x: torch.Tensor
    output: GradientEdge
    rows: int


class Layers:
    """The layers of a network whose parameters' gradients count.

    Args:
        net: The network; nothing of it is changed.
        patterns: Shell patterns of names of parameters. Those that training leaves alone (``requires_grad`` off) do not count.

    Attributes:
        shapes: Name of a parameter -> its shape, in the network's order.

    Raises:
        ConfigError: if a pattern matches nothing, or a parameter's gradient cannot be had image by image.
    """

    def __init__(self, net: nn.Module, patterns: Sequence[str] = ("*",)) -> None:
        trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in trained):
                raise ConfigError(
                    f"attribution.features.parameters: {pattern!r} matches no trained parameter of the network; "
                    f"they go from {next(iter(trained), 'none')} to {next(reversed(trained), 'none')}"
                )
        chosen = {
            name: weight
            for name, weight in trained.items()
            if any(fnmatchcase(name, each) for each in patterns)
        }
        self.shapes = {name: weight.shape for name, weight in chosen.items()}
        names = {weight: name for name, weight in chosen.items()}
        owners: set[nn.Parameter] = set()
        self._layers: dict[str, tuple[nn.Module, dict[str, str]]] = {}
        for place, layer in net.named_modules():
            own = {
                own: weight
                for own, weight in layer.named_parameters(recurse=False)
                if weight in names
            }
            for weight in own.values():
                if weight in owners:
                    raise _impossible(names[weight], f"it also belongs to {place}")
                if not _is_known(layer):
                    kinds = ", ".join(kind.__name__ for kind in FORMS)
                    raise _impossible(
                        names[weight],
                        f"it belongs to {layer}; known are {kinds} (Conv2d: one group, zero padding)",
                    )
                owners.add(weight)
            if own:
                self._layers[place] = (layer, {name: names[weight] for name, weight in own.items()})

    @contextmanager
    def recorded(self) -> Iterator[Tape]:
        """Record the forward pass, at most one, that is made inside."""
        tape = Tape(self._layers)
        handles = [
            layer.register_forward_hook(partial(tape.note, place))
            for place, (layer, _) in self._layers.items()
        ]
        try:
            yield tape
        finally:
            for handle in handles:
                handle.remove()


def _impossible(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"attribution.features.parameters: the gradient of {name} cannot be had image by image: {why}"
    )


class Tape:
    """One recorded forward pass."""

    def __init__(self, layers: dict[str, tuple[nn.Module, dict[str, str]]]) -> None:
        self._layers = layers
        self._calls: dict[str, _Call] = {}

    def note(
        self, place: str, layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        """Take down a call of a layer; a forward hook."""
        if place in self._calls:
            first = next(iter(self._layers[place][1].values()))
            raise _impossible(first, f"{place} is called more than once in a forward pass")
        self._calls[place] = _Call(args[0].detach(), get_gradient_edge(output), len(output))

    def gradients(
        self, prediction: torch.Tensor, cotangents: Sequence[torch.Tensor]
    ) -> Iterator[tuple[str, Gradient]]:
        """Go backward once per cotangent; yield the gradients of each parameter that had a part in the prediction.

        Args:
            prediction: (B, ...), what the recorded forward pass gave, or anything made of it image by image.
            cotangents: R tensors of its shape, one per readout: the gradient of the readout with respect to the prediction.

        Yields:
            Name of a parameter and J^T c of each image and readout, in float32 or the network's own precision if higher.

        Raises:
            ConfigError: if a layer was applied to other rows than one per image.
        """
        edges = []
        for place, call in self._calls.items():
            if call.rows != len(prediction):
                first = next(iter(self._layers[place][1].values()))
                raise _impossible(
                    first, f"{place} was given {call.rows} rows for {len(prediction)} images"
                )
            edges.append(call.output)
        last = len(cotangents) - 1
        passes = [
            torch.autograd.grad(
                prediction, edges, cotangent, retain_graph=r < last, allow_unused=True
            )
            for r, cotangent in enumerate(cotangents)
        ]
        for (place, call), found in zip(
            self._calls.items(), zip(*passes, strict=True), strict=True
        ):
            if found[0] is None:
                continue
            layer, names = self._layers[place]
            outputs = torch.stack(found, 1)
            outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
            gradients = FORMS[type(layer)](layer, call.x, outputs)
            yield from (
                (names[own], gradient) for own, gradient in gradients.items() if own in names
            )
