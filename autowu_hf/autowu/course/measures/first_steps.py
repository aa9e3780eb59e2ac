"""What the first steps tell: whether their losses say anything, R, also where some weights begin at zero, and how sure
R and M are where most tensors hardly have a gradient. (Ours.)

LoRA's B is zero at first, and A, which stands beside it in a product, has no gradient until B is something: the first
update moves B alone. So it is with most adapters (LoKr, LoHa, DoRA), with a head that begins at zero, and with layers
that a zero switches off. That update tells no size beside the weights that are seen, for it moves none of them. And
P, R and M are those of one factor: once both are moved, the product goes farther, by the turn of the one and by that of
the other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ....runtime.update_meter import Update
from ...optimizer_kinds import is_like_adam

BLIND_SHARE = 3e-5
"""The share of R below which P is that of losses that are next to nothing, whatever the model does; those of policy
gradients, for example, whose advantages cancel. Of a language model with a billion weights P is still a thousandth.
"""

_HARDLY = 0.5
"""The share of an update below which the weights that are not zero hardly move in it; in norms."""

_NOTHING = 0.01
"""The share below which they do not move at all, but for a weight decay. In half precision, where measured steps are
taken back, they do not in the later ones either: then they will move as far as those that are zero.
"""

CONVEX_SHARE, CONVEX_POWER, CONVEX_BORNE = 0.6, 0.5, 100.0
"""Where one linear layer is trained alone, whose loss is convex: the highest peak LR as a share of P, the power of the
run's length with which it falls, and how many times as far as elsewhere the losses may rise, which ruins nothing there.
"""

BOTH = 2.0
"""How much farther a product goes with two factors than with one of them, if both turn as far, and their ways add up,
for both go down the same gradient: what the LR is divided by.
"""

EVEN, UNEVEN = 0.3, 0.22
"""How evenly the slope of Adam's update has to be spread over its tensors for R and M to be sure, and where no more
than ``LEAST_DENSITY`` of the LR is left, should nothing be learned. It is 0.33 and more with AdamW in the
networks of ``examples/benchmarks/`` whose LR they hold.
"""

LEAST_DENSITY = 0.1
"""What is left of the LR at least."""

FARTHEST = 300.0
"""How far below R's LR that of P may lie for R to tell something. Farther below it are large pretrained models: 1000
times and more. Their P rises once they have learned what is easy in their data, but R tells nothing of them.
"""

NARROW, NARROW_FROM = 0.2, 10.0
"""The cosine of Adam's first update and the gradient (``Update.evenness``) below which the gradient lies in few
weights, as it may where a fresh head sits on a large pretrained model: 0.11 to 0.12 where it tells a rare class, and
0.2 to 0.7 in the networks of ``examples/benchmarks/``. And how many times the LR of P that of R and M is there.
"""

NARROWING_POWER, LEAST_NARROWING = 2.5, 0.2
"""The power of that cosine, as a share of ``NARROW``, with which the LR falls, and what is left of it at least."""

_PARTS, _EXACT = 8, 2e-6
"""A count of tokens, or of samples, is a whole number of such parts, for it may be one of each of some processes; and
by how much a divisor of gradients may differ from it.
"""

_CONSTANT, _SAME_NORM, _SAME_NORM_HALF = 1e-3, 1e-3, 5e-3
"""By how much divisors may differ that are the same, and norms that are clipped to the same; the last after half
precision.
"""

SEEM_CLIPPED = (
    "the gradients of the first steps have the same norm, as if they were clipped where it cannot be seen; clip with "
    "Accelerator.clip_grad_norm_, or under DeepSpeed by gradient_clipping in its config"
)
"""Why there is no scale then, as a part of a sentence."""


SIGNED = 6
"""The first losses that are looked at, where they are negative and far apart, to see whether they lie around 0."""

_APART = 0.5  # of their mean's size


class BlindLossesError(ValueError):
    """The losses tell nothing, whatever the LR: next to nothing beside what a step changes, around 0, or not seen."""


def check_losses(losses: Sequence[float], fall: float) -> None:
    """Whether P can be told by some losses.

    Args:
        losses: (n,), n at least 1.
        fall: by how much a step as large as the weights, that of R, would bring them down.

    Raises:
        BlindLossesError: P is below ``BLIND_SHARE`` of R, the losses lie around 0, or all are NaN.
        ValueError: a loss is not positive, or not finite.
    """
    loss = sum(losses) / len(losses)
    if math.isfinite(loss) and max(map(abs, losses)) < BLIND_SHARE * fall < math.inf:
        raise BlindLossesError(f"the first losses are next to nothing (their mean is {loss:.2g})")
    if not (min(losses) > 0.0 and math.isfinite(loss)):
        if all(map(math.isnan, losses)):
            raise BlindLossesError("the first losses were not seen, or are not a number")
        if lie_around_0(losses):
            raise BlindLossesError(f"the first losses lie around 0 (from {min(losses):.2g} to {max(losses):.2g})")
        is_finite = all(map(math.isfinite, losses))
        what = f"positive (the lowest is {min(losses):.3g})" if is_finite else "finite"
        raise ValueError(f"the first losses are not {what}")


def lie_around_0(losses: Sequence[float]) -> bool:
    """Whether losses, one per optimizer step, have both signs, and a mean within two standard errors of 0. Those of a
    policy gradient do, for they are means of advantages; what is learned does not show in them.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite or not min(finite) < 0.0 < max(finite):
        return False
    error = statistics.stdev(finite) / math.sqrt(len(finite))
    return abs(statistics.fmean(finite)) <= 2.0 * error


def may_lie_around_0(losses: Sequence[float]) -> bool:
    """Whether more of the first losses have to be seen for that: fewer than ``SIGNED`` are known, and they are not
    positive, and far apart.
    """
    is_open = 1 < len(losses) < SIGNED and all(map(math.isfinite, losses)) and max(losses) <= 0.0
    return is_open and max(losses) - min(losses) > _APART * abs(statistics.fmean(losses))


def is_without_bound(obstacle: str | None) -> bool:
    """Whether it is losses of 0 or below that stand in the way of a scale, by why there is none."""
    return obstacle is not None and "not positive" in obstacle


def common_divisor(updates: Sequence[Update], is_half: bool) -> float | None:
    """By what a loop divides all gradients after the backward, as by the number of tokens, or by a scale of its own.

    Clipping by norm leaves the norms the same. A bound that moves leaves them different, and has divisors that are
    different, too, and no whole numbers.

    Args:
        updates: (n,), n at least 1, of the first steps.
        is_half: whether gradients are in half precision.

    Returns:
        The first step's; None where gradients were not divided alike, or were clipped, or were in one of the steps.
    """
    norms, divisors = ([getattr(own, of) for own in updates] for of in ("gradient_norm", "divisor"))
    same_norm = _SAME_NORM_HALF if is_half else _SAME_NORM
    if min(divisors) <= 1.0 + _CONSTANT or max(norms) - min(norms) <= same_norm * max(norms):
        return None
    is_constant = max(divisors) - min(divisors) <= _CONSTANT * max(divisors)
    are_counts = all(abs(_PARTS * own - round(_PARTS * own)) <= _EXACT * _PARTS * own for own in divisors)
    return float(divisors[0]) if is_constant or are_counts else None


def telling(updates: Sequence[Update]) -> list[Update]:
    """Those of the first updates that move the weights which are not zero.

    Args:
        updates: (n,), n at least 1.

    Returns:
        At least one of them; where none does, all, as if they moved what they move of zeros.
    """
    told = [own for own in updates if not _hardly_moves(own, updates)]
    return told or [replace(own, update_norm=own.whole_norm) for own in updates]


def others_follow(first: Update, updates: Sequence[Update]) -> bool:
    """Whether some of the weights are zero, and move alone, until others follow.

    Args:
        first: the run's very first update.
        updates: (n,), n at least 1, it or later ones.
    """
    return _hardly_moves(first, updates)


def seen_norm(updates: Sequence[Update], follow: bool = False) -> float:
    """The norm of the updates of the weights that are not zero, per unit of LR, beside which R is told.

    Args:
        updates: (n,), n at least 1.
        follow: what ``others_follow`` says of them.
    """
    return math.sqrt(statistics.fmean(own.update_norm**2 for own in (telling(updates) if follow else updates)))


def trust_of(updates: Sequence[Update], follow: bool = False) -> float:
    """R: ||w|| / ||u|| over the weights that are not zero; infinite where there are none, or they do not move. The
    arguments are those of ``seen_norm``.
    """
    told = telling(updates) if follow else updates
    weights, norm = (math.hypot(*(getattr(own, of) for own in told)) for of in ("weight_norm", "update_norm"))
    return weights / norm if weights > 0.0 and norm > 0.0 else math.inf


def density(optimizer: Any, updates: Sequence[Update]) -> float:
    """What is left of the LR that R and M allow where most of the tensors hardly have a gradient, should nothing be
    learned at all of it.

    Adam's first update is as large in every weight, however small the gradient is there. In a transformer from scratch
    whose norms come after the sums, gradients lie in the last layers (Xiong et al. 2020, arXiv 2002.04745, section 3):
    nearly all of an update goes where the loss tells nothing, and turns at random what the last layers have to read.

    Args:
        optimizer: with accelerate's wraps or without.
        updates: (n,), n at least 1, its first ones.

    Returns:
        A share, from ``LEAST_DENSITY`` to 1; 1 for an optimizer that is not like Adam, and where nothing tells.
    """
    spread = statistics.fmean(update.spread for update in updates)
    if math.isnan(spread) or not is_like_adam(optimizer):
        return 1.0
    return math.pow(LEAST_DENSITY, min(max((EVEN - spread) / (EVEN - UNEVEN), 0.0), 1.0))


def narrowing(optimizer: Any, evenness: float, room: float) -> float:
    """What is left of the LR that P allows where the gradient lies in few weights.

    Adam's first update is as large in all others, of which the loss says nothing yet: a pretrained model below a fresh
    head, which P and R know nothing of.

    Args:
        optimizer: with accelerate's wraps or without.
        evenness: of the first update, see ``Update``; NaN where it is not known.
        room: how many times the LR of P the lower one of R's and M's is.

    Returns:
        A share, from ``LEAST_NARROWING`` to 1; 1 for an optimizer that is not like Adam, where R and M allow little
        more than P, and where P is that of a large pretrained model.
    """
    if not evenness < NARROW or not NARROW_FROM < room <= FARTHEST or not is_like_adam(optimizer):
        return 1.0
    return max(math.pow(max(evenness, 0.0) / NARROW, NARROWING_POWER), LEAST_NARROWING)


def _hardly_moves(update: Update, others: Sequence[Update]) -> bool:
    """Whether the weights that are not zero hardly move in an update, neither beside those that are, nor beside what
    they move in others.
    """
    most = max(own.update_norm for own in others)
    if most < _NOTHING * max(own.whole_norm for own in others):
        return update.update_norm < _NOTHING * update.whole_norm
    return update.update_norm < _HARDLY * min(most, update.whole_norm)
