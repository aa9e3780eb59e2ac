"""Where the losses of the approach have risen too far, given back what was learned, or not fallen: was it the LR?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ...loss_curve.empty_start import num_empty
from .legs import Way
from .measures.scale import Scale
from .signs import FEWEST_BACK, Array, Signs, window
from .timetable import FEWEST_AFTER

BREAK_DIVISOR = 10.0
"""By what the LR is divided where it has broken the run, or where it is that of P and has taught the run nothing."""

LOST_DIVISOR = 3.0
"""The same where it has taught the run nothing that lasts."""

STALL_DIVISOR = 2.0
"""The same where it has taught SGD nothing."""

LEAST_DIVISOR = 2.0
"""For less the run does not go back: the steps that are lost cost more."""

BORNE_WHILE_HELD = 4.0
"""How many times as far the losses may rise while the LR is held far below P's: mostly by noise."""

RISEN, NOT_FINITE, LOST, ABOVE, UNLEARNED = "risen", "not finite", "lost", "above", "unlearned"
THIN, NO_LOWER = "thin", "no lower"
"""Why the run had to go back: what the losses were."""

_MOST = 2


def divisor_of(scale: Scale, is_stalled: bool = True, is_ruined: bool = False) -> float:
    """By what the LR is divided where it has taught the run nothing; 1 where that may be a plateau of the loss, or
    where it would be less than ``LEAST_DIVISOR``.

    Args:
        scale: of the first updates.
        is_stalled: whether it has taught nothing by the time at which that counts.
        is_ruined: whether its gradients say that it has ruined the model, so that it is no plateau.
    """
    if is_ruined or not is_stalled:
        return BREAK_DIVISOR if is_ruined else 1.0
    divisor = STALL_DIVISOR if scale.is_aligned else 1.0 / scale.density
    return divisor if divisor >= LEAST_DIVISOR else 1.0


def must_teach(scale: Scale, way: Way) -> bool:
    """Whether the LR teaches the run something, unless it is too high: where it is that of P, which is told by most
    weights. R and M hold it on a plateau of the loss.
    """
    num_steps = way.times.num_steps
    is_polyak = scale.held_by_for(num_steps) == "polyak" and scale.narrowing == 1.0 and not scale.is_aligned
    return is_polyak and way.raised == 1.0 and math.isclose(way.peak_lr, scale.peak_lr_for(num_steps), rel_tol=0.01)


class Breaks:
    """The breaks of one run, by losses of (n,), one per optimizer step, as they are since its start.

    Attributes:
        steps: the steps done at each break.
        reasons: of each, ``RISEN`` far, ``NOT_FINITE``, or, at the end, what had been learned was ``LOST``, they lay
            ``ABOVE`` their start, had not fallen (``UNLEARNED``; ``THIN`` where most tensors hardly had a gradient), or
            were ``NO_LOWER`` than when the LR was raised after a transient.
        changes: the steps done each time that it was the loss that had changed.
        are_too_many: whether the losses are too high still, although the LR was divided as often as it ever is.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.reasons: list[str] = []
        self.changes: list[int] = []
        self.are_too_many = False
        self._starts_at = self._sound_since = 0
        self._is_back = False
        self._lost: float | None = None

    def counted(self, losses: Array) -> Array:
        """The losses from the first on that says something about the loss as it is now."""
        return losses[self.start(losses) :]

    def start(self, losses: Array) -> int:
        """The place of that one."""
        return max(num_empty(losses), self._starts_at)

    @property
    def divisor(self) -> float:
        """By what the LR is divided for the last break."""
        return LOST_DIVISOR if self.reasons[-1] in (LOST, ABOVE) else BREAK_DIVISOR

    def find_change(self, losses: Array, seen: Signs, step: int) -> float | None:
        """By what the LR was divided for the last break, if that was none: with the weights from before the losses are
        as high. Losses count from there on then. None otherwise.
        """
        is_told = self._is_back and self.reasons[-1] in (RISEN, NOT_FINITE, LOST, ABOVE) and len(self.changes) < _MOST
        if not is_told or len(losses) - self._sound_since < FEWEST_BACK:
            return None
        self._is_back, divisor = False, self.divisor
        lost = self._lost if self.reasons[-1] in (LOST, ABOVE) else None
        if not seen.have_changed(self.counted(losses), self._sound_since - self.start(losses), lost):
            return None
        self.steps.pop()
        self.reasons.pop()
        self.changes.append(step)
        self._starts_at = self._sound_since
        return divisor

    def find(self, losses: Array, way: Way, step: int, raised_at: int | None = None) -> bool:
        """Whether the run is broken, so that it has to go back.

        Args:
            losses: (n,).
            way: the LR's so far.
            step: the steps done.
            raised_at: those done when the LR was raised after a transient, which may have cost what had been learned;
                None where it was not.
        """
        counted, since = self.counted(losses), self._since(losses, way)
        borne = BORNE_WHILE_HELD if way.is_held else 1.0
        is_broken = replace(way.signs, borne=borne * way.signs.borne).are_broken(counted, since)
        self.are_too_many = is_broken and len(self.steps) == _MOST
        if is_broken and not self.are_too_many:
            self._add(step, RISEN if np.isfinite(losses[-window(way.times.num_steps) :]).all() else NOT_FINITE)
        elif not is_broken and raised_at is not None and not (self.steps or self.changes):
            self._lost = way.signs.lost_since(counted, raised_at - self.start(losses))
            if self._lost is not None:
                self._add(step, LOST)
                return True
        return is_broken and not self.are_too_many

    def lr_at_end(
        self, losses: Array, way: Way, step: int, scale: Scale | None = None, raised_at: int | None = None
    ) -> float | None:
        """The LR at which the run has to go on from before the growth although the approach is over: a raised LR has
        broken it, or it has lost what it had learned, or learned nothing, once; not where the loss has changed before.
        None where it has not.

        Args:
            losses, way, step, raised_at: as of ``find``.
            scale: of the first updates, whose LR may have to teach something.
        """
        if way.raised > 1.0 and self.find(losses, way, step):
            return way.peak_lr / self.divisor
        is_late = way.times.longest - step <= FEWEST_AFTER
        if is_late or len(self.steps) == _MOST or self.changes or self._lost is not None:
            return None
        counted, since = self.counted(losses), self._since(losses, way)
        if (lost := way.signs.lost(counted, since)) is not None:
            self._lost, was_learned = lost
            self._add(step, LOST if was_learned else ABOVE)
            return way.peak_lr / self.divisor
        if self.steps or scale is None:
            return None
        if raised_at is not None and not way.has_gone_back:
            if not way.signs.are_no_lower(counted, raised_at - self.start(losses)):
                return None
            self._add(step, NO_LOWER)
            return way.lr_before(raised_at)
        thin = divisor_of(scale) if scale.density < 1.0 and not way.has_gone_back else 1.0
        if not (thin > 1.0 or must_teach(scale, way)) or not way.signs.are_unlearned(counted, since):
            return None
        self._add(step, THIN if thin > 1.0 else UNLEARNED)
        return way.peak_lr / (thin if thin > 1.0 else self.divisor)

    def _since(self, losses: Array, way: Way) -> int:
        """The place among the counted losses of the first one that may count as one of the last."""
        return max(max(self._sound_since, way.since) - self.start(losses), 0)

    def _add(self, step: int, reason: str) -> None:
        self.steps.append(step)
        self.reasons.append(reason)

    def go_back(self, num_losses: int) -> None:
        """The run will go back; the ``num_losses`` losses so far count as the last ones no more."""
        self._sound_since = num_losses

    def went_back(self, step: int) -> None:
        """The weights are those from before, after ``step`` steps."""
        self._is_back = self.steps[-1:] == [step]

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists only."""
        return {
            "breaks": [*self.steps],
            "break_reasons": [*self.reasons],
            "changes": [*self.changes],
            "breaks_too_often": self.are_too_many,
            "starts_at": self._starts_at,
            "sound_since": self._sound_since,
            "is_back": self._is_back,
            "lost": self._lost,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned, or the state of a release that knew no changes."""
        self.steps, self.changes = [*state["breaks"]], [*state.get("changes", [])]
        self.reasons = [*state.get("break_reasons", [RISEN] * len(self.steps))]
        self._starts_at, self._sound_since = state.get("starts_at", 0), state["sound_since"]
        self.are_too_many, self._is_back = state.get("breaks_too_often", False), state.get("is_back", False)
        self._lost = state.get("lost")
