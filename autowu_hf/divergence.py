"""When a warm-up has gone wrong for good: bounds that do not depend on the unit of the loss."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter

from .loss_curve_gp import Array

_FEWEST = 5
_START_SHARE = 0.05
_NOISES = 6.0


def ceiling(losses: Array) -> float:
    """The loss above which a warm-up counts as diverged: as far above its start as its best is below it, at least.

    The start is the median of the first twentieth of the losses, the best the lowest running median of five. Noise is
    allowed for: the ceiling is at least six of its standard deviations above the start. The rule is the same for L and
    a L + b.

    Args:
        losses: (n,); those that are not finite are left out.

    Returns:
        The ceiling, in loss units; infinite where there are too few losses to say.
    """
    y = losses[np.isfinite(losses)]
    if len(y) < 2 * _FEWEST:
        return float("inf")
    start = float(np.median(y[: max(_FEWEST, int(_START_SHARE * len(y)))]))
    best = float(median_filter(y, size=_FEWEST, mode="nearest").min())
    # The median of the steps from loss to loss: of a few steep ones, and of a rise at the end, it takes no notice.
    noise = float(np.median(np.abs(np.diff(y)))) / (0.6745 * 2.0**0.5)
    return float(start + max(start - best, _NOISES * noise))


def is_diverged(losses: Array, num_new: int) -> bool:
    """Whether no loss since the last test, nor of the last three, is finite.

    Args:
        losses: (n,), one per optimizer step.
        num_new: how many of them are new since the last test.
    """
    tail = losses[-max(num_new, 3) :]
    return num_new > 0 and not bool(np.isfinite(tail).any())


def is_above(losses: Array, num_new: int) -> bool:
    """Whether the losses since the last test, or the last five, lie above the ceiling: their median does.

    Args:
        losses: (n,), one per optimizer step.
        num_new: how many of them are new since the last test.
    """
    tail = losses[-max(num_new, _FEWEST) :]
    tail = tail[np.isfinite(tail)]
    return len(tail) > 0 and float(np.median(tail)) > ceiling(losses)
