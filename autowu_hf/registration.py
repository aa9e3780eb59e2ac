"""Teaches transformers the names of our schedules: ``register`` on import, ``unregister`` leaves no trace.

transformers keeps the names of its schedules in an enum, which Python closes when the class is made.
``HfArgumentParser`` copies the enum's members into its choices, so a lookup hook is not enough: the member has to be
there.
"""

from __future__ import annotations

import importlib.util
from enum import Enum
from typing import Any

from . import autolrs, autowu, rex, salsa  # noqa: F401  (each registers its method; a new method needs its import here)
from .integrations import accelerate_hooks
from .runtime.methods import METHODS
from .runtime.wrapping import Function, Wrap, unwrap, wrap


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
    _install_callback()


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
    _remove_callback()


def _registered_member(name: str) -> Any:
    """What a pickled member is loaded by: a process that never imported this package registers here."""
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
    member.__reduce_ex__ = lambda protocol: (_registered_member, (name,))
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


def _install_callback() -> None:
    """Gives every new Trainer an ``AutoWUCallback``, next to its ``DefaultFlowCallback``.

    Done where Trainer collects its callbacks, so that one passed by the user takes the automatic one's place, and its
    position before the reporting callbacks, instead of standing beside it. (Extending ``DEFAULT_CALLBACKS`` would
    double it, and would have to import all of ``transformers.trainer``.)
    """
    from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

    from .integrations.trainer_callback import AutoWUCallback

    def add_to(this: Wrap) -> Function:
        def add_callback(self: Any, callback: Any) -> None:
            if not this.is_active:
                this.original(self, callback)
                return
            added = callback() if isinstance(callback, type) else callback
            if isinstance(added, AutoWUCallback):
                for i, present in enumerate(self.callbacks):
                    if isinstance(present, AutoWUCallback):
                        self.callbacks[i] = added
                        return
            this.original(self, added)
            is_first = isinstance(added, DefaultFlowCallback)
            if is_first and not any(isinstance(c, AutoWUCallback) for c in self.callbacks):
                this.original(self, AutoWUCallback())

        return add_callback

    wrap(CallbackHandler, "add_callback", add_to)


def _remove_callback() -> None:
    from transformers.trainer_callback import CallbackHandler

    unwrap(CallbackHandler, "add_callback")
