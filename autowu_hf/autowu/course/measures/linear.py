"""What holds where one linear layer is trained alone, as the head on frozen features. (Ours.)

R and M bound how far an update turns a weight, for what the other layers make of that. Here there are none: cross
entropy and squared error are convex in the layer's weights, which may begin as small as they like. P bounds the LR.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ....runtime.param_groups import innermost
from .scale import Scale


def without_bounds(scale: Scale, optimizer: Any) -> Scale:
    """The scale without R and M, where one linear layer is trained alone.

    Args:
        scale: of the first updates.
        optimizer: with accelerate's wraps or without.
    """
    return replace(scale, trust=math.inf, layer_trust=math.nan) if is_one_layer(optimizer) else scale


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
