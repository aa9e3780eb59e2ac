"""What losses say without a Gaussian process: their noise, whether they have fallen, and when a warm-up has gone wrong
for good. No bound depends on the unit of the loss.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import median_filter

from .gp import Array

_FEWEST = 5
_A_FEW = 64
_START_SHARE = 0.05
_NOISES = 6.0
_GAINED_NOISES = 3.0
_FALLEN_ERRORS = 3.0
MEDIAN_ERROR = 1.2533
"""The standard error of a median, as a share of that of a mean, in normal noise."""


def ceiling(losses: Array) -> float:
    """The loss above which a warm-up counts as diverged: as far above its start as its best is below it, at least.

    The start is the median of the first twentieth of the losses, the best the lowest running median of five. Noise is
    allowed for: the ceiling is at least six of its standard deviations above the start. That is the largest one of
    ``noise``, of ``noise`` in the newer half of the losses, and of the spread of the older half: a fresh head's losses
    begin with next to no noise and have much of it as soon as the model tells its inputs apart, few steps from loss to
    loss may be small by chance, and losses of a small model drift together. The rule is the same for L and a L + b.

    Args:
        losses: (n,); those that are not finite are left out.

    Returns:
        The ceiling, in loss units; infinite where there are too few losses to say.
    """
    y = losses[np.isfinite(losses)]
    if len(y) < 2 * _FEWEST:
        return float("inf")
    start, half = _start(y), len(y) // 2
    deviation = max(noise(y), noise(y[half:]), _spread(y[:half]))
    return start + max(start - float(_middle(y).min()), _NOISES * deviation)


def noise(losses: Array) -> float:
    """The standard deviation of the noise of losses, in their unit, by the median of the steps from loss to loss: of a
    few steep ones, and of a rise at the end, it takes no notice.

    Args:
        losses: (n,), n at least 2, finite.
    """
    return float(median(np.abs(np.diff(losses))) / (0.6745 * 2.0**0.5))


def median(losses: Array) -> float:
    """numpy's median, faster where there are a few only.

    Args:
        losses: (n,), n at least 1, none of them NaN.
    """
    if not 0 < len(losses) <= _A_FEW:
        return float(np.median(losses))
    ordered = sorted(losses.tolist())
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2.0


def _spread(losses: Array) -> float:
    """The standard deviation of losses, by their tenth and ninetieth percentiles."""
    low, high = np.quantile(losses, (0.1, 0.9))
    return float(high - low) / (2.0 * 1.2816)


def num_sound(losses: Array) -> int:
    """How many losses there were when their running median lay at or below their start for the last time; 0 where none
    is finite. Where the noise is large, single losses lie there long after the run has broken.

    Args:
        losses: (n,), one per optimizer step.
    """
    finite = np.flatnonzero(np.isfinite(losses))
    if len(finite) == 0:
        return 0
    y = losses[finite]
    sound = finite[_middle(y) <= _start(y)]
    return int(sound[-1]) + 1 if len(sound) else 0


def num_lowest(losses: Array) -> int:
    """How many losses there were when their running median was lowest; 0 where none is finite.

    Args:
        losses: (n,), one per optimizer step.
    """
    finite = np.flatnonzero(np.isfinite(losses))
    return int(finite[np.argmin(_middle(losses[finite]))]) + 1 if len(finite) else 0


def gain(losses: Array) -> float:
    """How far the lowest running median of the losses lies below their start, in their unit; 0 where that is not three
    times the noise of their older half: losses that only scatter hardly ever get there.

    Args:
        losses: (n,), one per optimizer step; those that are not finite are left out.
    """
    y = losses[np.isfinite(losses)]
    if len(y) < 2 * _FEWEST:
        return 0.0
    gained = _start(y) - float(_middle(y).min())
    return gained if gained > _GAINED_NOISES * noise(y[: len(y) // 2]) else 0.0


def has_gained(losses: Array) -> bool:
    """Whether there is a ``gain`` in the losses (n,), one per optimizer step."""
    return gain(losses) > 0.0


def has_ended_high(losses: Array) -> bool:
    """Whether the last losses, three or a tenth of them, lie above the first so many: the lowest of them above the
    highest there.

    Args:
        losses: (n,), one per optimizer step; those that are not finite are left out.
    """
    y = losses[np.isfinite(losses)]
    few = max(3, len(y) // 10)
    return len(y) >= 2 * few and bool(y[-few:].min() > y[:few].max())


def has_fallen(losses: Array) -> bool:
    """Whether losses have certainly fallen and stayed low: the median of the last third lies below that of the first by
    three standard errors, and that of the last sixth above that of no other by as much. The errors allow for losses
    that drift together.

    Args:
        losses: (n,), one per optimizer step; those that are not finite are left out.
    """
    y = losses[np.isfinite(losses)]
    third = len(y) // 3
    if third < _FEWEST:
        return False
    shared = _shared(y[-third:])
    error = MEDIAN_ERROR * noise(y) * math.sqrt(1.0 + shared) / (1.0 - shared)

    def lies_above(high: Array, low: Array) -> bool:
        sizes = math.sqrt(1.0 / len(high) + 1.0 / len(low))
        return float(np.median(high) - np.median(low)) > _FALLEN_ERRORS * error * sizes

    *earlier, last = np.array_split(y, 6)
    return lies_above(y[:third], y[-third:]) and not any(lies_above(last, part) for part in earlier)


def _shared(losses: Array) -> float:
    """How much a loss has in common with the one before, beside a straight line: their correlation, in [0, 0.9]."""
    places = np.arange(len(losses), dtype=np.float64)
    rest = losses - np.polyval(np.polyfit(places, losses, 1), places)
    square = float(rest @ rest)
    return min(max(float(rest[1:] @ rest[:-1]) / square, 0.0), 0.9) if square > 0.0 else 0.0


def _middle(losses: Array) -> Array:
    """The running median of five finite losses."""
    middle: Array = median_filter(losses, size=_FEWEST, mode="mirror")
    return middle


def _start(losses: Array) -> float:
    """Where finite losses begin, in their unit."""
    return float(np.median(losses[: max(_FEWEST, int(_START_SHARE * len(losses)))]))


def is_diverged(losses: Array, num_new: int) -> bool:
    """Whether no loss since the last test, nor of the last three, is finite; False of fewer than three.

    Args:
        losses: (n,), one per optimizer step.
        num_new: how many of them are new since the last test.
    """
    tail = losses[-max(num_new, 3) :]
    return num_new > 0 and len(tail) >= 3 and not bool(np.isfinite(tail).any())


def is_above(losses: Array, num_new: int, top: float) -> bool:
    """Whether the losses since the last test, or the last five, lie above the ceiling: their median does.

    Args:
        losses: (n,), one per optimizer step.
        num_new: how many of them are new since the last test.
        top: their ``ceiling``.
    """
    tail = losses[-max(num_new, _FEWEST) :]
    tail = tail[np.isfinite(tail)]
    return len(tail) > 0 and float(np.median(tail)) > top
