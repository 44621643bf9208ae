"""Two networks that split the timesteps (LoyalDiffusion, Li et al. 2024): one for low noise, one
for high noise.

To the outside the router is a ``UNet2DModel``: ``DDPMPipeline``, ``DDIMPipeline`` and any other
diffusers pipeline of such a network samples with it, stores it with ``save_pretrained``, and
opens it again after ``import afterimage``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput

from afterimage.diffusion.rau_net import RAUNet

NULL = "_null_label"
"""Key of the null label in a network's config. diffusers leaves keys with a leading underscore
unchanged."""

NETS: dict[str, type[UNet2DModel]] = {"UNet2DModel": UNet2DModel, "RAUNet": RAUNet}


class TimestepRouter(UNet2DModel):
    """Routes each sample to the front network if t < tau and to the tail network if t >= tau.

    With tau = 0 the tail network covers all timesteps, with tau = T the front network. Guidance
    needs nothing special: the conditional and the null branch of a sample have the same timestep,
    and so the same network.

    Args:
        front_net: The network for low noise, or its config.
        tail_net: The network for high noise, with the same image shape and labels.
        switch_timestep: tau.
    """

    __module__ = "afterimage"  # what stored pipelines name; ``afterimage.__getattr__`` finds it

    def __init__(
        self,
        front_net: UNet2DModel | dict[str, Any],
        tail_net: UNet2DModel | dict[str, Any],
        switch_timestep: int,
    ) -> None:
        super(UNet2DModel, self).__init__()  # its two networks are all it consists of
        self.front, self.tail = _net(front_net), _net(tail_net)
        self.switch_timestep = switch_timestep
        self.register_to_config(
            front_net=_config(self.front),
            tail_net=_config(self.tail),
            switch_timestep=switch_timestep,
        )

    @property
    def config(self) -> FrozenDict:
        """The router's own config, and the part that its networks share: image size, channels and
        labels."""
        return FrozenDict({**self.tail.config, **super().config})

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict as ``UNet2DModel`` does.

        Args:
            sample: (B, C, H, W).
            timestep: A number, or a tensor of shape (), (1,) or (B,).
            class_labels: int64, (B,), or None.
            return_dict: Return ``UNet2DOutput``, or a tuple.
        """
        times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        early = times < self.switch_timestep
        if early.all():
            prediction = self.front(sample, times, class_labels, return_dict=False)[0]
        elif not early.any():
            prediction = self.tail(sample, times, class_labels, return_dict=False)[0]
        else:
            parts = [
                net(
                    sample[rows],
                    times[rows],
                    None if class_labels is None else class_labels[rows],
                    return_dict=False,
                )[0]
                for net, rows in ((self.front, early), (self.tail, ~early))
            ]
            prediction = parts[0].new_empty((len(sample), *parts[0].shape[1:]))
            prediction[early], prediction[~early] = parts
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)


def _net(net_or_config: UNet2DModel | dict[str, Any]) -> UNet2DModel:
    if isinstance(net_or_config, dict):
        kind = NETS[net_or_config["_class_name"]]
        return cast(UNet2DModel, kind.from_config(net_or_config))
    return net_or_config


def _config(net: UNet2DModel) -> dict[str, Any]:
    kept = {
        key: value for key, value in net.config.items() if key == NULL or not key.startswith("_")
    }
    return {"_class_name": type(net).__name__} | kept
