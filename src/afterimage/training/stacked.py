"""Plain training of several networks of one architecture at once: stacked parameters, one pass.

Every network has its own images, order, noise and initial weights, and gets the updates that
``methods.baseline`` would give it alone, up to rounding. Gradient norms are clipped per network;
AdamW and the moving average are elementwise, so nothing else distinguishes a stack from a single
network. It is meant for a GPU that one small network leaves idle; on one CPU core it takes about
as long as training the networks one after the other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterimage.config import ConfigError, Train
from afterimage.diffusion.noising import Batch
from afterimage.training.ahead import Ahead
from afterimage.training.job import Spent, Trained, TrainingRun
from afterimage.training.learner import Learner, Networks, Number, Objective, plain
from afterimage.training.order import Order


class Stack(torch.nn.Module):
    """J networks of one architecture as one module with interleaved items: item b of network j is
    row b J + j.

    Args:
        nets: The networks, without buffers; their weights are copied.

    Raises:
        ConfigError: if they have dropout, whose draws would differ from those of separate networks.
    """

    def __init__(self, nets: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        if any(isinstance(layer, torch.nn.Dropout) and layer.p > 0 for layer in nets[0].modules()):
            raise ConfigError("attribution.stacked = true needs model.dropout = 0")
        weights, _ = stack_module_state(list(nets))
        self.count, self.names = len(nets), list(weights)
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
            for weight in weights.values()
        )
        architecture = copy.deepcopy(nets[0]).to("meta").eval()
        for layer in architecture.modules():
            if isinstance(layer, torch.nn.GroupNorm):  # on a CPU vmap takes no other layout
                layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        # A tuple hides it from torch: it has no weights of its own.
        self.architecture = (architecture,)

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        return_dict: bool = False,
        **condition: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        """Return the prediction for every row, as a ``UNet2DModel`` does."""

        def predict(
            weights: dict[str, torch.Tensor],
            noisy: torch.Tensor,
            timesteps: torch.Tensor,
            condition: dict[str, torch.Tensor],
        ) -> torch.Tensor:
            arguments = condition | {"return_dict": False}
            return functional_call(self.architecture[0], weights, (noisy, timesteps), arguments)[0]

        def split(rows: torch.Tensor) -> torch.Tensor:
            return rows.unflatten(0, (-1, self.count))

        weights = dict(zip(self.names, self.weights, strict=True))
        conditions = {name: split(value) for name, value in condition.items()}
        # vmap would run the CPU's flash attention network by network.
        with sdpa_kernel(SDPBackend.MATH):
            predicted = vmap(predict, in_dims=(0, 1, 1, 1), out_dims=1)(
                weights, split(noisy), split(timesteps), conditions
            )
        return (predicted.flatten(0, 1),)

    @torch.no_grad()
    def fill(self, j: int, net: torch.nn.Module) -> torch.nn.Module:
        """Copy the weights of network ``j`` into ``net``; return it."""
        parameters = dict(net.named_parameters())
        for name, weights in zip(self.names, self.weights, strict=True):
            parameters[name].copy_(weights[j])
        return net


class StackLearner(Learner):
    """A stack with its optimiser and the average of its weights.

    Args:
        nets: The networks, initialised.
        settings: The arm's ``train`` block.
        accelerator: Device and precision.
        updates: As in ``Learner``.
    """

    def __init__(
        self,
        nets: Sequence[torch.nn.Module],
        settings: Train,
        accelerator: Accelerator,
        updates: int | None = None,
    ) -> None:
        super().__init__(
            Stack(nets), settings.model_copy(update={"clip": None}), accelerator, updates
        )
        self.count, self.clip = len(nets), settings.clip or math.inf

    def gradient(self, batch: Batch, objective: Objective) -> Number:
        """Set every network's gradient to that of its own items in ``batch``, clipped; return the
        mean loss.

        Raises:
            NonFiniteError: if the loss of a network is NaN or infinite.
        """
        loss = super().gradient(batch, objective)
        gradients = [weight.grad for weight in self.net.parameters() if weight.grad is not None]
        # So far it is the gradient of the mean over networks.
        torch._foreach_mul_(gradients, self.count)
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        shrink = (self.clip / (norms + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(shrink.view(-1, *[1] * (gradient.dim() - 1)))
        self._mean_norm = self.told("gradient norm", norms.mean())
        return loss

    def step(self, s: int, unless: torch.Tensor | None = None) -> dict[str, Number]:
        """Take the optimiser step of update ``s``; return mean gradient norm (before clipping) and
        learning rate.

        Raises:
            NonFiniteError: before the weights are changed.
        """
        return super().step(s, unless) | {"grad_norm": self._mean_norm}

    def networks_of(self, j: int, net: torch.nn.Module) -> Networks:
        """Return network ``j`` with its last weights (``net`` itself) and with their moving
        average (a copy)."""
        raw = net.to(self.accelerator.device)
        last, average = cast(Stack, self.net), cast(Stack, self.average.module)
        return Networks(last.fill(j, raw), average.fill(j, copy.deepcopy(raw)))


def train(jobs: Sequence[TrainingRun]) -> list[Trained]:
    """Train the networks of all runs at once, each as ``methods.baseline`` does without a base.

    Args:
        jobs: Runs of one architecture, without states to keep, with one budget and one set of
            optimisation settings, those of the first run. The store of the first keeps the state
            and the curves (means over the networks) of all.

    Raises:
        ConfigError: if the networks have dropout.
    """
    first = jobs[0]
    settings = first.train
    learner = StackLearner([job.net for job in jobs], settings, first.accelerator, first.updates)
    orders = [Order(job.seed, job.path, len(job.task), settings.batch_size) for job in jobs]

    def batch(s: int) -> Batch:
        return in_turn(
            [
                job.task.batch(order.rows(s), order.generator(s))
                for job, order in zip(jobs, orders, strict=True)
            ]
        )

    batches = Ahead(batch, first.accelerator.device)

    def update(s: int) -> dict[str, Number]:
        return learner.update(s, batches(s), plain(first.task))

    progress = first.run(
        update,
        {"learner": learner},
        learner.networks,
        batch_size=settings.batch_size * len(jobs),
    )
    images = progress.update * settings.batch_size
    spent = Spent(
        updates=progress.update,
        updates_per_model=progress.update,
        images_seen=images,
        kept_samples=images,
        backward_passes=progress.update,
    )
    return [
        Trained(*learner.networks_of(j, job.net), progress, spent) for j, job in enumerate(jobs)
    ]


def in_turn(batches: Sequence[Batch]) -> Batch:
    """Return J batches of one size interleaved into one: item b of batch j is row b J + j."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], Mapping):
            return {name: joined([value[name] for value in values]) for name in values[0]}
        return torch.stack(values, dim=1).flatten(0, 1)

    return Batch(
        **{
            field.name: joined([getattr(batch, field.name) for batch in batches])
            for field in fields(Batch)
        }
    )
