"""The warm-up: takes in the losses of the run and finds out when their minimum has passed (2.1.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from . import collective, divergence
from .cadence import Cadence
from .loss_history import LossHistory
from .minimum_test import MinimumTest
from .settings import AutoWUSettings
from .verdict import MinimumTestRecord


@dataclass(frozen=True)
class Ending:
    """How a warm-up ended.

    Args:
        reason: "minimum", "cliff", "cap" or "divergence".
        minimum_step: of the minimum, as in ``MinimumTestRecord``, in scheduler steps.
        cliff_step: the step at which the cliff was passed, or that of the end, where no cliff was seen.
    """

    reason: str
    minimum_step: int
    cliff_step: int


class WarmUp:
    """The part of the schedule that decides; with several processes, the same on all of them.

    Args:
        settings: the options.
        optimizer: the one whose steps count.
        steps_per_epoch: scheduler steps in an epoch; None when unknown.

    Attributes:
        cadence: when losses are taken in and tests run.
        history: the losses.
        minimum_test: the tests.
    """

    def __init__(self, settings: AutoWUSettings, optimizer: Optimizer, steps_per_epoch: int | None) -> None:
        self.settings = settings
        self.cadence = Cadence(settings, steps_per_epoch)
        self.history = LossHistory(optimizer)
        self.minimum_test = MinimumTest(settings)
        self.history.open()

    def models(self) -> Sequence[nn.Module]:
        """The models that the accelerator which back-propagates the losses has prepared."""
        return self.history.models()

    def advance(self, step: int, cap: int, loss: Any) -> Ending | None:
        """Takes in the loss of one more scheduler step, and tests when it is time.

        Args:
            step: t, the scheduler steps done.
            cap: the longest warm-up, in scheduler steps.
            loss: as in ``AutoWUScheduler.step``.

        Returns:
            How the warm-up ended, when it is over; else None.

        Raises:
            ValueError: see ``AutoWUScheduler.step``.
        """
        if self.cadence.tick():
            self.history.observe(loss)
        if step < self.cadence.next_test and step < cap:  # so it is at most steps
            return None
        return self.test_if_due(step, cap)

    def test_if_due(self, step: int, cap: int) -> Ending | None:
        """Tests when it is time; arguments, return and error as in ``advance``."""
        if step >= cap:
            return self._end_at_cap(step)
        if not self.cadence.is_due(step):
            return None
        self.cadence.require_interval(cap)
        record = self._test(step)
        self.cadence.plan(step, cap, soon=self.minimum_test.inconclusive)
        if record is None or not self.minimum_test.has_passed(cap):
            return None
        return self._ending("divergence" if record["diverged"] else self.minimum_test.rule, record)

    def _end_at_cap(self, step: int) -> Ending:
        record = None
        if self.settings.guard and not self.cadence.held:
            record = self._test(step, is_last=True)
        if record is None:
            return Ending("cap", minimum_step=step, cliff_step=step)
        diverged = record["diverged"] or not math.isfinite(self.history.gathered[-1])
        passed = self.minimum_test.has_passed(step)
        return self._ending("divergence" if diverged else self.minimum_test.rule if passed else "cap", record)

    def _ending(self, reason: str, record: MinimumTestRecord) -> Ending:
        minimum_step, cliff_step = self.minimum_test.minimum_step, self.minimum_test.cliff_step
        assert minimum_step is not None  # there is a record
        assert cliff_step is not None
        if reason == "divergence":  # of which a GP on few losses may take no notice
            losses = self.history.gathered
            cliff_step = min(cliff_step, record["step"] * divergence.num_sound(losses) / len(losses))
        return Ending(reason, self._whole(minimum_step, record), self._whole(cliff_step, record))

    def _whole(self, place: float, record: MinimumTestRecord) -> int:
        """A place on the axis in whole optimizer steps."""
        ticks = self.cadence.ticks_per_step
        return min(round(place / ticks) * ticks, record["step"])

    def _test(self, step: int, is_last: bool = False) -> MinimumTestRecord | None:
        self.history.flush()
        losses, records = self.history.gathered, self.minimum_test.records
        num_new = len(losses) - (records[-1]["num_losses"] if records else 0)
        if num_new == 0:
            return None
        record = self.minimum_test.run(losses, num_new, step, is_last) if collective.is_main_process() else None
        if collective.num_processes() > 1:
            shared = collective.broadcast_record(record, self.settings.num_tests)
            if record is None:
                records.append(shared)
        return records[-1]

    def catch_up(self, step: int, switch_step: int | None) -> tuple[int, int | None]:
        """Where the other processes are, and the losses that they have more; collectives that all must join.

        Args:
            step: scheduler steps done on this process.
            switch_step: the step at which this process's warm-up ended; None before.

        Returns:
            The step, and the step of the switch, of the process that is furthest.
        """
        mine = [step, len(self.history.pending()), -1 if switch_step is None else switch_step]
        step, num_pending, switched = collective.gather_max(mine)
        self.history.flush_uneven(num_pending)
        self.cadence.restart()
        return step, None if switched < 0 else switched

    def state_dict(self) -> dict[str, Any]:
        """Losses and tests."""
        return {"losses": self.history.state_dict(), "minimum_test": self.minimum_test.state_dict()}

    def load_state_dict(self, state: dict[str, Any], is_over: bool) -> None:
        """Restores what ``state_dict`` returned; listens to losses again, or no more when ``is_over``."""
        self.history.load_state_dict(state["losses"])
        self.minimum_test.load_state_dict(state["minimum_test"])
        self.cadence.restart()
        if is_over:
            self.history.close()
        else:
            self.history.open()  # the scheduler may have been past its switch
