"""Isolated spikes of a loss curve, which the Gaussian process does not see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter

from .gp import Array

_SPIKE_WINDOW = 5
_SPIKE_RANGES = 2.0


def usable(losses: Array, standardize: bool) -> npt.NDArray[np.bool_]:
    """Which losses the GP sees: the finite ones, without isolated spikes where ``standardize`` is on.

    A loss is a spike when it lies further from the running median of five losses than twice the range of that running
    median over the whole curve. The rule is the same for L and a L + b, and leaves the noise of the curve alone. What
    is left out keeps its place on the axis.

    Args:
        losses: (n,).
        standardize: the option of that name.

    Returns:
        (n,), True where the loss is used.
    """
    used = np.isfinite(losses)
    y = losses[used]
    if standardize and len(y) >= 2 * _SPIKE_WINDOW:
        middle = median_filter(y, size=_SPIKE_WINDOW, mode="mirror")
        used[used] = np.abs(y - middle) <= _SPIKE_RANGES * (middle.max() - middle.min())
    return used
