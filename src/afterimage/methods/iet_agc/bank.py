"""Anti-gradient control (Liu et al., ECCV 2024, section 3.2): samples of abnormally low loss are
excluded from the mean.

"Abnormal" is judged per timestep against a bank that holds a moving average of the losses seen
there. As released, a bank starts at zero without bias correction, so that nothing is skipped at the
first visit of a timestep and little at the next few.
"""

from __future__ import annotations

import torch


class Bank:
    """The moving average of the loss at each timestep, and the skipping rule based on it.

    Args:
        timesteps: T.
        decay: gamma: b[t] <- gamma b[t] + (1 - gamma) l.
        threshold: lambda; 0 skips nothing.
        skip_t_max: Skip only at t below this; None skips at every t.
        device: Device of the losses.

    Attributes:
        level: b, float32, (T,).
    """

    def __init__(
        self,
        timesteps: int,
        decay: float,
        threshold: float,
        skip_t_max: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.decay = decay
        self.level = torch.zeros(timesteps, device=device)
        steps = torch.arange(timesteps, device=device)
        self._factor = torch.where(
            steps < (timesteps if skip_t_max is None else skip_t_max), threshold, 0.0
        )

    def limits(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return lambda b[t] of each sample, float32, (B,); 0 where nothing is skipped."""
        return self._factor[timesteps] * self.level[timesteps]

    def kept(self, timesteps: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Return the mask of kept samples, bool, (B,): those with a loss at or above the limit."""
        return losses >= self.limits(timesteps)

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Update the averages with the losses of a whole batch, including skipped samples, one
        after the other.

        Samples of one timestep are processed in turns: the first of every timestep together, then
        the second of every timestep, and so on. That gives the same bits as a loop over the batch.

        Args:
            timesteps: int64, (B,), on the CPU.
            losses: float32, (B,), on the bank's device, without gradient.
        """
        by_timestep = torch.argsort(timesteps, stable=True)
        ordered = timesteps[by_timestep]
        turns = torch.arange(len(ordered)) - torch.searchsorted(ordered, ordered)
        for turn in range(turns.numpy().max() + 1):
            samples = by_timestep[turns == turn]
            t, loss = timesteps[samples].to(losses.device), losses[samples.to(losses.device)]
            self.level[t] = self.decay * self.level[t] + (1 - self.decay) * loss
