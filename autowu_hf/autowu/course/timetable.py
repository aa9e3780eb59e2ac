"""When the parts of the approach are over, in optimizer steps done."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .signs import FEWEST_STEPS

RAMP = 0.05
"""The share of the run over which the LR grows to the scale's peak."""

LOOK = 0.3
"""The share of the run until which losses that have fallen to half make the LR grow on."""

FEWEST_SEEN = 5
"""The steps at the scale's peak after which losses tell anything."""

WATCH, FEWEST_WATCHED, MOST_WATCHED = 0.08, 2, 10
"""The share of the run whose batches are asked how much of the promised fall lasts, the fewest and the most of them."""

REACH, FEWEST_REACHED, MOST_REACHED = 0.08, 2, 10
"""The share of the run whose steps tell how far later updates get, the fewest and the most of them. Adam's mean is over
about ten gradients, so that more would see another direction.
"""

JUDGE, FEWEST_JUDGES, MOST_JUDGES = 0.08, 4, 10
"""The share of the run whose batches are asked whether the LR has grown too far, the fewest and the most of them."""

FEWEST_AFTER = 3
"""The steps that must be left after them: to go back, to grow and to train."""

AGAIN = 0.2
"""The share of the run by which that is measured a second time, for updates that go on to become smaller."""

FEWEST_NEW = 3
"""The losses from one look at them to the next, at least; as many as a look compares at least (``signs.window``)."""

PATIENCE = 3
"""The steps for which a growth waits for that, where the steps do not happen (a gradient scaler skips some)."""


@dataclass(frozen=True)
class Timetable:
    """When the parts of one run's approach are over.

    Args:
        num_steps: of the whole run.
        longest: the most steps until the peak has to be known.
    """

    num_steps: int
    longest: int

    @classmethod
    def of(cls, num_steps: int, longest: int | None) -> Timetable:
        """The same; ``longest`` may be None for no such limit, and is less than the run in any case."""
        return cls(num_steps, num_steps - 1 if longest is None else min(longest, num_steps - 1))

    def ramp_end(self, since: int) -> int:
        """Where a leg ends that begins after so many steps."""
        return max(since + 1, min(since - 2 + max(3, round(RAMP * self.num_steps)), self.longest))

    def watch_end(self, since: int) -> int:
        """Where the batches have been asked how much of the fall lasts, for a way that begins after so many steps."""
        return since + 1 + self.num_watched

    @property
    def num_watched(self) -> int:
        """How many batches are asked that at a time."""
        return max(FEWEST_WATCHED, min(MOST_WATCHED, round(WATCH * self.num_steps)))

    def reach_end(self, since: int) -> int:
        """The steps done when a window is over that began after so many; one is left for the LR to change."""
        return max(since, min(since + self._num_reached, self.longest - 1))

    def judge_end(self, since: int) -> int | None:
        """Where the batches have been asked whether the LR has grown too far, of which the first is that of the next
        step after so many; None where too few steps would be left.
        """
        end = since + self.num_judges
        return end if end + FEWEST_AFTER <= self.longest else None

    @property
    def num_judges(self) -> int:
        """How many batches are asked that."""
        return max(FEWEST_JUDGES, min(MOST_JUDGES, round(JUDGE * self.num_steps)))

    def starts_again(self, leg_end: int) -> int | None:
        """The steps done when the second window begins, after a leg that ends after so many; None in runs too short to
        look at their losses.
        """
        return max(round(AGAIN * self.num_steps) - self._num_reached, leg_end) if self.looks else None

    @property
    def _num_reached(self) -> int:
        return max(FEWEST_REACHED, min(MOST_REACHED, round(REACH * self.num_steps)))

    def look_end(self, end: int) -> int:
        """Where the losses are looked at no more, in a growth that ends after ``end`` steps."""
        return max(end, min(max(round(LOOK * self.num_steps), end + 3), self.longest))

    def end(self, leg_end: int, is_corrected: bool) -> int:
        """Where the approach is over at the latest.

        Args:
            leg_end: where its last leg is.
            is_corrected: whether later updates have been looked at, or the losses have changed the LR.
        """
        if self.num_steps >= FEWEST_STEPS:
            return self.look_end(leg_end)
        return leg_end if is_corrected else self.reach_end(leg_end)

    @property
    def looks(self) -> bool:
        """Whether there are steps enough to look at the losses, also where they are limited."""
        return self.num_steps >= FEWEST_STEPS and self.longest - self.ramp_end(2) >= FEWEST_SEEN

    @property
    def look_interval(self) -> int:
        """The steps from one look at the losses to the next."""
        return interval(self.num_steps)


@functools.cache
def interval(num_steps: int) -> int:
    """The steps from one look at the losses to the next, in a run of so many, also after the switch."""
    return max(FEWEST_NEW, num_steps // 60)
