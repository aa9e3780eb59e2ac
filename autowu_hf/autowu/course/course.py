"""The course of the warm-up: which LRs it goes through, and in how many steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ...runtime.losses.history import LossHistory
from ...shapes import LRCurve
from ..settings import AutoWUSettings
from .approach import Approach
from .measures.scale import Scale
from .usual_decay import UsualDecay
from .words import TOO_SHORT, announcement, events, news, no_scale, resumption, say

FEWEST_TO_FIND = 3
"""In fewer optimizer steps there is no LR to be found: two measure, and one grows. A run needs as many to train."""


class Course:
    """The LRs of the warm-up: an approach and perhaps a sweep around the scale, or one sweep over a given range.

    Args:
        settings: the options.
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.
        history: that of the run.
        start: called for the weights from before the growth, this process's shares; none where they are gone.

    Attributes:
        approach: None where the range of the LRs was given.
        sweep_start: the scheduler steps done when the sweep began. Tests, snapshots and the curve count from there.
        curve: the LRs of the sweep, and of the decay.
        cap: the longest sweep, in scheduler steps; during the approach, its longest length.
        losses_before: the losses of the approach, one per optimizer step, once a sweep around the scale has begun.
    """

    curve: LRCurve
    cap: int

    def __init__(
        self,
        settings: AutoWUSettings,
        optimizer: Optimizer,
        ratios: list[float],
        history: LossHistory,
        start: Callable[[], Sequence[Tensor]] = tuple,
    ) -> None:
        self._settings = settings
        self._history = history
        self._ticks, self._decay = 1, UsualDecay()
        self.sweep_start = self._next_look = 0  # the latter: in optimizer steps; before it, there is nothing to see
        self.losses_before: list[float] = []
        self.approach = Approach(optimizer, ratios, history.models, start) if settings.uses_scale else None
        if self.approach is not None:
            self.approach.search.is_divided = history.is_divided
        if self.approach is not None and self.approach.is_over:
            self._say_obstacle(self.approach)

    @property
    def is_approach(self) -> bool:
        """Whether the approach is not over, or knows from the start that it will find nothing."""
        return self.approach is not None and (not self.approach.is_over or self.is_blind)

    def plan(
        self, num_training_steps: int, num_warmup_steps: int, ticks: int, done: int = 0, is_over: bool = False
    ) -> None:
        """Sets curve and cap. A sweep that is under way goes on to its end, which no cap cuts off, from the LR that it
        has reached and at the pace that a whole one would have.

        Args:
            num_training_steps: T, in scheduler steps.
            num_warmup_steps: the longest warm-up that was asked for, in scheduler steps; 0 for that of the settings.
            ticks: scheduler steps per optimizer step.
            done: the scheduler steps done.
            is_over: whether the warm-up is over.
        """
        settings, approach = self._settings, self.approach
        self._ticks, self._next_look = ticks, 0
        # A whole number of optimizer steps, so that the schedule does not depend on the number of processes.
        cap = num_warmup_steps or settings.longest_warmup(num_training_steps / ticks) * ticks
        cap = min(cap, num_training_steps - 1)
        if approach is not None:
            longest = cap // ticks if num_warmup_steps else None
            approach.plan(num_training_steps // ticks, longest, self.sweep_start // ticks)
            if (cap if num_warmup_steps else num_training_steps // 2) // ticks < FEWEST_TO_FIND:
                self.give_up(TOO_SHORT.format("warm-up" if num_warmup_steps else "run"), is_blind=True)
        done -= self.sweep_start
        if approach is not None and approach.scale is not None:
            curve = self._curve_around_scale(approach, num_training_steps, is_over)
        else:
            cap -= self.sweep_start if num_warmup_steps else 0
            cap = max(min(cap, num_training_steps - 1 - self.sweep_start), ticks)
            curve = settings.curve(num_training_steps, cap)
        if is_over:
            curve = curve.with_paces(self.curve.paces)
        elif done > 0 and not self.is_approach:
            curve = self.curve.going_on_as(curve, done)
        end = math.ceil((curve.shift + curve.growth_steps) / ticks) * ticks
        self.cap = max(min(end, num_training_steps - 1 - self.sweep_start), ticks)
        self.curve = curve

    def _curve_around_scale(self, approach: Approach, num_training_steps: int, is_over: bool) -> LRCurve:
        way, sweep = (approach.search.lr, approach.way.peak_lr, approach.end), approach.sweep
        low, high, steps = way if sweep is None else (sweep.min_lr, sweep.max_lr, sweep.num_steps)
        usual = self._decay.of(approach, num_training_steps // self._ticks, is_over)
        return self._settings.curve_by_scale(num_training_steps, steps * self._ticks, low, high, usual)

    def lr(self, step: int) -> float:
        """The LR of the approach after ``step`` scheduler steps, in optimizer units, for a group of ratio 1."""
        assert self.approach is not None
        return self.approach.lr(step // self._ticks)

    def come_closer(self, step: int, held: bool) -> bool:
        """One more optimizer step of the approach; a collective where it needs the losses, which all must join.

        Args:
            step: scheduler steps done.
            held: whether processes may be at different steps, so that there must be no collective.

        Returns:
            Whether the course has changed, so that it has to be planned anew.
        """
        approach, done = self.approach, step // self._ticks
        if approach is None or done < self._next_look or self.is_blind:  # the latter: from the start
            return done >= self._next_look
        if held and (approach.scale is None or approach.way.is_held):
            approach.give_up("the processes may be at different steps", done)
            approach.search.is_blind = approach.scale is None  # nor could a range be tested
        elif held or not approach.wants_losses(done):
            self._next_look = approach.next_look(done)
            return False
        else:
            self._history.flush()
            approach.search.meter.agree()
            search, legs, before = approach.search, len(approach.way.legs), events(approach)
            approach.advance(done, self._history.gathered, self._history.share)
            say(*news(approach, before, done))
            if search.is_over and search.meter.num_backwards > 1:
                self._history.say_accumulated(search.meter.num_backwards, search.is_stepped_at_each)
            if not (approach.is_over or (approach.scale is None and search.is_far)) and len(approach.way.legs) == legs:
                self._next_look = approach.next_look(done)
                return False
        if approach.is_over and (approach.sweep is not None or approach.wants_back or approach.is_late):
            self.losses_before, self.sweep_start = self._history.gathered.tolist(), step
            self._history.reset()
        if approach.is_over and approach.scale is None:
            self._say_obstacle(approach)
        return True

    def begin(self) -> None:
        """The run's first step is the next one; what was measured before is forgotten."""
        if self.approach is not None:
            self.approach.search.begin()

    def announce(self, num_training_steps: int, rewinds: bool) -> str:
        """See ``words.announcement``; ``num_training_steps`` is T, in scheduler steps."""
        steps, cap = num_training_steps // self._ticks, self.cap // self._ticks
        return announcement(self.approach, self._settings, steps, cap, rewinds)

    def resume(self, num_training_steps: int, done: int, start: Sequence[Tensor]) -> None:
        """Goes on after a resume, with the weights that the approach can go back to; none where there are no such. Says
        on the main process where another run than the planned one changes the growth.
        """
        if self.approach is not None:
            self.approach.looks.find_start(start)
        curve, ticks = self.curve, self._ticks
        if curve.since == done - self.sweep_start + 1 and done < self.sweep_start + self.cap:
            reached, end = curve.warmup(curve.since - 1), (self.sweep_start + self.cap) // ticks
            say(resumption(num_training_steps // ticks, reached, done // ticks, curve.max_lr, end))

    def _say_obstacle(self, approach: Approach) -> None:
        if not self.is_blind:
            say(no_scale(approach.search.obstacle, self._settings))

    def give_up(self, obstacle: str, is_blind: bool = False) -> None:
        """There is no scale to be had, for a reason, as a part of a sentence; ``is_blind``: a range tells no more."""
        if self.approach is not None and not self.approach.is_over and self.approach.scale is None:
            self.approach.give_up(obstacle)
            self.approach.search.is_blind = is_blind
            self._say_obstacle(self.approach)

    @property
    def scale(self) -> Scale | None:
        """The scale, once it is known."""
        return None if self.approach is None else self.approach.scale

    @property
    def is_blind(self) -> bool:
        """Whether the losses will tell nothing at any LR."""
        return self.approach is not None and self.approach.search.is_blind

    @property
    def is_in_doubt(self) -> bool:
        """Whether the LR grows on since nothing was learned at the scale's."""
        return self.approach is not None and self.approach.unmoved is not None

    @property
    def is_done(self) -> bool:
        """Whether the approach is over, and the scale's peak LR is the peak."""
        approach = self.approach
        return approach is not None and approach.scale is not None and approach.is_over and approach.sweep is None

    @property
    def num_lost(self) -> int:
        """The scheduler steps of the approach whose weights were given up by going back."""
        return 0 if self.approach is None else self.approach.way.num_lost * self._ticks

    @property
    def base_lr(self) -> float | None:
        """The scale's peak LR, where a sweep goes on from it; None where there is no such sweep."""
        return None if self.approach is None or self.approach.sweep is None else self.approach.way.peak_lr

    def expect_early_stopping(self) -> None:
        """Takes in that evaluations may stop the run."""
        self._decay.stops_early = True

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        return {
            "approach": None if self.approach is None else self.approach.state_dict(),
            "sweep_start": self.sweep_start,
            "losses_before": [*self.losses_before],
            "paces": self.curve.paces,
            "usual_decay": self._decay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any] | None, growth_steps: int) -> None:
        """Restores what ``state_dict`` returned.

        Args:
            state: None is the course of a release that knew no scale.
            growth_steps: of the curve, for a release that knew no paces.
        """
        if self.approach is not None and (state is None or state["approach"] is None):
            self.approach.give_up("the run began without one")
            self.approach = None
        if state is not None:
            self.sweep_start, self.losses_before = state["sweep_start"], [*state["losses_before"]]
            self._decay.load_state_dict(state.get("usual_decay"))
            if self.approach is not None:
                self.approach.load_state_dict(state["approach"])
        paces = None if state is None else state.get("paces")
        self.curve = self.curve.with_paces(paces or replace(self.curve, growth_steps=growth_steps).paces)

    def report(self) -> dict[str, Any]:
        """What the picture needs, and the scale."""
        return {
            "growth_steps": self.curve.growth_steps,
            "sweep_start": self.sweep_start,
            "losses_before": len(self.losses_before),
            "usual_decay": self._decay.why,
            "curve": {**asdict(self.curve), "before": self.curve.paces[:-1]},
            "approach": None if self.approach is None else self.approach.report(),
        }
