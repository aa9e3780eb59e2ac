"""DeepSpeed's half precision without ZeRO: an optimizer of whole weights in single precision, which DeepSpeed copies
into the model's own after each step.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from .groups import innermost, layers

KIND = "FP16_UnfusedOptimizer"
"""DeepSpeed's wrap, for bf16 and fp16; ``FP16_Optimizer``, of its own fused Adam, puts the weights end to end."""

_known: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""The wraps by the innermost optimizer: a schedule may have been made for it before DeepSpeed wrapped it."""


def has_masters(optimizer: Any) -> bool:
    """Whether an optimizer is DeepSpeed's of that kind, and steps the weights by a step that can be heard.

    Args:
        optimizer: with its wraps, or the innermost one of an optimizer that was asked for with its wraps before.
    """
    return _wrap_of(optimizer) is not None


def half_copies(optimizer: Any) -> list[Tensor]:
    """The model's own weights, which are copies of those that the optimizer steps; none without such. The argument is
    that of ``has_masters``.
    """
    wrap = _wrap_of(optimizer)
    return [] if wrap is None else [p for group in wrap.fp16_groups for p in group]


def _wrap_of(optimizer: Any) -> Any:
    found, inner = layers(optimizer), innermost(optimizer)
    wrap = next((layer for layer in found if type(layer).__name__ == KIND), None)
    if wrap is not None:
        _known[inner] = weakref.ref(wrap)
    elif inner in _known:
        wrap = _known[inner]()
    is_heard = hasattr(wrap, "fp16_groups") and not getattr(wrap, "fused_lamb_legacy", False)
    return wrap if is_heard else None
