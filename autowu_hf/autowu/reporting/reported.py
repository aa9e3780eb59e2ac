"""What an AutoWU schedule tells about itself."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...rewind import Rewind
from ...runtime import collective
from ...runtime.loop_watch import LoopWatch
from ...runtime.losses.history import Array
from ...runtime.scheduler import AdaptiveScheduler
from ...shapes import LRCurve
from ..cadence import Cadence
from ..course.course import Course
from ..course.legs import FEWEST_LOSSES
from ..course.timetable import RAMP
from ..peak_rule import PeakRule
from ..relapse.relapse import Relapse
from ..settings import AutoWUSettings
from ..verdict import DIVERGENCE, NOTHING, MinimumTestRecord
from ..warm_up import WarmUp
from ..way_back import require_finite_parameters
from .file_names import FileNames
from .plotting import write_files
from .reached import highest_lr, last_lr
from .report import SCHEDULER_STEPS, log_values, lr_in_words, with_sentence

logger = logging.getLogger(__name__)

_CHECK_AFTER = 5

DECISION = ("switch_step", "minimum_step", "cliff_step", "peak_lr", "ended_by", "rewound_to", "lr_of_fall")
"""What the switch decided."""


class Reported(AdaptiveScheduler):
    """The part of ``AutoWUScheduler`` that decides nothing: what it reports, and what a state says of the decision. The
    attributes are explained there.
    """

    settings: AutoWUSettings
    switch_step: int | None
    minimum_step: int | None
    cliff_step: int | None
    peak_lr: float | None
    ended_by: str | None
    rewound_to: int | None
    lr_of_fall: float | None
    rewind: Rewind
    _report_is_owed = False
    _check_at: int | None
    _file_names: FileNames
    _loop: LoopWatch
    _course: Course
    _cadence: Cadence
    _relapse: Relapse
    _rule: PeakRule
    _warm_up: WarmUp

    @property
    def phase(self) -> str:
        """The state: "warmup" until the switch, then "decay"."""
        return "warmup" if self.switch_step is None else "decay"

    @property
    def is_looking(self) -> bool:
        """As in the base class: until the switch, and while earlier weights are tried."""
        return self.switch_step is None or self._relapse.attempt is not None

    @property
    def curve(self) -> LRCurve:
        """The LRs of the warm-up's sweep and of the decay."""
        return self._course.curve

    @property
    def warmup_cap(self) -> int:
        """The scheduler steps of the longest warm-up, as far as it is known."""
        return self._course.sweep_start + self._course.cap

    @property
    def warmup_limits(self) -> tuple[int, int]:
        """As in the base class: from the steps of two measurements, the growth to the scale, and ten losses there; or
        as many as a short run takes by itself. Over a range, those of a minimum test.
        """
        steps = self.num_training_steps // self.ticks_per_step
        needed = FEWEST_LOSSES + (2 + round(RAMP * steps) if self.settings.uses_scale else 0)
        return min(needed, self.settings.longest_warmup(steps)), steps - 1

    @property
    def num_steps_lost(self) -> int:
        """The scheduler steps so far whose weights were given up by going back."""
        return self.num_steps_looked + self._relapse.num_lost * self.ticks_per_step

    @property
    def num_steps_looked(self) -> int:
        """Those of them until the switch."""
        at_switch = 0
        if self.switch_step is not None and self.rewound_to is not None:
            at_switch = self.switch_step - self.rewound_to
        return self._course.num_lost + at_switch

    @property
    def takes_losses(self) -> bool:
        """Whether the losses of the steps to come are needed."""
        return self.switch_step is None or self._relapse.is_watching

    @property
    def peak_rule(self) -> str:
        """The rule that ends the warm-up: "minimum" or "cliff", which needs rewind to be on."""
        return self._rule.name

    @property
    def losses(self) -> list[float]:
        """The losses of the warm-up gathered so far, one per optimizer step, in the loss's unit."""
        if collective.num_processes() == 1:
            self.flush()
        return [*self._course.losses_before, *map(float, self._warm_up.history.gathered)]

    def _losses_of_now(self, step: int) -> tuple[Array, Array]:
        """Those of the loss as it is now; of them, those up to the weights that the switch at ``step`` goes on from."""
        losses, approach = np.array(self.losses), self._course.approach
        start = 0 if approach is None else approach.transient.start(losses, approach.breaks.start(losses), approach.way)
        return losses[start:], losses[start : (self.rewound_to or step) // self.ticks_per_step]

    @property
    def tests(self) -> list[MinimumTestRecord]:
        return self._warm_up.minimum_test.records

    @property
    def _peak_is_given(self) -> bool:
        """Whether nothing has told a peak LR, and it is the one that the optimizer was given, or ``max_lr``."""
        has_diverged_only = self.ended_by == DIVERGENCE and self.minimum_step is None
        has_none = self.ended_by == NOTHING and self.lr_of_fall is None
        return has_none or (has_diverged_only and self.peak_lr == self._rule.own_lr)

    def _since_start(self, step: int | None) -> int | None:
        """A step of the sweep, counted from the start of the run."""
        return None if step is None else self._course.sweep_start + step

    def _require_finite_parameters(self, step: int) -> None:
        """Raises a DivergedError where they are not, after ``step`` scheduler steps."""
        max_lr = self.curve.max_lr if self._course.scale is None else None
        back_to = None if self.rewound_to is None else self.rewound_to // self.ticks_per_step
        done, lr = step // self.ticks_per_step, last_lr(self._course, self.switch_step or step, self.ticks_per_step)
        require_finite_parameters(self.optimizer, done, lr, max_lr, back_to, self.rewind.is_on)

    def _look_soon(self, step: int, at_once: bool) -> None:
        """Looks for that again some steps after ``step``: what broke the run may break it again, whatever the LR."""
        if at_once:
            self._require_finite_parameters(step)
        self._check_at = step + _CHECK_AFTER * self.ticks_per_step

    @property
    def steps_per_epoch(self) -> int | None:
        """Scheduler steps in an epoch; None when unknown."""
        return self._cadence.steps_per_epoch

    def log_values(self) -> dict[str, float]:
        """See ``report.log_values``."""
        return log_values(self.phase, self.tests, self.peak_rule, self.peak_lr, self._course.scale)

    def lr_in_words(self) -> str:
        """See ``report.lr_in_words``."""
        return super().lr_in_words() if self.peak_lr is None else lr_in_words(self._outline())

    def report(self) -> dict[str, Any]:
        """The decision and its evidence, as in ``autowu.json``: numbers, names, lists and None only."""
        tests = [dataclasses.asdict(record) for record in self.tests]
        return with_sentence({**self._outline(), "losses": self.losses, "tests": tests})

    def _outline(self) -> dict[str, Any]:
        """The report without losses and tests; a state has it too, beside these."""
        cliff_lr = None
        if self.cliff_step is not None:
            place = self.cliff_step - self._course.sweep_start - self._rule.lag(self.ticks_per_step)
            cliff_lr = self.curve.warmup(max(place, 0))
        names = ("num_training_steps", "warmup_cap", "phase", *DECISION, "peak_rule")
        return {
            "settings": dataclasses.asdict(self.settings),
            "steps_are": SCHEDULER_STEPS,
            "step": self.last_epoch,
            "ticks_per_step": self.ticks_per_step,
            **{name: getattr(self, name) for name in names},
            "cliff_lr": cliff_lr,
            "highest_lr": highest_lr(self._course, self.switch_step, self.ticks_per_step),
            "peak_is_given": self._peak_is_given,
            "lr_is_contested": self._foreign_lr.is_found,
            **self._course.report(),
            **self._relapse.report(),
        }

    def write_report(
        self, folder: str, logged_losses: Sequence[Sequence[float]] = (), file: bool = True, picture: bool = True
    ) -> None:
        """Writes ``autowu.json`` and ``autowu.png``; see ``AdaptiveScheduler.write_report``. Where another schedule of
        this process has written there, the files are called autowu-2, autowu-3 and so on.
        """
        report = {**self.report(), "logged_losses": [[*pair] for pair in logged_losses]}
        write_files(report, folder, self._file_names.claim(folder, writes=True), file, picture)

    def claim_report(self, folder: str) -> None:
        """See ``AdaptiveScheduler.claim_report``."""
        self._file_names.claim(folder)

    def _say_it_begins(self) -> None:
        """At the first optimizer step."""
        if self.settings.report_dir is not None:
            self._file_names.claim(self.settings.report_dir)
        if collective.is_main_process() and not self._course.is_blind:
            logger.info("%s", self._course.announce(self.num_training_steps, self.rewind.is_on))

    def _state(self) -> dict[str, Any]:
        return {
            "growth_steps": self.curve.growth_steps,
            **self._warm_up.state_dict(),
            **self._decided(),
            "check_at": self._check_at,
            "measured": self._loop.measured,
            "course": self._course.state_dict(),
            "rewind": self.rewind.state_dict(),
            "relapse": self._relapse.state_dict(),
            "outline": self._outline(),  # for plot_autowu
        }

    def _decided(self) -> dict[str, Any]:
        """The part of a state that says what was decided, and where that is written."""
        return {**{name: getattr(self, name) for name in DECISION}, "file_names": self._file_names.state_dict()}

    def _load_decided(self, state: dict[str, Any]) -> None:
        for name in DECISION:
            setattr(self, name, state.get(name))
        self._file_names.load_state_dict(state.get("file_names"))

    def _leave_report(self, step: int) -> None:
        """Writes the files of ``step`` scheduler steps, the present one included, into ``report_dir``, where one was
        given, on the main process; a failure is a warning.

        The pending losses are gathered for it, a collective where there are any. All processes join, with
        ``report_dir`` or without: a script may pass it on the main process only. While processes may be at different
        steps, the files are owed until they meet.
        """
        self._report_is_owed = self._cadence.held
        if self._report_is_owed:
            return
        self.flush()
        folder = self.settings.report_dir
        if folder is None or not collective.is_main_process():
            return
        try:
            name = self._file_names.claim(folder, writes=True)
            write_files({**self.report(), "step": step}, folder, name, file=True, picture=True)
        except Exception:  # a full disk or a broken font must not end a training run
            logger.warning("the report of AutoWU could not be written to %s", folder, exc_info=True)
