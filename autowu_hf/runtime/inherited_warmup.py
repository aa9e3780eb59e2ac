"""A warm-up that was meant for another schedule: what one that looks at the run makes of it."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any, ClassVar

from torch.optim.lr_scheduler import LRScheduler

from . import collective
from .checks import check_count, whole

logger = logging.getLogger(__name__)


class InheritsWarmup(LRScheduler):
    """The part of ``AdaptiveScheduler`` that takes the ``num_warmup_steps`` of a script that names the schedule only,
    as ``get_scheduler`` gives them to every schedule. They are the limit of its own warm-up where an LR can be found in
    it, and left out elsewhere.

    Attributes:
        inherited_warmup: those steps, in scheduler steps; 0 where there are none.
    """

    name: ClassVar[str]
    num_training_steps: int
    num_warmup_steps: int
    ticks_per_step: int
    inherited_warmup = 0
    _has_said_warmup = False

    @property
    def warmup_limits(self) -> tuple[int, int]:
        """The fewest and the most optimizer steps that ``num_warmup_steps`` may be for there to be an LR to find."""
        return 1, self.num_training_steps // self.ticks_per_step - 1

    def inherit_warmup(self, num_warmup_steps: Any) -> None:
        """Takes such steps, before the schedule's first one.

        Args:
            num_warmup_steps: in scheduler steps.

        Raises:
            ValueError: that is no number of steps.
        """
        self.inherited_warmup = whole(num_warmup_steps)
        check_count("num_warmup_steps", self.inherited_warmup, minimum=0)
        self._fit_warmup()
        self._plan()
        self._set_lrs()

    def _fit_warmup(self) -> None:
        """All or none of them; to be called where the length of the run is known anew."""
        if self.inherited_warmup:
            fewest, most = self.warmup_limits
            fits = fewest <= self.inherited_warmup // self.ticks_per_step <= most
            self.num_warmup_steps = self.inherited_warmup if fits else 0

    @abstractmethod
    def _plan(self) -> None: ...

    @abstractmethod
    def _set_lrs(self) -> None: ...

    def say_inherited(self, option: str | None = None) -> None:
        """Says once, on the main process, what was made of them.

        Args:
            option: by which they were asked for, and its value: "warmup_ratio=0.1"; None: ``num_warmup_steps``.
        """
        if self._has_said_warmup or not self.inherited_warmup or not collective.is_main_process():
            return
        self._has_said_warmup = True
        ticks, (fewest, most) = self.ticks_per_step, self.warmup_limits
        steps, used = self.num_training_steps // ticks, self.num_warmup_steps // ticks
        instead = "Pass 0" if option is None else f"Remove {option.partition('=')[0]}"
        option = f"num_warmup_steps={self.inherited_warmup // ticks}" if option is None else option
        if not used:
            logger.warning(
                "%s is left out: in a run of %d steps, %s can use from %d to %d steps. %s; %s",
                option,
                steps,
                self.name,
                fewest,
                most,
                instead,
                "the schedule finds the length of its warm-up by itself" if fewest > 1 else "it needs none",
            )
        elif fewest > 1:
            logger.info(
                "%s limits the search of %s for the peak learning rate to the first %d of %d steps. %s, unless you "
                "want that limit; the schedule finds the length of its warm-up by itself",
                option,
                self.name,
                used,
                steps,
                instead,
            )
