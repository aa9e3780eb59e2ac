"""A copy of what training has changed: parameters, optimizer state and buffers of this process, and its way back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_OWN_OF_GROUPS = ("params", "lr", "initial_lr")


@dataclass
class Snapshot:
    """The state of training after some steps, in host memory; every tensor is this process's share of it.

    Args:
        step: scheduler steps done.
        tensors: the parameters of the optimizer, in its order, then the buffers of the models.
        states: the optimizer's state of every parameter.
        groups: the options of every parameter group, its learning rate left out.
    """

    step: int
    tensors: list[Tensor]
    states: list[dict[str, Any]]
    groups: list[dict[str, Any]]

    def num_bytes(self) -> int:
        """Host memory that it takes."""
        return sum(t.numel() * t.element_size() for t in _tensors_in([self.tensors, self.states, self.groups]))

    def is_finite(self) -> bool:
        """Whether no parameter and no buffer is infinite or NaN."""
        return all(bool(torch.isfinite(t).all()) for t in self.tensors if t.is_floating_point())

    def state_dict(self) -> dict[str, Any]:
        """What ``torch.load(weights_only=True)`` loads; its tensors are the snapshot's own."""
        return {"step": self.step, "tensors": self.tensors, "states": self.states, "groups": self.groups}


def take(optimizer: Optimizer, models: Sequence[nn.Module], step: int, reuse: Snapshot | None = None) -> Snapshot:
    """Copies the present state of training into host memory: pinned, and without waiting for it, from an accelerator.

    Args:
        optimizer: whose parameters and state are copied.
        models: whose buffers are.
        step: scheduler steps done.
        reuse: a snapshot that is needed no more; its memory is used again where it fits.

    Returns:
        The snapshot.
    """
    live = _live(optimizer, models)
    states = [optimizer.state.get(p, {}) for p in _parameters(optimizer)]
    groups = [{k: v for k, v in group.items() if k not in _OWN_OF_GROUPS} for group in optimizer.param_groups]
    old_tensors: list[Any] = [None] * len(live)
    old_states: list[Any] = [None] * len(states)
    if reuse is not None and len(reuse.tensors) == len(live) and len(reuse.states) == len(states):
        old_tensors, old_states = list(reuse.tensors), list(reuse.states)
    return Snapshot(
        step,
        [_copied(t, old) for t, old in zip(live, old_tensors, strict=True)],
        [_copied(state, old) for state, old in zip(states, old_states, strict=True)],
        [_copied(group, None) for group in groups],
    )


def fits(snapshot: Snapshot, optimizer: Optimizer, models: Sequence[nn.Module]) -> bool:
    """Whether a snapshot is one of this optimizer and these models, by the shapes of its tensors."""
    live = _live(optimizer, models)
    return [t.shape for t in snapshot.tensors] == [t.shape for t in live]


@torch.no_grad()
def restore(snapshot: Snapshot, optimizer: Optimizer, models: Sequence[nn.Module]) -> None:
    """Makes the state of training what it was, bit for bit; tensors are filled in place.

    Args:
        snapshot: of the same optimizer and models.
        optimizer: whose parameters and state are restored; its learning rates stay.
        models: whose buffers are.
    """
    for live, saved in zip(_live(optimizer, models), snapshot.tensors, strict=True):
        live.copy_(saved)
    for parameter, state in zip(_parameters(optimizer), snapshot.states, strict=True):
        if state:
            present = optimizer.state[parameter]
            for name in [name for name in present if name not in state]:
                del present[name]
            for name, value in state.items():
                present[name] = _restored(present.get(name), value, parameter)
        else:
            optimizer.state.pop(parameter, None)
    for group, saved_group in zip(optimizer.param_groups, snapshot.groups, strict=True):
        for name, value in saved_group.items():
            group[name] = _restored(group.get(name), value, None)


def has_finite_parameters(optimizer: Optimizer) -> bool:
    """Whether no parameter of an optimizer, of this process's share, is infinite or NaN."""
    return all(bool(torch.isfinite(_local(p)).all()) for p in _parameters(optimizer))


def is_sharded(optimizer: Optimizer, models: Sequence[nn.Module]) -> bool:
    """Whether every process holds another share of the parameters (FSDP1 or FSDP2)."""
    if any(hasattr(p, "to_local") for p in _parameters(optimizer)):
        return True
    return any(type(m).__name__ == "FullyShardedDataParallel" for model in models for m in model.modules())


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _live(optimizer: Optimizer, models: Sequence[nn.Module]) -> list[Tensor]:
    """This process's share of every parameter and buffer, each once."""
    buffers = {id(b): b for model in models for b in model.buffers()}
    return [_local(t) for t in (*_parameters(optimizer), *buffers.values())]


def _local(tensor: Any) -> Tensor:
    """FSDP2's parameters are DTensors, of which every process holds a shard."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach()


def _copied(value: Any, old: Any) -> Any:
    if isinstance(value, Tensor):
        local = _local(value)
        if local.device.type == "cpu":
            return old.copy_(local) if _alike(old, local) else local.clone()
        if not _alike(old, local):
            old = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.device.type == "cuda")
        return old.copy_(local, non_blocking=True)  # in its stream's order: before anything changes it
    if isinstance(value, dict):
        olds = old if isinstance(old, dict) else {}
        return {k: _copied(v, olds.get(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(v, None) for v in value)
    return copy.deepcopy(value)


def _restored(present: Any, saved: Any, parameter: Any) -> Any:
    """The saved value; in the present one's place, where both are tensors."""
    if isinstance(saved, Tensor):
        if isinstance(present, Tensor) and _local(present).shape == saved.shape:
            _local(present).copy_(saved)
            return present
        device = saved.device if parameter is None or saved.dim() == 0 else _local(parameter).device
        return saved.to(device, copy=True)
    if isinstance(saved, dict) and isinstance(present, dict):
        for name in [name for name in present if name not in saved]:
            del present[name]
        present.update({k: _restored(present.get(k), v, parameter) for k, v in saved.items()})
        return present
    if isinstance(saved, (list, tuple)):
        presents = present if isinstance(present, (list, tuple)) and len(present) == len(saved) else [None] * len(saved)
        return type(saved)(_restored(p, v, parameter) for p, v in zip(presents, saved, strict=True))
    return copy.deepcopy(saved)


def _alike(old: Any, tensor: Tensor) -> bool:
    return isinstance(old, Tensor) and old.shape == tensor.shape and old.dtype == tensor.dtype


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
