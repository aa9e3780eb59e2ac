"""The way back at the switch: the snapshots that it may want, and the weights that it restores."""

from __future__ import annotations

import bisect
import logging

from torch import Tensor
from torch.optim import Optimizer

from ..rewind import LR_FACTOR, Rewind
from ..runtime import collective
from ..runtime.finite import DivergedError, has_finite_parameters
from ..shapes import LRCurve
from .course.approach import Approach
from .peak_rule import CLIFF_SHARE, CLIFF_SPAN, MINIMUM_SHARE, PeakRule
from .verdict import MAX_LR, Ending
from .warm_up import WarmUp

logger = logging.getLogger(__name__)


class WayBack:
    """Has snapshots taken along the warm-up wherever the switch may go back to, and goes back.

    Args:
        rule: the peak rule.
        rewind: takes and restores the snapshots.
        warm_up: whose tests say what the switch may want.

    Attributes:
        due_at: the scheduler step before which no snapshot is due.
        is_owed: whether the switch was made while other processes were at earlier steps, so that going back waits
            until all meet and ``make_up`` is called.
    """

    def __init__(self, rule: PeakRule, rewind: Rewind, warm_up: WarmUp) -> None:
        self._rule = rule
        self._rewind = rewind
        self._cadence = warm_up.cadence
        self._minimum_test = warm_up.minimum_test
        self._patience = warm_up.settings.patience
        self.due_at = 0
        self._owed: tuple[float, Ending] | None = None

    def follow(self, curve: LRCurve, cap: int, since: int = 0) -> None:
        """Sets the LRs of the warm-up and its longest length in scheduler steps, as they are from now on; ``since``:
        those of the run when it began.
        """
        self._curve, self._cap, self._began = curve, cap, since
        self.due_at = 0  # looked up at the next step

    def keep(self, step: int) -> None:
        """Takes a snapshot after a scheduler step, where one is due and all processes have done the step."""
        cadence, rewind, lr_of = self._cadence, self._rewind, self._curve.warmup
        if cadence.held or not cadence.is_between_steps:
            return
        if not rewind.is_planned and rewind.is_on:
            rewind.plan(band=lr_of(self._cap) / self._lowest_lr(self._cap))
        if rewind.is_due(lr_of(step)):
            rewind.follow(step, lr_of, self._lowest_lr(step), self._wanted_lrs(step))
        later = range(step + 1, self._cap + 1)
        self.due_at = step + 1 + bisect.bisect_left(later, True, key=lambda t: rewind.is_due(lr_of(t)))

    def keep_start(self, step: int, approach: Approach) -> bool:
        """Takes a snapshot where the LR begins to grow to the scale, before a step is measured at a large LR, or where
        a transient is over; goes back to it where the approach wants that, and drops it when the approach is over.

        Args:
            step: scheduler steps done.
            approach: of the course.

        Returns:
            False where it could not go back.
        """
        if approach.wants_back:
            start = self._rewind.restore(lambda _: 0.0, 0.0)
            approach.went_back(None if start is None else step // self._cadence.ticks_per_step)
            if start is None:
                return False
            if approach.is_over:
                self._rewind.drop()
            if collective.is_main_process():
                done = start // self._cadence.ticks_per_step
                logger.info("AutoWU goes back to the weights and the optimizer's state of step %d", done)
            return True
        is_anew = approach.transient.raised_at == step // self._cadence.ticks_per_step
        if approach.is_over or is_anew:
            self._rewind.drop()
        is_due = not self._rewind.snapshots and (len(approach.way.legs) == 1 or approach.search.is_far)
        if is_anew or (is_due and not approach.is_over):
            self._rewind.keep_one(step)
        return True

    def start_weights(self) -> list[Tensor]:
        """Those of the oldest snapshot, from before the growth, this process's shares; none where there is none."""
        try:
            return [weights for kept in self._rewind.snapshots[:1] for weights in kept.load().parameters]
        except OSError as error:  # somebody has removed the file
            logger.warning(
                "AutoWU cannot read the weights from before the growth, and asks no batches about it: %s", error
            )
            return []

    def _interval(self) -> int:
        return self._cadence.interval(self._cap) or self._cadence.ticks_per_step

    def _lowest_lr(self, step: int) -> float:
        """The lowest LR that the switch would go back to for a cliff, or a minimum, that is still to be seen."""
        if self._rule.wanted != "cliff":
            return self._curve.warmup(step)
        interval = self._interval()
        # What a test finds lies before the tests in a row that it takes.
        tests = max((self._patience + 1) * interval, CLIFF_SPAN * self._cap + interval)
        lag = self._rule.lag(self._cadence.ticks_per_step)
        return self._rule.weigh(CLIFF_SHARE * self._curve.warmup(max(step - tests - lag, 0)))

    def _wanted_lrs(self, step: int) -> list[float]:
        """The LRs that the switch would go back to for the minimum that is known now, or if nothing is found."""
        if self._rule.wanted == "cliff":
            share, lag = MINIMUM_SHARE, self._rule.lag(self._cadence.ticks_per_step)
        else:
            share, lag = 1.0, self._interval()
        places = [place - lag for place in self._minimum_test.minimum_steps or [step]]
        lrs = [self._rule.weigh(share * self._curve.warmup(max(place, 0))) for place in places]
        return [*lrs, self._rule.own_lr]

    @property
    def is_owed(self) -> bool:
        return self._owed is not None

    def make_up(self) -> int | None:
        """Goes back as ``go_back`` would have done when it was owed; returns the same."""
        assert self._owed is not None
        return self.go_back(*self._owed)

    def go_back(self, peak_lr: float, ending: Ending) -> int | None:
        """Restores the last weights that never saw an LR above the peak, and no later ones than those of the minimum.
        Nothing, where the growth has harmed nothing, and the scale is outgrown or the peak is ``max_lr``.

        While tests are held, because other processes train on, it only notes that this is owed.

        Args:
            peak_lr: the LR that the decay starts from.
            ending: how the warm-up ended.

        Returns:
            Their scheduler step; None where nothing was restored.
        """
        self._owed = (peak_lr, ending) if self._cadence.held else None
        if self._owed is not None:
            return None
        if self._rule.is_outgrown(ending) or ending.reason == MAX_LR:
            self._rewind.drop()
            return None
        lr_of = self._curve.warmup
        highest = max(min(peak_lr, lr_of(ending.minimum_step)), lr_of(0))
        has_any = bool(self._rewind.snapshots)  # not after a warm-up of one step
        step = self._rewind.restore(lr_of, highest)
        if has_any and collective.is_main_process():
            if step is None:
                logger.warning("AutoWU has no snapshot with finite weights to go back to")
            elif lr_of(step) > LR_FACTOR * highest:
                logger.warning(
                    "AutoWU goes back to the earliest snapshot that it has, of step %d at learning rate %.1e, which is "
                    "above the %.1e that it is to go on from",
                    (self._began + step) // self._cadence.ticks_per_step,
                    lr_of(step),
                    highest,
                )
        self._rewind.drop()
        return step


def require_finite_parameters(
    optimizer: Optimizer, step: int, last_lr: float, max_lr: float | None, rewound_to: int | None, rewind_is_on: bool
) -> None:
    """Stops a run that would burn the rest of its budget.

    Looks at this process's share only: where shares differ, the launcher ends the other processes.

    Args:
        optimizer: whose parameters are looked at.
        step: optimizer steps done.
        last_lr: the LR at the end of the warm-up, in optimizer units.
        max_lr: the end of the range that the LR grows over; None around the scale.
        rewound_to: the optimizer step whose weights were restored there; None where none were.
        rewind_is_on: whether there were any to choose from.

    Raises:
        DivergedError: a parameter is infinite or NaN.
    """
    if has_finite_parameters(optimizer):
        return
    if rewound_to is None and rewind_is_on:
        remedy = "no snapshot is finite. Look for NaN in the first batches and for overflow in the model"
    elif rewound_to is None:
        remedy = "there was no earlier state to go back to. rewind=True keeps some"
        if max_lr is not None:
            remedy += f", and a lower max_lr than {max_lr:g} keeps the learning rate from getting there"
    else:
        remedy = (
            f"the weights of step {rewound_to} were restored, and broke again. Look for NaN in the data and for "
            "overflow in the model"
        )
    raise DivergedError(
        f"training has diverged: parameters are infinite or NaN after step {step}. The warm-up's last learning "
        f"rate was {last_lr:.1e}, and {remedy}"
    )
