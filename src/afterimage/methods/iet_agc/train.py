"""Iterative ensemble training with anti-gradient control, IET-AGC (Liu et al., ECCV 2024), and its
two components alone.

IET (section 3.1): the training images are split into K shards. K models start from the same weights
and train on a shard each; R times their weights are averaged, weighted by the shards' sizes, and
every shard resumes from the average. AGC (section 3.2) excludes samples of abnormally low loss from
the batch (``methods.iet_agc.bank``). ``agc_threshold: 0`` is IET alone, ``shards: 1`` is AGC alone,
both together are the baseline to the last bit. As in the released code the models' own moving
averages are averaged too, and each shard keeps its optimiser's moments and its bank. With ``base``
all models and their averages start from the averaged weights of another arm (released: the models
from its last weights).

IET-AGC+ (Guan et al. 2025) adds that often-skipped images change shards and that samples just above
the skipping limit are augmented. Its constants are not published; both are off by default. A sample
is augmented within the same update: its loss is computed again on the augmented image, with the
same noise, and that loss is trained on. The bank uses the first.

An update of the curves and of ``checkpoint_every`` is one local step of *every* shard, and warm-up
counts local steps. So a state is the same whatever the number of processes: shard k trains in
process k mod W, and everything is exchanged bit for bit. The process of shard k holds its network,
average and moments: at most 4 (K / W + 1) copies of the weights.

Tables: ``skips_by_timestep`` (timestep, seen, skipped) and ``skips_by_image`` (row, seen, skipped,
shard), where row is the image's index among the arm's training images, i.e. among the rows of
``members.parquet`` with ``trained``; shard is the last it belonged to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np
import pyarrow as pa
import torch

from afterimage import seeds
from afterimage.config import ConfigError, IetAgc
from afterimage.diffusion.model import load_weights
from afterimage.diffusion.noising import Batch
from afterimage.methods.iet_agc.augment import vary
from afterimage.methods.iet_agc.bank import Bank
from afterimage.methods.iet_agc.shards import assign, redistribute
from afterimage.training import distributed
from afterimage.training.ahead import Ahead
from afterimage.training.job import Spent, Trained, TrainingRun
from afterimage.training.learner import Learner, Networks, NonFiniteError, Number
from afterimage.training.order import Order

"""Several processes can share one run."""


def train(job: TrainingRun) -> Trained:
    """Train all shards, or resume training.

    Raises:
        ConfigError: if there are more shards than images, or more processes than shards.
    """
    arm, settings = _arm(job), job.train
    if distributed.count() > arm.shards:
        raise ConfigError(
            f"started with {distributed.count()} processes, but there are only shards = "
            f"{arm.shards} to share"
        )
    if job.base is not None:
        load_weights(job.net, job.base)
    ensemble = Ensemble(job)
    steps = steps_per_round(job.updates, arm)

    def update(s: int) -> dict[str, Number]:
        values = ensemble.update(s)
        if (s + 1) % steps == 0:
            ensemble.average((s + 1) // steps)
        return values

    progress = job.run(
        update,
        {"ensemble": ensemble},
        ensemble.networks,
        updates=arm.rounds * steps,
        batch_size=arm.shards * settings.batch_size,
    )
    seen, skipped = (int(count) for count in ensemble.by_timestep.sum(1))
    learner = next(iter(ensemble.own.values())).learner
    return Trained(
        raw=learner.net,
        average=learner.average.module,
        progress=progress,
        spent=Spent(
            updates=arm.shards * progress.update,
            updates_per_model=progress.update,
            images_seen=seen,
            kept_samples=seen - skipped,
            backward_passes=arm.shards * progress.update,
        ),
        facts={
            "shard_sizes": ensemble.sizes,
            "steps_per_round": steps,
            "budget_updates": job.updates,
        },
        tables=ensemble.tables(),
    )


def _arm(job: TrainingRun) -> IetAgc:
    assert isinstance(job.arm, IetAgc)
    return job.arm


def steps_per_round(updates: int, arm: IetAgc) -> int:
    """Return the number of local steps of each shard in a round: an equal share of the budget,
    rounded down, but at least one."""
    return max(1, updates // (arm.rounds * (arm.shards if arm.budget == "total" else 1)))


def weighted_mean(
    states: Iterable[Mapping[str, torch.Tensor]], sizes: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Return the mean of states, weighted by ``sizes``, on the CPU; integers are copied from the
    first.

    Sums are float64 and in the order of the states, so that the mean of equal states has the same
    bits as each.
    """
    whole = sum(sizes)
    sums: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for state, size in zip(states, sizes, strict=True):
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                sums.setdefault(name, tensor.cpu().clone())
            elif name in sums:
                sums[name] += size * tensor.cpu().double()
            else:
                sums[name], dtypes[name] = size * tensor.cpu().double(), tensor.dtype
    return {
        name: (value / whole).to(dtypes[name]) if name in dtypes else value
        for name, value in sums.items()
    }


class Shard:
    """The model of one shard: its learner, its bank, and the samples seen and skipped since the
    last averaging.

    Args:
        job: The run.
        k: Index of the shard.
        rows: int64, (n,): the shard's images as positions in the task.
    """

    def __init__(self, job: TrainingRun, k: int, rows: np.ndarray) -> None:
        arm = _arm(job)
        self.job, self.arm = job, arm
        self.take(rows)
        self.learner = Learner(copy.deepcopy(job.net), job.train, job.accelerator)
        timesteps = job.scheduler.config["num_train_timesteps"]
        self.bank = Bank(
            timesteps, arm.bank_decay, arm.agc_threshold, arm.skip_t_max, job.accelerator.device
        )
        # A single shard draws as the baseline does; redistribution keeps the sizes, so the order
        # remains valid.
        path = job.path if arm.shards == 1 else (*job.path, "shard", k)
        self.order = Order(job.seed, path, len(rows), job.train.batch_size)
        counts_on = self.learner.numbers_on
        self.by_image = torch.zeros(2, len(job.task), dtype=torch.int64, device=counts_on)
        self.by_timestep = torch.zeros(2, timesteps, dtype=torch.int64, device=counts_on)

    def update(self, s: int) -> dict[str, Number]:
        """Perform local step ``s``; return its loss, gradient norm and learning rate, and the
        shares of samples skipped and augmented.

        Raises:
            NonFiniteError: before the weights are changed.
        """
        torch.manual_seed(self.order.dropout_seed(s))
        device = self.job.accelerator.device
        batch, augmented_batch, numbers = self._batches(s)
        varied = batch if augmented_batch is None else augmented_batch.to(device)
        drawn = None if numbers is None else numbers.to(device, non_blocking=True)
        losses: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []
        augmented = 0

        def objective(
            net: torch.nn.Module, micro_batch: Batch
        ) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal augmented
            loss = self.job.task.losses(net, micro_batch)
            original = loss.detach()
            timesteps = micro_batch.timesteps
            keep = self.bank.kept(timesteps, original)
            start = sum(len(previous) for previous in losses)
            if drawn is not None:
                places = drawn[start : start + len(micro_batch)].argsort()
                keep = torch.ones_like(keep).index_fill(0, places[: int((~keep).sum())], False)
            if self.arm.augment_below is not None:
                near = keep & (original < self.arm.augment_below * self.bank.limits(timesteps))
                if near.any():
                    again = varied[start : start + len(micro_batch)][near]
                    loss = loss.index_put((near,), self.job.task.losses(net, again))
                    augmented += int(near.sum())
            losses.append(original)
            kept.append(keep)
            return loss, keep.to(loss.dtype)

        loss = self.learner.gradient(batch, objective)
        self.bank.update(batch.timesteps, torch.cat(losses))
        skipped = ~torch.cat(kept).to(self.learner.numbers_on)
        for counts, index in ((self.by_image, batch.rows), (self.by_timestep, batch.timesteps)):
            places = index.to(skipped.device, non_blocking=True)
            counts[0].index_add_(0, places, torch.ones_like(places))
            counts[1].index_add_(0, places, skipped.long())
        unless = skipped.all() if self.arm.on_all_skipped == "skip" else None
        return (
            {"loss": loss}
            | self.learner.step(s, unless)
            | {
                "skipped": skipped.double().mean(),
                "augmented": augmented / len(batch),
            }
        )

    def _drawn(self, s: int, count: int) -> torch.Tensor:
        """Return a random number for each sample of local step ``s``; those with the least are
        skipped at random. float64, (B,)."""
        generator = seeds.torch_rng(self.job.seed, *self.order.path, "skipping", s)
        return torch.rand(count, generator=generator, dtype=torch.float64)

    def take(self, rows: np.ndarray) -> None:
        """Train on some images from now on, int64 (n,): as many as before."""
        self.rows = rows
        self._batches = Ahead(self._batch, self.job.accelerator.device)

    def _batch(self, s: int) -> tuple[Batch, Batch | None, torch.Tensor | None]:
        """Return the batch of local step ``s``, and where they are used the same augmented and the
        numbers by which samples are skipped at random."""
        batch = self.job.task.batch(self.rows[self.order.rows(s)], self.order.generator(s))
        varied = None if self.arm.augment_below is None else self._varied(s)
        drawn = self._drawn(s, len(batch)) if self.arm.skipping == "random" else None
        return batch, varied, drawn

    def _varied(self, s: int) -> Batch:
        """Return the batch of local step ``s`` with every image augmented, but the same timesteps,
        noise and labels."""
        generator = seeds.torch_rng(self.job.seed, *self.order.path, "augment", s)
        return self.job.task.batch(
            self.rows[self.order.rows(s)],
            self.order.generator(s),
            lambda images: vary(images, generator),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state; shapes are the same for every shard."""
        return self.learner.tensors() | {
            "bank": self.bank.level,
            "by_image": self.by_image,
            "by_timestep": self.by_timestep,
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the state that ``tensors`` returned."""
        for name, state in (
            ("bank", self.bank.level),
            ("by_image", self.by_image),
            ("by_timestep", self.by_timestep),
        ):
            state.copy_(tensors.pop(name))
        self.learner.load(tensors)


class Ensemble:
    """All shards of a run; this process trains its own shards.

    Attributes:
        own: Index -> shard, the shards of this process.
        shard_of: int64, (N,): the shard of each image.
        sizes: Images of each shard.
        by_image: int64, (2, N): samples seen and skipped up to the last averaging.
        by_timestep: int64, (2, T): the same.
    """

    def __init__(self, job: TrainingRun) -> None:
        arm = _arm(job)
        self.job, self.arm = job, arm
        self.shard_of = assign(
            job.labels,
            job.sources,
            arm.shards,
            arm.sharding,
            seeds.numpy_rng(job.seed, *job.path, "shards"),
        )
        self.sizes: list[int] = np.bincount(self.shard_of).tolist()
        indices = range(distributed.index(), arm.shards, distributed.count())
        self.own = {k: Shard(job, k, np.flatnonzero(self.shard_of == k)) for k in indices}
        shard = self.own[indices[0]]
        self.by_image = torch.zeros_like(shard.by_image, device="cpu")
        self.by_timestep = torch.zeros_like(shard.by_timestep, device="cpu")

    def update(self, s: int) -> dict[str, Number]:
        """Perform local step ``s`` of every shard; return the shards' mean numbers, the same in
        every process.

        Raises:
            NonFiniteError: in every process, if it was raised in any.
        """
        names = ["loss", "grad_norm", "learning_rate"]
        names += ["skipped"] if self.arm.agc_threshold else []
        names += ["augmented"] if self.arm.augment_below else []
        names += ["overflow"] if self.job.train.precision == "fp16" else []
        learner = next(iter(self.own.values())).learner
        shape, device = (self.arm.shards, len(names)), learner.numbers_on
        numbers = torch.zeros(shape, dtype=torch.float64, device=device)
        for k, shard in self.own.items():
            try:
                values = shard.update(s)
            except NonFiniteError:
                numbers[k] = math.nan
            else:
                for column, name in enumerate(names):
                    numbers[k, column] = values[name]
        numbers = distributed.total(numbers)
        if not learner.waits:
            return dict(zip(names, numbers.mean(0), strict=True))
        bad = numbers.isnan().any(1).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteError(
                f"the loss or the gradient is not finite in shard {', '.join(map(str, bad))}"
            )
        return {name: fmean(column) for name, column in zip(names, numbers.T.tolist(), strict=True)}

    def average(self, r: int) -> None:
        """End round ``r`` (from 1): every shard resumes from the mean of all."""
        averaged = ["net.", "average."]
        averaged += ["optimizer."] if self.arm.optimizer_sync == "average" else []
        averaged += ["bank"] if self.arm.bank_scope == "global" else []
        mean = weighted_mean(
            (self._state(k, tuple(averaged)) for k in range(self.arm.shards)), self.sizes
        )
        for shard in self.own.values():
            for name, tensor in shard.tensors().items():
                if name in mean:
                    tensor.copy_(mean[name])
                elif name.startswith("optimizer.") and self.arm.optimizer_sync == "reset":
                    tensor.zero_()  # moments and step count: what a new AdamW starts from
        by_image = distributed.total(
            sum(
                (shard.by_image.cpu() for shard in self.own.values()),
                torch.zeros_like(self.by_image),
            )
        )
        by_timestep = distributed.total(
            sum(
                (shard.by_timestep.cpu() for shard in self.own.values()),
                torch.zeros_like(self.by_timestep),
            )
        )
        self.by_image += by_image
        self.by_timestep += by_timestep
        if self.arm.redistribute_above is not None and r < self.arm.rounds:
            seen, skipped = by_image.numpy()
            rng = seeds.numpy_rng(self.job.seed, *self.job.path, "redistribute", r)
            self._place(
                redistribute(self.shard_of, skipped > self.arm.redistribute_above * seen, rng)
            )
        for shard in self.own.values():
            shard.by_image.zero_()
            shard.by_timestep.zero_()

    def networks(self) -> Networks:
        """Return the mean of the shards' networks and that of their averages, as an averaging now
        would leave them; the shards train on as they are."""
        own = next(iter(self.own.values())).learner
        mean = weighted_mean(
            (self._state(k, ("net.", "average.module.")) for k in range(self.arm.shards)),
            self.sizes,
        )
        kept = Networks(copy.deepcopy(own.net), copy.deepcopy(own.average.module))
        for net, prefix in zip(kept, ("net.", "average.module."), strict=True):
            net.load_state_dict({name: mean[f"{prefix}{name}"] for name in net.state_dict()})
        return kept

    def _place(self, shard_of: np.ndarray) -> None:
        self.shard_of = shard_of
        for k, shard in self.own.items():
            shard.take(np.flatnonzero(shard_of == k))

    def _state(self, k: int, prefixes: tuple[str, ...] = ("",)) -> dict[str, torch.Tensor]:
        """Return the state of shard ``k``, broadcast by its process; the others receive it into
        the shapes of a shard of their own."""
        shard = self.own.get(k) or next(iter(self.own.values()))
        state = {
            name: tensor for name, tensor in shard.tensors().items() if name.startswith(prefixes)
        }
        return distributed.sent_by(k % distributed.count(), state)

    def tables(self) -> dict[str, pa.Table]:
        """Return the samples seen and skipped, by timestep and by image."""

        def table(name: str, counts: torch.Tensor) -> pa.Table:
            seen, skipped = counts.numpy()
            return pa.table({name: np.arange(len(seen)), "seen": seen, "skipped": skipped})

        return {
            "skips_by_timestep": table("timestep", self.by_timestep),
            "skips_by_image": table("row", self.by_image).append_column(
                "shard", pa.array(self.shard_of)
            ),
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state of all shards, in the main process; the others send theirs and return
        nothing."""
        tensors = {
            "shard_of": torch.from_numpy(self.shard_of),
            "by_image": self.by_image,
            "by_timestep": self.by_timestep,
        }
        for k in range(self.arm.shards):
            state = self._state(k)
            if distributed.first():
                tensors |= {f"{k}.{name}": tensor.cpu() for name, tensor in state.items()}
        return tensors if distributed.first() else {}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the state that ``tensors`` returned."""
        self._place(tensors["shard_of"].numpy())
        self.by_image.copy_(tensors["by_image"])
        self.by_timestep.copy_(tensors["by_timestep"])
        for k, shard in self.own.items():
            prefix = f"{k}."
            shard.load(
                {
                    name.removeprefix(prefix): value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                }
            )
