"""Wrapping methods of other libraries, and unwrapping them again, whoever has wrapped them since."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


class Wrap:
    """One method that is wrapped.

    Args:
        original: what was there before.
        make: called with this; returns the replacement of the original.

    Attributes:
        is_active: False: the replacement must call ``original`` and do nothing else.
        replacement: what is there now, or is wrapped by what is there.
    """

    def __init__(self, original: Function, make: Callable[[Wrap], Function]) -> None:
        self.original = original
        self.is_active = True
        self.replacement = functools.wraps(original)(make(self))


_wraps: weakref.WeakKeyDictionary[Any, dict[str, Wrap]] = weakref.WeakKeyDictionary()
"""By owner, then by name. Not a mark on the function: ``functools.wraps`` copies marks onto the wrappers of others."""


def wrap(owner: Any, name: str, make: Callable[[Wrap], Function]) -> None:
    """Replaces a method of a class, or a function of a module; does nothing where that is done already.

    Args:
        owner: the class or the module.
        name: of the method.
        make: called with the ``Wrap``; returns a function that takes the original's arguments, calls it and, where the
            wrap is active, does more.
    """
    wraps = _wraps.setdefault(owner, {})
    present = wraps.get(name)
    if present is not None and getattr(owner, name) is not present.original:
        present.is_active = True  # somebody may have wrapped the replacement since, with or without a mark
        return
    made = wraps[name] = Wrap(getattr(owner, name), make)
    setattr(owner, name, made.replacement)


def unwrap(owner: Any, name: str) -> None:
    """Puts the original back. Where somebody has wrapped the replacement since, theirs stays, around the original.

    Args:
        owner: as given to ``wrap``.
        name: as given to ``wrap``.
    """
    present = _wraps.get(owner, {}).get(name)
    if present is None:
        return
    present.is_active = False
    if getattr(owner, name) is present.replacement:
        setattr(owner, name, present.original)
        del _wraps[owner][name]
