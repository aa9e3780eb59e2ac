"""How a schedule with a peak LR is tuned: on a grid of half decades that grows where its edge is the best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

TUNING_SEEDS = (0, 1, 2)
"""Of the runs that choose an LR."""
SEEDS = (10, 11, 12, 13, 14)
"""Of the runs that are reported."""


def half_decade(lr: float, steps: int) -> float:
    """So many half decades above an LR, rounded as the CSV has it."""
    return float(f"{lr * 10 ** (steps / 2):g}")


GRID = tuple(half_decade(1e-5, i) for i in range(9))
NEAR = 1
"""Schedules other than the cosine are tuned on the LRs this many places around the cosine's best."""


def score(values: list[float]) -> float:
    """The mean, or minus infinity with a run that failed."""
    return statistics.mean(values) if all(map(math.isfinite, values)) else -math.inf


def lrs_to_tune(
    of: Callable[[float], float | None], around: float | None = None, near: int = NEAR
) -> tuple[list[float], bool]:
    """The LRs that a method has to be tuned on, best first as far as they are known, and whether that is all.

    Args:
        of: LR -> the method's score with it; None when it was not run.
        around: the middle of the LRs, instead of the whole grid.
        near: so many half decades lie to both sides of the middle.
    """
    lrs = [*GRID]
    if around is not None:
        lrs = [half_decade(around, i) for i in range(-near, near + 1)]
    while True:
        scores = {lr: of(lr) for lr in lrs}
        known = {lr: value for lr, value in scores.items() if value is not None}
        if len(known) < len(lrs):
            return lrs, False
        best = max(lrs, key=lambda lr: known[lr])
        if best == min(lrs) and best > 1e-7:
            lrs.append(half_decade(best, -1))
        elif best == max(lrs) and best < 10:
            lrs.append(half_decade(best, 1))
        else:
            return sorted(lrs, key=lambda lr: -known[lr]), True
