"""What is said of a run that ends before its schedule does, where no Trainer trains, which says it by itself."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import sys
import weakref
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from accelerate.state import GradientState

from . import collective
from .inherited_warmup import InheritsWarmup
from .param_groups import layers

logger = logging.getLogger(__name__)

ENOUGH = 0.9
"""The share of the run after which the rest of a decay is not missed."""

_ABOUT = 0.8, 1.25  # an epoch's last step may have fewer micro-batches


class KnowsItsEnd(InheritsWarmup):
    """The part of ``AdaptiveScheduler`` that knows what a run that ends now has left undone.

    Attributes:
        peak_lr: the LR that a decay starts from; None before, and in a schedule without one.
    """

    peak_lr: float | None = None

    @property
    def is_looking(self) -> bool:
        """Whether it only looks for an LR yet, so that what an evaluation says now is no sign of convergence."""
        return False

    def expect_early_stopping(self) -> None:
        """Takes in that evaluations may stop the run, which makes no difference to most schedules."""

    @abstractmethod
    def _schedule(self, step: int) -> float: ...

    def early_end(self) -> str | None:
        """What to say where the run ends now, in optimizer steps; None where there is nothing to say."""
        step, steps = self.last_epoch, self.num_training_steps
        made, planned = step // self.ticks_per_step, steps // self.ticks_per_step
        ended, lr = f"the run was ended at step {made} of {planned}", f"learning rate {self.get_last_lr()[0]:.1e}"
        if step < steps and self.is_looking:
            return (
                f"{ended}, while {self.name} was looking for the learning rate: the weights are those of that step, at "
                f"{lr}, on which nothing had been decided yet. {self._remedy(made, planned)}"
            )
        if step < ENOUGH * steps and self.peak_lr:
            share = 100.0 * self._schedule(step) / self.peak_lr
            return (
                f"{ended}, at {lr}, {share:.0f} % of {self.name}'s peak: the rest of the decay was not made. "
                f"{self._remedy(made, planned)}"
            )
        return None

    def _remedy(self, made: int, planned: int) -> str:
        num = GradientState().num_steps if GradientState._shared_state else 1
        if num > 1 and _ABOUT[0] * planned <= num * made <= _ABOUT[1] * planned:
            return f"num_training_steps seems to count batches: divide it by gradient_accumulation_steps = {num}"
        times = f" (accelerate counts each {self.ticks_per_step} times)" if self.ticks_per_step > 1 else ""
        said = f"Where these are all steps that the loop makes, pass num_training_steps={self.last_epoch}{times}"
        waits = "; where the loop stops early by itself, let it wait while the schedule's is_looking is True"
        return said + waits * self.is_looking


_watched: weakref.WeakKeyDictionary[KnowsItsEnd, tuple[int, int]] = weakref.WeakKeyDictionary()
"""The schedules whose end nobody has spoken of: the scheduler steps done when they began here, and the process."""


def watch(schedule: KnowsItsEnd) -> None:
    """Has the end of this process warn where a schedule that begins now, or goes on, has not come to its end."""
    _watched[schedule] = schedule.last_epoch, os.getpid()
    _listen()


def leave(schedule: KnowsItsEnd) -> None:
    """Leaves it to somebody else to speak of its end."""
    _watched.pop(schedule, None)


@functools.cache
def _listen() -> None:
    atexit.register(at_exit)


def tell(schedules: Iterable[KnowsItsEnd]) -> None:
    """Warns, once a schedule, where the run ends now; not where an error ends it, which says enough."""
    for schedule in schedules:
        began, process = _watched.get(schedule, (0, None))
        if process != os.getpid() or schedule.last_epoch <= began:
            continue
        if sys.exc_info()[0] is not None:
            leave(schedule)
        elif (words := schedule.early_end()) is not None:
            leave(schedule)
            if collective.is_main_process() and os.environ.get("RANK", "0") == "0":  # the group may be gone
                logger.warning("%s", words)


def of_optimizers(optimizers: Iterable[Any]) -> list[KnowsItsEnd]:
    """The watched schedules of optimizers that may be wrapped."""
    inside = {id(layer) for optimizer in optimizers for layer in layers(optimizer)}
    return [schedule for schedule in [*_watched] if inside & {id(layer) for layer in layers(schedule.optimizer)}]


def at_exit() -> None:
    """Warns of every schedule that somebody still holds. Says nothing after an error, nor in an interactive session;
    nor in a process that multiprocessing has started, for there an error is not seen from here.
    """
    has_failed = getattr(sys, "last_value", None) is not None
    if has_failed or hasattr(sys, "ps1") or multiprocessing.parent_process() is not None or not _watched:
        return
    with contextlib.suppress(Exception):
        gc.collect()  # what only a cycle holds
        tell([*_watched])
