"""Hooks on parameters and models that do not keep the optimizer alive, for CLARS."""

from __future__ import annotations

import weakref
from typing import Any

from torch.optim import Optimizer


class Hook:
    """Calls a method of an optimizer for as long as the optimizer lives; copies and pickles of it do nothing."""

    def __init__(self, optimizer: Optimizer | None = None, method: str = "", *first: Any) -> None:
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)
        self._method, self._first = method, first

    def __call__(self, *args: Any) -> None:
        optimizer = None if self._optimizer is None else self._optimizer()
        if optimizer is not None:
            getattr(optimizer, self._method)(*self._first, *args)

    def __reduce__(self) -> Any:
        return Hook, ()
