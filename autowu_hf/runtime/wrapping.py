"""Wrapping methods of other libraries, and unwrapping them again, whoever has wrapped them since."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


class _Wrap:
    """One method that is wrapped.

    Args:
        original: what was there before.
        make: original -> its replacement.
    """

    def __init__(self, original: Function, make: Callable[[Function], Function]) -> None:
        self.original = original
        self.is_active = True
        replacement = make(original)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return (replacement if self.is_active else original)(*args, **kwargs)

        self.wrapper = wrapper

    def is_within(self, function: Any) -> bool:
        """Whether a function is this wrapper, or a wrapper around it that ``functools.wraps`` has marked."""
        while function is not None:
            if function is self.wrapper:
                return True
            function = getattr(function, "__wrapped__", None)
        return False


_wraps: dict[tuple[int, str], _Wrap] = {}
"""By owner and name. Not a mark on the function: ``functools.wraps`` copies marks onto the wrappers of others."""


def wrap(owner: Any, name: str, make: Callable[[Function], Function]) -> None:
    """Replaces a method of a class, or a function of a module; does nothing where that is done already.

    Args:
        owner: the class or the module.
        name: of the method.
        make: original -> its replacement, which takes the same arguments and calls the original.
    """
    present = _wraps.get((id(owner), name))
    if present is not None:
        if present.is_within(getattr(owner, name)):
            present.is_active = True
            return
        present.is_active = False  # somebody has put another function there; should they still call it, it does nothing
    made = _wraps[id(owner), name] = _Wrap(getattr(owner, name), make)
    setattr(owner, name, made.wrapper)


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
    if getattr(owner, name) is present.wrapper:
        setattr(owner, name, present.original)
        del _wraps[id(owner), name]
