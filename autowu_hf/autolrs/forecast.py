"""AutoLRS's forecast of a loss (Jin et al. 2021, arXiv 2105.10762, section 4).

An exponential a e^{b x} + c, b < 0, is fitted to the losses of a candidate, outliers left out, and read off after the
whole stage.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.interpolate import LSQUnivariateSpline
from scipy.optimize import minimize_scalar

Array = npt.NDArray[np.float64]

TRAINING_PASSES = 10
"""Passes of the outlier filter over training losses."""

TRAINING_SHARE = 0.03
"""The share of them that a pass drops, of all, from the first half. With few losses a pass drops one, and there are
fewer passes.
"""

SLOWEST = 3.0
"""The longest time in which the exponential may fall to 1/e, in times of what was seen. (Ours: with less curvature than
that, a few noisy losses would be extended along a straight line, to any depth.)
"""

_FEWEST = 4
_NUM_STARTS = 40


def forecast(x: Array, losses: Array, at: float, is_validation: bool = False) -> float:
    """The loss that an exponential through the losses so far has later.

    Args:
        x: (n,), ascending, the steps after which the losses were measured, since the candidate's first.
        losses: (n,), in the loss's own unit. Those that are not finite are left out.
        at: the number of steps to forecast the loss for, in the unit of ``x``.
        is_validation: whether they are validation losses, of which only the worst outlier is dropped.

    Returns:
        The forecast, in the loss's own unit; NaN where the last loss is not finite, or fewer than four are.
    """
    finite = np.isfinite(losses)
    if not len(losses) or not finite[-1] or int(finite.sum()) < _FEWEST:
        return math.nan
    x, losses = drop_outliers(x[finite], losses[finite], is_validation)
    a, b, c = fit_exponential(x, losses, slowest=SLOWEST * float(x[-1] - x[0]))
    return a * math.exp(b * at) + c


def drop_outliers(x: Array, losses: Array, is_validation: bool) -> tuple[Array, Array]:
    """Leaves out the losses that are furthest from a spline of degree 2 through all.

    Training losses: ten passes, each of which drops the 3 % with the largest residuals from the first half of those
    that are left. Validation losses: one pass, which drops the worst one.

    Args:
        x: (n,), ascending.
        losses: (n,), finite.
        is_validation: which of the two.

    Returns:
        The two arrays, (m,) with 4 <= m <= n where n is at least 4.
    """
    num_dropped = 1 if is_validation else max(int(TRAINING_SHARE * len(x)), 1)
    passes = 1 if is_validation else min(TRAINING_PASSES, int(TRAINING_PASSES * TRAINING_SHARE * len(x)))
    for _ in range(passes):
        if len(x) - num_dropped < _FEWEST:
            break
        candidates = len(x) if is_validation else len(x) // 2
        residuals = np.abs(losses - _spline(x, losses)(x))[:candidates]
        kept = np.setdiff1d(np.arange(len(x)), np.argsort(residuals)[len(residuals) - num_dropped :])
        x, losses = x[kept], losses[kept]
    return x, losses


def _spline(x: Array, losses: Array) -> LSQUnivariateSpline:
    """The least-squares spline of degree 2, with a knot in the middle where there are enough points."""
    return LSQUnivariateSpline(x, losses, [x[len(x) // 2]] if len(x) >= 8 else [], k=2)


def fit_exponential(x: Array, losses: Array, slowest: float) -> tuple[float, float, float]:
    """The a, b and c for which a e^{b x} + c is closest to the losses, in the mean square.

    a and c have a closed form given b, so the search is over b alone: a scan, then a minimisation around its best.

    Args:
        x: (n,), at least three different values.
        losses: (n,), finite.
        slowest: the longest time, in the unit of ``x``, in which the exponential may fall to 1/e: b is at most
            -1 / slowest.

    Returns:
        a, b (in 1 / unit of ``x``, negative) and c.
    """
    gaps = np.diff(x)
    fastest = float(gaps[gaps > 0].min()) / 5.0
    low, high = math.log(1.0 / slowest), math.log(1.0 / min(fastest, 0.5 * slowest))

    def solve(log_rate: float) -> tuple[float, float, float]:
        shape = np.exp(-math.exp(log_rate) * (x - x[0]))  # from the first, so that it does not vanish
        design = np.stack([shape, np.ones_like(x)], axis=1)
        (a, c), *_ = np.linalg.lstsq(design, losses, rcond=None)
        return float(((design @ (a, c) - losses) ** 2).sum()), float(a), float(c)

    rates = np.linspace(low, high, _NUM_STARTS)
    best = int(np.argmin([solve(rate)[0] for rate in rates]))
    bounds = (rates[max(best - 1, 0)], rates[min(best + 1, _NUM_STARTS - 1)])
    found = minimize_scalar(lambda rate: solve(rate)[0], bounds=bounds, method="bounded", options={"xatol": 1e-10})
    log_rate = min((float(found.x), *bounds), key=lambda rate: solve(rate)[0])
    _, a, c = solve(log_rate)
    b = -math.exp(log_rate)
    return a * math.exp(-b * float(x[0])), b, c
