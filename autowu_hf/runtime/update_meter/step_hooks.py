"""The hooks by which a meter hears of an optimizer's steps and gradients, as long as somebody else holds the meter."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..compiling import untraced


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

    @untraced
    def before(optimizer: Optimizer, args: Any, options: Any) -> None:
        meter = this()
        if meter is not None and not meter.rests:
            meter.look_before(has_closure=any(map(callable, (*args[1:], options.get("closure")))))

    @untraced
    def after(optimizer: Optimizer, *args: Any) -> None:
        meter = this()
        if meter is not None and not meter.rests:
            meter.look_after()

    return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]


def gradient_hooks(meter: Listener, leaves: Iterable[Tensor], at_end: bool = False) -> list[Any]:
    """Has ``meter`` hear of each gradient that a backward adds up in the leaves, unless it rests.

    Args:
        meter: the listener.
        leaves: the parameters.
        at_end: whether to wait for the end of the backward, where DDP puts the mean over the processes.

    Returns:
        The hooks' handles.
    """
    this, engine = weakref.ref(meter), torch.autograd.Variable._execution_engine
    waiting: list[tuple[int, Tensor]] = []

    def hear_all() -> None:
        meter = this()
        for _, parameter in waiting:
            if meter is not None:
                meter.hear(parameter)
        waiting.clear()

    @untraced
    def accumulated(parameter: Tensor) -> None:
        meter, backward = this(), torch._C._current_graph_task_id()
        if meter is None or meter.rests:
            return
        if not at_end:
            meter.hear(parameter)
            return
        if not waiting or waiting[0][0] != backward:  # the one before may have ended in an error
            waiting.clear()
            engine.queue_callback(lambda: engine.queue_callback(hear_all))  # DDP's own is queued in between
        waiting.append((backward, parameter))

    return [leaf.register_post_accumulate_grad_hook(accumulated) for leaf in leaves]  # type: ignore[no-untyped-call]
