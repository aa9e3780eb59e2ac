"""Teaches transformers the names of our schedules: ``register`` on import, ``unregister`` leaves no trace.

transformers keeps the names of its schedules in an enum, which Python closes when the class is made.
``HfArgumentParser`` copies the enum's members into its choices, so a lookup hook is not enough: the member has to be
there.
"""

from __future__ import annotations

import importlib.util
import inspect
from enum import Enum
from typing import Any

from . import autolrs, autowu, rex, salsa  # noqa: F401  (each registers its method; a new method needs its import here)
from .integrations import accelerate_hooks
from .runtime.methods import METHODS


def register() -> None:
    """Makes ``lr_scheduler_type="autowu"`` and the other names of ``METHODS`` known to transformers (where it is
    installed) and losses known to AutoWU.

    Idempotent. Called by ``import autowu_hf``. A name that transformers has come to use itself is left to it.
    """
    accelerate_hooks.install()
    if importlib.util.find_spec("transformers") is None:
        return
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    for name, method in METHODS.items():
        if name not in SchedulerType._value2member_map_:
            TYPE_TO_SCHEDULER_FUNCTION[_add_member(SchedulerType, name)] = method.schedule
    from .integrations import trainer_hooks

    trainer_hooks.install()


def unregister() -> None:
    """Undoes ``register``: transformers and accelerate are as they were without this package."""
    accelerate_hooks.remove()
    if importlib.util.find_spec("transformers") is None:
        return
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    for name, method in METHODS.items():
        member = SchedulerType._value2member_map_.get(name)
        if member is not None and TYPE_TO_SCHEDULER_FUNCTION.get(member) is method.schedule:  # type: ignore[call-overload]
            del TYPE_TO_SCHEDULER_FUNCTION[member]  # type: ignore[arg-type]
            _remove_member(SchedulerType, name)
    from .integrations import trainer_hooks

    trainer_hooks.remove()


def _registered_member(name: str) -> Any:
    """What loads the members in files of version 0.1.0; a process that has not imported this package registers here."""
    from transformers.trainer_utils import SchedulerType

    register()
    return SchedulerType(name)


def _add_member(enum: type[Enum], name: str) -> Any:
    """Adds the member NAME = "name" to an enum of strings; returns it."""
    if name in enum._value2member_map_:
        return enum._value2member_map_[name]
    key = name.upper()
    member: Any = str.__new__(enum, name)  # type: ignore[type-var]
    member._name_, member._value_, member._sort_order_ = key, name, len(enum._member_names_)
    member.__objclass__ = enum
    # Pickled by name, with the name alone to fall back on: training_args.bin lies beside models that people share, and
    # has to load without this package. (Scanners of shared files refuse getattr.)
    member.__reduce_ex__ = lambda protocol: (inspect.getattr_static, (enum, key, name))
    type.__setattr__(enum, key, member)
    enum._member_names_.append(key)
    enum._member_map_[key] = member
    enum._value2member_map_[name] = member
    if hasattr(enum, "_hashable_values_"):  # Python 3.12 and newer
        enum._hashable_values_.append(name)
    return member


def _remove_member(enum: type[Enum], name: str) -> None:
    key = name.upper()
    del enum._value2member_map_[name]
    enum._member_names_.remove(key)
    del enum._member_map_[key]
    type.__delattr__(enum, key)
    if hasattr(enum, "_hashable_values_"):
        enum._hashable_values_.remove(name)
