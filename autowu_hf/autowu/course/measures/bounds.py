"""How far the bounds of a scale go: where R and M hold not at all, or are unsure, and where less of P counts. (Ours.)

R and M bound how far an update turns a weight, for what the other layers make of that. Where one linear layer is
trained alone, as the head on frozen features, there are none: cross entropy and squared error are convex in its
weights, which may begin as small as they like. P bounds the LR, and an LR that is too high ruins nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ....runtime.param_groups import innermost
from ....runtime.update_meter import Update
from ...optimizer_kinds import is_like_adam
from .first_steps import density, narrowing
from .scale import POLYAK_SHARE, Scale

_ONE_SIGN = 0.5  # the share of the mean square that the square of the mean has at least, for numbers of one sign

NEW, TRAINED = "new", "trained"

STEEP = 3.0
"""How far below R's and M's LR that of P lies at least where a model from scratch begins with something steep."""

TRAINED_ROOM = 60.0
"""How far R lies above 0.3 P at most where a model that was trained may have a better LR in between. It is 21 to 31 in
the fine-tuned ViT of ``compare.py``, where it was level with and without, and 102 to 206 in MiniLM.
"""

SCALING = 0.25
"""What is left of 0.2 R and 0.3 M where factors of channels are trained alone. Each changes an output of a layer by as
much for all inputs, whereas the changes by a matrix's weights partly cancel.
"""


def bounded(scale: Scale, optimizer: Any, updates: Sequence[Update]) -> Scale:
    """The scale with what is known of its bounds.

    Args:
        scale: of the first updates.
        optimizer: with accelerate's wraps or without.
        updates: (n,), these, n at least 1.
    """
    scale = without_bounds(scale, optimizer)
    if are_factors(optimizer):
        scale = replace(scale, scaling=SCALING)
    is_other = scale.is_scale_invariant or scale.has_small_weights
    share = 1.0 if is_other else density(optimizer, updates)
    left = min(1.0, share * scale.trusted_lr / (POLYAK_SHARE * scale.lr)) if share < 1.0 else 1.0
    room = scale.trusted_lr / (POLYAK_SHARE * scale.polyak)
    norms = norms_of(updates[0])
    if norms == NEW and not is_like_adam(optimizer):  # how far its later updates get has to be seen first
        norms = ""
    narrow = 1.0 if scale.others_follow or norms == NEW else narrowing(optimizer, updates[0].evenness, room)
    return replace(scale, density=left, narrowing=narrow, norms=norms)


def without_bounds(scale: Scale, optimizer: Any) -> Scale:
    """The scale without R and M, and as that of a convex loss, where one linear layer is trained alone.

    Args:
        scale: of the first updates.
        optimizer: with accelerate's wraps or without.
    """
    return replace(scale, trust=math.inf, layer_trust=math.nan, is_convex=True) if is_one_layer(optimizer) else scale


def is_one_layer(optimizer: Any) -> bool:
    """Whether all that an optimizer trains is one matrix of (out, in), and a bias of (out,).

    Not a matrix alone, for that may be embeddings or a prompt, which many layers come after; nor where the weights are
    in one flat tensor (FSDP1, ZeRO).

    Args:
        optimizer: with accelerate's wraps or without.
    """
    groups = innermost(optimizer).param_groups
    shapes = sorted((tuple(p.shape) for group in groups for p in group["params"] if p.requires_grad), key=len)
    return [*map(len, shapes)] == [1, 2] and shapes[0][0] == shapes[1][0]


def are_factors(optimizer: Any) -> bool:
    """Whether all that an optimizer trains are vectors, two or more, and half of their numbers or more are in such as
    have one sign, as factors have: the weights of norms, IA3's vectors. Not where processes share tensors.

    Args:
        optimizer: with accelerate's wraps or without.
    """
    tensors = _trained(optimizer)
    if len(tensors) < 2 or any(hasattr(p, "to_local") or p.numel() != max(p.shape, default=1) for p in tensors):
        return False
    num_factors = sum(p.numel() for p in tensors if _has_one_sign(p.float()))
    return 2 * num_factors >= sum(p.numel() for p in tensors)


def norms_of(update: Update) -> str:
    """What the weights of the norms say of the model that is trained, by two or more of them.

    Args:
        update: the first one that was measured.

    Returns:
        TRAINED where two or more vectors have one sign and are not constant; NEW where none is, and two or more are all
        1; "" elsewhere.
    """
    if update.trained_norms >= 2.0:
        return TRAINED
    return NEW if update.new_norms >= 2.0 and update.trained_norms == 0.0 else ""


def begins_steep(scale: Scale) -> bool:
    """Whether a model from scratch, as a language model, first learns something steep that holds P far below the LR
    that R and M allow: how often each token occurs.
    """
    is_held = scale.norms == NEW and STEEP * POLYAK_SHARE * scale.polyak < scale.trusted_lr
    return is_held and not (scale.is_aligned or scale.is_scale_invariant)


def may_be_outgrown(scale: Scale, lr: float) -> bool:
    """Whether there is room above an LR, up to R, and R tells something of most weights: not where it lies far above P
    in a model that was trained, of which a fresh head sees little at first.
    """
    is_far = scale.norms == TRAINED and scale.trust > TRAINED_ROOM * POLYAK_SHARE * scale.polyak
    return scale.density == scale.narrowing == 1.0 and not is_far and 2.0 * lr < scale.trust < math.inf


def _trained(optimizer: Any) -> list[Tensor]:
    groups = innermost(optimizer).param_groups
    return [p.detach() for group in groups for p in group["params"] if p.requires_grad]


def _has_one_sign(numbers: Tensor) -> bool:
    size = float(numbers.square().mean())
    mean = float(numbers.mean())
    return numbers.numel() > 1 and size > 0.0 and mean * mean > _ONE_SIGN * size
