"""Whether losses have given back what had been learned, before the switch or after it, or have hardly fallen at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from . import divergence
from .gp import Array

LOST, LEAST_LOST = 0.5, 0.05
"""The share of what had been learned that the losses must have given back, and of the first losses, at least."""

NOISES = 4.0
"""The standard errors by which they must lie above their lowest level, where that is looked at again and again."""


def level(losses: Array) -> float:
    """The median of the losses (n,), where those that are not finite count as infinite; infinite without any."""
    return divergence.median(np.where(np.isfinite(losses), losses, np.inf)) if len(losses) else math.inf


def error(losses: Array, num: int, other: int | None = None) -> float:
    """The standard error of the difference of two levels of ``num`` and ``other`` losses, by default as many, with the
    noise of these (n,).
    """
    finite, per_loss = losses[np.isfinite(losses)], 1.0 / num + 1.0 / (other or num)
    return divergence.MEDIAN_ERROR * divergence.noise(finite) * math.sqrt(per_loss) if len(finite) > 1 else 0.0


def is_lost(first: float, best: float, now: float, losses: Array, num: int, errors: float = NOISES) -> bool:
    """Whether the losses have given back what had been learned.

    Args:
        first: their level at the start of the run.
        best: their lowest level; infinite before there is one.
        now: their level.
        losses: (n,), the last ones, by whose noise it is judged.
        num: how many of these make a level.
        errors: by so many standard errors they must lie above ``best``.
    """
    is_far = now - best > max(LOST * (first - best), LEAST_LOST * abs(first))  # the noise is asked for only then
    return is_far and now - best > errors * error(losses, num)


def has_hardly_fallen(starts: Sequence[tuple[float, int]], losses: Array, num: int) -> bool:
    """Whether the losses have fallen by less than ``LEAST_LOST``, or not at all: certainly, or as far as can be seen,
    where they do not lie a standard error below the first ones, either; those that are not finite do not tell.

    Args:
        starts: their levels at the start of the run, each with the number of losses that it is of: a few that are sure
            to be from before the learning, and more, which noise hides less.
        losses: (n,), the last ones, n at least ``num``.
        num: how many of these make a level.
    """
    now, finite, least = level(losses[-num:]), losses[np.isfinite(losses)], LEAST_LOST * abs(starts[0][0])
    if not math.isfinite(now):
        return False
    fall = max(first - now for first, _ in starts)
    is_certain = fall < least and starts[0][0] - now + NOISES / 2.0 * error(losses, num) < least
    return is_certain or not any(
        first - level(finite) >= min(error(finite, len(finite), own), least) for first, own in starts
    )
