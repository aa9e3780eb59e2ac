"""How much of the first updates' slope lasts: what later batches say of the way that the weights have gone, and what
the LR makes of it. (Ours.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....runtime.update_meter import Update
from ..timetable import MOST_WATCHED
from .scale import FAR, POLYAK_SHARE, TRUST_SHARE, Scale

LASTING = 0.125
"""The share of the first updates' slope from which P is believed, once later batches have told how much of it lasts."""

LEAST_RAISED, MOST_RAISED = 7.0, 10.0
"""The least that the LR is raised, since P takes all of the loss for what can be learned: of a language model's it is a
fifth, so that P is as many times too high. And the most for one answer of a few batches: more are asked then.
"""


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


def raised_factor(scale: Scale, lasting: float | None, raised: float = 1.0) -> float:
    """By what the LR has to be multiplied, once later batches have told how much of the slope was noise.

    An update goes down the gradient of its own batch, noise included, and P takes all of that slope for real. Where
    little of it lasts on other batches, the loss falls by as much less, and P is too low. R knows no noise: the LR is
    raised at most to where P would not be far below it.

    Args:
        scale: of the first updates.
        lasting: the share of their slope, per unit of LR, that later batches see; None: unknown.
        raised: by what the LR was multiplied for that already.

    Returns:
        The factor, ``MOST_RAISED`` at most. Together with ``raised`` it is 1, or ``LEAST_RAISED`` at least.
    """
    if lasting is None or not (scale.may_be_noise and math.isfinite(scale.trust)):
        return 1.0
    most = min(TRUST_SHARE * scale.trust / FAR, scale.trusted_lr) / (POLYAK_SHARE * scale.polyak)
    wanted = min(LASTING / lasting, most) if lasting > 0.0 else most
    return min((wanted if wanted >= LEAST_RAISED else 1.0) / raised, MOST_RAISED)
