"""The names of schedules, each registered by the folder that has it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .checks import check_name

_FILLED_IN = ("optimizer", "num_training_steps", "num_warmup_steps", "last_epoch")


@dataclass(frozen=True)
class Method:
    """A schedule by name.

    Args:
        name: of ``lr_scheduler_type``.
        schedule: f(optimizer, num_warmup_steps=, num_training_steps=, **options), which returns the scheduler.
        is_adaptive: whether that is an ``AdaptiveScheduler``, and not a closed form.
    """

    name: str
    schedule: Callable[..., Any]
    is_adaptive: bool


METHODS: dict[str, Method] = {}
"""``lr_scheduler_type`` -> its method; in the order of registration."""


def register_method(name: str, schedule: Callable[..., Any], *, is_adaptive: bool) -> None:
    """Makes a schedule known, so that registration teaches transformers its name.

    Args:
        name: of ``lr_scheduler_type``.
        schedule: its factory; ``lr_scheduler_kwargs`` are checked against its arguments.
        is_adaptive: whether it returns an ``AdaptiveScheduler``.
    """
    METHODS[name] = Method(name, _by_name(name, schedule, is_adaptive), is_adaptive)


def _by_name(name: str, schedule: Callable[..., Any], is_adaptive: bool) -> Callable[..., Any]:
    """A schedule as the libraries call it, which know no more than its name.

    It lists its options where it is given an unknown one, as ``lr_scheduler_kwargs`` may. It takes the ``last_epoch``
    of a new run, too. The ``num_warmup_steps`` were meant for any schedule, so an adaptive one inherits them.
    """
    signature = inspect.signature(schedule)
    parameters = signature.parameters
    known = tuple(option for option in parameters if option not in _FILLED_IN)

    @functools.wraps(schedule)
    def checked(*args: Any, **options: Any) -> Any:
        if "last_epoch" in options and "last_epoch" not in parameters:
            done = options.pop("last_epoch")  # some libraries pass it to every schedule
            if done != -1:
                raise ValueError(
                    f"last_epoch must be -1 for the schedule {name!r}, got {done!r}; it goes on from its state: "
                    "load it with load_state_dict or accelerator.load_state"
                )
        for option in options:
            if option not in parameters:
                check_name(f"option of lr_scheduler_type={name!r}", option, known)
        if not is_adaptive:
            return schedule(*args, **options)
        given = signature.bind(*args, **options)
        warmup = given.arguments.pop("num_warmup_steps", None)
        adaptive = schedule(*given.args, **given.kwargs)
        if warmup is not None:
            adaptive.inherit_warmup(warmup)
        return adaptive

    return checked
