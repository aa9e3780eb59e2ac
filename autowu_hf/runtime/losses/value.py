"""The value of a loss, which is kept until the losses are gathered."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = frozenset((torch.float16, torch.bfloat16))

_USUAL = frozenset((torch.float32, torch.float64, *_HALF))

_READS_THE_CPU = True
"""Whether a loss on the CPU, for which nothing waits, is kept as a number, which is quicker than a tensor."""


def loss_value(loss: Tensor, where: str) -> Tensor | float:
    """Checks a loss, and takes its value.

    Args:
        loss: a tensor of one element.
        where: what it was passed to, for the error.

    Returns:
        A number, where it lies on the CPU; else (), detached, copied, on its device, at least float32.

    Raises:
        ValueError: it has more elements than one, or is complex.
    """
    if _READS_THE_CPU and loss.is_cpu and type(loss) is Tensor and loss.dtype in _USUAL and loss.numel() == 1:
        return float(loss.item())  # at once, for this is done at every step
    if loss.numel() != 1:
        raise ValueError(
            f"the loss passed to {where} must be a scalar, got shape {tuple(loss.shape)}; "
            "reduce it first, for example with loss.mean()"
        )
    if type(loss) is not Tensor and hasattr(loss, "full_tensor"):  # a DTensor, which may be a share of the loss
        loss = loss.full_tensor()
    if loss.is_complex():
        raise ValueError(f"the loss passed to {where} must be real, got {loss.dtype}; pass its real part, loss.real")
    if _READS_THE_CPU and loss.is_cpu:
        return float(loss.item())
    loss = loss.detach().reshape(())
    return loss.float() if loss.dtype in _HALF else loss.clone()
