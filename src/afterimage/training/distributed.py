"""The processes of one training run, started by accelerate or torchrun: which one this is, and what
they tell each other.

In a run of one process every function is a plain copy. All processes must call the same functions
in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from accelerate import PartialState


def count() -> int:
    """Return the number of processes, W."""
    return PartialState().num_processes


def index() -> int:
    """Return which of them this one is, in [0, W)."""
    return PartialState().process_index


def first() -> bool:
    """Return whether this is the process that writes."""
    return index() == 0


def wait() -> None:
    """Wait until all processes are here."""
    anywhere(False)


def total(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes; exact where at most one of them has anything but zero at a
    place."""
    if count() == 1:
        return values
    summed = values.to(PartialState().device, copy=True)
    dist.all_reduce(summed)
    return summed.to(values.device)


def add(tensors: list[torch.Tensor]) -> None:
    """Replace tensors, of one dtype and device, by their sums over all processes; float sums come
    in the same order in each."""
    if count() > 1:
        summed = total(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, piece in zip(
            tensors, summed.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(piece.view_as(tensor))


def anywhere(flag: bool) -> bool:
    """Return whether ``flag`` holds in at least one process."""
    return bool(total(torch.tensor(int(flag))))


def sent_by(sender: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the ``tensors`` of process ``sender``; the others give some of the same names, shapes,
    dtypes and devices."""
    if count() == 1:
        return dict(tensors)
    device = PartialState().device
    message = torch.cat(
        [tensor.detach().to(device).reshape(-1).view(torch.uint8) for tensor in tensors.values()]
    )
    dist.broadcast(message, src=sender)
    pieces = message.split([tensor.nbytes for tensor in tensors.values()])
    return {
        name: piece.clone().view(tensor.dtype).reshape(tensor.shape).to(tensor.device)
        for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
    }


def leave() -> None:
    """End the conversation; nothing of this module may be called afterwards."""
    PartialState().destroy_process_group()
