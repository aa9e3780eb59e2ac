"""Checks of arguments and states: each error names the value, its limits and what to pass instead."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor

_OWN = __name__.partition(".")[0]
_INSIDE = re.compile(rf"({_OWN}|accelerate|torch\._dynamo)(\.|$)")  # the last calls what it does not trace
_ALIKE = 0.8  # of two names, as difflib has it, where one is the other with a mistake


def check_steps(num_training_steps: Any, num_warmup_steps: Any, steps_per_epoch: Any) -> None:
    """Checks the lengths of a run, in scheduler steps.

    Raises:
        ValueError: one of them is outside its limits.
    """
    if not isinstance(num_training_steps, int) or num_training_steps < 1:
        raise ValueError(
            f"num_training_steps must be a whole number of at least 1, got {num_training_steps!r}; "
            "pass the number of optimizer steps of the whole run"
        )
    if not isinstance(num_warmup_steps, int) or not 0 <= num_warmup_steps < num_training_steps:
        raise ValueError(
            f"num_warmup_steps must be a whole number from 0 to num_training_steps - 1 = {num_training_steps - 1}, "
            f"got {num_warmup_steps!r}; 0 leaves its length to the schedule"
        )
    if steps_per_epoch is not None and (not isinstance(steps_per_epoch, int) or steps_per_epoch < 1):
        raise ValueError(
            f"steps_per_epoch must be a whole number of at least 1, got {steps_per_epoch!r}; "
            "pass the optimizer steps in an epoch, or None when it is unknown"
        )


def whole(value: Any) -> Any:
    """A whole number as an int, if it is one of another kind (100.0, NumPy's, a tensor of one); else as it is.

    Args:
        value: of an argument that is to be a number of steps.
    """
    if isinstance(value, (bool, str)) or value is None:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return value
    return int(number) if number.is_integer() else value


def plain(value: Any) -> Any:
    """The Python number in one of NumPy's, in a tensor of one, or in what else is one (a ``SuggestedLR``, a fraction);
    another value as it is.

    Args:
        value: of an option.
    """
    if hasattr(value, "item") and math.prod(getattr(value, "shape", (0,))) == 1:
        return value.item()
    is_other_number = hasattr(type(value), "__float__") and not hasattr(value, "shape")
    return float(value) if is_other_number and not isinstance(value, (bool, int, float)) else value


def make_plain(options: Any, counts: Sequence[str]) -> None:
    """Puts Python's numbers in the place of others, before they are checked.

    Args:
        options: a frozen dataclass.
        counts: its fields that are whole numbers.
    """
    for field in dataclasses.fields(options):
        value = plain(getattr(options, field.name))
        object.__setattr__(options, field.name, whole(value) if field.name in counts else value)


def check_state(state: Mapping[str, Any], scheduler: str, version: int, own_key: str) -> None:
    """What a scheduler asks of a state before it loads it.

    Args:
        state: what a scheduler's ``state_dict`` returned.
        scheduler: the name of the scheduler's class.
        version: of its states.
        own_key: a key that no other scheduler's states have.

    Raises:
        ValueError: it is the state of another scheduler, or of another version.
    """
    if state.get("version") != version or own_key not in state:
        raise ValueError(
            f"this is not a state of {scheduler}, version {version}: it has the keys {sorted(state)}; "
            "resume with the scheduler that wrote the checkpoint, or start anew"
        )


def closed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with each of its dicts, lists and tensors inside a tuple of one.

    torch.distributed.checkpoint loads into a state of the same structure, but lists, losses and snapshots grow. It
    leaves tuples alone, and loads them whole.
    """
    return {name: (part,) if isinstance(part, (dict, list, Tensor)) else part for name, part in state.items()}


def opened(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state without the tuples of ``closed``; earlier releases wrote none."""
    return {name: part[0] if isinstance(part, tuple) else part for name, part in state.items()}


def require_finite(lrs: Sequence[float]) -> None:
    """Raises a ValueError where the LR of a parameter group is not finite."""
    if not all(map(math.isfinite, lrs)):
        raise ValueError(
            f"the lr of a parameter group must be a finite number, got {', '.join(f'{lr:g}' for lr in lrs)}; pass any "
            "positive lr: the schedule keeps the ratios of the groups' learning rates"
        )


def refuse_others(others: Mapping[str, Any]) -> NoReturn:
    """Raises the error for what ``step`` was given by another name than ``loss``.

    Args:
        others: such arguments, by name: ``epoch`` of torch's schedules, ``metrics`` of ReduceLROnPlateau.

    Raises:
        ValueError: always.
    """
    names = " and ".join(f"{name}=" for name in others)
    raise ValueError(
        f"step() takes the loss of the optimizer step just done, got {names}; call scheduler.step(loss), or "
        "scheduler.step() where accelerator.backward is called, after every optimizer step"
    )


def check_number(name: str, value: Any) -> None:
    """Raises a ValueError where an option is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"{name} must be a number, got {value!r}")


def check_count(name: str, value: Any, minimum: int) -> None:
    """Raises a ValueError where an option is not a whole number, or less than the minimum."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")


def check_name(what: str, value: Any, known: tuple[str, ...]) -> None:
    """Raises a ValueError where a name is not one of those known; it names one that differs by a letter or two."""
    if value not in known:
        alike = difflib.get_close_matches(str(value), known, n=1, cutoff=_ALIKE)
        meant = f" (did you mean {alike[0]!r}?)" if alike else ""
        raise ValueError(f"unknown {what} {value!r}{meant}; pick one of {', '.join(known)}")


def caller_level() -> int:
    """The ``stacklevel`` of whoever steps the schedule: the first frame outside of this package, of accelerate and of
    torch.compile.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _INSIDE.match(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    return level
