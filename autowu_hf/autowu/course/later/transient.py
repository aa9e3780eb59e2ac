"""Whether losses that have halved were those of a transient: P, measured once more, tells. (Ours.)

A fresh model whose outputs are far too large has a loss that a few steps bring down, and gradients that tell of nothing
else. What they say, P, is too low by far for what follows. Where a model has learned as much instead, it has less loss
left and is as steep as before: P, per unit of the way that the weights go, is about half of what it was. But a logistic
loss, as that of preferences or of two classes, has slopes that fall as it does, so that its P stays. There the way of
the weights so far still goes down, and batches see that; once a transient is over, it goes down no more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from ....runtime.update_meter import Update
from ..legs import Way
from ..measures.bounds import TRAINED, begins_steep
from ..measures.first_steps import FARTHEST
from ..measures.scale import POLYAK_SHARE, TRUST_SHARE, Scale
from ..measures.scale_search import ScaleSearch
from ..signs import FEWEST_TO_RISE, Array, window
from ..timetable import PATIENCE
from .reach import HARDLY_SHRUNK

KEPT = 0.75
"""The share of the first P that must be left, per unit of the way that the weights go, for a transient. It is one or
more in most runs of the waves, and about half in MiniLM, which has learned. Per unit of LR, P rises as updates become
smaller, as Adam's do to a third, RMSprop's to a tenth.
"""

SURELY_KEPT, GOES_ON = 2.0, 0.25
"""The share from which it is a transient whatever batches see, for P hardly rises with a logistic loss (1.6 times at
most over eight steps or more, twice over the five of ``suggest_lr``); and below that, by which share of their losses,
times the square of what P has kept, the way so far goes on down where it is none: the more P has risen, the more they
must see. It is 0.34 to 0.72 with preferences, whose P has not.
"""

MOST_RISEN = 10.0
"""The most by which P counts as higher, per unit of LR, once it was a transient."""

STEADY = 0.5
"""The share of R's and M's LR up to which P raises that of a model from scratch which began steeply."""

TRIED = 0.4
"""The share of the run after which the losses have to be lower than when the LR was raised. After a transient they rise
at first, to twice that or more, and are at 0.8 times that at most by then.
"""

_SEEN = ("since", "is_over", "risen", "kept", "raised_at")


class Transient:
    """Measures some steps once the losses have halved, where P lies far below R.

    Args:
        search: that has the scale by then, and whose meter measures.
        start: called for the weights from before the growth, this process's shares; none where they are gone.

    Attributes:
        since: the steps done when the measured steps began; None outside of them.
        is_over: whether nothing is left to measure.
        risen: how many times as high P was, per unit of LR, ``MOST_RISEN`` at most; None where that is not known.
        kept: the same per unit of the way that the weights go.
        raised_at: the steps done when the LR was raised for that; None where it was not.
    """

    def __init__(self, search: ScaleSearch, start: Callable[[], Sequence[Tensor]] = tuple) -> None:
        self._search = search
        self._meter = search.meter
        self._start_of = start
        self._knows_start = False
        self.since: int | None = None
        self.is_over = False
        self.risen: float | None = None
        self.kept: float | None = None
        self.raised_at: int | None = None

    def may_be(self, have_halved: bool, way: Way) -> bool:
        """Whether there is something to measure, or more of it.

        Args:
            have_halved: whether the losses have.
            way: the LR's.
        """
        scale = self._search.scale
        if self.since is not None or self.is_over or scale is None or not (have_halved or begins_steep(scale)):
            return self.since is not None
        return may_be_transient(scale) and not (self._meter.is_half or way.has_gone_back)

    def goes_first(self, scale: Scale) -> bool:
        """Whether nothing else is measured until this is."""
        return self.since is not None or (begins_steep(scale) and not self.is_over)

    def look(self, step: int, way: Way, losses: Array, share: float, is_busy: bool) -> float:
        """Begins to measure, or takes in what was measured, whichever is due.

        Args:
            step: the optimizer steps done.
            way: the LR's.
            losses: (n,), one of each step.
            share: of a loss, that whose gradient was taken.
            is_busy: whether others are measuring, or will.

        Returns:
            By what the LR has to be multiplied, 1 at least.
        """
        if self.since is None and not is_busy:
            self._begin(step, way)
        return self._taken(step, way, losses, share) if self.due_after(step - 1, way) == step else 1.0

    def _begin(self, step: int, way: Way) -> None:
        """Measures the steps after ``step``, where enough of them are left."""
        if way.times.ramp_end(way.times.reach_end(step)) + PATIENCE > way.times.longest:
            self.is_over = True
            return
        self.since = step
        self._meter.updates.clear()
        self.find_start(self._start_of())

    def find_start(self, start: Sequence[Tensor]) -> None:
        """Measures, or goes on to after a resume, also how far the loss falls on the way from the weights ``start``;
        none where they are gone.
        """
        self._knows_start = bool(start)
        if self.since is not None:
            self._search.measure_later()
            if start:
                self._meter.hold_start(start)

    def due_after(self, step: int, way: Way) -> int | None:
        """The first step after ``step`` after which all steps have been measured; None: none are."""
        return None if self.since is None else max(step + 1, way.times.reach_end(self.since))

    def _taken(self, step: int, way: Way, losses: Array, share: float) -> float:
        """By what the LR has to be multiplied, where all of the steps were measured."""
        assert self.since is not None
        num, updates, scale = way.times.reach_end(self.since) - self.since, [*self._meter.updates], self._search.scale
        if len(updates) < num and step < self.since + num + PATIENCE:
            return 1.0
        self.stop()
        self.is_over = True
        seen = [update for update in updates if isinstance(update, Update)]  # else its gradient was not finite
        last = losses[-len(updates) :]
        last = last[np.isfinite(last)]
        are_same = all(update.is_of_weights_of(self._search.updates[-1]) for update in seen)
        if scale is None or 2 * len(seen) < num or not (are_same and len(last) and last.mean() > 0.0):
            return 1.0
        self.risen, self.kept, lr = told_by(self._search.updates, scale, seen, share * float(last.mean()))
        if not self._knows_start and self.kept < SURELY_KEPT:
            lr = None  # it may be a logistic loss
        elif goes_on(seen, share * float(last.mean()), self.kept) or (lr is None and begins_steep(scale)):  # not over
            self.is_over = way.times.reach_end(step + way.times.look_interval) > way.times.look_end(way.growth_end)
        if lr is not None and begins_steep(scale):
            lr = min(self.risen * way.peak_lr, STEADY * scale.trusted_lr)  # that of P for the run's length
        factor = 0.0 if lr is None else lr / way.peak_lr
        self.raised_at = step if factor > 1.0 else None
        return max(factor, 1.0)

    def end(self, way: Way) -> int:
        """The steps done when the losses tell whether it was right to raise the LR; 0 where it was not raised, the run
        has gone back since, or is too short for that.
        """
        if self.raised_at is None or way.has_gone_back or way.times.num_steps < FEWEST_TO_RISE:
            return 0
        return min(self.raised_at + round(TRIED * way.times.num_steps), way.times.longest)

    def start(self, losses: Array, first: int, way: Way) -> int:
        """The place of the first loss that counts, out of (n,): ``first``, or that of those after a transient. What was
        learned in it hides what is lost later.
        """
        after = min(self.raised_at or 0, len(losses)) - window(way.times.num_steps)
        return max(first, after)

    def stop(self) -> None:
        """Measures no more, and forgets what was not taken."""
        if self.since is not None:
            self.since = None
            self._meter.updates.clear()
            self._search.stop()

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        measured = self._meter.updates if self.since is not None else []
        return {
            **{name: getattr(self, name) for name in _SEEN},
            "updates": [asdict(update) if isinstance(update, Update) else update for update in measured],
        }

    def report(self) -> dict[str, Any]:
        """What was found."""
        return {"risen": self.risen, "kept": self.kept, "transient": self.raised_at}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restores what ``state_dict`` returned; None is the state of a release that did not measure."""
        if state is None:
            return
        for name in _SEEN:
            setattr(self, name, state[name])
        if self.since is not None:
            self._meter.updates[:] = [Update(**own) if isinstance(own, dict) else own for own in state["updates"]]
            self._search.measure_later()  # ``find_start`` has to follow


def told_by(
    first: Sequence[Update], scale: Scale, seen: Sequence[Update], loss: float
) -> tuple[float, float, float | None]:
    """What some steps tell that were measured once the losses had halved.

    Args:
        first: the updates of the first steps.
        scale: that of them.
        seen: (n,), the later updates, n at least 1.
        loss: the mean of their steps' losses, positive.

    Returns:
        How many times as high P is, per unit of LR, ``MOST_RISEN`` at most; the same per unit of the way that the
        weights go; and the LR for what follows, None where it was no transient. It is the geometric mean of 0.3 P as it
        is now and of the LR that R and M allow, for P is that of gradients that are mostly noise now, and still too
        low; or 0.3 P as it is now, half of that LR at most, where a model from scratch ``begins_steep``.
    """
    slope = sum(update.slope for update in seen) / len(seen)
    risen = min(loss / slope / scale.polyak, MOST_RISEN) if slope > 0.0 else MOST_RISEN
    before, now = (math.hypot(*(own.whole_norm for own in of)) / len(of) ** 0.5 for of in (first, seen))
    kept = risen * now / before if before > 0.0 else 0.0
    is_none = kept < KEPT or now >= HARDLY_SHRUNK * before or goes_on(seen, loss, kept)
    if is_none:
        return risen, kept, None
    most = scale.trusted_lr
    by_polyak = min(risen * POLYAK_SHARE * scale.polyak, most)
    if begins_steep(scale):
        return risen, kept, min(by_polyak, STEADY * most) if kept >= SURELY_KEPT else None
    return risen, kept, math.sqrt(by_polyak * most)


def goes_on(seen: Sequence[Update], loss: float, kept: float) -> bool:
    """Whether the way so far goes on down, by what the batches of some steps see of it.

    Args:
        seen: (n,), the updates of these steps, that know the weights from before the way; n at least 1.
        loss: the mean of their losses, positive.
        kept: the share of P that is left, per unit of the way.
    """
    fallen = statistics.fmean(update.fallen for update in seen) / loss
    return kept < SURELY_KEPT and fallen > GOES_ON * kept**2


def may_be_transient(scale: Scale) -> bool:
    """Whether P lies as far below R as in a transient, and no farther, and R tells something of most weights: not of a
    model that was trained before.
    """
    is_far = scale.may_be_noise and TRUST_SHARE * scale.trust < FARTHEST * POLYAK_SHARE * scale.polyak
    return begins_steep(scale) or (is_far and scale.narrowing == 1.0 and scale.norms != TRAINED)
