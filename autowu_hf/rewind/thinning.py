"""Which snapshots are taken, which are dropped and which are restored: arithmetic on the LRs at which they were taken.

Everywhere here ``lrs`` is (n,), one LR per snapshot, oldest first, in optimizer units; the results are places in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LR_FACTOR = 1.5
"""The LR grows by this factor from one snapshot to the next, where memory allows."""

FEWEST = 4
"""Rewind needs room for this many snapshots at least, the one that is being taken included."""

MOST = 13
"""There are never more snapshots than this at a time, the one that is being taken included."""

_MOST_AT_THE_MINIMUM = 8
_ROOM_FOR_START = 7


def limit_for(band: float, looks_on: bool) -> int:
    """The most snapshots that should exist at a time, the one that is being taken included.

    Args:
        band: the LR of a step divided by the lowest LR that a switch at this step may go back to.
        looks_on: whether the warm-up goes on beyond the minimum, so that a switch may go further back than that.
    """
    if not looks_on:
        return _MOST_AT_THE_MINIMUM
    return min(5 + math.ceil(math.log(band) / math.log(LR_FACTOR)), MOST)


def spacing(band: float, limit: int) -> float:
    """The factor in LR from one snapshot to the next, so large that the band holds no more of them than may exist.

    Args:
        band: as in ``limit_for``.
        limit: the most snapshots that exist at a time.
    """
    others = 5 if limit >= _ROOM_FOR_START else 4  # outside the band, and the one that is being taken
    return float(max(band ** (1.0 / max(limit - others, 1)), LR_FACTOR))


def last_below(lrs: Sequence[float], highest_lr: float) -> int:
    """The last snapshot whose LR is not above ``highest_lr``; the first one if all are above."""
    return max((i for i, lr in enumerate(lrs) if lr <= highest_lr), default=0)


def to_drop(lrs: Sequence[float], limit: int, wanted_lrs: Sequence[float], lowest_lr: float | None) -> list[int]:
    """The snapshots to drop until ``limit - 1`` remain, in the order of dropping.

    First go those below the lowest LR that nothing wants, the one with the closest neighbours in LR first; then the
    oldest that nothing wants; then the oldest. Wanted are the last snapshot below each wanted LR and, where the limit
    is 7 or more, the very first one.

    Args:
        lrs: as above.
        limit: the most snapshots that may exist once the next one is taken.
        wanted_lrs: the LRs that a switch would go back to by what is known now; at least one.
        lowest_lr: the lowest LR that a switch may go back to by losses that are still to come. None: the lowest of
            the wanted LRs, because each later snapshot may turn out to be the one at the minimum.
    """
    wanted = {last_below(lrs, lr) for lr in wanted_lrs}
    band_starts = min(wanted) if lowest_lr is None else last_below(lrs, lowest_lr)
    if limit >= _ROOM_FOR_START:
        wanted.add(0)
    remaining, dropped = list(range(len(lrs))), []
    while len(remaining) > limit - 1:
        places = [p for p in range(1, len(remaining) - 1) if remaining[p] < band_starts and remaining[p] not in wanted]
        if places:
            place = min(places, key=lambda p: lrs[remaining[p + 1]] / lrs[remaining[p - 1]])
        else:
            place = next((p for p, i in enumerate(remaining) if i not in wanted), 0)
        dropped.append(remaining.pop(place))
    return dropped


def order_of_return(lrs: Sequence[float], highest_lr: float, start_lr: float) -> list[int]:
    """All snapshots, in the order in which a switch tries to restore them.

    The first is the last one that saw no LR above the highest; then come the ones before it, latest first, then the
    ones after it. If only a snapshot of the very start saw no higher LR, the one after it comes first, provided that
    its LR is at most ``LR_FACTOR`` times the highest.

    Args:
        lrs: as above; at least one.
        highest_lr: the LR that training goes on from.
        start_lr: the LR of the warm-up's first step.
    """
    first = last_below(lrs, highest_lr)
    if first == 0 and lrs[0] <= min(highest_lr, LR_FACTOR * start_lr):
        first = min(last_below(lrs, LR_FACTOR * highest_lr), 1)
    return [*range(first, -1, -1), *range(first + 1, len(lrs))]
