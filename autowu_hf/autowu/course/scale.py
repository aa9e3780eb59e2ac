"""The scale: an LR from the loss, the gradients and the weights of the first optimizer steps. (Ours.)

With u the change of the weights by one optimizer step per unit of LR, and g the gradient before clipping:

    P = L / -<g, u>     the LR at which a linear model of the loss would bring this batch's loss to 0: Polyak's step
                        (1987) along the optimizer's own direction
    R = ||w|| / ||u||   the LR at which one update is as large as the weights: the trust ratio of LARS (You et al. 2017)
                        over all weights

Both follow the loss's and the weights' units, so the scale does, too: a loss multiplied by 1000 changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...runtime import collective
from ...runtime.update_meter import Update, UpdateMeter

POLYAK_SHARE = 0.3
"""The highest peak LR as a share of P."""

TRUST_SHARE = 0.2
"""The highest peak LR as a share of R."""

ALIGNED = 0.99
"""The alignment from which an update counts as the gradient itself."""

FIRST_LR, FIRST_LR_HALF = 1e-5, 1e-3
"""Of the first measured step, for weights of the usual size, 0.1, in full and in half precision. It only has to be
small; where its update is lost in the weights' precision, the next step is measured at a larger one. Steps in half
precision are taken back, so that they can be larger.
"""

_MEASURES = 2
_LONGEST = 8
_FINE, _FINE_HALF = 1e-5, 5e-3
"""The least share of the weights that a measured update must make, in full and in half precision."""


@dataclass(frozen=True)
class Scale:
    """What the first optimizer steps say about the LR; all of it in optimizer units, for a parameter group of ratio 1.

    Args:
        polyak: P.
        trust: R; infinite where all weights are zero.
        alignment: of the first update with the gradient (``Update.alignment``). At 1, as for SGD, the update carries no
            scale of its own, and the scale says where to look rather than what to take.
        loss: the mean of the measured steps' losses, in the loss's unit.
        num_steps: the optimizer steps that were measured.
    """

    polyak: float
    trust: float
    alignment: float
    loss: float
    num_steps: int

    @classmethod
    def from_updates(cls, losses: Sequence[float], updates: Sequence[Update], alignment: float) -> Scale:
        """The scale of some measured steps.

        Args:
            losses: (n,), n at least 1, of the same steps.
            updates: (n,).
            alignment: of the run's very first update, before there is any momentum.

        Raises:
            ValueError: the losses or the slopes are not positive, on average, so that P means nothing.
        """
        loss = sum(losses) / len(losses)
        slope = sum(update.slope for update in updates) / len(updates)
        if not (loss > 0.0 and math.isfinite(loss)):
            raise ValueError(f"the first losses are not positive (their mean is {loss:.3g})")
        if not (slope > 0.0 and math.isfinite(slope)):
            raise ValueError("the first updates do not go down the gradient")
        weights = math.hypot(*(update.weight_norm for update in updates))
        norm = math.hypot(*(update.update_norm for update in updates))
        trust = weights / norm if norm > 0.0 and weights > 0.0 else math.inf
        return cls(loss / slope, trust, alignment, loss, len(updates))

    @property
    def lr(self) -> float:
        """The scale as one number: P, or 2/3 R where that is less."""
        return min(self.polyak, TRUST_SHARE / POLYAK_SHARE * self.trust)

    @property
    def peak_lr(self) -> float:
        """min(0.3 P, 0.2 R), the LR for a run with a short warm-up."""
        return POLYAK_SHARE * self.lr

    @property
    def is_aligned(self) -> bool:
        """Whether the update is the gradient itself, so that the scale only says where to look."""
        return self.alignment > ALIGNED

    @property
    def held_by(self) -> str:
        """Which of the two is the lower one: "polyak" or "trust"."""
        return "polyak" if POLYAK_SHARE * self.polyak <= TRUST_SHARE * self.trust else "trust"


class ScaleSearch:
    """Measures the first optimizer steps of a run, until there is a scale or none is to be had.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.

    Attributes:
        lr: the common LR that the next step has to run at.
        scale: None before it is known.
        obstacle: why there is none, as a part of a sentence; None while there may be one.
    """

    def __init__(self, optimizer: Any, ratios: Iterable[float]) -> None:
        self.scale: Scale | None = None
        self.obstacle: str | None = None
        self.updates: list[Update] = []
        self.losses: list[float] = []
        self._meter = UpdateMeter(optimizer, ratios)
        self._is_half = self._meter.is_half
        self.lr = FIRST_LR_HALF if self._is_half else FIRST_LR
        if collective.num_processes() == 1:  # else the processes might see other weights, and take other LRs
            self.lr *= (self._meter.weight_size() or 0.1) / 0.1
        self._steps = 0
        self._alignment = math.nan
        self._is_sharded: Callable[[], bool] = lambda: False

    @property
    def is_over(self) -> bool:
        """Whether no more steps are measured."""
        return self.scale is not None or self.obstacle is not None

    def start(self, is_sharded: Callable[[], bool] = lambda: False) -> None:
        """Measures from the next optimizer step on.

        Args:
            is_sharded: called at a step: whether every process holds another share of the parameters (FSDP).
        """
        self._is_sharded = is_sharded
        if not self.is_over:
            self._meter.arm(is_sharded)

    def give_up(self, obstacle: str) -> None:
        """Measures no more.

        Args:
            obstacle: why, as a part of a sentence.
        """
        self.obstacle = obstacle
        self._meter.disarm()

    def reject(self, obstacle: str) -> None:
        """The scale that was found is not to be used.

        Args:
            obstacle: why, as a part of a sentence.
        """
        self.scale, self.obstacle = None, obstacle

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
                self.give_up("its gradients cannot be seen at the optimizer's step as they were before clipping")
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
        if len(self.updates) >= _MEASURES:
            self._meter.disarm()
            try:
                self.scale = Scale.from_updates(self.losses, self.updates, self._alignment)
            except ValueError as error:
                self.obstacle = str(error)
        elif self._steps >= _LONGEST:
            self.give_up("no update of the first steps could be told from rounding")

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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.lr, self._steps, self.obstacle = state["lr"], state["steps"], state["obstacle"]
        self._alignment = state["alignment"]
        self.losses = [*state["losses"]]
        self.updates = [Update(**numbers) for numbers in state["updates"]]
        self.scale = None if state["scale"] is None else Scale(**state["scale"])
        if self.is_over:
            self._meter.disarm()
        else:
            self.start(self._is_sharded)
