"""What accelerate tells AutoWU: seven methods of its classes, wrapped once, which do nothing where it is not in use.

``install`` and ``remove`` are called by registration.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils.deepspeed import DeepSpeedSchedulerWrapper
from torch import Tensor

from . import batch_stream, collective, rank_files, uneven
from .autolrs_scheduler import AutoLRSScheduler
from .loss_tap import tell_backward, tell_optimizer_step
from .rewind import cannot_rewind
from .salsa_scheduler import SalsaScheduler
from .scheduler import AutoWUScheduler


def _backward(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def backward(self: Accelerator, loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        tell_backward(loss, self)  # before the backward: DeepSpeed's engine steps the scheduler inside it
        return original(self, loss, *args, **kwargs)

    return backward


def _optimizer_step(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def step(self: AcceleratedOptimizer, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        tell_optimizer_step(self)
        return result

    return step


def _prepare(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def init(self: AcceleratedScheduler, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        # DeepSpeed's engine and a loop that steps by itself tick once.
        ticks_once = isinstance(self, DeepSpeedSchedulerWrapper) or self.split_batches
        ticks = 1 if ticks_once or not self.step_with_optimizer else collective.num_processes()
        if isinstance(self.scheduler, (AutoLRSScheduler, SalsaScheduler)):
            self.scheduler.prepared(ticks, self.optimizers)
        if isinstance(self.scheduler, AutoWUScheduler):
            self.scheduler.set_ticks_per_step(ticks)
            for optimizer in self.optimizers:
                reason = cannot_rewind(optimizer)
                if reason is not None:
                    self.scheduler.rewind.refuse(reason)

    return init


def _save_state(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_state(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        folder = original(self, *args, **kwargs)
        for i, scheduler in _prepared_schedulers(self):
            rank_files.save(scheduler, folder, i)
        return folder

    return save_state


def _load_state(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_state(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        folders: list[Any] = []
        hook = self.register_load_state_pre_hook(lambda models, folder: folders.append(folder))
        try:
            result = original(self, *args, **kwargs)
        finally:
            hook.remove()
        for i, scheduler in _prepared_schedulers(self):
            rank_files.load(scheduler, folders[0], i)
        return result

    return load_state


def _join_uneven_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    @contextlib.contextmanager
    def join_uneven_inputs(self: Accelerator, *args: Any, **kwargs: Any) -> Iterator[None]:
        schedulers = []
        for scheduler in (getattr(prepared, "scheduler", None) for prepared in self._schedulers):
            if isinstance(scheduler, AutoWUScheduler):
                schedulers.append(scheduler)
            elif self.num_processes > 1 and isinstance(scheduler, (AutoLRSScheduler, SalsaScheduler)):
                raise ValueError(
                    f"{type(scheduler).__name__} needs all processes at the same step, which join_uneven_inputs does "
                    "not give; keep accelerate's even_batches, or pass drop_last=True to the data loader, and leave "
                    "join_uneven_inputs out"
                )
        with uneven.joined(schedulers), original(self, *args, **kwargs):
            yield

    return join_uneven_inputs


def _iter(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def iterate(self: Any) -> Iterator[Any]:
        return batch_stream.iterate(self, original)

    return iterate


_WRAPS: tuple[tuple[type, str, Callable[[Callable[..., Any]], Callable[..., Any]]], ...] = (
    (Accelerator, "backward", _backward),
    (Accelerator, "save_state", _save_state),
    (Accelerator, "load_state", _load_state),
    (Accelerator, "join_uneven_inputs", _join_uneven_inputs),
    (AcceleratedOptimizer, "step", _optimizer_step),
    (AcceleratedScheduler, "__init__", _prepare),
    (DataLoaderShard, "__iter__", _iter),
)


def _prepared_schedulers(accelerator: Accelerator) -> list[tuple[int, AutoWUScheduler | AutoLRSScheduler]]:
    """The schedulers of an accelerator that take in losses, with their places among all of them."""
    return [
        (i, prepared.scheduler)
        for i, prepared in enumerate(accelerator._schedulers)
        if isinstance(getattr(prepared, "scheduler", None), (AutoWUScheduler, AutoLRSScheduler))
    ]


def install() -> None:
    """Wraps accelerate's methods; does nothing to one that is wrapped already."""
    for owner, name, wrap in _WRAPS:
        original = getattr(owner, name)
        if not hasattr(original, "_autowu_original"):
            wrapped: Any = wrap(original)
            wrapped._autowu_original = original
            setattr(owner, name, wrapped)


def remove() -> None:
    """Puts accelerate's own methods back."""
    for owner, name, _ in _WRAPS:
        original = getattr(getattr(owner, name), "_autowu_original", None)
        if original is not None:
            setattr(owner, name, original)
