"""The hooks by which a meter hears of an optimizer's steps and gradients, as long as somebody else holds the meter."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer


class Listener(Protocol):
    """What a meter is here."""

    @property
    def rests(self) -> bool:
        """Whether it takes no notice now."""

    def look_before(self, has_closure: bool) -> None:
        """Called right before a step; ``has_closure``: whether it is made with one."""

    def look_after(self) -> None:
        """Called right after a step."""

    def hear(self, parameter: Tensor) -> None:
        """Called for a parameter that has got a gradient."""


def step_hooks(meter: Listener, optimizer: Optimizer) -> list[Any]:
    """Has ``meter`` look right before and right after each step of the optimizer, unless it rests.

    Returns:
        The hooks' handles.
    """
    this = weakref.ref(meter)

    def before(optimizer: Optimizer, args: Any, options: Any) -> None:
        meter = this()
        if meter is not None and not meter.rests:
            meter.look_before(has_closure=any(map(callable, (*args[1:], options.get("closure")))))

    def after(optimizer: Optimizer, *args: Any) -> None:
        meter = this()
        if meter is not None and not meter.rests:
            meter.look_after()

    return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]


def gradient_hooks(meter: Listener, leaves: Iterable[Tensor]) -> list[Any]:
    """Has ``meter`` hear of each gradient that a backward adds up in the leaves, unless it rests.

    Returns:
        The hooks' handles.
    """
    this = weakref.ref(meter)

    def accumulated(parameter: Tensor) -> None:
        meter = this()
        if meter is not None and not meter.rests:
            meter.hear(parameter)

    return [leaf.register_post_accumulate_grad_hook(accumulated) for leaf in leaves]  # type: ignore[no-untyped-call]
