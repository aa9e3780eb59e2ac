"""AutoWU as a torch learning rate scheduler: a state machine, warm-up then decay (paper 2.1 and 2.2)."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..rewind import Rewind
from ..runtime import collective
from ..runtime.checks import check_steps, whole
from ..runtime.loop_watch import LoopWatch
from ..runtime.losses.history import LossHistory
from ..runtime.param_groups import own_lr
from .course.course import Course
from .course.fall import lr_of_fall
from .in_loop import InLoop
from .peak_rule import PeakRule
from .relapse.relapse import Relapse
from .reporting.file_names import FileNames
from .reporting.report import describe, is_doubtful
from .settings import AutoWUSettings
from .verdict import DIVERGENCE, NOTHING, Ending
from .warm_up import WarmUp
from .way_back import WayBack

logger = logging.getLogger(__name__)


class AutoWUScheduler(InLoop):
    """Grows the LR from a tiny value until the losses give way, then decays from the LR that the peak rule finds.

    Use ``get_autowu_schedule`` to build one from options. With several processes all run the same schedule: at a
    minimum test their losses are gathered, the main process tests, and its record is broadcast.

    Args:
        settings: the options; the other arguments are explained at ``get_autowu_schedule``.

    Attributes:
        phase: "warmup" or "decay".
        switch_step: scheduler steps done when the warm-up ended; None before.
        minimum_step: t*, the step of the minimum, eq. (5), or under the cliff rule the last one that is as good, the
            noise considered; None before the switch, and where none was seen.
        cliff_step: the step of the cliff, where one was found; else None.
        peak_lr: the LR that the decay starts from, eta_{t*} or what the peak rule makes of the cliff; None before the
            switch.
        ended_by: "scale" where nothing was looked for beyond the scale's peak LR; else "minimum", "cliff" or
            "divergence"; "cap" at the longest warm-up; where neither cliff nor minimum was seen there, "max_lr" if
            the losses fell all the way up to one that was given, else "nothing", and the peak is ``lr_of_fall``, or
            the optimizer's LR where there is none.
        rewound_to: the step whose weights the switch went back to; None before it, and where none were.
        lr_of_fall: where losses that are not positive fell in the warm-up, but told no LR, the one that the first
            gradients say for as far a fall, which is the peak; else None.
        tests: the ``MinimumTestRecord`` of every test so far.

    Raises:
        ValueError: an argument is outside its limits, or the optimizer cannot be scheduled.
    """

    name = "AutoWU"
    state_version = 2
    state_key = "minimum_test"
    can_wait = True
    has_report = True

    def __init__(
        self,
        optimizer: Optimizer,
        num_training_steps: int,
        num_warmup_steps: int = 0,
        *,
        steps_per_epoch: int | None = None,
        settings: AutoWUSettings | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(optimizer, num_training_steps, num_warmup_steps)
        steps_per_epoch = whole(steps_per_epoch)
        check_steps(self.num_training_steps, self.num_warmup_steps, steps_per_epoch)
        self.settings = s = AutoWUSettings() if settings is None else settings
        self.switch_step = self.minimum_step = self.cliff_step = self.rewound_to = None
        self.peak_lr = self.ended_by = self.lr_of_fall = None
        self._check_at: int | None = None
        self._file_names, self._loop = FileNames(), LoopWatch(self.name)
        # Nothing here refers to the scheduler: one that nobody holds must be gone at once.
        self._history = history = LossHistory(optimizer, model=model)
        options = (s.rewind, s.rewind_dir, s.rewind_memory, s.looks_on, s.rewind_in_checkpoint)
        self.rewind = Rewind(optimizer, history.models, *options)
        self._rule = PeakRule(s.rule, self.rewind, min(own_lr(optimizer), s.highest_lr))
        self._warm_up = WarmUp(s, history, steps_per_epoch, self._rule)
        self._cadence = self._warm_up.cadence
        self._way_back = WayBack(self._rule, self.rewind, self._warm_up)
        self._relapse = Relapse(optimizer, history.models, self.rewind)
        self._course = Course(s, optimizer, self._ratios, history, self._way_back.start_weights)
        self._plan()
        self._start(optimizer)

    def _plan(self, done: int | None = None) -> None:
        """Sets cap and LR curve, and plans the next test."""
        done = self.last_epoch if done is None else done
        course, ticks = self._course, self.ticks_per_step
        self._cadence.ticks_per_step = ticks
        given = "num_warmup_steps (Trainer's warmup_steps)"
        self._cadence.cap_option = given if self.num_warmup_steps else "max_warmup_fraction"
        course.plan(self.num_training_steps, self.num_warmup_steps, ticks, done, self.switch_step is not None)
        self._nearing, self._since = course.is_approach, course.sweep_start  # these are looked up at every step
        self._cap, self._curve = course.cap, course.curve
        self._rule.base_lr, self._rule.is_in_doubt = course.base_lr, course.is_in_doubt
        self._cadence.plan(done - course.sweep_start, course.cap)
        self._way_back.follow(course.curve, course.cap, course.sweep_start)

    def _plan_rest(self) -> str:
        self._plan()
        return "starts a new warm-up"

    def _advance(self, step: int, loss: Any) -> None:
        if step >= self._loop.next_look:
            self._look_at_loop(step)
        if self.switch_step is None:
            if step == self.ticks_per_step:
                self._cadence.require_interval(self._cap)
                self.rewind.look()
                self._say_it_begins()
            if self._nearing:
                self._warm_up.observe(loss)
                self._come_closer(step)
                return
            if step == 1:
                self._warm_up.say_shortage(self._cap)
            step -= self._since
            ending = self._warm_up.advance(step, self._cap, loss)
            if ending is not None or step >= self._way_back.due_at:  # False at most steps: nothing to do
                self._end_or_keep(step, ending)
            return
        if type(loss) is float:
            self._warm_up.history.look_for_count(loss)
        if self._relapse.is_watching and self.peak_lr is not None:
            steps, ticks = self.num_training_steps, self.ticks_per_step
            self._relapse.follow(step, loss, steps, ticks, self.peak_lr, self._cadence.held)
        if step == self._check_at:
            self._require_finite_parameters(step)
        if step == self.num_training_steps:
            self._leave_report(step)

    def _begin(self) -> None:
        self._course.begin()
        super()._begin()

    def _come_closer(self, step: int) -> None:
        """One more step of the approach to the scale; where it is over, what follows."""
        course, cadence = self._course, self._cadence
        if not cadence.is_between_steps or not course.come_closer(step, cadence.held):
            return
        self._plan(done=step)
        approach = course.approach
        if approach is not None and (course.scale is not None or approach.wants_back or approach.search.is_far):
            if not self._way_back.keep_start(step, approach):
                self._require_finite_parameters(step)
            if course.is_done:
                is_sound = not approach.breaks.steps and math.isfinite(self._warm_up.history.gathered[-1])
                self._decay_from(step, "scale", approach.way.peak_lr)
                if not is_sound:
                    self._look_soon(step, at_once=True)
                return
        if course.is_blind:
            self._decay_from(step, NOTHING, self._rule.own_lr)
        elif not course.is_approach:
            if course.scale is None:
                self._warm_up.say_shortage(course.cap)
            step -= course.sweep_start
            self._end_or_keep(step, self._warm_up.test_if_due(step, course.cap))

    def _schedule(self, step: int) -> float:
        if self.peak_lr is not None and self.switch_step is not None:
            return self._relapse.factor * self._curve.decay(step, self.switch_step, self.peak_lr)
        if self._nearing:
            return self._rule.own_lr if self._course.is_blind else self._course.lr(step)
        return self._curve.warmup(step - self._since)

    def catch_up(self) -> None:
        """Takes this process to the step of the one that is furthest, and runs a test that has become due.

        Three collectives at most; all processes must join.
        """
        step, switch_step = self._warm_up.catch_up(self.last_epoch, self.switch_step)
        self._step_count += step - self.last_epoch
        self.last_epoch = step
        course, start = self._course, self._course.sweep_start
        if self._way_back.is_owed:
            self.rewound_to = self._since_start(self._way_back.make_up())
        elif self.switch_step is None and switch_step is not None:  # at the cap, where no test decides
            self._switch(switch_step - start, self._warm_up.untested_ending(switch_step - start))
        elif self.switch_step is None and not course.is_approach:
            self._end_or_keep(step - start, self._warm_up.test_if_due(step - start, course.cap))
        if self._report_is_owed or step >= self.num_training_steps:
            self._leave_report(step)
        self._set_lrs()

    def _end_or_keep(self, step: int, ending: Ending | None) -> None:
        return self._way_back.keep(step) if ending is None else self._switch(step, ending)

    def _switch(self, step: int, ending: Ending) -> None:
        """Ends the sweep: the next step runs at the peak LR, from the weights that never saw a higher one."""
        if ending.reason == NOTHING:
            self.lr_of_fall = self._rule.base_lr = lr_of_fall(self._course.approach, ending.gained)
        peak_lr = min(self._rule.peak_lr(ending, self.curve, self.ticks_per_step), self.settings.highest_lr)
        self.rewound_to = self._since_start(self._way_back.go_back(peak_lr, ending))
        self.minimum_step = self._since_start(ending.minimum_step) if ending.has_minimum else None
        if self._rule.is_cliff and ending.reason in ("cliff", DIVERGENCE):
            self.cliff_step = self._since_start(ending.cliff_step)
        step += self._course.sweep_start
        self._decay_from(step, ending.reason, peak_lr)
        if ending.reason == DIVERGENCE:
            self._look_soon(step, at_once=self.rewound_to is None)

    def _decay_from(self, step: int, reason: str, peak_lr: float) -> None:
        self._warm_up.history.close()
        self.switch_step, self.ended_by, self.peak_lr = step, reason, peak_lr
        if collective.is_main_process():
            report = self.report()
            logger.log(logging.WARNING if is_doubtful(report) else logging.INFO, "AutoWU: %s", describe(report))
        self._leave_report(step)
        if reason != NOTHING and self._course.scale is not None and self.rewind.is_on and not self._cadence.held:
            self._relapse.begin(step, self.num_training_steps, self.ticks_per_step, *self._losses_of_now(step))
            self._history = self._relapse.heard.history

    def expect_early_stopping(self) -> None:
        """As in the base class; where no decay was asked for, the LR then falls from the switch on."""
        self._course.expect_early_stopping()

    def flush(self) -> None:
        """As in the base class; also after the switch, where losses are watched."""
        if not self._relapse.is_watching or self._relapse.heard.flush():
            super().flush()

    def _load_state(self, state: dict[str, Any]) -> None:
        """A run of another length keeps its switch and ends at the new total; a growth goes on at its pace."""
        self._load_decided(state)
        self._check_at = state["check_at"]
        self._loop.restart(self.last_epoch, state.get("measured"))
        self._relapse.load_state_dict(state.get("relapse"), self.last_epoch // self.ticks_per_step)
        self._history = self._relapse.heard.history if self._relapse.is_watching else self._warm_up.history
        self._course.load_state_dict(state.get("course"), state["growth_steps"])
        since_start, is_over = self.last_epoch - self._course.sweep_start, self.switch_step is not None
        self._warm_up.load_state_dict(state, is_over, since_start)
        approach = self._course.approach
        has_begun = approach is None or approach.is_over or bool(approach.way.legs) or approach.search.is_far
        self.rewind.load_state_dict(state["rewind"], warming_up=self.switch_step is None and has_begun)
        self._plan()
        self._course.resume(self.num_training_steps, self.last_epoch, self._way_back.start_weights())
