"""What weights allow that began near zero, once they have grown. (Ours.)

Adapters, word vectors, a factorization or a small fresh head that is trained alone begin with weights of hardly any
size. An update is large beside them, whatever it does to the loss: R and M lie far below P, and are too low. The steps
that follow go one way, for the weights have to grow, and that is no sign of an LR that is too high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....runtime.update_meter import Update
from .scale import LAYER_SHARE, TRUST_SHARE, Scale

GROWN_FROM = 1.3
"""How many times as much the weights must allow; P may lie as high for a loss that is large whatever a model does."""

MOST_GROWN = 20.0
"""The most that the LR is multiplied by for that: a guard against a measure that went wrong."""


def grown_factor(scale: Scale, first: Sequence[Update], now: Update) -> float:
    """By what the scale's LR has to be multiplied for what the weights are by now.

    The LR that R and M allow is told again, by the weights as they are now and the size of the first updates. Half of
    the way to it is gone, in decades: weights that grow since the LR is too high allow more by that, too.

    Args:
        scale: of the first updates.
        first: these, n at least 1.
        now: a later update.

    Returns:
        The factor, ``MOST_GROWN`` at most; 1 where the weights are hardly larger, or did not begin near zero.
    """
    if not scale.has_small_weights:
        return 1.0
    size = math.sqrt(sum(update.update_norm**2 for update in first) / len(first))
    if not size > 0.0:
        return 1.0
    of_layers = LAYER_SHARE * now.layer_trust * now.update_norm / size
    trust = scale.trust if scale.held_by == "layers" else now.weight_norm / size  # R is that of others, where M holds
    grown = min(TRUST_SHARE * trust, math.inf if math.isnan(of_layers) else of_layers) / scale.trusted_lr
    return min(math.sqrt(grown), MOST_GROWN) if grown >= GROWN_FROM else 1.0
