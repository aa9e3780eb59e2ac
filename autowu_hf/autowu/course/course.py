"""The course of the warm-up: which LRs it goes through, and in how many steps."""

from __future__ import annotations

import logging
from typing import Any

from torch.optim import Optimizer

from ...runtime import collective
from ...runtime.loss_history import LossHistory
from ...shapes import LRCurve
from ..settings import AutoWUSettings
from .approach import Approach
from .scale import Scale
from .signs import FEWEST_STEPS

logger = logging.getLogger(__name__)

FEWEST_TO_FIND = 3
"""In fewer optimizer steps there is no LR to be found: two measure, and one grows. A run needs as many to train."""


class Course:
    """The LRs of the warm-up: an approach and perhaps a sweep around the scale, or one sweep over a given range.

    Args:
        settings: the options.
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.
        history: that of the run.

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
        self, settings: AutoWUSettings, optimizer: Optimizer, ratios: list[float], history: LossHistory
    ) -> None:
        self._settings = settings
        self._history = history
        self._ticks = 1
        self.sweep_start = 0
        self.losses_before: list[float] = []
        self.approach = Approach(optimizer, ratios, history.models) if settings.uses_scale else None
        if self.approach is not None and self.approach.is_over:
            self._say_obstacle(self.approach)

    @property
    def is_approach(self) -> bool:
        """Whether the approach is not over."""
        return self.approach is not None and not self.approach.is_over

    def plan(self, num_training_steps: int, num_warmup_steps: int, ticks: int, growth_steps: int | None) -> None:
        """Sets curve and cap.

        Args:
            num_training_steps: T, in scheduler steps.
            num_warmup_steps: the longest warm-up that was asked for, in scheduler steps; 0 for that of the settings.
            ticks: scheduler steps per optimizer step.
            growth_steps: those of the curve in force, where a sweep over a given range is under way.
        """
        settings, approach = self._settings, self.approach
        self._ticks = ticks
        # A whole number of optimizer steps, so that the schedule does not depend on the number of processes.
        cap = num_warmup_steps or settings.longest_warmup(num_training_steps / ticks) * ticks
        cap = min(cap, num_training_steps - 1)
        if approach is not None:
            approach.plan(num_training_steps // ticks, cap // ticks if num_warmup_steps else None)
            room = cap if num_warmup_steps else num_training_steps // 2
            if room // ticks < FEWEST_TO_FIND:
                self.give_up("the run is too short to measure it and to train")
            if approach.scale is not None:
                self._plan_around_scale(approach, num_training_steps)
                return
        if num_warmup_steps:
            cap = max(cap - self.sweep_start, ticks)
        cap = max(min(cap, num_training_steps - 1 - self.sweep_start), ticks)
        growth_steps = growth_steps or cap
        self.cap = min(cap, growth_steps)
        self.curve = settings.curve(num_training_steps, growth_steps)

    def _plan_around_scale(self, approach: Approach, num_training_steps: int) -> None:
        assert approach.scale is not None
        low, high, steps = approach.search.lr, approach.peak_lr, approach.end
        if approach.sweep is not None:
            low, high, steps = approach.sweep.min_lr, approach.sweep.max_lr, approach.sweep.num_steps
        growth_steps = steps * self._ticks
        self.cap = min(growth_steps, num_training_steps - 1 - self.sweep_start)
        self.curve = self._settings.curve_by_scale(num_training_steps, growth_steps, low, high)

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
        assert approach is not None
        if held and approach.scale is None:
            approach.give_up("the processes may be at different steps")
        elif held or not approach.wants_losses(done):
            return False
        else:
            self._history.flush()
            legs, breaks, changes = len(approach.legs), len(approach.breaks.steps), len(approach.breaks.changes)
            approach.advance(done, self._history.gathered)
            if (len(approach.breaks.steps) > breaks or approach.stalled == done) and collective.is_main_process():
                logger.info(
                    "AutoWU: by step %d the losses have %s, at learning rate %.1e; it grows again, to at most %.1e",
                    done,
                    "not fallen" if approach.stalled == done else "risen far above their start",
                    approach.legs[-2].lr(done - 1),
                    approach.peak_lr,
                )
            if len(approach.breaks.changes) > changes and collective.is_main_process():
                logger.info(
                    "AutoWU: the losses are as high with the weights from before, so that it is the loss that has "
                    "changed; from step %d on the learning rate grows to %.1e again, and the losses count from there",
                    done,
                    approach.peak_lr,
                )
            if approach.search.num_backwards > 1:
                self._history.say_accumulated(approach.search.num_backwards)
            is_far = approach.scale is None and approach.search.is_far
            if not (approach.is_over or is_far) and len(approach.legs) == legs:
                return False
        if approach.is_over and (approach.sweep is not None or approach.wants_back or approach.is_late):
            self.losses_before = self._history.gathered.tolist()
            self._history.reset()
            self.sweep_start = step
        if approach.is_over and approach.scale is None:
            self._say_obstacle(approach)
        return True

    def announce(self, num_training_steps: int, rewinds: bool) -> str:
        """What will be done, in one line.

        Args:
            num_training_steps: T, in scheduler steps.
            rewinds: whether weights can be put back.
        """
        steps, approach, settings = num_training_steps // self._ticks, self.approach, self._settings
        back = "the weights then go back" if rewinds else "only the learning rate goes back then, for rewind is off"
        if approach is None or approach.is_over:
            return (
                f"AutoWU looks for the learning rate from {settings.min_lr:g} to {settings.max_lr:g} within "
                f"{self.cap // self._ticks} of {steps} steps. The loss may rise on the way; {back}"
            )
        end = approach.ramp_end(2)
        if steps < FEWEST_STEPS:
            return f"AutoWU measures the scale of the learning rate in the first 2 of {steps} steps, and grows to it"
        return (
            f"AutoWU measures the scale of the learning rate in the first 2 of {steps} steps, grows to it by step "
            f"{end}, and watches the losses until step {approach.look_end(end)}. The loss may rise on the way; {back}"
        )

    def _say_obstacle(self, approach: Approach) -> None:
        """Says on the main process why there is no scale, and what is done instead."""
        if not self.is_blind and collective.is_main_process():
            logger.info(
                "AutoWU cannot tell the scale of the learning rate: %s; it looks from %g to %g instead",
                approach.search.obstacle,
                self._settings.min_lr,
                self._settings.max_lr,
            )

    def give_up(self, obstacle: str) -> None:
        """There is no scale to be had.

        Args:
            obstacle: why, as a part of a sentence.
        """
        if self.approach is not None and not self.approach.is_over and self.approach.scale is None:
            self.approach.give_up(obstacle)
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
    def is_done(self) -> bool:
        """Whether the approach is over, and the scale's peak LR is the peak."""
        return (
            self.scale is not None and self.approach is not None and self.approach.is_over and not self.approach.sweep
        )

    @property
    def num_lost(self) -> int:
        """The scheduler steps of the approach whose weights were given up by going back."""
        return 0 if self.approach is None else self.approach.num_lost * self._ticks

    @property
    def base_lr(self) -> float | None:
        """The scale's peak LR, where a sweep goes on from it; None where there is no such sweep."""
        return None if self.approach is None or self.approach.sweep is None else self.approach.peak_lr

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        return {
            "approach": None if self.approach is None else self.approach.state_dict(),
            "sweep_start": self.sweep_start,
            "losses_before": [*self.losses_before],
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restores what ``state_dict`` returned; None is the course of a release that knew no scale."""
        if self.approach is not None and (state is None or state["approach"] is None):
            self.approach.give_up("the run began without one")
            self.approach = None
        if state is not None:
            self.sweep_start, self.losses_before = state["sweep_start"], [*state["losses_before"]]
            if self.approach is not None:
                self.approach.load_state_dict(state["approach"])

    def report(self) -> dict[str, Any]:
        """What the picture needs, and the scale."""
        return {
            "growth_steps": self.curve.growth_steps,
            "sweep_start": self.sweep_start,
            "losses_before": len(self.losses_before),
            "curve": {name: getattr(self.curve, name) for name in self.curve.__dataclass_fields__},
            "approach": None if self.approach is None else self.approach.report(),
        }
