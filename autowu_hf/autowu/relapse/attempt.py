"""What the losses after the switch say, and what is tried then."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...loss_curve.lost import NOISES, error, is_lost, level
from ...runtime.losses.history import Array

WINDOW, FEWEST_LOSSES = 0.04, 10
"""The share of the run whose losses are looked at together, and the fewest of them."""

WON_BACK = 1.0 / 3.0
"""The share of what was lost that the earlier weights must have. A lower LR alone lowers the losses, too."""


@dataclass
class Attempt:
    """Going back to earlier weights, at a lower LR. All steps are optimizer steps.

    Args:
        since: the steps done when it began.
        back_to: the steps done when the weights were those that it goes back to.
        best: the lowest level of the losses since the switch, that just before it included.
        level: their level when it began; infinite where they were not finite.
        factor: of the LR when it began.
        tried: the level with the earlier weights; None before that is known, and where nobody asked.
        again: the level with the later weights, once more; the same.
        last: the level with the earlier weights, once more; the same.
        end: the steps done when it was over; None before.
        taken_at: the steps done when the run last went to the weights that it goes on from; None before that is known.
        was_lost: whether what had been learned was really lost; and where it was cut, whether the run goes on from the
            earlier weights, as it does then.
        was_cut: whether it ended before all of that was known.
    """

    since: int
    back_to: int
    best: float
    level: float
    factor: float
    tried: float | None = None
    again: float | None = None
    last: float | None = None
    end: int | None = None
    taken_at: int | None = None
    was_lost: bool = False
    was_cut: bool = False

    @property
    def is_with_earlier(self) -> bool:
        """Whether it is the earlier weights that are trained now."""
        return self.tried is None or self.again is not None

    @property
    def kept_step(self) -> int:
        """The steps done when the weights were what the run goes on from."""
        return self.back_to if self.was_lost else self.since

    @property
    def num_lost(self) -> int:
        """The steps whose weights were given up, once it is over."""
        return 0 if self.taken_at is None else self.taken_at - self.kept_step

    @property
    def is_lowered(self) -> bool:
        """Whether the LR is lower from its end on."""
        return self.was_lost or (self.was_cut and self.tried is not None)

    def cut(self, step: int, taken_at: int) -> None:
        """Ends it after ``step`` steps, with the weights that are trained, since ``taken_at`` steps were done."""
        self.was_lost, self.was_cut, self.end, self.taken_at = self.is_with_earlier, True, step, taken_at

    def num_losses(self, num: int) -> int:
        """The losses that are waited for now, where ``num`` make a level: half as many after the first time, so that
        hard and easy data in turn do not keep step.
        """
        return num if self.tried is None else num // 2

    def hear(self, losses: Array, num: int, first: float) -> bool:
        """Takes in the losses (n,), one per optimizer step, with the weights that are trained now.

        Args:
            losses: they.
            num: as in ``num_losses``, of which there are enough.
            first: the level at the start of the run.

        Returns:
            Whether they speak for a loss of what had been learned.
        """
        num_now = self.num_losses(num)
        found = level(losses[-num_now:])
        is_still_lost = is_lost(first, self.best, found, losses, num_now, NOISES / 2.0)  # it is looked at once
        return self.take(found, error(losses, num), is_still_lost)

    def take(self, found: float, error: float, is_lost: bool = False) -> bool:
        """Takes in the next level.

        Args:
            found: it.
            error: the standard error of a difference of two.
            is_lost: whether what had been learned is still lost by it.

        Returns:
            As of ``hear``. Later weights whose losses have fallen, but are still lost, do so if the earlier ones were a
            third better.
        """
        if self.tried is None:
            self.tried = found
            return self._is_won_back(self.level, NOISES * error)
        if self.again is None:
            self.again = found
            return not found < self._middle(self.level) or (is_lost and self._is_won_back(found))
        self.last = found
        return found < self._middle(min(self.level, self.again))

    def _is_won_back(self, lost: float, least: float = 0.0) -> bool:
        """Whether the earlier weights were better than the level ``lost`` by a third of what was lost and ``least``."""
        return self.tried is not None and self.tried < lost - max(WON_BACK * (lost - self.best), least)

    def _middle(self, lost: float) -> float:
        assert self.tried is not None
        return (self.tried + lost) / 2.0


def window(num_steps: int) -> int:
    """The losses that are looked at together, of a run of so many optimizer steps."""
    return max(FEWEST_LOSSES, round(WINDOW * num_steps))


def start_levels(losses: Array, num: int) -> list[tuple[float, int]]:
    """The levels of the first eighth and of the first half of the losses (n,), one per optimizer step, each with the
    number of losses that it is of: three at least, ``num`` at most. Empty where too few are finite.
    """
    firsts = (losses[: max(3, min(num, len(losses) // share))] for share in (8, 2))
    finite = [first[np.isfinite(first)] for first in firsts]
    return [(level(first), len(first)) for first in finite] if len(finite[0]) >= 2 else []


def has_just_broken(first: float, now: float, losses: Array) -> bool:
    """Whether a few of the losses (n,), the newest, have lost what had been learned, or one is not finite, which the
    other ones hide yet.
    """
    newest = losses[-(FEWEST_LOSSES // 2) :]
    return not np.isfinite(newest).all() or is_lost(first, now, level(newest), newest, len(newest))
