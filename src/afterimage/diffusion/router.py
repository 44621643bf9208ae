"""Two networks that split the timesteps (LoyalDiffusion, Li et al. 2024): one for low noise, one
for high noise.

To the outside the router is a U-Net: ``DDPMPipeline``, ``StableDiffusionPipeline`` and any other
diffusers pipeline of networks like its own samples with it, stores it with ``save_pretrained``, and
opens it again after ``import afterimage``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from afterimage.diffusion.condition import each_tensor
from afterimage.diffusion.rau_net import RAUNet, RAUNetCondition

NULL = "_null_label"
"""Key of the null label in a network's config. diffusers leaves keys with a leading underscore
unchanged."""

UNet = UNet2DModel | UNet2DConditionModel

NETS: dict[str, type[UNet]] = {
    kind.__name__: kind for kind in (UNet2DModel, RAUNet, UNet2DConditionModel, RAUNetCondition)
}


class TimestepRouter(UNet2DModel):
    """Routes each sample to the front network if t < tau and to the tail network if t >= tau.

    With tau = 0 the tail network covers all timesteps, with tau = T the front network. Guidance
    needs nothing special: the conditional and the null branch of a sample have the same timestep,
    and so the same network.

    Args:
        front_net: The network for low noise, or its config.
        tail_net: The network for high noise, with the same image shape and conditions.
        switch_timestep: tau.
    """

    __module__ = "afterimage"  # what stored pipelines name; ``afterimage.__getattr__`` finds it

    def __init__(
        self,
        front_net: UNet | dict[str, Any],
        tail_net: UNet | dict[str, Any],
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
        *condition: Any,
        return_dict: bool = True,
        **named_condition: Any,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict as its networks do.

        Args:
            sample: (B, C, H, W).
            timestep: A number, or a tensor of shape (), (1,) or (B,).
            condition: What the networks take besides, such as labels, int64 (B,), or texts,
                (B, L, D). Of tensors, each network gets the rows of its own samples.
            return_dict: Return ``UNet2DOutput``, or a tuple.
            named_condition: The same by name.
        """
        # Compared where they are: on the host, as in sampling, a choice waits for no device.
        given = torch.as_tensor(timestep)
        early = (given < self.switch_timestep).expand(len(sample))
        times = given.to(sample.device, non_blocking=True).expand(len(sample))
        arguments = (sample, times, *condition)
        if early.all():
            prediction = self.front(*arguments, return_dict=False, **named_condition)[0]
        elif not early.any():
            prediction = self.tail(*arguments, return_dict=False, **named_condition)[0]
        else:
            # Each network gets the rows of its own samples.
            def ask(net: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
                own, named = each_tensor((arguments, named_condition), lambda tensor: tensor[rows])
                return net(*own, return_dict=False, **named)[0]

            parts = [ask(self.front, early), ask(self.tail, ~early)]
            prediction = parts[0].new_empty((len(sample), *parts[0].shape[1:]))
            prediction[early], prediction[~early] = parts
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)


def _net(net_or_config: UNet | dict[str, Any]) -> UNet:
    if isinstance(net_or_config, dict):
        kind = NETS[net_or_config["_class_name"]]
        return cast(UNet, kind.from_config(net_or_config))
    return net_or_config


def _config(net: UNet) -> dict[str, Any]:
    kept = {
        key: value for key, value in net.config.items() if key == NULL or not key.startswith("_")
    }
    return {"_class_name": type(net).__name__} | kept
