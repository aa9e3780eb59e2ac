"""What a posterior says about the end of the warm-up: eqs. (3) and (4) of the paper's 2.1.2, and the cliff."""

from __future__ import annotations

import math

import numpy as np

from .gp import GRID, Array, Posterior

GAP_JITTER = 1e-4
"""Added to the variance of f(x) - f(1), as in the authors' code: a rise of less than a hundredth of the losses'
standard deviation (of the loss's unit where ``standardize`` is off) is no evidence.
"""

GIVEN_BACK = 0.5
"""The cliff is where this share of what the loss had gained since the start is lost again, and more than its noise."""


def minimum_probability(posterior: Posterior) -> float:
    """P_min = max over x in S of P(f(x) < f(1)), eqs. (3) and (4): a lower bound of P(f(x) < f(1) for some x).

    Args:
        posterior: of the latent curve on ``GRID``; x = 1 itself is left out.

    Returns:
        A probability.
    """
    gap = posterior.mean[-1] - posterior.mean[:-1]
    return _probability(float((gap / _deviation(posterior)[:-1]).max()))


def cliff_probability(posterior: Posterior, noise: float) -> float:
    """A lower bound of the probability that f(1) lies above the cliff's level: half-way from the minimum to the start,
    and the losses' noise above the minimum.

    That is the lower one of P(f(1) - f(x*) > (1 - ``GIVEN_BACK``) (f(0) - f(x*))) and P(f(1) - f(x*) > noise), x* being
    where the mean is lowest. The first difference is a mean of the two rises f(1) - f(x*) and f(1) - f(0), whose
    deviations are taken as if they moved together. Without the second, where next to nothing was gained, next to
    nothing would be a cliff.

    Args:
        posterior: of the latent curve on ``GRID``.
        noise: the standard deviation of the losses around it, in the same unit.

    Returns:
        A probability.
    """
    rise, deviation = posterior.mean[-1] - posterior.mean, _deviation(posterior)
    lowest = int(np.argmin(posterior.mean))
    above = (1.0 - GIVEN_BACK) * rise[0] + GIVEN_BACK * rise[lowest]
    half = above / ((1.0 - GIVEN_BACK) * deviation[0] + GIVEN_BACK * deviation[lowest])
    return _probability(float(min(half, (rise[lowest] - noise) / deviation[lowest])))


def cliff_place(mean: Array, noise: float) -> float:
    """Where a curve rose above the cliff's level for the last time.

    Not the first time: before anything is gained, the curve crosses the level by chance again and again.

    Args:
        mean: (500,), the posterior mean on ``GRID``.
        noise: as in ``cliff_probability``.

    Returns:
        x in [0, 1]; 1 where it ends below that level.
    """
    lowest = float(mean.min())
    level = lowest + max(GIVEN_BACK * (float(mean[0]) - lowest), noise)
    return float(GRID[min(int(np.flatnonzero(mean <= level)[-1]) + 1, len(GRID) - 1)])


def minimum_place(mean: Array, noise: float) -> float:
    """The last place at which a curve was as good as at its minimum. Among the minima that the losses hardly tell from
    the one of eq. (5), it is the one at the highest LR.

    A point is as good as the minimum if it lies within noise^2 / gain of it, or within the noise if the gain is smaller
    than that. Without noise, this is the place of eq. (5).

    Args:
        mean: (n,), the posterior mean on the first n places of ``GRID``.
        noise: as in ``cliff_probability``.

    Returns:
        x in [0, 1].
    """
    lowest = int(np.argmin(mean))
    if noise == 0.0:
        return float(GRID[lowest])  # the first of equals
    room = noise**2 / max(float(mean[0] - mean[lowest]), noise)
    return float(GRID[np.flatnonzero(mean <= mean[lowest] + room)[-1]])


def _deviation(posterior: Posterior) -> Array:
    deviation: Array = np.sqrt(np.maximum(posterior.gap_variance, 0.0) + GAP_JITTER)
    return deviation


def _probability(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))
