"""How a network is laid out for the device that computes with it, in trainings and in drawings:
weights of convolutions with channels last, as tensor cores read them, and compiled kernels."""

from __future__ import annotations

import torch

from afterimage.config import Sample, Train


def lay_out(net: torch.nn.Module, switches: Train | Sample) -> None:
    """Give ``net`` the layout that the switches ask for, in place; without them it stays as it is.

    Its predictions change by rounding at most. It is compiled when it is next called, once for all
    calls of this function; copies of it are not compiled.
    """
    if switches.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if switches.compile and net._compiled_call_impl is None:
        net.compile()
