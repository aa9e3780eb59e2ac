"""The search for the scale: which optimizer steps are measured, and at which LR."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from ....runtime import collective
from ....runtime.update_meter import Update, UpdateMeter, seem_clipped
from ...optimizer_kinds import AVERAGED, is_used, momentum_of, num_unrectified, rectification, rectified_by, steps_of
from .bounds import bounded
from .first_steps import SEEM_CLIPPED, BlindLossesError, common_divisor, may_lie_around_0
from .measuring_lr import DEAF, USUAL_SIZE, MeasuringLR, say_deaf
from .scale import Scale

PATIENCE = 0.1
"""The share of the run until which there must be a scale, where the first steps have no gradients or do not happen."""

_LONGEST, _MEASURES = 8, 2
_UNLIKE = 5.0  # times larger, per unit of LR, so that the last update was still made at the LR from before
_SIZES = "for the updates are too small or too large"
_UNSEEN = 3  # calls in a row without a step and gradients: a loop may skip a batch or two whose loss is not finite
_ROUNDING = "no update of the first steps could be told from rounding"


class ScaleSearch:
    """Measures the first optimizer steps of a run, until there is a scale or none is to be had.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.

    Attributes:
        scale: None before it is known.
        obstacle: why there is none, as a part of a sentence; None while there may be one.
        is_blind: whether the losses will tell nothing at any LR (``BlindLossesError``).
        updates: the measured steps that count, oldest first, and ``losses``: theirs.
        alignment: of the first update that is weighed with the gradient; NaN before.
        first: the run's first update that has a gradient; None before, and in half precision (taken back).
        momentum: of SGD, as the optimizer's groups have it.
        meter: measures the steps.
        silence: why the last step that said nothing did not, as a part of a sentence.
        is_divided: called with what all gradients were divided by: whether the losses are, too (or it was clipping).
    """

    def __init__(self, optimizer: Any, ratios: Iterable[float]) -> None:
        self.scale: Scale | None = None
        self.obstacle: str | None = None
        self.first: Update | None = None
        self.updates, self.losses = list[Update](), list[float]()
        self.meter = UpdateMeter(optimizer, ratios, functools.partial(is_used, optimizer))
        self.momentum = max((momentum_of(group) for group in optimizer.param_groups), default=0.0)
        self._beta2 = rectified_by(optimizer)
        is_alone = collective.num_processes() == 1  # else the processes might see other weights, and take other LRs
        size = (self.meter.weight_size() if is_alone else 0.0) or USUAL_SIZE
        self._lr = MeasuringLR(self.meter.is_half, size)
        self.silence, self._steps, self._num_calls, self._num_unseen = _SIZES, 0, 0, 0
        self.alignment, self.is_blind, self._at_each = math.nan, False, list[bool]()
        self.num_shares: Callable[[], int] = int
        self.is_divided: Callable[[float], bool] = math.isnan  # which no divisor is

    @property
    def lr(self) -> float:
        """The common LR that the next step has to run at."""
        return self._lr.lr

    @property
    def is_over(self) -> bool:
        """Whether no more steps are measured."""
        return self.scale is not None or self.obstacle is not None

    @property
    def num_first(self) -> int:
        """The steps after which there is a scale, where all tell something that are of the optimizer's usual kind."""
        return _MEASURES + num_unrectified(self._beta2, steps_of(self.meter.optimizer))

    def start(self, num_shares: Callable[[], int] = int) -> None:
        """Measures from the next optimizer step on; ``num_shares`` is called at a step: into how many shares the
        processes divide the parameters (FSDP).
        """
        self.num_shares = num_shares
        if not self.is_over and not self.meter.has_hooks:
            self.give_up("the optimizer has no hooks for its step, for it does not call Optimizer.__init__")
        if not self.is_over:
            self.meter.takes_back_from, self.meter.expected_lr = self._lr.takes_back_from, self.lr
            self.meter.arm(num_shares)

    def begin(self) -> None:
        """Forgets what was measured and not taken in."""
        self.meter.updates.clear()

    def give_up(self, obstacle: str) -> None:
        """Measures no more, for a reason, as a part of a sentence; a scale that is known counts no longer."""
        self.scale, self.obstacle = None, obstacle
        self.stop()

    @property
    def is_far(self) -> bool:
        """Whether the LR of the measured steps has grown so far that they are taken back."""
        return self._lr.is_far

    @property
    def is_stepped_at_each(self) -> bool:
        """Whether the schedule was stepped at each of the backward calls of all steps that were measured; of one alone,
        a gradient scaler may have skipped those before it. Nobody knows after a resume.
        """
        return bool(self._at_each) and all(self._at_each)

    def shows(self, update: Update) -> bool:
        """Whether an update can be told from rounding."""
        return self._lr.shows(update.resolution)

    def measure_later(self) -> None:
        """Measures every step from now on, at whatever LR, and takes none back."""
        self.meter.expected_lr = math.inf
        self.meter.arm(self.num_shares, takes_back=False)

    def stop(self) -> None:
        """Measures no more."""
        self.meter.disarm()

    def take(self, loss: float) -> None:
        """Takes in the loss of the optimizer step just done, of all processes."""
        updates, self.meter.updates[:] = [*self.meter.updates], []
        self._num_calls += 1
        if updates:
            self._at_each.append(self._num_calls == self.meter.num_backwards > 1)
            self._num_calls = 0
            self._beta2 *= steps_of(self.meter.optimizer) > 0.0  # without a count, nothing tells the rectification
        self._num_unseen = 0 if updates or self.meter.idle or self.meter.has_gradients() else self._num_unseen + 1
        if self._num_unseen == _UNSEEN:
            self.give_up("no step of the optimizer was seen, and its parameters have no gradients")
            return
        if not updates:
            self.silence = f"for {self.meter.idle or 'the optimizer was not stepped'}"
        for update in updates:
            if isinstance(update, str):
                self.give_up(update)
                return
            if self.first is None and update.gradient_norm > 0.0 and not self.meter.is_half:
                self.first = update
            if not self._tells(update):
                continue
            self._steps, lr = self._steps + 1, self.lr
            self.alignment = update.alignment if math.isnan(self.alignment) else self.alignment
            self._weigh(update, loss)
            if self.is_over:
                return
            if self.lr != lr:  # the rest were made at the LR from before
                break
        self.meter.expected_lr = self.lr
        if len(self.updates) >= _MEASURES and not (self._steps < _LONGEST and may_lie_around_0(self.losses)):
            self.meter.disarm()
            if collective.num_processes() > 1 and seem_clipped(self.updates, self.meter.is_half):
                self.obstacle = SEEM_CLIPPED
                return
            divisor = common_divisor(self.updates, self.meter.is_half)
            if divisor is not None and self.is_divided(divisor):
                self.meter.divides_loss, self.updates = True, [own.of_divided_loss() for own in self.updates]
            try:
                self.scale = self.scale_of(self.losses)
            except ValueError as error:
                self.obstacle, self.is_blind = str(error), isinstance(error, BlindLossesError)
        elif self._steps >= _LONGEST:
            self.give_up(_ROUNDING)

    def scale_of(self, losses: Sequence[float]) -> Scale:
        """What the measured updates say with such losses in their steps; see ``Scale.from_updates``."""
        scale = Scale.from_updates(losses, self.updates, self.alignment, self.momentum, self.first)
        bounds = bounded(scale, self.meter.optimizer, self.updates)
        return replace(bounds, beta2=self._beta2)

    def runs_out(self, step: int, num_steps: int, longest: int) -> bool:
        """Gives up where too many steps have said nothing.

        Args:
            step: the optimizer steps done, of the run's ``num_steps``.
            num_steps: of the run.
            longest: the most steps until the peak has to be known.

        Returns:
            Whether it gave up after more steps than are ever measured.
        """
        patience = max(_LONGEST + num_unrectified(self._beta2, 0.0), min(round(PATIENCE * num_steps), longest))
        if self.is_over or step < min(patience, num_steps - 1):
            return False
        self.give_up(f"by step {step} too few steps say anything, {self.silence}")
        return step > _LONGEST

    def _tells(self, update: Update) -> bool:
        """Whether an update tells anything of later ones; if not, ``silence`` says why."""
        if update.gradient_norm == 0.0:
            self.silence = "for the gradients are zero"
        elif self._rectification == 0.0:
            self.silence = "for the optimizer does not rectify its first steps"
        elif update.resolution == 0.0 and self._lr.is_highest:
            self.silence = "for the optimizer moves no weights"
        else:
            self.silence = _SIZES
            return True
        return False

    @property
    def _rectification(self) -> float:
        """The size of the last update as a share of Adam's first one; 1 of other optimizers."""
        return AVERAGED * rectification(self._beta2, steps_of(self.meter.optimizer)) if self._beta2 > 0.0 else 1.0

    def _weigh(self, update: Update, loss: float) -> None:
        """Takes an update in, if it is of a size that says something; if not, the next one has another LR."""
        seen = update.lr * update.update_norm
        if self._lr.suits(update.resolution, seen / update.weight_norm if update.weight_norm > 0.0 else 0.0):
            if self.updates and not update.whole_norm / self._rectification < _UNLIKE * self.updates[-1].whole_norm:
                self.updates, self.losses = [], []
            self.updates.append(update.enlarged(1.0 / self._rectification))
            self.losses.append(loss)
        elif self._lr.is_deaf:
            say_deaf(update.lr)
            self.give_up(DEAF)
        elif self._lr.is_lost:
            self.give_up(_ROUNDING)
        self.meter.takes_back_from = self._lr.takes_back_from

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        return {
            **self._lr.state_dict(),
            "steps": self._steps,
            "as_new": self.meter.as_new,
            "divides_loss": self.meter.divides_loss,
            "first": None if self.first is None else asdict(self.first),
            "losses": [*self.losses],
            "updates": [asdict(update) for update in self.updates],
            "scale": None if self.scale is None else asdict(self.scale),
            **{name: getattr(self, name) for name in ("alignment", "obstacle", "is_blind")},
        }

    def report(self, num_steps: int) -> dict[str, Any] | None:
        """The scale in numbers and names, for a run of so many steps; None without one."""
        return None if self.scale is None else self.scale.report(num_steps)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self._lr.load_state_dict(state)
        self._steps, self.obstacle = state["steps"], state["obstacle"]
        self.meter.divides_loss = state.get("divides_loss", False)
        self.alignment, self.is_blind = state["alignment"], state.get("is_blind", False)
        self.losses, self.updates = [*state["losses"]], [Update(**numbers) for numbers in state["updates"]]
        first = state.get("first", next(iter(state["updates"]), None))  # a state may be older
        self.first = Update(**first) if first else None
        self.scale = None if state["scale"] is None else Scale(**state["scale"])
        if state.get("as_new") and not self.is_over:  # no checkpoint has what these steps made of their own state
            self._steps, self.alignment, self.first, self.losses, self.updates = 0, math.nan, None, [], []
        if self.is_over:
            self.stop()
        else:
            self.start(self.num_shares)
        self.meter.as_new = state.get("as_new", False)
