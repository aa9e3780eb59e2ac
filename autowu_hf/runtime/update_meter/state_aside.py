"""An optimizer's state set aside for some steps, which are then the first ones of a new optimizer."""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_OF_THE_RUN = ("params", "lr")  # what a group has that is not the optimizer's own business


class StateAside:
    """Sets the state of an optimizer aside for a step, in host memory, and puts it back; what such steps make of their
    own state is kept from one to the next, but in no copy and no checkpoint. Where a step ends in an error, the state
    is put back before anybody saves or loads it, or as soon as nobody holds this object.

    Args:
        optimizer: the innermost one. It must make the state of its weights at a step, as nearly all do, and count its
            steps in there, or as ``step`` in its groups.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._hooks: list[Any] = []
        self.is_aside = False
        self.forget()

    def __del__(self) -> None:
        """Puts back what a step that ended in an error has left aside."""
        self.put_back()

    def take(self) -> None:
        """Leaves the optimizer with the state of the steps for which it was taken until ``put_back``; none at first."""
        if self.is_aside:
            self.forget()
        this = weakref.ref(self)  # the optimizer must not keep it alive

        def put_back(*args: Any) -> None:
            aside = this()
            if aside is not None:
                aside.put_back()

        self._hooks = [
            self._optimizer.register_state_dict_pre_hook(put_back),
            self._optimizer.register_load_state_dict_pre_hook(put_back),
        ]
        self._swap()

    def put_back(self) -> bool:
        """Gives the optimizer its own state again; whether it had been set aside."""
        was_aside = self.is_aside
        if was_aside:
            self._swap()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        return was_aside

    def forget(self) -> None:
        """Puts the state back, and begins with none the next time."""
        self.put_back()
        self._state: Any = defaultdict(dict)
        self._numbers: list[dict[str, Any]] | None = None
        self._devices: list[_Place] = []

    def _swap(self) -> None:
        """Exchanges the state, and what the groups have beside their weights and LR."""
        groups, state, numbers, devices = self._optimizer.param_groups, self._state, self._numbers, self._devices
        self._numbers = [{name: group[name] for name in group if name not in _OF_THE_RUN} for group in groups]
        self._state, self._devices = self._optimizer.state, _to_host(self._optimizer.state)
        _move(devices)
        for group, kept in zip(groups, numbers or self._numbers, strict=False):
            for name in [name for name in group if name not in _OF_THE_RUN and name not in kept]:
                del group[name]
            group |= kept
            if numbers is None:
                group.pop("step", None)
        self._optimizer.state, self.is_aside = state, not self.is_aside


_Place = tuple[dict[str, Any], str, torch.device]
"""The state of a weight, the name of a tensor in there, and a device."""


def _to_host(state: dict[Any, Any]) -> list[_Place]:
    """Moves the tensors of an optimizer's state to host memory; where each of them was."""
    places = [
        (own, name, value.device)
        for own in state.values()
        for name, value in (own.items() if isinstance(own, dict) else ())
        if type(value) is Tensor and value.device.type != "cpu"
    ]
    _move([(own, name, torch.device("cpu")) for own, name, _ in places])
    return places


def _move(places: list[_Place]) -> None:
    """Moves tensors; one that several weights share stays one."""
    moved: dict[int, Tensor] = {}
    for own, name, device in places:
        value = own[name]
        own[name] = moved.setdefault(id(value), value.to(device))
