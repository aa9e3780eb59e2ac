"""What accelerate tells a schedule: ten methods of its classes, wrapped once, which do nothing where none is in use.

``install`` and ``remove`` are called by registration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils.deepspeed import DeepSpeedSchedulerWrapper
from torch import Tensor

from ..autolrs import batch_stream
from ..runtime import collective, early_end
from ..runtime.losses.tap import tell_backward, tell_optimizer_step, tell_zero_grad
from ..runtime.scheduler import AdaptiveScheduler
from ..runtime.update_meter import tell_clipping
from ..runtime.wrapping import Function, Wrap, unwrap, wrap
from . import rank_files, uneven


def _backward(this: Wrap) -> Function:
    original = this.original

    def backward(self: Accelerator, loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        if this.is_active:
            # Before the backward: DeepSpeed's engine steps the scheduler inside it, and Trainer tells it by this name
            # that the loss is divided by the number of micro-batches already.
            tell_backward(loss, self, is_divided=kwargs.get("scale_wrt_gas") is False)
        return original(self, loss, *args, **kwargs)

    return backward


def _clip_grad_norm(this: Wrap) -> Function:
    original = this.original

    def clip_grad_norm_(self: Accelerator, parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        if not this.is_active:
            return original(self, parameters, max_norm, *args, **kwargs)
        clipped = [parameters] if isinstance(parameters, Tensor) else list(parameters)  # may be an iterator
        norm = original(self, clipped, max_norm, *args, **kwargs)
        tell_clipping(clipped, norm, max_norm)
        return norm

    return clip_grad_norm_


def _optimizer_step(this: Wrap) -> Function:
    original = this.original

    def step(self: AcceleratedOptimizer, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if this.is_active:
            has_closure = bool(args or kwargs) and any(map(callable, (*args, *kwargs.values())))
            tell_optimizer_step(self, has_closure)
        return result

    return step


def _zero_grad(this: Wrap) -> Function:
    original = this.original

    def zero_grad(self: AcceleratedOptimizer, *args: Any, **kwargs: Any) -> Any:
        if this.is_active:
            tell_zero_grad(self)
        return original(self, *args, **kwargs)

    return zero_grad


def _prepare(this: Wrap) -> Function:
    def init(self: AcceleratedScheduler, *args: Any, **kwargs: Any) -> None:
        this.original(self, *args, **kwargs)
        if not (this.is_active and isinstance(self.scheduler, AdaptiveScheduler)):
            return
        # DeepSpeed's engine and a loop that steps by itself tick once.
        ticks_once = isinstance(self, DeepSpeedSchedulerWrapper) or self.split_batches
        ticks = 1 if ticks_once or not self.step_with_optimizer else collective.num_processes()
        self.scheduler.prepared(ticks, self.optimizers)

    return init


def _save_state(this: Wrap) -> Function:
    def save_state(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        folder = this.original(self, *args, **kwargs)
        for i, scheduler in _prepared_schedulers(self, this):
            rank_files.save(scheduler, folder, i)
        return folder

    return save_state


def _load_state(this: Wrap) -> Function:
    def load_state(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        folders: list[Any] = []
        hook = self.register_load_state_pre_hook(lambda models, folder: folders.append(folder))
        try:
            result = this.original(self, *args, **kwargs)
        finally:
            hook.remove()
        for i, scheduler in _prepared_schedulers(self, this):
            rank_files.load(scheduler, folders[0], i)
        return result

    return load_state


def _join_uneven_inputs(this: Wrap) -> Function:
    @contextlib.contextmanager
    def join_uneven_inputs(self: Accelerator, *args: Any, **kwargs: Any) -> Iterator[None]:
        schedulers = [scheduler for _, scheduler in _prepared_schedulers(self, this)]
        for scheduler in schedulers:
            if self.num_processes > 1 and not scheduler.can_wait:
                raise ValueError(
                    f"{type(scheduler).__name__} needs all processes at the same step, which join_uneven_inputs does "
                    "not give; keep accelerate's even_batches, or pass drop_last=True to the data loader, and leave "
                    "join_uneven_inputs out"
                )
        with uneven.joined(schedulers), this.original(self, *args, **kwargs):
            yield

    return join_uneven_inputs


def _end_training(this: Wrap) -> Function:
    def end_training(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        if this.is_active:  # before the process group is gone
            early_end.tell(early_end.of_optimizers(self._optimizers))
        return this.original(self, *args, **kwargs)

    return end_training


def _iter(this: Wrap) -> Function:
    def iterate(self: Any) -> Iterator[Any]:
        return batch_stream.iterate(self, this.original) if this.is_active else this.original(self)

    return iterate


_WRAPS: tuple[tuple[type, str, Callable[[Wrap], Function]], ...] = (
    (Accelerator, "backward", _backward),
    (Accelerator, "clip_grad_norm_", _clip_grad_norm),
    (Accelerator, "save_state", _save_state),
    (Accelerator, "load_state", _load_state),
    (Accelerator, "join_uneven_inputs", _join_uneven_inputs),
    (Accelerator, "end_training", _end_training),
    (AcceleratedOptimizer, "step", _optimizer_step),
    (AcceleratedOptimizer, "zero_grad", _zero_grad),
    (AcceleratedScheduler, "__init__", _prepare),
    (DataLoaderShard, "__iter__", _iter),
)


def _prepared_schedulers(accelerator: Accelerator, this: Wrap) -> list[tuple[int, AdaptiveScheduler]]:
    """This package's schedulers of an accelerator, with their places among all; none while inactive."""
    if not this.is_active:
        return []
    found = enumerate(getattr(prepared, "scheduler", None) for prepared in accelerator._schedulers)
    return [(i, scheduler) for i, scheduler in found if isinstance(scheduler, AdaptiveScheduler)]


def install() -> None:
    """Wraps accelerate's methods; does nothing to one that is wrapped already."""
    for owner, name, make in _WRAPS:
        wrap(owner, name, make)


def remove() -> None:
    """Puts accelerate's own methods back."""
    for owner, name, _ in _WRAPS:
        unwrap(owner, name)
