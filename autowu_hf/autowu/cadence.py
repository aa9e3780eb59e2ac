"""The clock of the warm-up: which scheduler steps take in a loss, and which run a minimum test (2.1.2)."""

from __future__ import annotations

import logging
import math

from ..runtime import collective
from .settings import AutoWUSettings

logger = logging.getLogger(__name__)


class Cadence:
    """Counts scheduler steps in optimizer steps and plans the minimum tests.

    Args:
        settings: of these ``test_every`` is used here.
        steps_per_epoch: scheduler steps in an epoch; None when unknown.

    Attributes:
        steps_per_epoch: as given, or as told later.
        epoch_is_given: whether it was given, and not only told.
        ticks_per_step: scheduler steps taken in a row for one optimizer step.
        held: True while no test may be run.
        next_test: the scheduler step before which no test is due.
        cap_option: the option by which the longest warm-up was chosen, for messages.
    """

    def __init__(self, settings: AutoWUSettings, steps_per_epoch: int | None) -> None:
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.epoch_is_given = steps_per_epoch is not None
        self.ticks_per_step = 1
        self.held = False
        self._ticks = 0
        self._said_short = False
        self.next_test = 1
        self.cap_option = "max_warmup_fraction"

    def restart(self) -> None:
        """The next scheduler step is the first of its optimizer step."""
        self._ticks = 0

    def tick(self) -> bool:
        """Counts one scheduler step; whether it is the first of its optimizer step, the one that takes in the loss."""
        first = self._ticks % self.ticks_per_step == 0
        self._ticks += 1
        return first

    def is_due(self, step: int) -> bool:
        """Whether a minimum test is to be run after ``step`` scheduler steps: never amid an optimizer step."""
        return step >= self.next_test and not self.held and self.is_between_steps

    @property
    def is_between_steps(self) -> bool:
        """Whether all scheduler steps of an optimizer step are done."""
        return self._ticks % self.ticks_per_step == 0

    def plan(self, step: int, cap: int, soon: bool = False) -> None:
        """Sets the step of the next test.

        Args:
            step: scheduler steps done.
            cap: the longest warm-up, in scheduler steps.
            soon: test after the next optimizer step, not after an interval.
        """
        interval = self.interval(cap)
        self.next_test = step + 1 if soon or interval is None else (step // interval + 1) * interval

    def interval(self, cap: int) -> int | None:
        """The scheduler steps between two tests, a whole number of optimizer steps.

        Args:
            cap: the longest warm-up, in scheduler steps.

        Returns:
            The interval; None where ``test_every="epoch"`` and the epoch's length is unknown.
        """
        ticks = self.ticks_per_step
        epoch = None if self.steps_per_epoch is None else math.ceil(self.steps_per_epoch / ticks)
        every = self.settings.resolve_interval(cap // ticks, epoch)
        if every is None:
            return None
        if isinstance(self.settings.test_every, int):
            return math.ceil(every / ticks) * ticks
        return every * ticks

    def shortage(self, cap: int, fewest_losses: int) -> str | None:
        """What there is to say where the longest warm-up leaves no room for its tests.

        Args:
            cap: the longest warm-up, in scheduler steps.
            fewest_losses: how many losses a test needs.

        Returns:
            A sentence; None where there is room, or the interval is unknown.
        """
        interval, patience = self.interval(cap), self.settings.patience
        if interval is None:
            return None
        room = max((cap - 1) // interval - (fewest_losses * self.ticks_per_step - 1) // interval, 0)
        if room >= patience:
            return None
        instead = f"it will end at max_lr = {self.settings.max_lr:g}, whatever the losses say"
        if self.settings.guard:
            instead = "one look at its end decides on the learning rate"
        return (
            f"the longest warm-up, of {cap // self.ticks_per_step} steps, leaves room for {room} minimum tests, and it "
            f"takes {patience} in a row to end it, so {instead}; more steps, a larger {self.cap_option} or a smaller "
            "test_every give room"
        )

    def tell_epoch(self, steps_per_epoch: int | None, step: int, cap: int) -> None:
        """Takes in the length of an epoch, unless it was given, and plans the next test.

        Args:
            steps_per_epoch: in scheduler steps; None when there is no such length.
            step: scheduler steps done.
            cap: the longest warm-up, in scheduler steps.

        Raises:
            ValueError: ``test_every="epoch"`` still lacks a length.
        """
        if not self.epoch_is_given:
            self.steps_per_epoch = steps_per_epoch
        self.require_interval(cap)
        self.plan(step, cap)

    def say_shortage(self, cap: int, fewest_losses: int) -> None:
        """Says once what ``shortage`` has to say; arguments as there."""
        shortage = self.shortage(cap, fewest_losses)
        if shortage is not None and not self._said_short:
            self._said_short = True
            if collective.is_main_process():
                logger.warning("%s", shortage)

    def require_interval(self, cap: int) -> None:
        """Makes sure that there is an interval.

        Args:
            cap: the longest warm-up, in scheduler steps.

        Raises:
            ValueError: ``test_every="epoch"`` and the epoch's length is unknown.
        """
        if self.interval(cap) is None:
            raise ValueError(
                'test_every="epoch" needs the length of an epoch, which is unknown here; '
                'pass steps_per_epoch, or test_every="auto" or a number of steps'
            )
