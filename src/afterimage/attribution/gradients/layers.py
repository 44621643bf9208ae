"""Per-image gradients, from one forward pass of a batch and one backward pass per readout.

A layer's gradient for one image follows from the layer's input and the gradient of its output
(Goodfellow 2015 for linear layers, Rochette et al. 2019 for convolutions). Forward hooks store the
input; ``torch.autograd.grad`` with respect to the layers' outputs computes the gradient, without
computing the summed gradients of the weights. The common alternative, ``vmap(grad)``, turns every
convolution into a grouped one and holds all gradients of a batch in memory at once.

The weight gradient of a linear layer or convolution is returned as its two factors, so that a
projection can be applied to these without forming their product.
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
    """Gradients of a weight matrix: sums of outer products over L positions of the layer's input.

    Attributes:
        inputs: (B, L, in), of B images.
        outputs: (B, R, L, out), gradients of the layer's output, for R readouts.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor

    def dense(self) -> torch.Tensor:
        """Return the gradients, (B, R, out * in), flattened like the weights."""
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


def _layer_norm(layer: nn.Module, x: torch.Tensor, outputs: torch.Tensor) -> dict[str, Gradient]:
    assert isinstance(layer, nn.LayerNorm)
    size = len(layer.normalized_shape)
    normal = functional.layer_norm(x.to(outputs.dtype), layer.normalized_shape, eps=layer.eps)
    normal = normal.reshape(len(x), 1, -1, normal[0].shape[-size:].numel())
    outputs = outputs.reshape(*outputs.shape[:2], -1, normal.shape[-1])
    return {"weight": (outputs * normal).sum(2), "bias": outputs.sum(2)}


def _embedding(layer: nn.Module, x: torch.Tensor, outputs: torch.Tensor) -> dict[str, Gradient]:
    assert isinstance(layer, nn.Embedding)
    outputs = outputs.reshape(*outputs.shape[:2], -1, layer.embedding_dim)
    indicators = functional.one_hot(x.reshape(len(x), -1), layer.num_embeddings).to(outputs.dtype)
    return {"weight": torch.einsum("bln,brld->brnd", indicators, outputs).flatten(2)}


GradientRule = Callable[[nn.Module, torch.Tensor, torch.Tensor], dict[str, Gradient]]
"""(layer, its input (B, ...), gradients of its output (B, R, ...)) -> local name -> gradients."""

GRADIENT_RULES: dict[type[nn.Module], GradientRule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}


def _is_supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        dense_zero_padded = (
            layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
        return type(layer) is nn.Conv2d and dense_zero_padded
    return type(layer) in GRADIENT_RULES


@dataclass(frozen=True)
class _Call:
    """A layer's call in a forward pass: its input, and its output's edge in the autograd graph.

    The edge stays valid if the output is modified in place later.
    """

    x: torch.Tensor
    output: GradientEdge
    rows: int


class Layers:
    """The layers of a network whose parameters' gradients are computed.

    Args:
        net: The network; it is not changed.
        patterns: Shell patterns of names of parameters; those that are frozen (``requires_grad``
            off) are left out.

    Attributes:
        shapes: Name of a parameter -> its shape, in the network's order.

    Raises:
        ConfigError: if a pattern matches nothing, or a parameter has no per-image gradient.
    """

    def __init__(self, net: nn.Module, patterns: Sequence[str] = ("*",)) -> None:
        trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in trained):
                raise ConfigError(
                    f"attribution.features.parameters: {pattern!r} matches no trained parameter "
                    f"of the network; they go from {next(iter(trained), 'none')} to "
                    f"{next(reversed(trained), 'none')}"
                )
        selected = {
            name: weight
            for name, weight in trained.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        self.shapes = {name: weight.shape for name, weight in selected.items()}
        names = {weight: name for name, weight in selected.items()}
        assigned: set[nn.Parameter] = set()
        self._layers: dict[str, tuple[nn.Module, dict[str, str]]] = {}
        for path, layer in net.named_modules():
            weights = {
                local_name: weight
                for local_name, weight in layer.named_parameters(recurse=False)
                if weight in names
            }
            for weight in weights.values():
                if weight in assigned:
                    raise _unsupported(names[weight], f"it also belongs to {path}")
                if not _is_supported(layer):
                    kinds = ", ".join(kind.__name__ for kind in GRADIENT_RULES)
                    raise _unsupported(
                        names[weight],
                        f"it belongs to {layer}; supported are {kinds} (Conv2d: one group, "
                        "zero padding)",
                    )
                assigned.add(weight)
            if weights:
                self._layers[path] = (
                    layer,
                    {local_name: names[weight] for local_name, weight in weights.items()},
                )

    @contextmanager
    def recorded(self) -> Iterator[Tape]:
        """Record the forward pass, at most one, inside the context."""
        tape = Tape(self._layers)
        handles = [
            layer.register_forward_hook(partial(tape.record, path))
            for path, (layer, _) in self._layers.items()
        ]
        try:
            yield tape
        finally:
            for handle in handles:
                handle.remove()


def _unsupported(name: str, why: str) -> ConfigError:
    return ConfigError(f"attribution.features.parameters: {name} has no per-image gradient: {why}")


class Tape:
    """One recorded forward pass."""

    def __init__(self, layers: dict[str, tuple[nn.Module, dict[str, str]]]) -> None:
        self._layers = layers
        self._calls: dict[str, list[_Call]] = {}

    def record(
        self, path: str, layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        """Record a call of a layer; a forward hook."""
        call = _Call(args[0].detach(), get_gradient_edge(output), len(output))
        self._calls.setdefault(path, []).append(call)

    def gradients(
        self, prediction: torch.Tensor, cotangents: Sequence[torch.Tensor]
    ) -> Iterator[tuple[str, Gradient]]:
        """Run one backward pass per cotangent and yield the per-image gradients of each parameter.

        Parameters that the prediction does not depend on are left out.

        Args:
            prediction: (B, ...), the result of the recorded forward pass, or a function of it that
                treats images separately.
            cotangents: R tensors of its shape, one per readout: the gradient of the readout with
                respect to the prediction.

        Yields:
            Name of a parameter, and J^T c of each image and readout, in float32 or the network's
            precision if that is higher.

        Raises:
            ConfigError: if a layer's input did not have one row per image.
        """
        calls = [(path, call) for path, calls in self._calls.items() for call in calls]
        for path, call in calls:
            if call.rows != len(prediction):
                first = next(iter(self._layers[path][1].values()))
                raise _unsupported(
                    first, f"{path} was given {call.rows} rows for {len(prediction)} images"
                )
        last = len(cotangents) - 1
        edges = [call.output for _, call in calls]
        passes = [
            torch.autograd.grad(
                prediction, edges, cotangent, retain_graph=r < last, allow_unused=True
            )
            for r, cotangent in enumerate(cotangents)
        ]
        by_call = zip(*passes, strict=True)
        for path, of_layer in self._calls.items():
            layer, names = self._layers[path]
            parts: dict[str, list[Gradient]] = {}
            for call in of_layer:
                output_gradients = next(by_call)
                if output_gradients[0] is None:
                    continue
                outputs = torch.stack(output_gradients, 1)
                outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
                for local_name, gradient in GRADIENT_RULES[type(layer)](
                    layer, call.x, outputs
                ).items():
                    parts.setdefault(local_name, []).append(gradient)
            yield from (
                (names[local_name], _total(gradients))
                for local_name, gradients in parts.items()
                if local_name in names
            )


def _total(gradients: list[Gradient]) -> Gradient:
    """Return the gradient of a parameter over all calls of its layer."""
    if len(gradients) == 1:
        return gradients[0]
    factors = [gradient for gradient in gradients if isinstance(gradient, Factors)]
    if factors:  # a sum of outer products over the positions of all calls
        return Factors(
            torch.cat([each.inputs for each in factors], 1),
            torch.cat([each.outputs for each in factors], 2),
        )
    return torch.stack([dense(gradient) for gradient in gradients]).sum(0)
