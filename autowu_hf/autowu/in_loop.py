"""What an AutoWU schedule has to do with the loop around it, apart from its losses."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from ..runtime.checks import check_steps, whole
from ..runtime.param_groups import shares_out_of_reach
from .course.timetable import interval
from .reporting.reported import Reported
from .verdict import NOTHING

_NOT_STEPPED = "the optimizer that the schedule was made for is not stepped"


class InLoop(Reported):
    """The part of ``AutoWUScheduler`` that launchers tell something, and that sees what scripts do."""

    def meet(self, optimizer: Any) -> None:
        obstacle = shares_out_of_reach(optimizer, self.optimizer)
        if obstacle is not None:
            self.rewind.refuse(obstacle)
            self._course.give_up(obstacle.reason)

    def set_steps_per_epoch(self, steps: int | None) -> None:
        """As in the base class; a ValueError, too, where ``test_every="epoch"`` still lacks a length."""
        check_steps(self.num_training_steps, 0, steps := whole(steps))
        self._cadence.tell_epoch(steps, self.last_epoch - self._course.sweep_start, self._course.cap)
        if self.last_epoch == 0 and not self._course.is_approach:
            self._warm_up.say_shortage(self._course.cap)

    def hold_tests(self, held: bool) -> None:
        """Holds minimum tests back, because other processes may be ahead or behind; see ``catch_up``."""
        self._cadence.held = held

    def _look_at_loop(self, step: int) -> None:
        """Warns, at the looks, of what the schedule was not made for. Where another optimizer is stepped, it looks for
        no LR, and takes no weights back.
        """
        loop, num_steps, ticks = self._loop, self.num_training_steps, self.ticks_per_step
        course, approach = self._course, self._course.approach
        is_searching = approach is not None and not approach.search.is_over
        loop.next_look = step + (1 if is_searching else interval(num_steps // ticks) * ticks)
        if course.scale is not None:
            loop.compare(self.optimizer, self._ratios)
        loop.look_beyond(step, num_steps, ticks)
        if self._cadence.held or not loop.is_replaced(self.optimizer):
            return
        if self._relapse.is_watching:
            self._relapse.stop(step // ticks, is_alone=True)
        self.rewind.is_on = False
        self.rewind.drop()
        if self.switch_step is None:
            if approach is not None:
                approach.looks.stop()
                approach.search.give_up(_NOT_STEPPED)
                approach.search.is_blind = approach.is_over = True
            self._plan(done=step)
            self._decay_from(step, NOTHING, self._rule.own_lr)

    @abstractmethod
    def _plan(self, done: int | None = None) -> None:
        """As in the base class, after ``done`` scheduler steps; None: those that are counted."""

    @abstractmethod
    def _decay_from(self, step: int, reason: str, peak_lr: float) -> None:
        """Ends the warm-up after ``step`` scheduler steps, for a reason of ``verdict``."""
