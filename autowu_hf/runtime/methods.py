"""The names of schedules, each registered by the folder that has it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
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
        fewest_warmup_steps: of a schedule that finds the length of its warm-up by itself: f(num_training_steps,
            options), the lowest limit that ``num_warmup_steps`` may set to it; else None.
    """

    name: str
    schedule: Callable[..., Any]
    is_adaptive: bool
    fewest_warmup_steps: Callable[[int, Mapping[str, Any]], int] | None = None


METHODS: dict[str, Method] = {}
"""``lr_scheduler_type`` -> its method; in the order of registration."""


def register_method(
    name: str,
    schedule: Callable[..., Any],
    *,
    is_adaptive: bool,
    fewest_warmup_steps: Callable[[int, Mapping[str, Any]], int] | None = None,
) -> None:
    """Makes a schedule known, so that registration teaches transformers its name.

    Args:
        name: of ``lr_scheduler_type``.
        schedule: its factory; ``lr_scheduler_kwargs`` are checked against its arguments.
        is_adaptive: whether it returns an ``AdaptiveScheduler``.
        fewest_warmup_steps: see ``Method``.
    """
    METHODS[name] = Method(name, _with_known_options(name, schedule), is_adaptive, fewest_warmup_steps)


def _with_known_options(name: str, schedule: Callable[..., Any]) -> Callable[..., Any]:
    """A schedule that lists its options where it is given an unknown one, as ``lr_scheduler_kwargs`` may.

    It takes the ``last_epoch`` of a new run, too.
    """
    parameters = inspect.signature(schedule).parameters
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
        return schedule(*args, **options)

    return checked
