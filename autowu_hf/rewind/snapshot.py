"""A snapshot in host memory of what training changes: parameters, optimizer state and buffers of this process."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime.finite import is_finite, local_share
from ..runtime.param_groups import layers, states_of

_OWN_OF_GROUPS = ("params", "lr", "initial_lr")


@dataclass
class Snapshot:
    """The state of training after some steps, in host memory; every tensor is this process's share of it.

    Args:
        step: scheduler steps done.
        parameters: those of the optimizer, in its order.
        buffers: those of the models, by name.
        states: the optimizer's state of every parameter; where several optimizers wrap each other, of each of them.
        groups: the options of every parameter group without its learning rate; the group may be empty.
        is_shared: whether somebody else holds its tensors too, a checkpoint that is being written for one.
    """

    step: int
    parameters: list[Tensor]
    buffers: dict[str, Tensor]
    states: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    is_shared: bool = False

    def num_bytes(self) -> int:
        """Host memory that it takes."""
        return sum(map(_num_bytes, _tensors_in([self.parameters, self.buffers, self.states, self.groups])))

    def is_finite(self) -> bool:
        """Whether no parameter is infinite or NaN."""
        return all(map(is_finite, self.parameters))

    def finite_buffers(self) -> set[str]:
        """The names of the buffers without an infinity or NaN; a mask may well have some from the beginning."""
        return {name for name, buffer in self.buffers.items() if is_finite(buffer)}

    def load(self) -> Snapshot:
        """The snapshot itself; one in a file has to be read."""
        return self

    def discard(self) -> Snapshot | None:
        """Gives the snapshot up: returns it if its memory may be used again, None if somebody else holds it."""
        return None if self.is_shared else self

    def state_dict(self) -> dict[str, Any]:
        """What ``torch.load(weights_only=True)`` loads; its tensors are the snapshot's own."""
        self.is_shared = True
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def take(optimizer: Optimizer, models: Sequence[nn.Module], step: int, reuse: Snapshot | None = None) -> Snapshot:
    """Copies the present state of training into host memory: pinned, and without waiting for it, from an accelerator.

    Args:
        optimizer: whose parameters and state are copied, with its wraps, which may keep states too.
        models: whose buffers are.
        step: scheduler steps done.
        reuse: a snapshot that is needed no more; its memory is used again where it fits.

    Returns:
        The snapshot.
    """
    live = _live(optimizer, models)
    old: list[Any] = [None] * len(live)
    if reuse is not None and not reuse.is_shared and len(reuse.parameters) == len(live[0]):
        old = [reuse.parameters, reuse.buffers, reuse.states, None]
    parameters, buffers, states, groups = (_copied(value, o) for value, o in zip(live, old, strict=True))
    return Snapshot(step, parameters, buffers, states, groups)


def wait_for_copies() -> None:
    """Waits until the copies from an accelerator that ``take`` started are complete."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def size(optimizer: Optimizer, models: Sequence[nn.Module]) -> int:
    """The host memory, in bytes, that a snapshot would take; copies nothing.

    What lies on an accelerator goes into pinned memory, which is handed out in powers of two.

    Args:
        optimizer: whose parameters and state are counted.
        models: whose buffers are.
    """
    tensors = [local_share(t) for t in _tensors_in(_live(optimizer, models))]
    return sum(_num_bytes(t) if t.device.type == "cpu" else _next_power_of_two(_num_bytes(t)) for t in tensors)


def fits(snapshot: Snapshot, optimizer: Optimizer) -> bool:
    """Whether a snapshot is one of this optimizer, by the shapes of its parameters."""
    return [t.shape for t in snapshot.parameters] == [local_share(p).shape for p in _parameters(optimizer)]


@torch.no_grad()
def restore(snapshot: Snapshot, optimizer: Optimizer, models: Sequence[nn.Module]) -> list[str]:
    """Makes the state of training what it was, bit for bit; tensors are filled in place.

    Args:
        snapshot: of the same optimizer and models.
        optimizer: whose parameters and state are restored; its learning rates stay.
        models: whose buffers are.

    Returns:
        The names of the buffers that stay as they are, because they are new or have another shape than then.
    """
    other = []
    for name, buffer in _buffers(models).items():
        saved = snapshot.buffers.get(name)
        if saved is not None and saved.shape == local_share(buffer).shape:
            local_share(buffer).copy_(saved)
        else:
            other.append(name)
    for live, saved in zip(_parameters(optimizer), snapshot.parameters, strict=True):
        local_share(live).copy_(saved)
    per_parameter = len(snapshot.states) // max(len(snapshot.parameters), 1)  # a state may be older than the wraps
    places = [(p, of) for p in _parameters(optimizer) for of in states_of(optimizer)[:per_parameter]]
    for (parameter, states), state in zip(places, snapshot.states, strict=True):
        if state:
            present = states[parameter]
            for name in [name for name in present if name not in state]:
                del present[name]
            for name, value in state.items():
                present[name] = _restored(present.get(name), value, parameter)
        else:
            states.pop(parameter, None)
    for group, saved_group in zip(_groups(optimizer), snapshot.groups, strict=False):
        for name, value in saved_group.items():
            group[name] = _restored(group.get(name), value, None)
    return other


def is_sharded(optimizer: Optimizer, models: Sequence[nn.Module]) -> bool:
    """Whether every process holds another share of the parameters (FSDP1 or FSDP2)."""
    if any(hasattr(p, "to_local") for p in _parameters(optimizer)):
        return True
    return any(type(m).__name__ == "FullyShardedDataParallel" for model in models for m in model.modules())


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups of an optimizer and of those inside it, each once, innermost first."""
    groups = [group for layer in reversed(layers(optimizer)) for group in layer.param_groups]
    return [*{id(group): group for group in groups}.values()]


def _buffers(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The buffers by name, each once; the wraps of launchers and compilers leave no trace in the names."""
    named: dict[str, Tensor] = {}
    for i, model in enumerate(models):
        for name, buffer in model.named_buffers():
            for wrap in ("module.", "_orig_mod.", "_fsdp_wrapped_module."):
                name = name.replace(wrap, "")
            named[f"{i}.{name}"] = buffer
    return named


def _live(optimizer: Optimizer, models: Sequence[nn.Module]) -> list[Any]:
    """Parameters, buffers, state and options of the groups, as a snapshot has them."""
    parameters = _parameters(optimizer)
    states = [states.get(p, {}) for p in parameters for states in states_of(optimizer)]
    groups = [{k: v for k, v in group.items() if k not in _OWN_OF_GROUPS} for group in _groups(optimizer)]
    return [parameters, _buffers(models), states, groups]


def _copied(value: Any, old: Any) -> Any:
    if isinstance(value, Tensor):
        local = local_share(value)
        if local.device.type == "cpu":
            return old.copy_(local) if _alike(old, local) else local.clone()
        on_cuda = local.device.type == "cuda"
        if not _alike(old, local):
            old = torch.empty(local.shape, dtype=local.dtype, pin_memory=on_cuda)
        return old.copy_(local, non_blocking=on_cuda)  # in its stream's order: before anything changes it
    if isinstance(value, dict):
        olds = old if isinstance(old, dict) else {}
        return {k: _copied(v, olds.get(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = old if isinstance(old, (list, tuple)) and len(old) == len(value) else [None] * len(value)
        return type(value)(_copied(v, item) for v, item in zip(value, items, strict=True))
    return copy.deepcopy(value)


def _restored(present: Any, saved: Any, parameter: Any) -> Any:
    """The saved value; in the present one's place, where both are tensors."""
    if isinstance(saved, Tensor):
        if isinstance(present, Tensor) and local_share(present).shape == saved.shape:
            local_share(present).copy_(saved)
            return present
        device = saved.device if parameter is None or saved.dim() == 0 else local_share(parameter).device
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


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _next_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
