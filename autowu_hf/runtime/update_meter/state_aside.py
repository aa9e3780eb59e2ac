"""An optimizer's state set aside for some steps, which are then the first ones of a new optimizer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class StateAside:
    """Sets the state of an optimizer aside for a step, in host memory, and puts it back; what such steps make of their
    own state is kept from one to the next.

    Args:
        optimizer: the innermost one. It must make its state at a step, as nearly all do, and count its steps in there,
            or as ``step`` in its groups.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.is_aside = False
        self.forget()

    def take(self) -> None:
        """Leaves the optimizer with the state of the steps for which it was taken until ``put_back``; none at first."""
        if not self.is_aside:
            self._swap()

    def put_back(self) -> bool:
        """Gives the optimizer its own state again; whether it had been set aside."""
        was_aside = self.is_aside
        if was_aside:
            self._swap()
        return was_aside

    def forget(self) -> None:
        """Puts the state back, and begins with none the next time."""
        self.put_back()
        self._other: tuple[Any, list[dict[str, Any]], list[_Place]] = defaultdict(dict), [], []

    def _swap(self) -> None:
        groups, (state, counts, away) = self._optimizer.param_groups, self._other
        own_counts = [{"step": group.pop("step")} if "step" in group else {} for group in groups]
        self._other = self._optimizer.state, own_counts, _to_host(self._optimizer.state)
        for own, name, device in away:
            own[name] = own[name].to(device)
        for group, count in zip(groups, counts, strict=False):
            group |= count
        self._optimizer.state, self.is_aside = state, not self.is_aside


_Place = tuple[dict[str, Any], str, torch.device]


def _to_host(state: dict[Any, Any]) -> list[_Place]:
    """Moves the tensors of an optimizer's state to host memory; where each of them was."""
    away = [
        (own, name, value.device)
        for own in state.values()
        for name, value in (own.items() if isinstance(own, dict) else ())
        if type(value) is Tensor and value.device.type != "cpu"
    ]
    for own, name, _ in away:
        own[name] = own[name].cpu()
    return away
