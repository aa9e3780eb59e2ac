"""What weights allow that began near zero, once they have grown. (Ours.)

Adapters, word vectors, a factorization or a small fresh head that is trained alone begin with weights of hardly any
size. An update is large beside them, whatever it does to the loss: R and M lie far below P, and are too low. The steps
that follow go one way, for the weights have to grow, and that is no sign of an LR that is too high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....runtime.update_meter import Update
from ..measures.first_steps import seen_norm
from ..measures.scale import LAYER_SHARE, TRUST_SHARE, Scale

GROWN_FROM = 1.3
"""How many times as much the weights must allow; P may lie as high for a loss that is large whatever a model does."""

MOST_GROWN = 20.0
"""The most that the LR is multiplied by for that: a guard against a measure that went wrong."""


def grown_factor(scale: Scale, first: Sequence[Update], now: Update) -> float | None:
    """By what the scale's LR has to be multiplied for what the weights are by now, in place of being lowered for steps
    that go one way.

    The LR that R and M allow is told again, by the weights as they are now, and by the size of the first updates or of
    this one, if it is larger: those of LAMB and Adafactor grow with the weights. Half of the way to it is gone, in
    decades: weights that grow since the LR is too high allow more by that, too. Where M holds the LR, R is that of
    other weights, and bounds it as it was.

    Args:
        scale: of the first updates.
        first: these, n at least 1.
        now: a later update.

    Returns:
        The factor, from 1 to ``MOST_GROWN``; None where the weights are hardly larger, or did not begin near zero.
    """
    size = seen_norm(first, scale.others_follow)
    if not (scale.has_small_weights and size > 0.0):
        return None
    of_all = TRUST_SHARE * now.weight_norm
    of_layers = of_all if math.isnan(now.layer_trust) else LAYER_SHARE * now.layer_trust * now.update_norm
    is_of_layers, larger = scale.held_by == "layers", max(size, now.update_norm)
    if (of_layers if is_of_layers else min(of_layers, of_all)) < GROWN_FROM * size * scale.trusted_lr:
        return None
    allowed = min(of_layers / larger, TRUST_SHARE * scale.trust if is_of_layers else of_all / larger)
    return min(max(math.sqrt(allowed / scale.trusted_lr), 1.0), MOST_GROWN)
