"""Doing something to a module of another library as soon as somebody imports it, without importing it.

A finder at the front of ``sys.meta_path`` lets all others find the module and wraps its loader for the time of the
import. There is no finder while nothing waits for a module.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]

_actions: dict[str, list[Action]] = {}
"""By the module's name; never an empty list."""


def on_import(name: str, action: Action) -> None:
    """Calls an action with a module: at once where it is imported already, and whenever it is imported.

    Args:
        name: the module's, in full.
        action: does nothing where it was done before.
    """
    if action not in _actions.setdefault(name, []):
        _actions[name].append(action)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    if name in sys.modules:
        action(sys.modules[name])


def forget(name: str, action: Action) -> None:
    """No longer calls it; what it did stays. Does nothing where ``on_import`` was not called.

    Args:
        name: as given to ``on_import``.
        action: as given to ``on_import``.
    """
    if action in _actions.get(name, []):
        _actions[name].remove(action)
        if not _actions[name]:
            del _actions[name]
    if not _actions and _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self._busy: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _actions or name in self._busy:
            return None
        self._busy.add(name)  # so that this finder steps aside, also where another one asks all finders as it does
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._busy.discard(name)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """A module's own loader, until the module has been executed; then the actions follow."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        for action in [*_actions.get(module.__name__, [])]:
            action(module)


_FINDER = _Finder()
