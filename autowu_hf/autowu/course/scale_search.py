"""The search for the scale: which optimizer steps are measured, and at which LR."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from ...runtime import collective
from ...runtime.update_meter import Update, UpdateMeter
from .scale import ALIGNED, BlindLossesError, Scale

FIRST_LR, FIRST_LR_HALF = 1e-5, 1e-3
"""Of the first measured step, for weights of the usual size, 0.1, in full and in half precision. It only has to be
small; where its update is lost in the weights' precision, the next step is measured at a larger one. Steps in half
precision are taken back, so that they can be larger.
"""

_MEASURES = 2
_LONGEST = 8
_FINE, _FINE_HALF = 1e-5, 5e-3
"""The least share of the weights that a measured update must make, in full and in half precision."""


class ScaleSearch:
    """Measures the first optimizer steps of a run, until there is a scale or none is to be had.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.

    Attributes:
        lr: the common LR that the next step has to run at.
        scale: None before it is known.
        obstacle: why there is none, as a part of a sentence; None while there may be one.
        is_blind: whether the losses will tell nothing at any LR (``BlindLossesError``).
        is_settling: whether a later step is being measured (``settle``).
    """

    def __init__(self, optimizer: Any, ratios: Iterable[float]) -> None:
        self.scale: Scale | None = None
        self.obstacle: str | None = None
        self.is_blind = False
        self.updates: list[Update] = []
        self.losses: list[float] = []
        self._meter = UpdateMeter(optimizer, ratios)
        self._is_half = self._meter.is_half
        self._momentum = max((_momentum(group) for group in optimizer.param_groups), default=0.0)
        self.lr = FIRST_LR_HALF if self._is_half else FIRST_LR
        if collective.num_processes() == 1:  # else the processes might see other weights, and take other LRs
            self.lr *= (self._meter.weight_size() or 0.1) / 0.1
        self._steps = 0
        self._alignment = math.nan
        self.is_settling = False
        self._is_sharded: Callable[[], bool] = bool

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
        if not self.is_over:
            self._meter.expected_lr = self.lr
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
        if update is None or update.resolution < (_FINE_HALF if self._is_half else _FINE):
            return None
        if self._alignment > ALIGNED and (self._momentum > 0.0 or update.alignment > ALIGNED):
            return None  # SGD's, whose size is that of the gradient, from batch to batch
        first = math.sqrt(sum(u.update_norm**2 for u in self.updates) / len(self.updates))
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
        self._steps += 1
        if not self._meter.updates and not self._meter.has_gradients():
            self.give_up("the optimizer has no gradients at its step")
            return
        for update in self._meter.updates:
            if update is None:
                self.give_up(
                    "a first step has gradients or weights that are not finite, or clipped in a way that cannot be seen"
                )
                return
            if math.isnan(self._alignment):
                self._alignment = update.alignment
            fine = _FINE_HALF if self._is_half else _FINE
            if update.resolution >= fine:
                self.updates.append(update)
                self.losses.append(loss)
            else:  # too small a step for the precision of the weights
                self.lr *= min(4.0 * fine / update.resolution, 1e3) if update.resolution > 0.0 else 1e3
        self._meter.updates.clear()
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
            self.give_up("no update of the first steps could be told from rounding")

    def _seems_clipped(self) -> bool:
        if collective.num_processes() == 1 or any(update.clipping != 1.0 for update in self.updates):
            return False
        norms = [update.gradient_norm for update in self.updates]
        return max(norms) - min(norms) < (_FINE_HALF if self._is_half else 1e-4) * max(norms)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        return {
            "lr": self.lr,
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
        if self.scale is None:
            return None
        return {
            **asdict(self.scale),
            "lr": self.scale.lr,
            "peak_lr": self.scale.peak_lr,
            "held_by": self.scale.held_by,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.lr, self._steps, self.obstacle = state["lr"], state["steps"], state["obstacle"]
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


def _momentum(group: dict[str, Any]) -> float:
    """m, so that SGD's updates grow to 1 / (1 - m) of the first."""
    momentum, dampening = (float(group.get(name) or 0.0) for name in ("momentum", "dampening"))
    if not 0.0 < momentum < 1.0 or dampening >= 1.0:
        return 0.0
    return max(1.0 - (1.0 - momentum) / (1.0 - dampening), 0.0)
