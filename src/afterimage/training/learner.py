"""One network in training: AdamW, linear warm-up, gradient clipping and a moving average of the
weights.

The average is a copy of the network in torch's ``AveragedModel``, with constant decay,
e <- mu e + (1 - mu) theta, started at the initial weights. (diffusers' ``EMAModel`` always ramps
its decay up. torch's own ``update_parameters`` comes to the same bits, but spends five times as
long on a CPU, on lists of the tensors.) The learning rate is a function of the update number, so
that it has no state to save.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from afterimage.config import Train
from afterimage.diffusion.cpu import keep_freed_memory, use_cheap_layers
from afterimage.diffusion.noising import Batch
from afterimage.training import distributed
from afterimage.training.task import Task

Objective = Callable[[torch.nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]
"""(network, micro-batch) -> (losses, weights), both (n,); the update's loss is sum(weights x
losses) / sum(weights)."""


def plain(task: Task) -> Objective:
    """Return the objective that weights every sample equally."""

    def objective(net: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        losses = task.losses(net, batch)
        return losses, torch.ones_like(losses)

    return objective


class Networks(NamedTuple):
    """The network that a run results in, with its last weights and with their moving average."""

    raw: torch.nn.Module
    average: torch.nn.Module


class NonFiniteError(ArithmeticError):
    """A loss or gradient norm that is NaN or infinite."""


def learning_rate(settings: Train, s: int, updates: int | None = None) -> float:
    """Return the learning rate of update ``s`` (from 0).

    Linear from 0 over ``warmup`` updates, then constant, or with ``decay: cosine`` half a cosine
    that ends at 0.

    Args:
        updates: The budget; required if ``settings.follows_budget``.
    """
    warmup: float = settings.warmup
    if settings.follows_budget:
        assert updates is not None
        warmup = settings.warmup * updates if settings.warmup < 1 else settings.warmup
        if settings.decay == "cosine" and s >= warmup:
            return (
                settings.learning_rate
                * (1 + math.cos(math.pi * (s - warmup) / (updates - warmup)))
                / 2
            )
    return settings.learning_rate * (min(1.0, s / warmup) if warmup else 1.0)


class Learner:
    """A network with its optimiser and the average of its weights.

    Args:
        net: The network, initialised; moved to the accelerator's device.
        settings: The arm's ``train`` block.
        accelerator: Device and precision.
        updates: The budget; required if the learning rate follows it.
        shared: All processes of the run train this one network: each processes its slice of every
            batch, and the gradients are summed. All processes keep the same state, equal to that
            of a single process up to the order of summation.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        settings: Train,
        accelerator: Accelerator,
        updates: int | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self.settings, self.accelerator = settings, accelerator
        self.updates, self.shared = updates, shared
        self.net = net.to(accelerator.device).train()
        if accelerator.device.type == "cpu":
            keep_freed_memory()
            use_cheap_layers(self.net)
        self.average = AveragedModel(self.net)
        # The first call copies: the average starts at the initial weights.
        self.average.update_parameters(self.net)
        # Weights that are not trained stay equal to their average.
        self._weights, self._averages = _trained(self.net), _trained(self.average.module)
        self.optimizer = torch.optim.AdamW(
            self._weights,
            lr=settings.learning_rate,
            betas=(settings.betas[0], settings.betas[1]),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def update(self, s: int, batch: Batch, objective: Objective) -> dict[str, float]:
        """Perform update ``s`` on ``batch``; return its loss, gradient norm (before clipping) and
        learning rate.

        Raises:
            NonFiniteError: before the weights are changed.
        """
        loss = self.gradient(batch, objective)
        return {"loss": loss} | self.step(s)

    def gradient(self, batch: Batch, objective: Objective) -> float:
        """Set the weights' gradients to those of ``objective`` on ``batch``; return the loss.

        With ``accumulation`` the batch is processed in micro-batches. Their gradients are summed,
        each with its own weights, which is the gradient of the whole batch up to the order of
        summation (and up to the network's own dropout, if any). The same holds where processes
        share the network.

        Raises:
            NonFiniteError: if the loss is NaN or infinite.
        """
        self.optimizer.zero_grad()
        loss = weight = 0.0
        batch_slice = (
            batch.split(distributed.count())[distributed.index()] if self.shared else batch
        )
        for micro_batch in batch_slice.to(self.accelerator.device).split(
            self.settings.accumulation
        ):
            with self.accelerator.autocast():
                losses, weights = objective(self.net, micro_batch)
            total = (losses * weights).sum()
            self.accelerator.backward(total / len(batch))
            loss += total.item()
            weight += weights.sum().item()
        if self.shared:
            loss, weight = distributed.total(
                torch.tensor([loss, weight], dtype=torch.float64)
            ).tolist()
            distributed.add([p.grad for p in self.net.parameters() if p.grad is not None])
        if weight not in (0, len(batch)):
            torch._foreach_mul_(
                [p.grad for p in self.net.parameters() if p.grad is not None], len(batch) / weight
            )
        loss = loss / weight if weight else 0.0
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss}")
        return loss

    def step(self, s: int) -> dict[str, float]:
        """Take the optimiser step of update ``s``; return gradient norm (before clipping) and
        learning rate.

        Raises:
            NonFiniteError: before the weights are changed.
        """
        rate = learning_rate(self.settings, s, self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        norm = total.item()
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient norm is {norm}")
        if self.settings.clip and norm + 1e-6 > self.settings.clip:  # torch would multiply by 1 too
            clip_grads_with_norm_(self.net.parameters(), self.settings.clip, total)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._weights, 1 - self.settings.ema)
        return {"grad_norm": norm, "learning_rate": rate}

    def networks(self) -> Networks:
        """Return the network and the average of its weights, not copied."""
        return Networks(self.net, self.average.module)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state of a resumable run: weights, average and the optimiser's moments."""
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        return tensors

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the state that ``tensors`` returned."""
        states: dict[str, dict[str, torch.Tensor]] = {"net": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            owner, key = name.split(".", 1)
            states[owner][key] = value
        self.net.load_state_dict(states["net"])
        self.average.load_state_dict(states["average"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in states["optimizer"].items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(
            {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )


def _trained(net: torch.nn.Module) -> list[torch.Tensor]:
    """Return the weights of a network that are trained."""
    return [weight for weight in net.parameters() if weight.requires_grad]
