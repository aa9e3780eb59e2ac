"""Which optimizers SALSA works with, and what LR they get for the paper's alpha."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

from ..rewind.snapshot import is_sharded
from ..runtime.param_groups import innermost, weights_out_of_reach


def refuse(optimizer: Any, line_search: bool) -> None:
    """Raises an error where SALSA cannot work with an optimizer.

    Args:
        optimizer: with accelerate's and DeepSpeed's wraps or without.
        line_search: whether there will be a line search, which moves the weights along the gradient.

    Raises:
        ValueError: it keeps its weights out of reach, as DeepSpeed's and LOMO's do; it maximises; or there will be a
            line search, and it is not ``torch.optim.SGD``.
    """
    obstacle = weights_out_of_reach(optimizer)
    if obstacle is not None:
        raise ValueError(f"SALSA cannot look at the weights, and move them, here: {obstacle.reason}; {obstacle.remedy}")
    inner = innermost(optimizer)
    if line_search and not isinstance(inner, SGD):
        raise ValueError(
            f"SALSA's line search finds an LR for steps along the gradient, which those of {type(inner).__name__} are "
            "not; use torch.optim.SGD, or line_search=False and an LR of your own"
        )
    if any(group.get("maximize") for group in inner.param_groups):
        raise ValueError("SALSA minimises, but the optimizer has maximize=True; negate the loss instead")


def refuse_shards(optimizer: Optimizer, model: nn.Module) -> None:
    """Raises an error where each process holds only its share of the weights, along which no line search can go.

    Args:
        optimizer: the innermost one.
        model: the model that is trained.

    Raises:
        ValueError: the weights are sharded.
    """
    if is_sharded(optimizer, [model]):
        raise ValueError(
            "the weights are sharded over the processes, and SALSA's line search needs them whole; use DDP, or "
            "line_search=False and an LR of your own"
        )


def lr_per_alpha(optimizer: Any, group: Mapping[str, Any]) -> float:
    """The LR that an optimizer needs for an alpha of 1.

    alpha is the LR of the paper's momentum, where the update is a mean of gradients. torch's SGD sums the gradients up,
    so it needs alpha (1 - momentum) / (1 - dampening). Other optimizers get alpha itself.

    Args:
        optimizer: the innermost one.
        group: one of its parameter groups, or its defaults.
    """
    if not isinstance(optimizer, SGD) or not group["momentum"]:
        return 1.0
    return float((1.0 - group["momentum"]) / (1.0 - group["dampening"]))
