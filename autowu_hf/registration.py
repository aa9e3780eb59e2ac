"""Teaches transformers and diffusers the names of our schedules: ``register`` on import; ``unregister`` undoes it.

Both keep the names of their schedules in an enum, which Python closes when the class is made.
``HfArgumentParser`` copies the enum's members into its choices, so a lookup hook is not enough: the member has to be
there.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from enum import Enum
from typing import Any

from . import autolrs, autowu, rex, salsa  # noqa: F401  (each registers its method; a new method needs its import here)
from .integrations import accelerate_hooks, deepspeed_hooks
from .integrations.late_import import forget, on_import
from .runtime.methods import METHODS

_DIFFUSERS = "diffusers.optimization"


def register() -> None:
    """Makes ``lr_scheduler_type="autowu"`` and the other names of ``METHODS`` known to transformers and diffusers
    (where they are installed; to diffusers once somebody imports it), and losses and clipping known to AutoWU.

    Idempotent. Called by ``import autowu_hf``. A name that a library has come to use itself is left to it.
    """
    accelerate_hooks.install()
    deepspeed_hooks.install()
    on_import(_DIFFUSERS, _add_names)
    if importlib.util.find_spec("transformers") is None:
        return
    from transformers import optimization

    from .integrations import trainer_hooks

    _add_names(optimization)
    trainer_hooks.install()


def unregister() -> None:
    """Undoes ``register``: transformers, diffusers, accelerate and DeepSpeed are as they were without this package."""
    accelerate_hooks.remove()
    deepspeed_hooks.remove()
    forget(_DIFFUSERS, _add_names)
    if _DIFFUSERS in sys.modules:
        _remove_names(sys.modules[_DIFFUSERS])
    if importlib.util.find_spec("transformers") is None:
        return
    from transformers import optimization

    from .integrations import trainer_hooks

    _remove_names(optimization)
    trainer_hooks.remove()


def _add_names(optimization: Any) -> None:
    """Adds our names to a library's enum and its table of functions.

    Args:
        optimization: transformers.optimization or diffusers.optimization.
    """
    for name, method in METHODS.items():
        if name not in optimization.SchedulerType._value2member_map_:
            member = _add_member(optimization.SchedulerType, name)
            optimization.TYPE_TO_SCHEDULER_FUNCTION[member] = method.schedule


def _remove_names(optimization: Any) -> None:
    functions = optimization.TYPE_TO_SCHEDULER_FUNCTION
    for name, method in METHODS.items():
        member = optimization.SchedulerType._value2member_map_.get(name)
        if member is not None and functions.get(member) is method.schedule:
            del functions[member]
            _remove_member(optimization.SchedulerType, name)


def _registered_member(name: str) -> Any:
    """What loads the members in files of version 0.1.0; a process that has not imported this package registers here."""
    from transformers.trainer_utils import SchedulerType

    register()
    return SchedulerType(name)


def _add_member(enum: type[Enum], name: str) -> Any:
    """Adds the member NAME = "name" to an enum whose values are strings; returns it."""
    if name in enum._value2member_map_:
        return enum._value2member_map_[name]
    key = name.upper()
    member: Any = str.__new__(enum, name) if issubclass(enum, str) else object.__new__(enum)
    member._name_, member._value_, member._sort_order_ = key, name, len(enum._member_names_)
    member.__objclass__ = enum
    if issubclass(enum, str):  # transformers'; files name it, those of diffusers' users name its value
        # Pickled by name, with the name alone to fall back on: training_args.bin lies beside models that people share,
        # and has to load without this package. (Scanners of shared files refuse getattr.)
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
