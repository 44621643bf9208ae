"""One network in training: AdamW, linear warm-up, gradient clipping and a moving average of the
weights.

With ``precision: fp16`` the loss is multiplied before the backward pass, so that small gradients do
not become 0, and the gradients are divided again (Micikevicius et al. 2018; torch's
``GradScaler``). An update whose gradients overflow changes nothing but the factor, which it halves.

On a GPU an update does not wait for the device: its numbers are tensors, which the loop reads when
it needs them (``training.loop``), and the optimiser itself leaves the weights alone where they are
not finite. On a CPU, where nothing is gained by that, they are read at once.

The average is a copy of the network in torch's ``AveragedModel``, with constant decay,
e <- mu e + (1 - mu) theta, started at the initial weights. (diffusers' ``EMAModel`` always ramps
its decay up. torch's own ``update_parameters`` comes to the same bits, but spends five times as
long on a CPU, on lists of the tensors.) The learning rate is a function of the update number, so
that it has no state to save.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from afterimage.config import Train
from afterimage.diffusion.cpu import keep_freed_memory, use_cheap_layers
from afterimage.diffusion.layout import lay_out
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


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""``train.precision`` -> the type that products are computed in."""


Number = float | torch.Tensor
"""A number of an update; on a GPU a tensor, (), that nobody has waited for."""


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
        accelerator: The device.
        updates: The budget; required if the learning rate follows it.
        shared: All processes of the run train this one network: each processes its slice of every
            batch, and the gradients are summed. All processes keep the same state, equal to that
            of a single process up to the order of summation.

    Attributes:
        waits: Whether the numbers of an update are read at once.
        numbers_on: The device that they are summed on.
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
        lay_out(self.net, settings)
        self.average = AveragedModel(self.net)
        # The first call copies: the average starts at the initial weights.
        self.average.update_parameters(self.net)
        # Weights that are not trained stay equal to their average.
        self._weights, self._averages = _trained(self.net), _trained(self.average.module)
        self.optimizer = _optimizer(self._weights, settings)
        self.scaler = torch.GradScaler(
            accelerator.device.type, enabled=settings.precision == "fp16"
        )
        self.waits = waits(accelerator.device, settings)
        self.numbers_on = torch.device("cpu") if self.waits else accelerator.device
        self._finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
        # Not in the average: nothing is computed with it.
        if settings.gradient_checkpointing:
            cast(ModelMixin, self.net).enable_gradient_checkpointing()

    def update(self, s: int, batch: Batch, objective: Objective) -> dict[str, Number]:
        """Perform update ``s`` on ``batch``; return its loss, gradient norm (before clipping) and
        learning rate.

        Raises:
            NonFiniteError: before the weights are changed.
        """
        numbers: dict[str, Number] = {"loss": self.gradient(batch, objective)}
        return numbers | self.step(s)

    def gradient(self, batch: Batch, objective: Objective) -> Number:
        """Set the weights' gradients to those of ``objective`` on ``batch``; return the loss.

        With ``accumulation`` the batch is processed in micro-batches. Their gradients are summed,
        each with its own weights, which is the gradient of the whole batch up to the order of
        summation (and up to the network's own dropout, if any). The same holds where processes
        share the network.

        Raises:
            NonFiniteError: if the loss is NaN or infinite.
        """
        self.optimizer.zero_grad()
        sums = torch.zeros(2, dtype=torch.float64, device=self.numbers_on)
        batch_slice = (
            batch.split(distributed.count())[distributed.index()] if self.shared else batch
        )
        for micro_batch in batch_slice.to(self.accelerator.device).split(
            self.settings.accumulation
        ):
            with self._autocast():
                losses, weights = objective(self.net, micro_batch)
            total = (losses * weights).sum()
            self.scaler.scale(total / len(batch)).backward()
            sums += torch.stack([total.detach(), weights.sum()]).to(self.numbers_on)
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        if self.shared:
            sums = distributed.total(sums)
            distributed.add(gradients)
        loss, weight = sums
        if not self.waits or weight.item() not in (0, len(batch)):
            whole = torch.where(weight == 0, 1.0, len(batch) / weight)
            torch._foreach_mul_(gradients, whole.float().to(self.accelerator.device))
        return self.told("loss", torch.where(weight == 0, 0.0, loss / weight))

    def told(self, name: str, value: torch.Tensor) -> Number:
        """Return a number of this update, (), which must be finite for the weights to change.

        Raises:
            NonFiniteError: if it is not, where the learner waits for it.
        """
        if not self.waits:
            self._finite &= value.isfinite()
            return value
        number = value.item()
        if not math.isfinite(number):
            raise NonFiniteError(f"the {name} is {number}")
        return number

    def step(self, s: int, unless: torch.Tensor | None = None) -> dict[str, Number]:
        """Take the optimiser step of update ``s``; return gradient norm (before clipping) and
        learning rate; in fp16 whether the gradients overflowed, too, and 0 as their norm then.

        Args:
            unless: bool, (): the update changes nothing if it is true.

        Raises:
            NonFiniteError: before the weights are changed.
        """
        rate = learning_rate(self.settings, s, self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        numbers = self._step(unless) if self.waits else self._step_unseen(unless)
        return {"learning_rate": rate, **numbers}

    def _step(self, unless: torch.Tensor | None) -> dict[str, Number]:
        if unless is not None and unless.item():
            return self._without_overflow(0.0)
        self.scaler.unscale_(self.optimizer)
        total = self._norm()
        norm = total.item()
        if not math.isfinite(norm):
            if self.scaler.get_scale() <= 1:  # also without a scaler
                raise NonFiniteError(f"the gradient norm is {norm}")
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return {"grad_norm": 0.0, "overflow": 1.0}
        if self.settings.clip and norm + 1e-6 > self.settings.clip:  # torch would multiply by 1 too
            clip_grads_with_norm_(self.net.parameters(), self.settings.clip, total)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._follow(None)
        return self._without_overflow(norm)

    def _without_overflow(self, norm: float) -> dict[str, Number]:
        return {"grad_norm": norm, **({"overflow": 0.0} if self.scaler.is_enabled() else {})}

    def _step_unseen(self, unless: torch.Tensor | None) -> dict[str, Number]:
        """Do what ``_step`` does, without waiting for the device: fused AdamW leaves its weights
        alone where ``found_inf`` is not 0."""
        factor = self.scaler.scale(torch.ones_like(self._finite, dtype=torch.float32))
        self.scaler.unscale_(self.optimizer)
        norm = self._norm()
        infinite = ~norm.isfinite()
        stay = infinite | ~self._finite if unless is None else infinite | ~self._finite | unless
        if self.settings.clip:
            clip_grads_with_norm_(self.net.parameters(), self.settings.clip, norm)
        optimizer: Any = self.optimizer
        optimizer.found_inf, optimizer.grad_scale = stay.float(), None
        optimizer.step()
        self.scaler.update()
        self._follow(None if unless is None and not self.scaler.is_enabled() else stay)
        self._finite = torch.ones_like(self._finite)
        if unless is not None:
            norm = torch.where(unless, 0.0, norm)
        if not self.scaler.is_enabled():
            return {"grad_norm": norm}
        # An overflow at any factor is told by a number that is not finite, which ends the run.
        overflow = torch.where(factor > 1, infinite.float(), torch.where(infinite, math.nan, 0.0))
        return {"grad_norm": torch.where(infinite, 0.0, norm), "overflow": overflow}

    @torch.no_grad()
    def _follow(self, stay: torch.Tensor | None) -> None:
        """Move the average towards the weights, unless ``stay``, bool (), is true."""
        share = 1 - self.settings.ema
        if stay is None:
            torch._foreach_lerp_(self._averages, self._weights, share)
            return
        # With tensors for weights the same function starts a kernel for every tensor.
        way = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(way, torch.where(stay, 0.0, share))
        torch._foreach_add_(self._averages, way)

    def _norm(self) -> torch.Tensor:
        return get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.settings.precision]
        return torch.autocast(
            self.accelerator.device.type, dtype, enabled=dtype is not torch.float32
        )

    def networks(self) -> Networks:
        """Return the network and the average of its weights, not copied."""
        return Networks(self.net, self.average.module)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state of a resumable run: weights, average, the optimiser's moments, and the
        factor of the loss with the number of updates since it changed."""
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, weight in enumerate(self._weights):
            for name, value in self.optimizer.state.get(weight, {}).items():
                value = torch.as_tensor(value)  # bitsandbytes counts steps in an int,
                own = value.clone() if name.startswith("qmap") else value  # and shares its maps
                tensors[f"optimizer.{index}.{name}"] = own
        if self.scaler.is_enabled():
            scale = self.scaler.state_dict()
            numbers = [scale["scale"], float(scale["_growth_tracker"])]
            tensors["scaler"] = torch.tensor(numbers, dtype=torch.float64)
        return tensors

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the state that ``tensors`` returned."""
        states: dict[str, dict[str, torch.Tensor]] = {"net": {}, "average": {}, "optimizer": {}}
        if self.scaler.is_enabled():
            scale, unchanged = tensors.pop("scaler").tolist()
            kept = {"scale": scale, "_growth_tracker": int(unchanged)}
            self.scaler.load_state_dict(self.scaler.state_dict() | kept)
        for name, value in tensors.items():
            owner, key = name.split(".", 1)
            states[owner][key] = value
        self.net.load_state_dict(states["net"])
        self.average.load_state_dict(states["average"])
        moments: dict[int, dict[str, torch.Tensor | int]] = {}
        for name, value in states["optimizer"].items():
            index, key = name.split(".", 1)
            weight = self._weights[int(index)]
            if value.shape == weight.shape:  # fused AdamW takes moments to lie as their weight does
                value = torch.empty_like(weight, dtype=value.dtype).copy_(value)
            counted = key == "step" and self.settings.optimizer == "adamw_8bit"
            moments.setdefault(int(index), {})[key] = int(value) if counted else value
        self.optimizer.load_state_dict(
            {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )


def waits(device: torch.device, settings: Train) -> bool:
    """Return whether the numbers of an update are read at once: everywhere but on CUDA devices,
    and where the optimiser cannot leave weights alone by itself."""
    return device.type != "cuda" or settings.optimizer != "adamw"


def _optimizer(weights: list[torch.Tensor], settings: Train) -> torch.optim.Optimizer:
    """Return the optimiser of some weights."""
    rate, decay = settings.learning_rate, settings.weight_decay
    betas = settings.betas[0], settings.betas[1]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=rate, betas=betas, weight_decay=decay, fused=True)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(weights, lr=rate, betas=betas, weight_decay=decay)


def _trained(net: torch.nn.Module) -> list[torch.Tensor]:
    """Return the weights of a network that are trained."""
    return [weight for weight in net.parameters() if weight.requires_grad]
