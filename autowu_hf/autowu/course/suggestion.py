"""A peak learning rate from a few optimizer steps that somebody else makes and takes back."""

from __future__ import annotations

import collections
import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from torch.optim import Optimizer

from ...runtime.param_groups import lr_ratios, set_lrs
from ...runtime.update_meter import Update
from .breaks import LEAST_DIVISOR
from .later.lasting import may_be_raised
from .later.later_measures import LaterMeasures
from .later.transient import may_be_transient, told_by
from .measures.bounds import begins_steep
from .measures.scale import Scale
from .measures.scale_search import ScaleSearch
from .words import lasting as in_percent

_ASKED = 5  # the batches that are asked at a time how much of the promised fall lasts, where P may be far too low
ENOUGH = 3 + 2 * _ASKED
"""The batches of which two measure the scale, one begins the way that others look back on, and all others are asked."""

_TRAINED, _FALLEN, _LAST = 8, 0.85, 3  # losses below this share by then, in the median of the last ones, fall fast
_SHORTEST, _LONGEST = 15, 30  # the steps until they have halved; Adam's updates need as many to become smaller
_LOOKS, _MEASURED = 3, 5  # so many times at most, so many steps are measured then
MOST_STEPS = 8 + _LONGEST + _LOOKS * _MEASURED + ENOUGH
"""The optimizer steps that it makes at most."""

_HELD_BY = {
    "polyak": "0.3 P",
    "trust": "0.2 R",
    "layers": "0.3 M",
    "invariance": "what scale-invariant weights need by M and R, for P is too low for them",
}


@dataclass(frozen=True)
class SuggestedLR:
    """A peak learning rate and its evidence; ``float()`` of it is the LR.

    Args:
        lr: for a schedule with a short warm-up, in optimizer units, for a parameter group whose LR is the optimizer's
            default; other groups keep their ratio to it.
        scale: what it comes from.
        steps: the optimizer steps that were made, and taken back.
        lasting: the share of the fall that P promises which the batches after the first see. None where P is not so
            low that they are asked, and where they cannot be: in half precision, or with fewer than eight.
        kept: how many times as high P is, per unit of the way that the weights go, once the losses have halved; after a
            transient it is three quarters or more, and twice as high where a model from scratch began steeply. None
            where that was not measured.
    """

    lr: float
    scale: Scale
    steps: int
    lasting: float | None = None
    kept: float | None = None

    def __float__(self) -> float:
        return self.lr

    def __str__(self) -> str:
        scale = self.scale
        found = f"{self.lr:.1e}: P = {scale.polyak:.1e}, R = {scale.trust:.1e}"
        found += "" if math.isnan(scale.layer_trust) else f", M = {scale.layer_trust:.1e}"
        which = "0.6 P, of one linear layer" if scale.is_convex else _HELD_BY[scale.held_by]
        if scale.momentum > 0.0:
            which += f", times {1.0 - scale.momentum:.2g} for the momentum"
        if scale.others_follow:
            which += ", over 2 since products begin at zero, of which both factors will move"
        if scale.scaling < 1.0 and scale.held_by != "polyak":
            which += f", times {scale.scaling:.2g} since factors of channels are trained alone"
        if scale.narrowing < 1.0 and scale.held_by == "polyak":
            which += f", times {scale.narrowing:.2g} since the gradient lies in few weights"
        if self.lr != scale.peak_lr:
            times = f", times {self.lr / scale.peak_lr:.2g}"
            if self.kept is None:
                which += f"{times} since later batches see {in_percent(self.lasting)} of the fall that P promises"
            else:
                which += f"{times} since P, per unit of the way, is {self.kept:.2g} times as high after a transient"
        elif may_be_raised(scale) and self.lasting is None:
            which += ", which may be too low by far, and more batches would tell, in single precision"
        doubt = "; the update is the gradient itself, so take it as where to look" if scale.is_aligned else ""
        if scale.has_small_weights:
            doubt = "; the weights may have begun near zero, and allow more once they have grown"
        if scale.density <= 1.0 / LEAST_DIVISOR:  # a schedule goes back for no less
            doubt = f"; most tensors hardly have a gradient: {self.lr * scale.density:.1e} where nothing is learned"
        return f"{found}, from {self.steps} optimizer steps at loss {scale.loss:.3g}; the suggestion is {which}{doubt}"


def suggested(optimizer: Optimizer, losses: Iterator[float], num_batches: float = math.inf) -> SuggestedLR:
    """Measures optimizer steps until there is a scale. Where that may be too low, it asks later batches, twice where
    few leave doubts; or it trains on, for as long as the losses fall as fast as in a transient.

    Args:
        optimizer: stepped.
        losses: makes the backward of one optimizer step after another.
        num_batches: how many of them are not those of earlier steps.

    Raises:
        ValueError: there is no scale to be had, or a later loss is not positive.
    """
    ratios = lr_ratios(optimizer)
    search = ScaleSearch(optimizer, ratios)
    later = LaterMeasures(search)
    search.start()
    steps, trained_at = 0, 0.0

    def stepped() -> Iterator[float]:
        nonlocal steps
        optimizer.zero_grad()
        for loss in losses:
            set_lrs(optimizer, [(trained_at or search.lr) * ratio for ratio in ratios])
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            yield loss

    taken = stepped()
    try:
        for loss in taken:
            search.take(loss)
            if search.obstacle is not None:
                raise ValueError(f"suggest_lr finds no learning rate here: {search.obstacle}")
            if (scale := search.scale) is not None:
                lr, kept = scale.peak_lr, None
                if later.asked.can_tell:
                    lr *= _raised(scale, later, taken, num_batches - steps)
                    trained_at = lr
                    if lr == scale.peak_lr:  # what was raised for noise is no transient's
                        after, kept = _after_transient(search, scale, taken)
                        lr = max(lr, after)
                return SuggestedLR(lr, scale, steps, later.asked.lasting, kept)
    finally:
        later.stop()
        search.stop()
        if not search.is_over:  # too few batches, or an error of the user's
            search.give_up("it was stopped")
    if steps < 2:
        raise ValueError(f"suggest_lr needs the batches of two optimizer steps, got those of {steps}; give it more")
    raise ValueError(f"suggest_lr finds no learning rate in {steps} optimizer steps, {search.silence}")


def _raised(scale: Scale, later: LaterMeasures, taken: Iterator[float], num_batches: float) -> float:
    """By what later batches raise the scale's LR; 1 where they are not asked, or are too few.

    Args:
        scale: of the first batches.
        later: asks them.
        taken: the losses of one more optimizer step after another.
        num_batches: how many of them are not those of earlier steps.
    """
    if not may_be_raised(scale) or num_batches <= _ASKED:
        return 1.0
    later.watch()
    for number in (1 + _ASKED, _ASKED):  # the first one has no way behind it
        num_batches -= number
        asked = list(itertools.islice(taken, number))
        if bad := [loss for loss in asked if not loss > 0.0]:
            raise ValueError(f"suggest_lr finds no learning rate here: a later loss is not positive ({bad[0]:.3g})")
        if len(asked) < number or not later.asked.take(asked):
            break
        if num_batches < _ASKED or not later.asked.needs_more(_ASKED):
            break
    return later.asked.raised


def _after_transient(search: ScaleSearch, scale: Scale, taken: Iterator[float]) -> tuple[float, float | None]:
    """Trains at the scale's LR until the losses have halved, or a model from scratch has begun, and measures again.

    Args:
        search: that has found the scale.
        scale: of the first batches.
        taken: the losses of one more optimizer step after another.

    Returns:
        The LR for what follows a transient, and what is left of P (``SuggestedLR.kept``); 0 where it was none, and None
        where nothing was measured.
    """
    if not may_be_transient(scale):
        return 0.0, None
    meter, kept = search.meter, None
    search.measure_later()
    meter.hold_start()
    if begins_steep(scale):
        collections.deque(itertools.islice(taken, _TRAINED), maxlen=0)
    elif not _have_halved(scale.loss, taken):
        return 0.0, None
    for _ in range(_LOOKS):  # the losses may have halved before all of the transient is over
        meter.updates.clear()
        losses = list(itertools.islice(taken, _MEASURED))
        seen = [update for update in meter.updates if isinstance(update, Update)]
        if len(seen) < _MEASURED or not 0.0 < sum(losses) < math.inf:
            break
        _, kept, lr = told_by(search.updates, scale, seen, sum(losses) / len(losses))
        if lr is not None:
            return lr, kept
    return 0.0, kept


def _have_halved(first: float, taken: Iterator[float]) -> bool:
    """Whether the losses fall to half of the first ones, and so fast that it may be a transient."""
    losses: list[float] = []
    for loss in itertools.islice(taken, _LONGEST):
        losses.append(loss)
        share = statistics.median(losses[-_LAST:]) / first
        if len(losses) >= _SHORTEST and share < 0.5:
            return True
        if len(losses) == _TRAINED and not share < _FALLEN:
            return False
    return False
