"""The search for the scale: which optimizer steps are measured, and at which LR."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from ...runtime import collective
from ...runtime.update_meter import Update, UpdateMeter
from .measuring_lr import DEAF, USUAL_SIZE, MeasuringLR, say_deaf
from .scale import ALIGNED, BlindLossesError, Scale, momentum_of

PATIENCE = 0.1
"""The share of the run until which there must be a scale, where the first steps have no gradients or do not happen."""

_LONGEST = 8
_MEASURES = 2
_ROUNDING = "no update of the first steps could be told from rounding"
_TELLING_GROWTH = 60.0  # of the LR; updates of the first steps that are measured are at most 30 times a later one


class ScaleSearch:
    """Measures the first optimizer steps of a run, until there is a scale or none is to be had.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.

    Attributes:
        scale: None before it is known.
        obstacle: why there is none, as a part of a sentence; None while there may be one.
        is_blind: whether the losses will tell nothing at any LR (``BlindLossesError``).
        is_settling: whether a later step is being measured (``settle``).
        silence: why the last step that said nothing did not, as a part of a sentence.
    """

    def __init__(self, optimizer: Any, ratios: Iterable[float]) -> None:
        self.scale: Scale | None = None
        self.obstacle: str | None = None
        self.is_blind = False
        self.updates: list[Update] = []
        self.losses: list[float] = []
        self._meter = UpdateMeter(optimizer, ratios)
        self._momentum = max((momentum_of(group) for group in optimizer.param_groups), default=0.0)
        size = USUAL_SIZE
        if collective.num_processes() == 1:  # else the processes might see other weights, and take other LRs
            size = self._meter.weight_size() or size
        self._lr = MeasuringLR(self._meter.is_half, size)
        self.silence = "for the updates are too small or too large"
        self._steps = 0
        self._alignment = math.nan
        self.is_settling = False
        self._is_sharded: Callable[[], bool] = bool

    @property
    def lr(self) -> float:
        """The common LR that the next step has to run at."""
        return self._lr.lr

    @property
    def is_over(self) -> bool:
        """Whether no more steps are measured."""
        return self.scale is not None or self.obstacle is not None

    def start(self, is_sharded: Callable[[], bool] = bool) -> None:
        """Measures from the next optimizer step on.

        Args:
            is_sharded: called at a step: whether every process holds another share of the parameters (FSDP).
        """
        self._is_sharded = is_sharded
        if not self.is_over and not self._meter.has_hooks:
            self.give_up("the optimizer has no hooks for its step, for it does not call Optimizer.__init__")
        if not self.is_over:
            self._meter.takes_back_from, self._meter.expected_lr = self._lr.takes_back_from, self.lr
            self._meter.arm(is_sharded)

    def begin(self) -> None:
        """Forgets what was measured and not taken in."""
        self._meter.updates.clear()

    def give_up(self, obstacle: str) -> None:
        """Measures no more; a scale that is known counts no longer.

        Args:
            obstacle: why, as a part of a sentence.
        """
        self.scale, self.obstacle = None, obstacle
        self.stop()

    @property
    def is_far(self) -> bool:
        """Whether the LR of the measured steps has grown so far that they are taken back."""
        return self._lr.is_far

    @property
    def num_backwards(self) -> int:
        """How often gradients were added up for the last step that was measured; 0 where that cannot be told."""
        return self._meter.num_backwards

    def settle(self) -> None:
        """Measures one more step, now that the optimizer has settled."""
        self.is_settling, self._meter.expected_lr = True, math.inf
        self._meter.updates.clear()
        self._meter.arm(self._is_sharded, takes_back=False)

    def take_settled(self) -> float | None:
        """The norm of that step's update, as a share of the first ones'; None where it was skipped or lost in the
        weights' precision, and for SGD.
        """
        updates = [*self._meter.updates]
        if not updates:
            return None
        self.stop()
        update = updates[-1]
        if isinstance(update, str) or not self._lr.shows(update.resolution):
            return None
        if self._alignment > ALIGNED and (self._momentum > 0.0 or update.alignment > ALIGNED):
            return None  # SGD's, whose size is that of the gradient, from batch to batch
        first = math.sqrt(sum(u.update_norm**2 for u in self.updates) / len(self.updates))
        growth = update.lr / self.updates[0].lr
        if growth >= _TELLING_GROWTH and growth * update.update_norm < 1.5 * first:
            say_deaf(update.lr)
            return None
        return update.update_norm / first if first > 0.0 else None

    def stop(self) -> None:
        """Measures no more."""
        self.is_settling = False
        self._meter.disarm()

    def take(self, loss: float) -> None:
        """Takes in the loss of the optimizer step just done.

        Args:
            loss: of all processes.
        """
        updates = [*self._meter.updates]
        self._meter.updates.clear()
        if not updates and self._meter.idle is None and not self._meter.has_gradients():
            self.give_up("no step of the optimizer was seen, and its parameters have no gradients")
            return
        if not updates:
            self.silence = f"for {self._meter.idle or 'the optimizer was not stepped'}"
        for update in updates:
            if isinstance(update, str):
                self.give_up(update)
                return
            if update.gradient_norm == 0.0:
                self.silence = "for the gradients are zero"
                continue
            self._steps, lr = self._steps + 1, self.lr
            if math.isnan(self._alignment):
                self._alignment = update.alignment
            self._weigh(update, loss)
            if self.is_over:
                return
            if self.lr != lr:
                break  # the rest were made at the LR from before, too
        self._meter.expected_lr = self.lr
        if len(self.updates) >= _MEASURES:
            self._meter.disarm()
            if self._seems_clipped():
                self.obstacle = (
                    "the gradients of the first steps have the same norm, as if they were clipped where it cannot be "
                    "seen; with several processes only Accelerator.clip_grad_norm_ can be"
                )
                return
            try:
                self.scale = Scale.from_updates(self.losses, self.updates, self._alignment, self._momentum)
            except ValueError as error:
                self.obstacle, self.is_blind = str(error), isinstance(error, BlindLossesError)
        elif self._steps >= _LONGEST:
            self.give_up(_ROUNDING)

    def runs_out(self, step: int, num_steps: int, longest: int) -> bool:
        """Gives up where too many steps have said nothing.

        Args:
            step: the optimizer steps done, of the run's ``num_steps``.
            num_steps: of the run.
            longest: the most steps until the peak has to be known.

        Returns:
            Whether it gave up after more steps than are ever measured.
        """
        patience = max(_LONGEST, min(round(PATIENCE * num_steps), longest))
        if self.is_over or step < min(patience, num_steps - 1):
            return False
        self.give_up(f"by step {step} too few steps say anything, {self.silence}")
        return step > _LONGEST

    def _weigh(self, update: Update, loss: float) -> None:
        """Takes an update in, if it is of a size that says something; if not, the next one has another LR."""
        seen = update.lr * update.update_norm
        if self._lr.suits(update.resolution, seen / update.weight_norm if update.weight_norm > 0.0 else 0.0):
            self.updates.append(update)
            self.losses.append(loss)
        elif self._lr.is_deaf:
            say_deaf(update.lr)
            self.give_up(DEAF)
        elif self._lr.is_lost:
            self.give_up(_ROUNDING)
        self._meter.takes_back_from = self._lr.takes_back_from

    def _seems_clipped(self) -> bool:
        if collective.num_processes() == 1 or any(update.clipping != 1.0 for update in self.updates):
            return False
        norms = [update.gradient_norm for update in self.updates]
        return max(norms) - min(norms) < (5e-3 if self._meter.is_half else 1e-4) * max(norms)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        return {
            **self._lr.state_dict(),
            "steps": self._steps,
            "alignment": self._alignment,
            "losses": [*self.losses],
            "updates": [asdict(update) for update in self.updates],
            "scale": None if self.scale is None else asdict(self.scale),
            "obstacle": self.obstacle,
            "is_blind": self.is_blind,
            "is_settling": self.is_settling,
        }

    def report(self) -> dict[str, Any] | None:
        """The scale in numbers and names; None without one."""
        return None if self.scale is None else self.scale.report()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self._lr.load_state_dict(state)
        self._steps, self.obstacle = state["steps"], state["obstacle"]
        self._alignment, self.is_blind = state["alignment"], state.get("is_blind", False)
        self.losses = [*state["losses"]]
        self.updates = [Update(**numbers) for numbers in state["updates"]]
        self.scale = None if state["scale"] is None else Scale(**state["scale"])
        if state["is_settling"]:
            self.settle()
        elif self.is_over:
            self.stop()
        else:
            self.start(self._is_sharded)
