"""How far later updates take the weights, per step and unit of LR, beside the first ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from ....runtime.update_meter import Distance, Update
from .measuring_lr import say_deaf
from .scale import ALIGNED
from .scale_search import ScaleSearch

_TELLING_GROWTH = 60.0  # of the LR; updates of the first steps that are measured are at most 30 times a later one
_SIZES = ("update_norm", "whole_norm")  # of an update, without and with the tensors that are zero
_FEWEST_TELLING = 5  # the optimizer's steps in a window, where the schedule counts more of them


def reach_of(
    search: ScaleSearch, update: Update, step: int, since: int, distance: Distance
) -> tuple[float, float, tuple[float, float]] | None:
    """How far the weights went in a window, and how large its last update is; both as shares of the first ones.

    Args:
        search: that has the scale, and the first updates.
        update: the last one of the window.
        step: the steps done at its end.
        since: the steps done at its start.
        distance: from the weights there.

    Returns:
        What ``Scale.reach_factor`` takes first: the reach, the optimizer's own steps by the end, and the two sizes of
        the update. None for SGD, where rounding hides the update, where the weights are others than in the first
        steps, and where the optimizer was hardly stepped.
    """
    scale = search.scale
    if not search.shows(update):
        return None
    if search.alignment > ALIGNED and (search.momentum > 0.0 or update.alignment > ALIGNED):
        return None  # SGD's, whose size is that of the gradient, from batch to batch
    before = search.updates[-1].num_weights  # NaN in a state of an older release
    if abs(update.num_weights - before) > 1e-6 * before:
        return None  # some were frozen, or others joined them
    seen, whole = (_root_mean_square(getattr(own, size) for own in search.updates) for size in _SIZES)
    growth = update.lr / search.updates[0].lr
    if growth >= _TELLING_GROWTH and growth * update.update_norm < 1.5 * seen:
        say_deaf(update.lr)
        return None
    if scale is None or scale.beta2 or (way := distance.measured(step - since)) is None:
        return None
    gone, num_steps = way
    if num_steps < min(step - since, _FEWEST_TELLING):
        return None
    first = scale.size_of(whole, seen)
    reach = gone / (num_steps * update.lr * first) if first > 0.0 else math.inf
    sizes = update.update_norm / seen if seen > 0.0 else update.whole_norm / whole, update.whole_norm / whole
    done = step * num_steps / (step - since)
    return (reach, done, sizes) if 0.0 < reach < math.inf else None


def _root_mean_square(sizes: Iterable[float]) -> float:
    return math.sqrt(statistics.fmean(size**2 for size in sizes))
