"""Whether the way from the start has gone too far: what the gradients of later batches say about it. (Ours.)

Losses of single batches differ by more than a run in trouble loses in its first steps. The gradients tell sooner: at
the weights w a batch sees its loss rise along the way from w_0, by <g, w - w_0>. Where that is positive, batch after
batch, although the losses have not fallen, the run has climbed out of the valley that it began in. Of a parabola that
is level at w_0, as the loss of a trained model is, the rise so far is half of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ....runtime.update_meter import START_IS_GONE, Update
from ..legs import Way
from ..measures.scale_search import ScaleSearch
from ..signs import Array
from ..timetable import PATIENCE

OVERSHOT, LONG = 0.05, 60
"""The share of the first losses that the rise must reach, beyond what was learned; from so many optimizer steps on it
grows with their square root, for a longer run has more time to come back.
"""

FEWEST_RISES = 3
"""The batches that tell it at least."""

_MOST = 2  # times that a run goes back for this
_ERRORS = 2.0  # standard errors that it must lie above 0


class Overshoot:
    """Asks the batches after each change of the LR, one at every optimizer step.

    Args:
        search: of the scale, whose meter measures.
        start: called for w_0, this process's shares in the order of the optimizer's parameters; none where it is gone.

    Attributes:
        is_open: whether batches are being asked; what they say stays in the meter until they are judged.
        found: the steps done each time that the way had gone too far, and the rise, as a share of the first losses;
            None where most of the batches' losses were not finite.
    """

    def __init__(self, search: ScaleSearch, start: Callable[[], Sequence[Tensor]]) -> None:
        self._search = search
        self._meter = search.meter
        self._start_of = start
        self.is_open = False
        self.found: list[tuple[int, float | None]] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has no w_0 while batches are asked, and does not judge."""
        self.__dict__.update(state)
        if self.is_open:
            self.is_open = False
            self._meter.updates[:] = [update for update in self._meter.updates if update != START_IS_GONE]

    def judge(self, step: int, way: Way, losses: Array, num_first: int, share: float) -> bool:
        """Judges, if it is time.

        Args:
            step: the optimizer steps done.
            way: the LR's, which says when.
            losses: (n,), one of each step.
            num_first: how many of them count as the first.
            share: of a loss, that whose gradient was taken.

        Returns:
            Whether the way has gone too far.
        """
        judges, updates = way.judges, self._meter.updates
        if not self.is_open or judges is None or step < judges.stop:
            return False
        last, rise = losses[-len(judges) :], None
        is_broken = 2 * int(np.isfinite(last).sum()) < len(last)
        is_unclear = len(updates) < len(judges) or not np.isfinite(last[-1:]).all()
        if is_unclear and not is_broken and step < judges.stop + PATIENCE:  # of one NaN nobody knows if it is the first
            return False
        self.is_open = False
        rises = [-update.fallen / share for update in updates if isinstance(update, Update)]
        if len(rises) == len(updates):
            bar = OVERSHOT * max(1.0, way.times.num_steps / LONG) ** 0.5
            borne = 1.0 if self._search.scale is None else self._search.scale.borne
            rise = rise_of(rises, losses[:num_first], last, borne * bar, is_sure=borne > 1.0)
        if is_broken or rise is not None:
            self.found.append((step, rise))
        return is_broken or rise is not None

    def ask(self, step: int, way: Way) -> None:
        """Begins to ask, where that is due, and ends it where the LR has moved on."""
        judges = way.judges
        if judges is None or step < judges.start:
            self.is_open = False
        elif step == judges.start and self._may_open:
            self.find_start(self._start_of())

    @property
    def _may_open(self) -> bool:
        """Whether anybody is asked: not for SGD, whose growth the losses judge, and not too often."""
        scale = self._search.scale
        return scale is not None and not scale.is_aligned and len(self.found) < _MOST

    def is_pending(self, step: int, way: Way) -> bool:
        """Whether batches are being asked after ``step`` steps, or will be."""
        return self.is_open or (way.judges is not None and step < way.judges.start and self._may_open)

    def due_after(self, step: int, way: Way) -> int | None:
        """The first step after ``step`` after which ``ask`` or ``judge`` has something to do; None: there is none."""
        judges = way.judges
        if self.is_open:
            return step + 1 if judges is None or step + 1 <= judges.start else max(step + 1, judges.stop)
        return judges.start if judges is not None and judges.start > step else None

    def find_start(self, start: Sequence[Tensor]) -> None:
        """Has the meter measure how far the loss has risen since w_0, for a window that begins, or goes on after a
        resume.

        Args:
            start: w_0; none where it is gone, so that nobody is asked.
        """
        self.is_open = bool(start)
        if start:
            self._search.measure_later()
            self._meter.hold_start(start)


def rise_of(rises: Sequence[float], first: Array, last: Array, bar: float, *, is_sure: bool = False) -> float | None:
    """By how much the way has raised the loss, as a share of the first losses.

    Args:
        rises: <g, w - w_0> of some batches, in the losses' unit.
        first: (m,), the first losses.
        last: (n,), those of the batches.
        bar: what the rise must exceed beyond the share that was learned.
        is_sure: whether it has to do so by two standard errors, too.

    Returns:
        Half of the rises' mean, or of their median where that is less; None where that cannot be told from 0, or is too
        little, or where too few batches tell.
    """
    first, last = first[np.isfinite(first)], last[np.isfinite(last)]
    if len(rises) < FEWEST_RISES or not len(first) or not len(last) or not np.isfinite(rises).all():
        return None
    level = float(first.mean())
    middle = min(float(np.mean(rises)), float(np.median(rises)))
    error = float(np.std(rises, ddof=1)) / math.sqrt(len(rises))
    least = middle - _ERRORS * error
    learned = max(level - float(last.mean()), 0.0)
    if level <= 0.0 or least <= 0.0 or (least if is_sure else middle) / 2.0 - learned <= bar * level:
        return None
    return middle / 2.0 / level
