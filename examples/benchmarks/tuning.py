"""How a schedule with a peak LR is tuned: on a grid of half decades that grows where its edge is the best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from runs import Job, Row

TUNING_SEEDS = (0, 1, 2)
"""Of the runs that choose an LR."""
SEEDS = (10, 11, 12, 13, 14)
"""Of the runs that are reported."""


def half_decade(lr: float, steps: int) -> float:
    """So many half decades above an LR, rounded as the CSV has it."""
    return float(f"{lr * 10 ** (steps / 2):g}")


def half_decades(low: float, high: float) -> tuple[float, ...]:
    """The LRs from ``low`` to ``high``, half a decade apart."""
    return tuple(half_decade(low, i) for i in range(1 + round(2 * math.log10(high / low))))


GRID = half_decades(1e-5, 1e-1)
NEAR = 1
"""Schedules other than the cosine are tuned on the LRs this many places around the cosine's best."""


def score(values: list[float]) -> float:
    """The mean, or minus infinity with a run that failed."""
    return statistics.mean(values) if all(map(math.isfinite, values)) else -math.inf


def score_by_lr(
    rows: Mapping[Job, Row], where: Job, seeds: Sequence[int] = TUNING_SEEDS
) -> Callable[[float], float | None]:
    """LR -> the score on the part to tune on, over the seeds to tune on; None while one of these has no row.

    Args:
        rows: by their jobs, whose last two are LR and seed.
        where: what stands before these in a job.
        seeds: to tune on.
    """

    def of(lr: float) -> float | None:
        found = [rows.get((*where, lr, seed)) for seed in seeds]
        values = [float(row["tune"]) for row in found if row is not None]
        return score(values) if len(values) == len(seeds) else None

    return of


def lrs_to_tune(
    of: Callable[[float], float | None],
    around: float | None = None,
    grid: Sequence[float] = GRID,
    near: int = NEAR,
) -> tuple[list[float], bool]:
    """The LRs that a method has to be tuned on, best first as far as they are known, and whether that is all.

    Args:
        of: LR -> the method's score with it; None when it was not run.
        around: the middle of the LRs, instead of the whole grid.
        grid: the LRs to begin with.
        near: so many half decades lie to both sides of the middle.
    """
    lrs = [*grid]
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


def percent_of_gain(value: float, tuned: float, chance: float) -> float:
    """A metric's distance from that of a tuned schedule, in percent of what the latter gains over chance.

    It is cut at 100 either way, so that no single run decides a mean; a run that failed is at -100. Where the tuned
    schedule gains nothing, 100 is better than it, and -100 is worse.

    Args:
        value: a metric, higher is better.
        tuned: of the tuned schedule.
        chance: of a model that knows nothing.
    """
    if tuned <= chance:
        return 100.0 if value > tuned else -100.0
    percent = 100.0 * (value - tuned) / (tuned - chance)
    return -100.0 if math.isnan(percent) else max(-100.0, min(percent, 100.0))


def best_lr_over_all(cells: Iterable[tuple[Mapping[float, float], float]]) -> float:
    """The one LR that loses the least beside tuning in every cell: the mean of ``percent_of_gain`` decides.

    Cells in which no LR is better than chance are left out, and so are LRs that were not tried in all others.

    Args:
        cells: LR -> score, and the chance of the cell's task.
    """
    percents = []
    for scores, chance in cells:
        best = max(scores.values())
        if best > chance:
            percents.append({lr: percent_of_gain(value, best, chance) for lr, value in scores.items()})
    tried = set.intersection(*map(set, percents))
    return max(sorted(tried), key=lambda lr: statistics.mean(cell[lr] for cell in percents))
