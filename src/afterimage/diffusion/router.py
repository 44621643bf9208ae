"""Two networks that share the timesteps (LoyalDiffusion, Li et al. 2024): one for low noise, one
for high noise.

To everything around it the router is a ``UNet2DModel``: ``DDPMPipeline``, ``DDIMPipeline`` and any
other diffusers pipeline of such a network samples with it, stores it by ``save_pretrained``, and
opens it again after ``import afterimage``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput

from afterimage.diffusion.rau_net import RAUNet

NULL = "_null_label"
"""Key of a network's config: the label that stands for none. diffusers keeps keys with a leading
underscore as they are."""

NETS: dict[str, type[UNet2DModel]] = {"UNet2DModel": UNet2DModel, "RAUNet": RAUNet}


class TimestepRouter(UNet2DModel):
    """Sends each sample to the front network where t < tau and to the tail network where t >= tau.

    With tau = 0 the tail does all, with tau = T the front does. Guidance needs nothing of its own:
    the conditional and the null branch of a sample have one timestep, and so one network.

    Args:
        front_net: The network of low noise, or its config.
        tail_net: That of high noise, for images of the same shape and the same labels.
        switch_timestep: tau.
    """

    __module__ = "afterimage"  # what stored pipelines name; ``afterimage.__getattr__`` finds it

    def __init__(
        self,
        front_net: UNet2DModel | dict[str, Any],
        tail_net: UNet2DModel | dict[str, Any],
        switch_timestep: int,
    ) -> None:
        super(UNet2DModel, self).__init__()  # its two networks are all that there is to build
        self.front, self.tail = _net(front_net), _net(tail_net)
        self.switch_timestep = switch_timestep
        self.register_to_config(
            front_net=_config(self.front),
            tail_net=_config(self.tail),
            switch_timestep=switch_timestep,
        )

    @property
    def config(self) -> FrozenDict:
        """The router's own config, and that of its networks: image size, channels and labels, which
        they share."""
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


def _net(given: UNet2DModel | dict[str, Any]) -> UNet2DModel:
    if isinstance(given, dict):
        return cast(UNet2DModel, NETS[given["_class_name"]].from_config(given))
    return given


def _config(net: UNet2DModel) -> dict[str, Any]:
    kept = {
        key: value for key, value in net.config.items() if key == NULL or not key.startswith("_")
    }
    return {"_class_name": type(net).__name__} | kept
