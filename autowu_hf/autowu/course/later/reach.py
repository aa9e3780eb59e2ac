"""How far later updates take the weights beside the first ones, per step and unit of LR; what the LR makes of that."""

from __future__ import annotations

import math
import statistics

from ....runtime.update_meter import Distance, Update
from ..measures.first_steps import seen_norm
from ..measures.measuring_lr import say_deaf
from ..measures.scale import ALIGNED, Scale
from ..measures.scale_search import ScaleSearch

USUAL_REACH, USUAL_SHRINK = 0.2, 1.4
"""How far one step of AdamW takes the weights, per unit of LR and as a share of the norm of the first updates: the
larger one of this and of the second over the square root of the steps done. The mean of its gradients is over few of
them at first, and becomes smaller as far as they are noise; on noise alone the second would be 1. Measured on the cells
of ``examples/benchmarks/compare.py``, seed 20.
"""

LOWERED_FROM, LIFTED_FROM = 0.6, 2.0
"""Between these factors the LR is not corrected for how far steps get. AdamW's lie there, except in a transient. The
first was set after runs of LoRA (``examples/benchmarks/results/real_models.md``), when R did not know yet of its two
factors.
"""

ONE_WAY, SURELY_LIFTED_FROM = 0.75, 2.5
"""The share of their size from which steps go one way, as with momentum; and what stands for ``LIFTED_FROM`` there, for
an optimizer that has momentum, and where R holds the LR, which is what one update may do to the weights.
"""

MOST_LOWERED, MOST_LIFTED = 0.01, 20.0
"""The least and the most that the LR is multiplied by for that: a guard against a measure that went wrong."""

HARDLY_SHRUNK = 2 / 3
"""The share of the first updates' norm from which the LR may be lowered for that, and below which it may be raised:
AdamW's get far in a transient, too, but become smaller. Where updates as large as before get less far, they go to and
fro, and the LR is too high already.
"""

_TELLING_GROWTH = 60.0  # of the LR; updates of the first steps that are measured are at most 30 times a later one
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
        What ``reach_factor`` takes after the scale: the reach, the optimizer's own steps by the end, and the two sizes
        of the update. None for SGD, where rounding hides the update, where the weights are others than in the first
        steps, and where the optimizer was hardly stepped.
    """
    scale = search.scale
    if not search.shows(update):
        return None
    if search.alignment > ALIGNED and (search.momentum > 0.0 or update.alignment > ALIGNED):
        return None  # SGD's, whose size is that of the gradient, from batch to batch
    if not update.is_of_weights_of(search.updates[-1]):
        return None
    factors = 1.0 if scale is None else scale.factors
    seen = factors * seen_norm(search.updates, factors > 1.0)
    whole = factors * math.sqrt(statistics.fmean(own.whole_norm**2 for own in search.updates))
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


def reach_factor(
    scale: Scale,
    reach: float,
    step: float,
    sizes: tuple[float, float],
    *,
    raised: float = 1.0,
    done: float = 1.0,
    has_momentum: bool = False,
) -> float:
    """By what the LR has to be multiplied, once it is known how far later steps take the weights.

    P and R are told by the first updates. Adam's become smaller, as its mean of noisy gradients settles, and ten of
    them go one way; the scale's shares were chosen with that in them. Where those of another optimizer get less far
    (RMSprop's, which become as small and have no momentum; LAMB's, whose first step moves tensors that were zero by
    much) or farther (Lion's, which all have one size), its LR differs by that. Where they get farther, the LR becomes
    what it would be if Adam's gradients were noise. (No LR becomes less for an optimizer that averages noise away, as
    Adam itself: where its steps go one way, there is much to learn that way.)

    Args:
        scale: of the first updates.
        reach: how far the weights go in some steps, per step and unit of LR, as a share of the first updates' norm.
        step: the optimizer steps done by then.
        sizes: the norm of the last update over that of the first ones, per unit of LR: without and with the tensors
            that were zero.
        raised: by what the LR was multiplied for how little lasts (``lasting.raised_factor``): less, too, where updates
            become smaller.
        done: by what it was multiplied for this already.
        has_momentum: whether the optimizer is known to have momentum; on a plateau its steps go to and fro, too.

    Returns:
        The factor, ``MOST_LIFTED`` at most; 1 where it would lie between ``LOWERED_FROM`` and ``LIFTED_FROM``, or
        ``SURELY_LIFTED_FROM``.
    """
    factor = min(max(USUAL_REACH, USUAL_SHRINK / math.sqrt(step)) / reach, MOST_LIFTED)
    if factor > 1.0:
        factor = max(factor / raised, 1.0)
    factor /= done
    if factor >= LOWERED_FROM:
        is_mild = scale.held_by in ("polyak", "invariance") and not has_momentum and reach < ONE_WAY * sizes[1]
        lifted_from = LIFTED_FROM if is_mild else SURELY_LIFTED_FROM
        return factor if factor > lifted_from and sizes[1] < HARDLY_SHRUNK else 1.0
    lowered = max(max(USUAL_REACH, 1.0 / math.sqrt(step)) / reach, MOST_LOWERED)
    return min(lowered, 1.0) if sizes[0] >= HARDLY_SHRUNK else 1.0
