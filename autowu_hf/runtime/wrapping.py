"""Wrapping methods of other libraries, and unwrapping them again, whoever has wrapped them since."""

from __future__ import annotations

import functools
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

    def is_within(self, function: Any) -> bool:
        """Whether a function is the replacement, or a wrapper around it that ``functools.wraps`` has marked."""
        while function is not None:
            if function is self.replacement:
                return True
            function = getattr(function, "__wrapped__", None)
        return False


_wraps: dict[tuple[int, str], Wrap] = {}
"""By owner and name. Not a mark on the function: ``functools.wraps`` copies marks onto the wrappers of others."""


def wrap(owner: Any, name: str, make: Callable[[Wrap], Function]) -> None:
    """Replaces a method of a class, or a function of a module; does nothing where that is done already.

    Args:
        owner: the class or the module.
        name: of the method.
        make: called with the ``Wrap``; returns a function that takes the original's arguments, calls it and, where the
            wrap is active, does more.
    """
    present = _wraps.get((id(owner), name))
    if present is not None:
        if present.is_within(getattr(owner, name)):
            present.is_active = True
            return
        present.is_active = False  # somebody has put another function there; should they still call it, it does nothing
    made = _wraps[id(owner), name] = Wrap(getattr(owner, name), make)
    setattr(owner, name, made.replacement)


def unwrap(owner: Any, name: str) -> None:
    """Puts the original back. Where somebody has wrapped the replacement since, theirs stays, around the original.

    Args:
        owner: as given to ``wrap``.
        name: as given to ``wrap``.
    """
    present = _wraps.get((id(owner), name))
    if present is None:
        return
    present.is_active = False
    if getattr(owner, name) is present.replacement:
        setattr(owner, name, present.original)
        del _wraps[id(owner), name]
