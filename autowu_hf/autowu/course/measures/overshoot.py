"""Whether the way from the start has gone too far: what the gradients of later batches say about it. (Ours.)

Losses of single batches differ by more than a run in trouble loses in its first steps. The gradients tell sooner: at
the weights w a batch sees its loss rise along the way from w_0, by <g, w - w_0>. Where that is positive, batch after
batch, although the losses have not fallen, the run has climbed out of the valley that it began in. Of a parabola that
is level at w_0, as the loss of a trained model is, the rise so far is half of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from ....runtime.update_meter import Update
from ..legs import Way
from ..signs import Array
from .scale_search import ScaleSearch

OVERSHOT = 0.05
"""The share of the first losses that the rise must reach, beyond what was learned."""

FEWEST_RISES = 3
"""The batches that tell it at least."""

_MOST = 2  # times that a run goes back for this
_ERRORS = 2.0  # standard errors that it must lie above 0


class Overshoot:
    """Asks the batches after each growth from 0, one at every optimizer step.

    Args:
        search: of the scale, whose meter measures.
        start: called for w_0, this process's shares in the order of the optimizer's parameters; none where it is gone.

    Attributes:
        is_open: whether batches are being asked; what they say stays in the meter until they are judged.
        found: the steps done each time that the way had gone too far, and the rise, as a share of the first losses.
    """

    def __init__(self, search: ScaleSearch, start: Callable[[], Sequence[Tensor]]) -> None:
        self._search = search
        self._meter = search.meter
        self._start_of = start
        self.is_open = False
        self.found: list[tuple[int, float]] = []

    def judge(self, step: int, way: Way, losses: Array, num_first: int, share: float) -> float | None:
        """Begins to ask, or judges, whichever is due.

        Args:
            step: the optimizer steps done.
            way: the LR's, which says when.
            losses: (n,), one of each step.
            num_first: how many of them count as the first.
            share: of a loss, that whose gradient was taken.

        Returns:
            See ``rise_of``; None, too, while it is not time, and where nobody is asked: without w_0, and for SGD, of
            whose growth the losses are asked.
        """
        judges, scale = way.judges, self._search.scale
        if judges is None or scale is None or scale.is_aligned or len(self.found) == _MOST:
            self.is_open = False
        elif step == judges.start:
            self._meter.updates.clear()  # of a window that another run's length has moved
            self.find_start(self._start_of())
        elif self.is_open and step >= judges.stop:
            self.is_open = False
            seen = [-update.fallen / share for update in self._meter.updates if isinstance(update, Update)]
            rise = rise_of(seen, losses, num_first) if len(seen) == len(self._meter.updates) else None
            self.found += [] if rise is None else [(step, rise)]
            return rise
        return None

    def is_due(self, step: int, way: Way) -> bool:
        """Whether ``judge`` has something to do after so many steps."""
        judges = way.judges
        return (self.is_open and judges is None) or (judges is not None and step in (judges.start, judges.stop))

    def find_start(self, start: Sequence[Tensor]) -> None:
        """Has the meter measure how far the loss has risen since w_0, for a window that begins, or goes on after a
        resume.

        Args:
            start: w_0; none where it is gone, so that nobody is asked.
        """
        self.is_open = bool(start)
        if start:
            self._meter.expected_lr = math.inf
            self._meter.arm(self._search.num_shares, takes_back=False)
            self._meter.hold_start(start)


def rise_of(rises: Sequence[float], losses: Array, num_first: int) -> float | None:
    """By how much the way has raised the loss, as a share of the first losses.

    Args:
        rises: <g, w - w_0> of the last batches, oldest first, in the losses' unit.
        losses: (n,), one per optimizer step, of these batches at last.
        num_first: how many of them count as the first.

    Returns:
        Half of the rises' mean, or of their median where that is less; None where that cannot be told from 0, or is
        less than ``OVERSHOT`` above the share that was learned, or too few batches tell.
    """
    first, last = (part[np.isfinite(part)] for part in (losses[:num_first], losses[-len(rises) :]))
    if len(rises) < FEWEST_RISES or not len(first) or not len(last) or not np.isfinite(rises).all():
        return None
    level = float(first.mean())
    middle = min(float(np.mean(rises)), float(np.median(rises)))
    error = float(np.std(rises, ddof=1)) / math.sqrt(len(rises))
    learned = max(level - float(last.mean()), 0.0)
    if level <= 0.0 or middle <= _ERRORS * error or middle / 2.0 - learned <= OVERSHOT * level:
        return None
    return middle / 2.0 / level
