"""What a loop does that a schedule was not made for, looked at now and then; an ordinary step costs nothing."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from .checks import caller_level
from .param_groups import layers

FEWEST_BEYOND, SHARE_BEYOND = 10, 0.02
"""The optimizer steps beyond the end after which there is a warning, and their share of the run; loops that round the
length of an epoch make fewer.
"""

_FEWEST_OTHERS = 3  # steps of another optimizer


class LoopWarning(UserWarning):
    """The loop does something that the schedule was not made for."""


class LoopWatch:
    """Warns of each thing once.

    Args:
        name: of the schedule.

    Attributes:
        next_look: the scheduler steps done at which the schedule looks next.
        measured: of every parameter group, how many of its parameters were trained when the LR was measured; None
            before.
    """

    def __init__(self, name: str) -> None:
        self.next_look = 2  # at the first step torch asks for what ``OtherOptimizer`` resets
        self.measured: list[int] | None = None
        self._name, self._other = name, OtherOptimizer()
        self._unsaid = {"joined", "replaced", "beyond"}

    def is_replaced(self, optimizer: Optimizer) -> bool:
        """Whether another optimizer is found to be stepped in its place, for the first time."""
        if "replaced" not in self._unsaid or (other := self._other.look(optimizer)) is None:
            return False
        self._say(
            "replaced",
            f"the {type(optimizer).__name__} that this schedule was made for is not stepped, but another optimizer of "
            f"the same parameters is ({other}): make the schedule with the one that is stepped, after it. "
            f"{self._name}'s learning rates do not reach that one, and it looks for none",
        )
        return True

    def compare(self, optimizer: Optimizer, ratios: Sequence[float]) -> None:
        """Takes notice of which parameters are trained when the LR has just been measured, and warns of those that
        have joined them since, unless their LR is lower than any of the others.

        Args:
            optimizer: with accelerate's wraps or without.
            ratios: of every parameter group, its LR per unit of the common LR.
        """
        if "joined" not in self._unsaid:
            return
        now = [sum(p.requires_grad for p in group["params"]) for group in optimizer.param_groups]
        if self.measured is None:
            self.measured = now
            return
        before = self.measured + [0] * (len(now) - len(self.measured))
        least = min((ratio for ratio, num in zip(ratios, before, strict=False) if num), default=0.0)
        groups = zip(optimizer.param_groups, ratios, before, now, strict=False)
        joined = [(num - had, float(group["lr"])) for group, ratio, had, num in groups if num > had and ratio >= least]
        if joined:
            self._say(
                "joined",
                f"{sum(num for num, _ in joined)} parameter tensors are trained from now on that were frozen, or not "
                f"there, when {self._name} measured the learning rate. It is {max(lr for _, lr in joined):.1e} now, "
                "and may be too high for them: give them a parameter group of their own with a smaller lr, from the "
                "start or with optimizer.add_param_group",
            )

    def look_beyond(self, step: int, num_steps: int, ticks: int) -> None:
        """Warns where ``step``, the scheduler steps done, lies far beyond the end of the run.

        Args:
            step: they.
            num_steps: the scheduler steps of the run.
            ticks: scheduler steps per optimizer step.
        """
        room = max(FEWEST_BEYOND * ticks, round(SHARE_BEYOND * num_steps))
        if step >= num_steps + room and "beyond" in self._unsaid:
            self._say(
                "beyond",
                f"this is scheduler step {step} of a run of num_training_steps={num_steps}, beyond which the learning "
                "rate is 0, and nothing is trained: pass the number of all steps of the schedule, times "
                "accelerator.num_processes where accelerate has prepared it",
            )

    def _say(self, what: str, words: str) -> None:
        self._unsaid.discard(what)
        warnings.warn(words, LoopWarning, stacklevel=caller_level())

    def restart(self, step: int, measured: list[int] | None) -> None:
        """Goes on after ``step`` scheduler steps, with what a state says of ``measured``."""
        self.next_look, self.measured = max(step + 1, 2), None if measured is None else [*measured]


class OtherOptimizer:
    """Whether another optimizer steps the parameters in the place of the one that a schedule was made for.

    torch notes of an optimizer that has a schedule whether it was stepped. Only if it was not since the last look, it
    is asked for all optimizers' steps until the next looks.
    """

    def __init__(self) -> None:
        self._hook: Any = None
        self._name, self._num, self._is_own = "", 0, False
        self._own: set[int] = set()
        self._parameters: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process and its optimizers."""
        return OtherOptimizer().__dict__

    def look(self, optimizer: Optimizer) -> str | None:
        """The name of the other one's class; None while there is none.

        Args:
            optimizer: the schedule's, with accelerate's wraps or without.
        """
        if self._hook is None:
            is_noted = hasattr(optimizer.step, "_wrapped_by_lr_sched")  # by this release of torch
            if is_noted and not getattr(optimizer, "_opt_called", False):
                self._listen(optimizer)
            elif is_noted:
                optimizer._opt_called = False  # type: ignore[attr-defined]
            return None
        is_found = self._num >= _FEWEST_OTHERS and not self._is_own
        if is_found or self._is_own:
            self._hook.remove()
            self._hook = None
        return self._name if is_found else None

    def _listen(self, optimizer: Optimizer) -> None:
        found = layers(optimizer)
        groups = [group for layer in found for group in layer.param_groups]
        self._own = {id(each) for each in (*found, *groups)}  # whoever shares a group has its LR
        self._parameters = {id(p) for group in groups for p in group["params"]}
        self._num, self._is_own = 0, False
        this = weakref.ref(self)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def stepped(optimizer: Optimizer, *args: Any) -> None:
            other = this()
            if other is not None and not other._is_own:
                other._hear(optimizer)

        self._hook = register_optimizer_step_post_hook(stepped)
        weakref.finalize(self, self._hook.remove)

    def _hear(self, optimizer: Optimizer) -> None:
        groups = optimizer.param_groups
        if any(id(each) in self._own for each in (optimizer, *groups)):
            self._is_own = True
        elif any(id(p) in self._parameters for group in groups for p in group["params"]):
            self._num, self._name = self._num + 1, type(optimizer).__name__
