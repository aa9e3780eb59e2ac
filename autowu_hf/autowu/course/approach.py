"""The approach: how a run around the scale begins. It measures the scale, grows the LR to it, and sees what is next.

The LR stays tiny for the two steps that measure, grows linearly to the scale's peak over 5 % of the run, and stays
there. Then the losses say what remains to be done:

* they have fallen to half already: the start was a transient, or learning is quick; the LR grows on until they give
  way;
* otherwise the scale's peak is the peak, and no step is spent on looking.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.optim import Optimizer

from ...rewind import snapshot
from ...runtime import collective
from ...runtime.param_groups import innermost, weights_out_of_reach
from .scale import Scale, ScaleSearch

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

RAMP = 0.05
"""The share of the run over which the LR grows to the scale's peak."""

LOOK = 0.3
"""The share of the run until which losses that have fallen to half make the LR grow on."""

DECADE = 0.05
"""The share of the run in which the LR then grows tenfold."""

FEWEST_STEPS = 30
"""In a run of fewer optimizer steps there is no time to look on."""

_FEWEST_LOSSES = 10


@dataclass(frozen=True)
class Sweep:
    """A growth of the LR under the eyes of the minimum tests.

    Args:
        min_lr: where it begins.
        max_lr: where it would end.
        num_steps: in how many optimizer steps.
    """

    min_lr: float
    max_lr: float
    num_steps: int


class Approach:
    """The steps of a run before its minimum tests; all steps here are optimizer steps.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.
        models: called for those of the run, which may be known only once training has begun.

    Attributes:
        search: the scale, or the search for it.
        sweep: the growth that follows; None before that is known, and where none does.
        is_over: whether nothing is left to do here.
    """

    def __init__(
        self, optimizer: Optimizer, ratios: Iterable[float], models: Callable[[], Sequence[nn.Module]]
    ) -> None:
        self.search = ScaleSearch(optimizer, ratios)
        self.sweep: Sweep | None = None
        self.is_over = False
        self._first = 0
        self.plan(2, None)
        obstacle = weights_out_of_reach(optimizer)
        if obstacle is not None:
            self.give_up(obstacle.reason)
        self.search.start(functools.partial(_is_sharded, optimizer, models))

    def plan(self, num_steps: int, longest: int | None) -> None:
        """Fits the approach to a run.

        Args:
            num_steps: of the whole run.
            longest: the most steps until the peak has to be known; None for no such limit.
        """
        self._num_steps = num_steps
        self._longest = num_steps - 1 if longest is None else min(longest, num_steps - 1)
        self._window = max(3, min(10, num_steps // 40))

    def give_up(self, obstacle: str) -> None:
        """Measures no more; a scale that is known stays.

        Args:
            obstacle: why, as a part of a sentence.
        """
        if self.scale is None:
            self.search.give_up(obstacle)
            self.is_over = True

    @property
    def scale(self) -> Scale | None:
        """The scale, once it is known."""
        return self.search.scale

    @property
    def ramp_end(self) -> int:
        """The steps done when the LR reaches the scale's peak."""
        return max(self._first + 1, min(max(3, round(RAMP * self._num_steps)), self._longest))

    @property
    def end(self) -> int:
        """The steps done when the approach is over at the latest."""
        if self._num_steps < FEWEST_STEPS:
            return self.ramp_end
        return max(self.ramp_end, min(max(round(LOOK * self._num_steps), self.ramp_end + 3), self._longest))

    def lr(self, step: float) -> float:
        """The LR after ``step`` steps, in optimizer units, for a group of ratio 1."""
        if self.scale is None:
            return self.search.lr
        return ramp(step, self._first, self.ramp_end, self.scale.peak_lr)

    def wants_losses(self, step: int) -> bool:
        """Whether ``advance`` has something to say after ``step`` steps."""
        if self.scale is None:
            return True
        if step < self.ramp_end:
            return False
        return step % max(1, self._num_steps // 60) == 0 or step == self.end

    def advance(self, step: int, losses: Array) -> None:
        """Takes in the run so far; sets ``sweep`` and ``is_over`` where it is time.

        Args:
            step: the steps done.
            losses: (n,), one of each of them that was not skipped.
        """
        if self.scale is None:
            if self.search.obstacle is None:
                self.search.take(float(losses[-1]) if len(losses) else math.nan)
            found = self.search.scale
            if found is not None and found.is_aligned:
                self.search.reject("the first update is the gradient itself, as SGD's, so that its size says little")
            self.is_over = self.search.obstacle is not None
            self._first = step
            return
        room = self._longest - step
        if self._has_fallen(losses) and room >= _FEWEST_LOSSES and self.scale.trust < math.inf:
            low, high = self.scale.peak_lr, self.scale.trust
            self.sweep = Sweep(low, high, self._length(low, high, room))
        self.is_over = self.sweep is not None or step >= self.end

    def _length(self, low: float, high: float, room: int) -> int:
        return min(max(_FEWEST_LOSSES, round(DECADE * math.log10(high / low) * self._num_steps)), room)

    def _has_fallen(self, losses: Array) -> bool:
        """Whether the newest losses are less than half of the first ones."""
        n = self._window
        if self._num_steps < FEWEST_STEPS or len(losses) <= n + 1 or not np.isfinite(losses).all():
            return False
        before = losses[: max(3, min(n, self.ramp_end // 2))]
        return bool(np.median(losses[-n:]) < 0.5 * np.median(before))

    def say_obstacle(self, min_lr: float, max_lr: float) -> None:
        """Says on the main process why there is no scale, and what is done instead."""
        if collective.is_main_process():
            logger.info(
                "AutoWU cannot tell the scale of the learning rate: %s; it looks from %g to %g instead",
                self.search.obstacle,
                min_lr,
                max_lr,
            )

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        sweep = None if self.sweep is None else [*dataclasses.astuple(self.sweep)]
        return {"first": self._first, "is_over": self.is_over, "sweep": sweep, "search": self.search.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self._first, self.is_over = state["first"], state["is_over"]
        self.sweep = None if state["sweep"] is None else Sweep(*state["sweep"])
        self.search.load_state_dict(state["search"])

    def report(self) -> dict[str, Any]:
        """What the picture needs, and the scale."""
        scale = None
        if self.scale is not None:
            numbers = {"lr": self.scale.lr, "peak_lr": self.scale.peak_lr, "held_by": self.scale.held_by}
            scale = {**self.search.state_dict()["scale"], **numbers}
        return {
            "scale": scale,
            "obstacle": self.search.obstacle,
            "first": self._first,
            "first_lr": self.search.lr,
            "ramp_end": self.ramp_end,
            "sweep": None if self.sweep is None else dataclasses.asdict(self.sweep),
        }


def _is_sharded(optimizer: Optimizer, models: Callable[[], Sequence[nn.Module]]) -> bool:
    return snapshot.is_sharded(innermost(optimizer), models())


def ramp(step: float, first: int, end: int, peak_lr: float) -> float:
    """The linear growth to the scale's peak.

    Args:
        step: the steps done.
        first: the steps done when it begins.
        end: the steps done when it ends.
        peak_lr: the LR from there on.
    """
    return peak_lr * (min(step, end) + 1 - first) / (end - first + 1)
