"""A trial: optimizer steps that leave nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime.param_groups import device_of, innermost, set_lrs, weights_out_of_reach
from ..runtime.random_state import same_random_numbers
from ..runtime.update_meter import taken_back
from . import snapshot


@contextlib.contextmanager
def trial(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Puts weights, buffers, gradients, training mode, the optimizer and random numbers back after the block. Within
    it, the model is in training mode and has no gradients, and a schedule that measures the optimizer rests.

    Args:
        model: whose parameters the optimizer has.
        optimizer: with accelerate's wraps or without.

    Raises:
        ValueError: the weights are out of reach.
    """
    if (obstacle := weights_out_of_reach(optimizer)) is not None:
        raise ValueError(f"the weights cannot be put back: {obstacle.reason}; {obstacle.remedy}")
    inner = innermost(optimizer)
    before = snapshot.take(optimizer, [model], 0)
    gradients = [parameter.grad for parameter in model.parameters()]
    lrs = [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in inner.param_groups]
    modes = [module.training for module in model.modules()]
    for parameter in model.parameters():
        parameter.grad = None
    model.train()
    try:
        with same_random_numbers(device_of(inner)), taken_back(inner):
            yield
    finally:
        snapshot.restore(before, optimizer, [model])
        set_lrs(inner, lrs)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
