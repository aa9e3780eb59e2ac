"""Optimizers that are not like most: those that a schedule has no say in, and those whose first steps tell little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..runtime.param_groups import innermost

_LEAST_RHO = 5.0  # from which an update is rectified; before, it is the mean of the gradients, or none

AVERAGED = 0.5
"""The size of Adam's update in its seventh step, as a share of its first one: it is along a mean of noisy gradients."""


def finds_own_lr(optimizer: Any) -> bool:
    """Whether an optimizer is known to find its LR by itself, so that a schedule's only multiplies it (Prodigy, DoG,
    those of D-Adaptation) or is where it begins (Rprop).

    Args:
        optimizer: of any kind, with accelerate's and DeepSpeed's wraps or without.
    """
    return _is_called(optimizer, ("Prodigy", "DAdapt"), ("DoG", "LDoG", "Rprop"))


def is_schedule_free(optimizer: Any) -> bool:
    """Whether it is one of the schedule-free optimizers, which average where others decay; arguments as above."""
    return _is_called(optimizer, ("ScheduleFree",), ())


def _is_called(optimizer: Any, parts: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Whether a class of an optimizer, or of one inside it, has one of the parts in its name, or one of the names."""
    while optimizer is not None:
        for kind in type(optimizer).__mro__:
            if kind.__name__ in names or any(part in kind.__name__ for part in parts):
                return True
        optimizer = getattr(optimizer, "optimizer", None)
    return False


def rectified_by(optimizer: Any) -> float:
    """beta2 of an optimizer that rectifies its updates, as RAdam (Liu et al. 2020, arXiv 1908.03265, algorithm 2),
    known by the name of its class or by ``rectify=True`` in its groups; 0 of any other.

    Args:
        optimizer: with accelerate's wraps or without.
    """
    is_named = _is_called(optimizer, ("RAdam",), ("Ranger",))
    for group in innermost(optimizer).param_groups:
        if (is_named or group.get("rectify")) and len(group.get("betas") or ()) > 1:
            beta2 = float(group["betas"][1])
            return beta2 if 2.0 / (1.0 - beta2) - 1.0 > _LEAST_RHO else 0.0
    return 0.0


def rectification(beta2: float, step: float) -> float:
    """r_t, the size of an update that is rectified, as a share of Adam's.

    Args:
        beta2: in (0, 1).
        step: t, of the optimizer, from 1.

    Returns:
        In [0, 1): 0 in the first steps, which are not rectified; 0.03 at the seventh, 0.2 at the hundredth, and 0.6 at
        the thousandth one, with the usual 0.999.
    """
    most = 2.0 / (1.0 - beta2) - 1.0
    power = beta2**step
    rho = most - 2.0 * step * power / (1.0 - power)
    if rho <= _LEAST_RHO:
        return 0.0
    return math.sqrt((rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho))


def num_unrectified(beta2: float, done: float) -> int:
    """How many of an optimizer's first steps are not rectified; 0 where it has ``done`` more than these, or never does
    it (a beta2 of 0).
    """
    number = sum(beta2 > 0.0 and rectification(beta2, step) == 0.0 for step in range(1, 10))
    return number if done <= number else 0


def steps_of(optimizer: Any) -> float:
    """The steps that an optimizer has made, by its own count; 0 where it keeps none."""
    optimizer = innermost(optimizer)
    of_weights = [own["step"] for own in optimizer.state.values() if isinstance(own, dict) and "step" in own]
    in_groups = [group.get("step", group.get("k")) for group in optimizer.param_groups]  # k: of schedule-free ones
    counts = of_weights or [count for count in in_groups if count is not None]
    return max(map(float, counts), default=0.0)


def is_used(optimizer: Any) -> bool:
    """Whether an optimizer has made steps before, and could make the next one as if it had not. Then its updates are
    along a mean of many gradients, and smaller than first ones, or larger, as those of SGD with momentum.

    Not one that rectifies, for its first steps tell nothing; nor one that is schedule-free; nor one whose state is made
    with it or with its groups, as Adagrad's, or is not that of its weights alone.

    Args:
        optimizer: with accelerate's wraps or without.
    """
    inner = innermost(optimizer)
    has_own_groups = type(inner).add_param_group is not Optimizer.add_param_group
    is_of_weights = all(isinstance(parameter, Tensor) for parameter in inner.state)
    if has_own_groups or not is_of_weights or "initial_accumulator_value" in inner.defaults:
        return False
    if rectified_by(inner) > 0.0 or is_schedule_free(inner):
        return False
    has_buffers = any(isinstance(own, dict) and own.get("momentum_buffer") is not None for own in inner.state.values())
    return has_buffers or steps_of(inner) > 0.0


def momentum_of(group: Mapping[str, Any]) -> float:
    """m of a parameter group, so that SGD's updates grow to 1 / (1 - m) of the first."""
    momentum, dampening = (float(group.get(name) or 0.0) for name in ("momentum", "dampening"))
    if not 0.0 < momentum < 1.0 or dampening >= 1.0:
        return 0.0
    return max(1.0 - (1.0 - momentum) / (1.0 - dampening), 0.0)


def has_momentum(optimizer: Any) -> bool:
    """Whether its groups say that updates are along a mean of gradients: by ``momentum``, ``beta1``, or the first of
    their ``betas``.

    Args:
        optimizer: with accelerate's wraps or without.
    """
    groups = innermost(optimizer).param_groups
    first = ((group.get("momentum"), group.get("beta1"), *(group.get("betas") or ())[:1]) for group in groups)
    return any(map(any, first))


def averages_noise(optimizer: Any) -> bool:
    """Whether its updates become smaller as far as gradients are noise, by what its state keeps of a weight: a mean of
    gradients, which is divided by the root of a mean of their squares, as Adam's. Lion's updates stay as large, and
    LAMB's are scaled to the weights.

    Args:
        optimizer: with accelerate's wraps or without, after its first step.
    """
    kept = [own for own in innermost(optimizer).state.values() if isinstance(own, dict) and own]
    are_kept = bool(kept) and all("exp_avg" in own and "exp_avg_sq" in own for own in kept)
    return are_kept and not _is_called(optimizer, ("Lamb", "LAMB"), ())


def is_like_adam(optimizer: Any) -> bool:
    """Whether its first update is about as large in every weight: its groups have ``betas``, as Adam's and Lion's do.
    LAMB's is in proportion to the weights, and RAdam's first ones are not its usual ones.

    Args:
        optimizer: with accelerate's wraps or without.
    """
    has_betas = any(group.get("betas") for group in innermost(optimizer).param_groups)
    return has_betas and not _is_called(optimizer, ("Lamb", "LAMB"), ()) and rectified_by(optimizer) == 0.0
