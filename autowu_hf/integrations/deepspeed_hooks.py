"""What DeepSpeed's engine tells a schedule where it clips gradients itself, as it does without ZeRO in single
precision: one function, wrapped once, which does nothing more where none is in use.

DeepSpeed is not imported here. ``install`` and ``remove`` are called by registration.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from ..runtime.update_meter import tell_clipping
from ..runtime.wrapping import Function, Wrap, unwrap, wrap
from .late_import import forget, on_import

_ENGINE, _NAME = "deepspeed.runtime.engine", "clip_grad_norm_"


def _clip_grad_norm(this: Wrap) -> Function:
    def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        if not this.is_active:
            return this.original(parameters, max_norm, *args, **kwargs)
        clipped = [parameters] if isinstance(parameters, Tensor) else list(parameters)  # may be an iterator
        norm = this.original(clipped, max_norm, *args, **kwargs)
        tell_clipping(clipped, norm, max_norm)
        return norm

    return clip_grad_norm_


def _wrap(engine: Any) -> None:
    if hasattr(engine, _NAME):  # not in any release
        wrap(engine, _NAME, _clip_grad_norm)


def install() -> None:
    """Wraps the function, once somebody imports DeepSpeed; does nothing where that is done already."""
    on_import(_ENGINE, _wrap)


def remove() -> None:
    """Puts DeepSpeed's own function back."""
    forget(_ENGINE, _wrap)
    if _ENGINE in sys.modules:
        unwrap(sys.modules[_ENGINE], _NAME)
