"""What DeepSpeed tells a schedule where it clips gradients without ZeRO: a function of its engine, and a method of its
optimizer for half precision, each wrapped once, which do nothing more where no schedule is in use.

DeepSpeed is not imported here. ``install`` and ``remove`` are called by registration.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from ..runtime.update_meter import tell_clipping
from ..runtime.wrapping import Function, Wrap, unwrap, wrap
from .late_import import forget, on_import

_ENGINE, _FUNCTION = "deepspeed.runtime.engine", "clip_grad_norm_"
_UNFUSED, _CLASS, _METHOD = (
    "deepspeed.runtime.fp16.unfused_optimizer",
    "FP16_UnfusedOptimizer",
    "unscale_and_clip_grads",
)


def _clip_grad_norm(this: Wrap) -> Function:
    def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        if not this.is_active:
            return this.original(parameters, max_norm, *args, **kwargs)
        clipped = [parameters] if isinstance(parameters, Tensor) else list(parameters)  # may be an iterator
        norm = this.original(clipped, max_norm, *args, **kwargs)
        tell_clipping(clipped, norm, max_norm)
        return norm

    return clip_grad_norm_


def _unscale_and_clip(this: Wrap) -> Function:
    def unscale_and_clip_grads(self: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
        scale = this.original(self, total_norm, *args, **kwargs)
        if this.is_active and self.clip_grad > 0.0:
            masters = [parameter for group in self.fp32_groups for parameter in group]
            tell_clipping(masters, total_norm / self.loss_scale, self.clip_grad)
        return scale

    return unscale_and_clip_grads


def _wrap_engine(module: Any) -> None:
    if hasattr(module, _FUNCTION):  # which another release may lack
        wrap(module, _FUNCTION, _clip_grad_norm)


def _wrap_unfused(module: Any) -> None:
    if hasattr(getattr(module, _CLASS, None), _METHOD):
        wrap(getattr(module, _CLASS), _METHOD, _unscale_and_clip)


def install() -> None:
    """Wraps both, once somebody imports DeepSpeed; does nothing where that is done already."""
    on_import(_ENGINE, _wrap_engine)
    on_import(_UNFUSED, _wrap_unfused)


def remove() -> None:
    """Puts DeepSpeed's own back."""
    forget(_ENGINE, _wrap_engine)
    forget(_UNFUSED, _wrap_unfused)
    if _ENGINE in sys.modules:
        unwrap(sys.modules[_ENGINE], _FUNCTION)
    if hasattr(sys.modules.get(_UNFUSED), _CLASS):
        unwrap(getattr(sys.modules[_UNFUSED], _CLASS), _METHOD)
