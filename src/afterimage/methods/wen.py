"""Optimised prompt embeddings at inference (Wen et al., ICLR 2024, section 5.1).

On a memorised prompt the text pulls the first prediction far away from that without text
(equation 3). Before the first step the embedding of each prompt is therefore moved by AdamW to lower
the norm of that difference, from the image's own starting noise, until the norm is at most l_target;
the embedding of the first token, which marks the beginning, has no gradient, as in the released
code. Here each image has an embedding of its own; the authors optimise one for several images.
"""

from __future__ import annotations

import torch

from afterimage.config import Wen
from afterimage.diffusion.guidance import Guided
from afterimage.diffusion.remedy import Drawing, Remedy
from afterimage.diffusion.texts import TEXT
from afterimage.methods.at_inference import train as train


class OptimisedPrompts(Remedy):
    """The remedy.

    Args:
        arm: Its settings.
    """

    def __init__(self, arm: Wen) -> None:
        super().__init__()
        self._arm = arm

    def conditions(self, guided: Guided, x: torch.Tensor, t: torch.Tensor) -> Guided:
        """Return the network with an optimised embedding for every image."""
        net, arm = guided.net, self._arm
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors of inference mode, in which images are drawn, cannot be differentiated.
            x, t = x.clone(), t.clone()
            embeddings = guided.given[TEXT].clone().requires_grad_()
            with torch.no_grad():
                null = guided.nulls[TEXT].clone()
                unconditional = net(x, t, return_dict=False, **{TEXT: null})[0]
            optimizer = torch.optim.AdamW([embeddings], lr=arm.learning_rate)
            for _ in range(arm.updates):
                conditional = net(x, t, return_dict=False, **{TEXT: embeddings})[0]
                norms = (conditional - unconditional).flatten(1).norm(dim=1)
                reached = norms.detach() <= arm.target
                if reached.all():
                    break
                embeddings.grad = torch.autograd.grad(norms.sum(), embeddings)[0].clone()
                embeddings.grad[:, 0] = 0
                before = embeddings.detach().clone()
                optimizer.step()
                embeddings.data[reached] = before[reached]
        moved = (embeddings.detach() != guided.given[TEXT]).flatten(1).any(dim=1)
        self.count(prompts_changed=int(moved.sum()))
        return guided.with_conditions(guided.given | {TEXT: embeddings.detach()})


def remedy(arm: Wen, drawing: Drawing) -> OptimisedPrompts:
    """Return the remedy of an arm."""
    return OptimisedPrompts(arm)
