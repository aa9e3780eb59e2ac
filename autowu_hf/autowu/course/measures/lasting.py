"""How much of the first updates' slope lasts: what later batches say of the way that the weights have gone. (Ours.)"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....runtime.update_meter import Update
from ..timetable import MOST_WATCHED
from .scale import Scale


def lasting_of(scale: Scale | None, updates: Sequence[Update | str], way: float) -> tuple[float | None, float]:
    """The share of the first slope that the batches of some steps see. Each is asked for the whole way up to it, and
    counts by its length.

    Args:
        scale: of the first updates.
        updates: of these steps, or why one could not be measured.
        way: the LRs of the steps before them, added up.

    Returns:
        The share, per unit of LR, None where it cannot be known; and the way after these steps.
    """
    has_gaps = len(updates) > 1 + MOST_WATCHED  # the meter holds so many only
    if scale is None or has_gaps or any(isinstance(update, str) for update in updates):
        return None, way
    fallen = expected = 0.0
    for update in updates:
        assert isinstance(update, Update)
        fallen += update.fallen
        expected += way * scale.loss / scale.polyak
        way += update.lr
    return (fallen / expected if expected > 0.0 and math.isfinite(fallen) else None), way
