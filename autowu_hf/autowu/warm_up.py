"""The warm-up: takes in the losses of the run and finds out when their minimum has passed (2.1.2)."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import numpy as np

from ..loss_curve import divergence
from ..loss_curve.empty_start import without_empty_start
from ..runtime import collective
from ..runtime.losses.history import LossHistory
from .cadence import Cadence
from .minimum_test import MinimumTest
from .peak_rule import PeakRule
from .settings import AutoWUSettings
from .verdict import DIVERGENCE, MAX_LR, NOTHING, Ending, MinimumTestRecord, may_be_cliff

logger = logging.getLogger(__name__)


class WarmUp:
    """The part of the schedule that decides; with several processes, the same on all of them.

    Args:
        settings: the options.
        history: takes the losses in.
        steps_per_epoch: scheduler steps in an epoch; None when unknown.
        rule: the peak rule; None: that of the settings.

    Attributes:
        cadence: when losses are taken in and tests run.
        history: the losses.
        minimum_test: the tests.
    """

    def __init__(
        self, settings: AutoWUSettings, history: LossHistory, steps_per_epoch: int | None, rule: PeakRule | None = None
    ) -> None:
        self.settings = settings
        self.cadence = Cadence(settings, steps_per_epoch)
        self.history = history
        self.minimum_test = MinimumTest(settings, rule)
        self._places: list[list[int]] = []  # how many losses there were at a step; between them they are evenly spaced
        self.history.open()

    def say_shortage(self, cap: int) -> None:
        """Says once, before training, that the longest warm-up, ``cap`` scheduler steps, may be too short for tests."""
        self.cadence.say_shortage(cap, self.minimum_test.fewest_losses)

    def observe(self, loss: Any) -> None:
        """Takes in the loss of one more scheduler step, as ``advance`` does."""
        if self.cadence.tick():
            self.history.observe(loss)

    def advance(self, step: int, cap: int, loss: Any) -> Ending | None:
        """Takes in the loss of one more scheduler step, and tests when it is time.

        Args:
            step: t, the scheduler steps done.
            cap: the longest warm-up, in scheduler steps.
            loss: as in ``AdaptiveScheduler.step``.

        Returns:
            How the warm-up ended, when it is over; else None.

        Raises:
            ValueError: see ``AdaptiveScheduler.step``; or ``test_every="epoch"`` and the epoch's length is unknown.
        """
        cadence = self.cadence
        if cadence.ticks_per_step == 1 or cadence.tick():
            self.history.observe(loss)
        if step < cadence.next_test and step < cap:  # True at most steps: nothing to test yet
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
        return self._ending(DIVERGENCE if record.diverged else self.minimum_test.rule.name, record)

    def _end_at_cap(self, step: int) -> Ending:
        record = None
        if self.settings.guard and not self.cadence.held:
            record = self._test(step, is_last=True)
        if record is None:
            return self.untested_ending(step)
        diverged = record.diverged or not math.isfinite(self.history.gathered[-1])
        passed = self.minimum_test.has_passed(step)
        return self._ending(DIVERGENCE if diverged else self.minimum_test.rule.name if passed else self._unsure, record)

    def untested_ending(self, step: int) -> Ending:
        """The ending at the cap, ``step`` scheduler steps after the start, where no test looks once more."""
        return Ending(self._unsure, minimum_step=step, cliff_step=step, has_minimum=False)

    @property
    def _unsure(self) -> str:
        """The reason of an ending at the cap, if the last test is not sure; around a scale there is always something to
        go by.
        """
        is_something = self.minimum_test.has_found or self.minimum_test.rule.base_lr is not None
        return "cap" if is_something or not self.settings.guard else NOTHING

    def _ending(self, reason: str, record: MinimumTestRecord) -> Ending:
        minimum_step, cliff_step = self.minimum_test.minimum_step, self.minimum_test.cliff_step
        assert minimum_step is not None  # there is a record
        assert cliff_step is not None
        has_minimum = reason == self.minimum_test.rule.name or self.minimum_test.has_found
        losses = without_empty_start(self.history.gathered)
        if reason == DIVERGENCE:  # of which a GP on few losses may take no notice
            num_sound, steps_per_loss = divergence.num_sound(losses), record.step / len(losses)
            cliff_step = min(cliff_step, num_sound * steps_per_loss)
            has_minimum = has_minimum or divergence.has_gained(losses)
            if not has_minimum:
                minimum_step = cliff_step
            elif minimum_step > cliff_step:
                minimum_step = divergence.num_lowest(losses[:num_sound]) * steps_per_loss
        minimum, cliff = self._whole(minimum_step, record), self._whole(cliff_step, record)
        gained = divergence.gain(losses)
        has_moved = gained > 0.0 or bool(losses[-1] > divergence.ceiling(losses))
        is_low = cliff == record.step and divergence.has_fallen(losses)
        is_harmless = reason in ("cap", NOTHING) and is_low and not may_be_cliff(record)
        if reason == NOTHING and is_harmless and math.isfinite(self.settings.highest_lr):
            reason = MAX_LR  # who gives one has chosen the LR where nothing speaks against it; the default is no choice
        return Ending(reason, minimum, cliff, has_minimum and minimum < record.step, has_moved, is_harmless, gained)

    def _whole(self, place: float, record: MinimumTestRecord) -> int:
        """A place on the axis in whole optimizer steps."""
        ticks = self.cadence.ticks_per_step
        return min(round(place / ticks) * ticks, record.step)

    def _test(self, step: int, is_last: bool = False) -> MinimumTestRecord | None:
        self.history.flush()
        losses, records = self.history.gathered, self.minimum_test.records
        num_new = len(losses) - (records[-1].num_losses if records else 0)
        if num_new == 0:
            return None
        record = self.minimum_test.run(losses, num_new, step, is_last) if collective.is_main_process() else None
        if record is not None and self._places:
            records[-1] = record = self._placed(record)
        if collective.num_processes() > 1:
            numbers = None if record is None else record.to_numbers()
            count = MinimumTestRecord.count_numbers(self.settings.num_tests)
            shared = MinimumTestRecord.from_numbers(collective.broadcast_numbers(numbers, count))
            if record is None:
                records.append(shared)
        return records[-1]

    def _placed(self, record: MinimumTestRecord) -> MinimumTestRecord:
        """A record of a test that took all losses for evenly spaced."""
        numbers, steps = zip([0, 0], *self._places, [record.num_losses, record.step], strict=True)
        places = np.multiply([record.minimum_step, record.cliff_step], record.num_losses / record.step)
        minimum_step, cliff_step = np.interp(places, numbers, steps).tolist()
        return dataclasses.replace(record, minimum_step=minimum_step, cliff_step=cliff_step)

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
        """Losses and tests, and what they depend on."""
        return {
            "steps_per_epoch": self.cadence.steps_per_epoch,
            "num_processes": collective.num_processes(),
            "ticks_per_step": self.cadence.ticks_per_step,
            "places": [*self._places],
            "losses": self.history.state_dict(),
            "minimum_test": self.minimum_test.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], is_over: bool, step: int = 0) -> None:
        """Restores what ``state_dict`` returned; listens to losses again, or no more when ``is_over``.

        Args:
            state: it.
            is_over: whether the warm-up is.
            step: the scheduler steps since the growth began.
        """
        if not self.cadence.epoch_is_given:
            self.cadence.steps_per_epoch = state["steps_per_epoch"]
        self.history.load_state_dict(state["losses"])
        self.minimum_test.load_state_dict(state["minimum_test"])
        self._places = [*state.get("places", [])]
        if step > 0 and state.get("ticks_per_step", self.cadence.ticks_per_step) != self.cadence.ticks_per_step:
            self._places.append([len(self.history.gathered) + len(self.history.pending()), step])
        self.cadence.restart()
        if is_over:
            self.history.close()
        else:
            self.history.open()  # the scheduler may have been past its switch
        if state["num_processes"] != collective.num_processes() and collective.is_main_process():
            logger.warning(
                "AutoWU goes on with %d process(es) from a state of %d: the losses of its warm-up are means over "
                "another number of processes, and perhaps over another global batch",
                collective.num_processes(),
                state["num_processes"],
            )
