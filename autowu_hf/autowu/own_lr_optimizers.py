"""Optimizers that a schedule has no say in, known by the names of their classes."""

from __future__ import annotations

from typing import Any


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
