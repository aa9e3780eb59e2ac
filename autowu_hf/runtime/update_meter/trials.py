"""Optimizer steps that will be taken back: whoever measured the optimizer before takes no notice of them."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

from torch.optim import Optimizer

_under_way: weakref.WeakKeyDictionary[Optimizer, object] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def taken_back(optimizer: Optimizer) -> Iterator[None]:
    """Tells the meters of an optimizer that its steps within the block are a trial's; one that is armed there measures.

    Args:
        optimizer: the innermost one.
    """
    outer = trial_of(optimizer)
    _under_way[optimizer] = object()
    try:
        yield
    finally:
        if outer is None:
            del _under_way[optimizer]
        else:
            _under_way[optimizer] = outer


def trial_of(optimizer: Optimizer) -> object | None:
    """What stands for the trial whose steps an optimizer makes; None outside of one."""
    return _under_way.get(optimizer)
