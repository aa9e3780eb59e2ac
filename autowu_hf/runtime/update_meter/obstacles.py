"""Why the numbers of an optimizer step cannot be had, or not be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ..finite import numbers_of
from .update import MOST_WAITING, Update


def seem_clipped(updates: Sequence[Update], is_half: bool) -> bool:
    """Whether gradients have the same norm at every step, as if they were clipped where it could not be seen.

    Args:
        updates: of the steps.
        is_half: whether the gradients are in half precision.
    """
    norms = [update.gradient_norm for update in updates]
    is_same = max(norms) - min(norms) < (5e-3 if is_half else 1e-4) * max(norms)
    return is_same and all(update.clipping == 1.0 for update in updates)


def obstacle_in(parameters: Iterable[Tensor]) -> str | None:
    """Why the gradients, or the weights that have one, are no numbers to reckon with; None: they are."""
    trained = [p for p in parameters if p.grad is not None]
    if any(p.grad.is_sparse for p in trained):  # type: ignore[union-attr]
        return "the gradients are sparse"
    if any(numbers_of(p) is None or numbers_of(p.grad) is None for p in trained):
        return "the weights or their gradients are tensors of a kind that cannot be measured"
    return None


def why_idle(optimizer: Any, lr: float, expected_lr: float, waiting: Sequence[Any]) -> str | None:
    """Why the coming step is not to be measured, as a part of a sentence; None: it is.

    Args:
        optimizer: the innermost one.
        lr: of the step.
        expected_lr: that of the schedule.
        waiting: the measured steps that nobody has taken in.
    """
    overflow = getattr(optimizer, "found_inf", None)
    if lr <= 0.0:
        return "the learning rate was 0"
    if overflow is not None and float(overflow) > 0.0:
        return "the gradients overflowed"
    if lr > 10.0 * expected_lr:
        return "the learning rate was not the one that this schedule had set"
    return "the schedule was not stepped" if len(waiting) >= MOST_WAITING else None


def obstacle_of(sums: Tensor, clipping: float | None, is_repeated: bool, is_part: bool, is_kept: bool) -> str | None:
    """Why a step that was looked at cannot be measured, as a part of a sentence; None: it can.

    Args:
        sums: (NUM_SUMS,), of all processes; see ``sums_of``.
        clipping: by what the gradients were divided; None where that cannot be told.
        is_repeated: whether the step has called a closure more than once.
        is_part: whether some of the weights were stepped where it could not be seen.
        is_kept: whether it was so large that it had to be taken back, and could not be.
    """
    obstacles = {
        "the optimizer calls its closure more than once in a step": is_repeated,
        "DeepSpeed steps a part of the weights by another optimizer": is_part,
        "a step that is large enough to be measured cannot be taken back under ZeRO": is_kept,
        "the optimizer has no gradients at its step": float(sums[-1]) == 0.0,
        "gradients or weights of a first step are not finite": not math.isfinite(sum(sums.tolist())),
        "the gradients of a first step are clipped in a way that cannot be seen": clipping is None,
    }
    return next((words for words, holds in obstacles.items() if holds), None)
