"""EraseDiff (Wu et al., CVPR 2025): unlearning as constrained optimisation.

With r the gradient of the ordinary loss on the remaining images, L_r, and q that of the forgetting
loss L_f, an update goes along the vector nearest to r whose inner product with q is at least the
barrier a (theorem 3.1):

    delta = r + lambda q,    lambda = max(0, (a - <q, r>) / |q|^2).

L_f is the squared error of the predictions for the forget set, under its own labels or captions,
against a target other than the true noise (``Targets``). The paper's constraint is g = L_f(theta)
- min L_f <= 0, with the minimum approximated by a few inner steps on a copy of the network. That is
a constant: it has no gradient, so the steps matter only where the value of g enters, i.e. with
``barrier: gap``. With the theorem's a = eta |q|^2 they are skipped.

The optimiser clips and preconditions delta, so <q, delta> >= a does not carry over to the step of
the weights. The curves record both inner products. With a fixed eta > 0 the weights converge to the
optimum of L_f, one end of the Pareto set, rather than to a compromise: the number of updates trades
forgetting against retention.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial

import torch

from afterimage import seeds
from afterimage.config import ConfigError, EraseDiff
from afterimage.diffusion.condition import Condition
from afterimage.diffusion.model import classes_of, load_weights
from afterimage.diffusion.noising import Batch, Change
from afterimage.methods.unlearning import Sides, gradients, loss_of, seed_dropout, wrong_labels
from afterimage.training.ahead import Ahead
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Learner, Number, plain


@dataclass(frozen=True)
class Direction:
    """The weight of forgetting in one update.

    Attributes:
        weight: lambda.
        cosine: Cosine of the angle between q and r; 0 if either is zero.
        barrier: a, the lower bound on <q, delta>; None for rules without a barrier.
    """

    weight: torch.Tensor
    cosine: torch.Tensor
    barrier: torch.Tensor | None


def direction(
    rr: torch.Tensor, qr: torch.Tensor, qq: torch.Tensor, arm: EraseDiff, gap: Number = 0.0
) -> Direction:
    """Return lambda by the arm's rule; 0 if q is zero and the rule is adaptive.

    All are float64, (), on the device of the gradients, of which none is read.

    Args:
        rr: |r|^2.
        qr: <q, r>.
        qq: |q|^2.
        arm: Settings: ``barrier``, ``eta`` and ``weight``. ``gradnorm``, a = eta |q|^2, is the
            paper's; ``gap``, a = eta max(g, 0), the other choice of the optimiser it builds on
            (Ye et al., NeurIPS 2022); ``cosine``, lambda = max(0, eta - cos), and ``fixed``, lambda
            = weight, are those of the released code.
        gap: g.
    """
    cosine = torch.where((qq > 0) & (rr > 0), qr / (qq.sqrt() * rr.sqrt()), 0.0)
    if arm.barrier == "fixed":
        return Direction(torch.full_like(qq, arm.weight), cosine, None)
    if arm.barrier == "cosine":
        return Direction(torch.where(qq > 0, (arm.eta - cosine).clamp(min=0), 0.0), cosine, None)
    least = qq if arm.barrier == "gradnorm" else torch.as_tensor(gap).to(qq).clamp(min=0)
    barrier = arm.eta * least
    return Direction(torch.where(qq > 0, ((barrier - qr) / qq).clamp(min=0), 0.0), cosine, barrier)


def dot(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    """Return the inner product of two gradients, each a list of tensors, one per weight; float64,
    ()."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).double().sum()


def antithetic(timesteps: torch.Tensor, count: int) -> torch.Tensor:
    """Return timesteps whose second half mirrors the first, t and T - 1 - t, as released: (B,), of
    which the first B // 2 + 1 are kept.

    Args:
        timesteps: int64, (B,), uniform over [0, T).
        count: T.
    """
    first = timesteps[: len(timesteps) // 2 + 1]
    return torch.cat([first, count - 1 - first])[: len(timesteps)]


@dataclass(frozen=True)
class Draw:
    """A forget batch as far as it does not depend on a network.

    Attributes:
        batch: The batch; its targets are the true noise if they are yet to be predicted.
        condition: Labels or texts that its targets are predicted for; None if it has them already.
        seed: Seed of the network's dropout in that prediction.
    """

    batch: Batch
    condition: Condition | None
    seed: int


class Targets:
    """The forget set with substitute targets, at timesteps of its own or given ones.

    - ``relabel``: the prediction for a wrong label, drawn per sample, by the network without any
      dropout. With captions the surrogate text takes the wrong label's place (for Stable Diffusion
      the released code has the prompt "a photo of a pokemon").
    - ``released_relabel``: one wrong label for all samples of a class, or the surrogate; dropout
      and label dropout on, drawn independently in prediction and target. The released code always
      draws from the labels 1 to 9, here from all others.
    - ``uniform``: U(0, 1) instead of the noise, with the images corrupted by Gaussian noise.
    - ``released_uniform``: the same uniform tensor corrupts the images and is the target; label
      dropout on.

    Args:
        job: The run.
        network: The network whose predictions are the targets of the ``relabel`` variants.
    """

    def __init__(self, job: TrainingRun, network: torch.nn.Module) -> None:
        assert isinstance(job.arm, EraseDiff)
        self.job, self.network, self.kind = job, network, job.arm.target
        self.released = self.kind.startswith("released")
        self.predicts = self.kind.endswith("relabel")
        if self.predicts and not job.task.alternatives:
            raise ConfigError(
                f"target = {self.kind!r} needs at least 2 labels; the network knows "
                f"{classes_of(job.net) or 0}"
            )

    def drawn(self, sides: Sides, i: int, retime: Change | None = None) -> Draw:
        """Return the ``i``-th forget batch of ``sides``: a pure function of the seed and ``i``.

        Args:
            retime: Maps the drawn timesteps to those used.
        """
        batch = sides.batch("forget", i, keep_labels=not self.released, retime=retime)
        order = sides.orders["forget"]
        generator = seeds.torch_rng(order.seed, *order.path, "target", i)
        seed = seeds.derive(order.seed, *order.path, "target dropout", i)
        if self.predicts:
            return Draw(batch, self.condition(batch, generator), seed)
        noise = torch.rand(batch.target.shape, generator=generator)
        if self.released:
            share = (1 - self.job.scheduler.alphas_cumprod[batch.timesteps]).sqrt()[
                :, None, None, None
            ]
            batch = replace(batch, noisy=batch.noisy + share * (noise - batch.target))
        return Draw(replace(batch, target=noise), None, seed)

    def of(self, draw: Draw) -> Batch:
        """Return a forget batch with its targets: a pure function of ``draw`` and the network."""
        if draw.condition is None:
            return draw.batch
        torch.manual_seed(draw.seed)
        asked = replace(draw.batch, condition=draw.condition)
        return replace(draw.batch, target=self.predict(asked))

    def condition(self, batch: Batch, generator: torch.Generator) -> Condition:
        """Return the labels or texts that the targets are predicted for."""
        task = self.job.task
        wrong = partial(wrong_labels, generator=generator, one_draw=self.released)
        condition = task.instead(batch.rows, wrong)
        if self.released:
            dropped = torch.rand(len(batch), generator=generator) < self.job.train.label_dropout
            condition = task.without(condition, dropped)
        return condition

    def predict(self, batch: Batch) -> torch.Tensor:
        """Return the network's prediction without a gradient, float32, (B, C, H, W)."""
        accelerator = self.job.accelerator
        self.network.train(self.released)
        with torch.no_grad(), accelerator.autocast():
            parts = batch.to(accelerator.device).split(self.job.train.accumulation)
            prediction = torch.cat([self.job.task.predict(self.network, part) for part in parts])
        self.network.train()
        return prediction


def retiming(job: TrainingRun) -> Change | None:
    """Return what ``antithetic`` makes of drawn timesteps; None if they are used as drawn."""
    assert isinstance(job.arm, EraseDiff)
    count = job.scheduler.config["num_train_timesteps"]
    return partial(antithetic, count=count) if job.arm.antithetic else None


class Inner:
    """K steps of a copy of the network towards the minimum of the forgetting loss: Adam, without
    clipping.

    The copy learns from its own batches; their targets come from the same network as those of
    the update, so that the inner steps descend the same loss. By default Adam is restarted each
    time, and nothing outlives an update. With ``inner_adam: shared`` the copy's Adam has the
    moments and the step count of the outer one, and changes them. (The released code has that one
    Adam; with its rules for lambda, the moments that are left behind are all that its inner steps
    change.)
    """

    def __init__(self, job: TrainingRun, targets: Targets) -> None:
        assert isinstance(job.arm, EraseDiff)
        settings = {
            "learning_rate": job.arm.inner_learning_rate,
            "warmup": 0,
            "weight_decay": 0.0,
            "clip": None,
            "ema": 0.0,
        }
        self.learner = Learner(
            copy.deepcopy(job.net), job.train.model_copy(update=settings), job.accelerator
        )
        self.sides = Sides(replace(job, path=(*job.path, "inner")))
        self.task, self.targets, self.steps = job.task, targets, job.arm.inner_updates
        self.shared = job.arm.inner_adam == "shared"
        draw = partial(targets.drawn, self.sides, retime=retiming(job))
        self.draws = Ahead(draw, job.accelerator.device)

    def descend(self, outer: Learner, s: int) -> Learner:
        """Return the copy after the inner steps of update ``s``, started from the weights of
        ``outer``."""
        self.learner.net.load_state_dict(outer.net.state_dict())
        self.learner.optimizer.state.clear()
        if self.shared:
            pairs = zip(self.learner.net.parameters(), outer.net.parameters(), strict=True)
            for weight, original in pairs:
                if weight.requires_grad:
                    self.learner.optimizer.state[weight] = outer.optimizer.state[original]
        for i in range(s * self.steps, (s + 1) * self.steps):
            batch = self.targets.of(self.draws(i))
            seed_dropout(self.sides, i, "forget")
            self.learner.update(i, batch, plain(self.task))
        return self.learner


class Pushes:
    """The number of updates with nonzero lambda, i.e. in which the forget set moved the weights."""

    def __init__(self, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"count": self.count}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        self.count = tensors["count"].to(self.count.device)


def train(job: TrainingRun) -> Trained:
    """Make the base's network forget ``job.forgotten``.

    The curves have, per update: loss (L_r), forget_loss (L_f), lambda, cosine (of q and r), barrier
    (a, for rules with one), gap (g, if the inner steps run), descent_asked (<q, delta>) and
    descent_made (<q, theta_old - theta_new>, to first order the decrease of L_f), as well as
    grad_norm (of delta, before clipping) and learning_rate. The facts count inner_updates,
    pushed_updates (lambda nonzero), and the passes over a batch without a gradient
    (forward_only_passes).
    """
    arm, settings = job.arm, job.train
    assert isinstance(arm, EraseDiff)
    assert job.base is not None
    load_weights(job.net, job.base)
    learner = Learner(job.net, settings, job.accelerator)
    net, objective, sides = learner.net, plain(job.task), Sides(job)
    pushes = Pushes(job.accelerator.device)
    targets = Targets(job, net if arm.target_network == "current" else copy.deepcopy(net))
    inner = Inner(job, targets) if arm.runs_inner_steps else None
    retime = retiming(job)

    def draw(s: int) -> tuple[Batch, Draw]:
        """Return remaining batch ``s`` and forget batch ``s``."""
        remain = sides.batch("remain", s, retime=retime)
        of_remain = arm.forget_timesteps == "remain"
        return remain, targets.drawn(
            sides, s, (lambda _: remain.timesteps) if of_remain else retime
        )

    draws = Ahead(draw, job.accelerator.device)

    def update(s: int) -> dict[str, Number]:
        logs: dict[str, Number] = {}

        # Gradient of the forgetting loss, q.
        remain, drawn = draws(s)
        forget = targets.of(drawn)
        seed_dropout(sides, s, "forget")
        logs["forget_loss"] = learner.gradient(forget, objective)
        q = gradients(net)
        qq = dot(q, q)
        learner.told("norm of the forgetting gradient", qq.sqrt())

        # Gap to the minimum of the forgetting loss, g.
        if inner is not None:
            minimum = inner.descend(learner, s)
            seed_dropout(sides, s, "forget")
            logs["gap"] = logs["forget_loss"] - loss_of(minimum, job.task, forget)

        # Gradient of the loss on the remaining images, r, and the weight of q.
        seed_dropout(sides, s, "remain")
        logs["loss"] = learner.gradient(remain, objective)
        r = gradients(net)
        qr = dot(q, r)
        turn = direction(dot(r, r), qr, qq, arm, logs.get("gap", 0.0))
        logs |= {
            "lambda": turn.weight,
            "cosine": turn.cosine,
            "descent_asked": qr + turn.weight * qq,
        }
        if turn.barrier is not None:
            logs["barrier"] = turn.barrier

        # Step along delta = r + lambda q.
        trainable = [weight for weight in net.parameters() if weight.grad is not None]
        before = [weight.detach().clone() for weight in trainable]
        deltas = torch._foreach_add(r, torch._foreach_mul(q, turn.weight.float()))
        for weight, delta in zip(trainable, deltas, strict=True):
            weight.grad = delta
        logs |= learner.step(s)
        logs["descent_made"] = dot(
            q, [old - new.detach() for old, new in zip(before, trainable, strict=True)]
        )
        pushes.count = pushes.count + (turn.weight > 0)
        return logs

    progress = job.run(update, {"learner": learner, "pushes": pushes}, learner.networks)
    updates, pushed = progress.update, int(pushes.count)
    inner_updates = 0 if inner is None else updates * arm.inner_updates
    backward = 2 * updates + inner_updates
    return Trained.of_one(
        learner,
        progress,
        backward * settings.batch_size,
        (updates + pushed) * settings.batch_size,
        backward_passes=backward,
        facts={
            "inner_updates": inner_updates,
            "pushed_updates": pushed,
            "forward_only_passes": (updates + inner_updates if targets.predicts else 0)
            + (0 if inner is None else updates),
        },
    )
