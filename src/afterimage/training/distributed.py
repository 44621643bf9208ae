"""The processes of one training run, started by accelerate or torchrun: rank and collectives.

In a run of one process nothing is communicated. All processes must call the same functions in the
same order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from accelerate import PartialState


def count() -> int:
    """Return the world size, W: the number of processes."""
    return PartialState().num_processes


def index() -> int:
    """Return the rank of this process, in [0, W)."""
    return PartialState().process_index


def first() -> bool:
    """Return whether this is the main process, the one that writes."""
    return index() == 0


def wait() -> None:
    """Wait until all processes have reached this call."""
    anywhere(False)


def total(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes (all-reduce); exact where at most one process has a nonzero
    value in a position."""
    if count() == 1:
        return values
    summed = values.to(PartialState().device, copy=True)
    dist.all_reduce(summed)
    return summed.to(values.device)


def add(tensors: list[torch.Tensor]) -> None:
    """Replace tensors, of one dtype and device, by their sums over all processes; the order of a
    float sum is the same in every process."""
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
    """Return the ``tensors`` of process ``sender`` (broadcast); the other processes pass tensors of
    the same names, shapes, dtypes and devices."""
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
    """Destroy the process group; nothing of this module may be called afterwards."""
    PartialState().destroy_process_group()
