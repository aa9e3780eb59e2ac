"""A snapshot in host memory of what training changes: parameters, optimizer state and buffers of this process."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.finite import OutOfReachError, is_finite, local_share, parts
from ..runtime.param_groups import layers, parameters_of, states_of, zero_of
from .tensors import copied_all, fill, num_bytes, put_back, tensors_in
from .untrained import Untrained, find_untrained

_OWN_OF_GROUPS = ("params", "lr", "initial_lr")


@dataclass
class Snapshot:
    """The state of training after some steps, in host memory; every tensor is this process's share of it.

    Args:
        step: scheduler steps done.
        parameters: those of the optimizer, in the order of ``param_groups.parameters_of``.
        buffers: those of the models, and parameters that are not trained, by name; see ``Untrained``.
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
        return sum(map(num_bytes, tensors_in([self.parameters, self.buffers, self.states, self.groups])))

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
        """As ``torch.load(weights_only=True)`` can load it; its tensors are the snapshot's own."""
        self.is_shared = True
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def take(
    optimizer: Optimizer,
    models: Sequence[nn.Module],
    step: int,
    reuse: Snapshot | None = None,
    untrained: Untrained | None = None,
) -> Snapshot:
    """Copies the present state of training into host memory: pinned, and without waiting for it, from an accelerator.

    Args:
        optimizer: whose parameters and state are copied, with its wraps, which may keep states too.
        models: whose buffers are, and their parameters without gradients.
        step: scheduler steps done.
        reuse: a snapshot that is needed no more; its memory is used again where it fits.
        untrained: what earlier snapshots of the same run know of the latter two; None for the first one.

    Returns:
        The snapshot.

    Raises:
        OutOfReachError: a parameter or a state of the optimizer cannot be copied.
    """
    live = _trained(optimizer)
    old: list[Any] = [None] * len(live)
    if reuse is not None and not reuse.is_shared and len(reuse.parameters) == len(live[0]):
        old = [reuse.parameters, reuse.states, None]
    parameters, states, groups = (copied_all(value, o) for value, o in zip(live, old, strict=True))
    trained_bytes = sum(map(num_bytes, tensors_in([parameters, states, groups])))
    buffers = (untrained or Untrained()).copies(find_untrained(optimizer, models), trained_bytes)
    return Snapshot(step, parameters, buffers, states, groups)


def wait_for_copies() -> None:
    """Waits until the copies from an accelerator that ``take`` started are complete."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def size(optimizer: Optimizer, models: Sequence[nn.Module], untrained: Untrained | None = None) -> int:
    """The host memory, in bytes, that a snapshot would take; copies nothing.

    What lies on an accelerator goes into pinned memory, which is handed out in powers of two.

    Args:
        optimizer: whose parameters and state are counted.
        models: as in ``take``.
        untrained: as in ``take``.

    Raises:
        OutOfReachError: as in ``take``.
    """
    tensors = [*tensors_in(_trained(optimizer))]
    for tensor in tensors:
        if parts(tensor) is None:
            raise OutOfReachError(f"a {type(tensor).__name__}, whose values cannot be copied")
    trained_bytes = sum(num_bytes(tensor) for tensor in tensors)
    named = find_untrained(optimizer, models)
    return sum(num_bytes(t, is_pinned=True) for t in tensors) + (untrained or Untrained()).size(named, trained_bytes)


def fits(snapshot: Snapshot, optimizer: Optimizer) -> bool:
    """Whether a snapshot is one of this optimizer, by the shapes of its parameters."""
    shapes = [local_share(p).shape for p in parameters_of(optimizer)]
    return [t.shape for t in snapshot.parameters] == shapes[: len(snapshot.parameters)]


@torch.no_grad()
def restore(
    snapshot: Snapshot, optimizer: Optimizer, models: Sequence[nn.Module], untrained: Untrained | None = None
) -> list[str]:
    """Makes the state of training what it was, bit for bit; tensors are filled in place.

    Args:
        snapshot: of the same optimizer and models. Parameters that joined the optimizer later are left as they
            are, unless it has them as some that were not trained.
        optimizer: whose parameters and state are restored; its learning rates stay.
        models: whose buffers are, and their parameters without gradients.
        untrained: that of ``take``; None: whatever the snapshot does not have counts as changed.

    Returns:
        The names of what has changed and stays as it is, because it is new or has another shape than then.
    """
    named = find_untrained(optimizer, models, also=snapshot.buffers)
    if untrained is not None:
        untrained.look(named)
    other = []
    for name, tensor in named.items():
        saved = snapshot.buffers.get(name)
        if saved is not None and fill(tensor, saved):
            continue
        if saved is not None or untrained is None or name in untrained.changed:
            other.append(name)
    for i, (live, saved) in enumerate(zip(parameters_of(optimizer), snapshot.parameters, strict=False)):
        if not fill(live, saved):
            other.append(f"parameter {i} of the optimizer")
    known = {id(tensor) for name, tensor in named.items() if name in snapshot.buffers}
    joined = [*enumerate(parameters_of(optimizer))][len(snapshot.parameters) :]
    other += [f"parameter {i} of the optimizer" for i, parameter in joined if id(parameter) not in known]
    per_parameter = len(snapshot.states) // max(len(snapshot.parameters), 1)  # a state may be older than the wraps
    places = [(p, of) for p in parameters_of(optimizer) for of in states_of(optimizer)[:per_parameter]]
    saved_states = snapshot.states + [{}] * (len(places) - len(snapshot.states))
    for (parameter, states), state in zip(places, saved_states, strict=True):
        if state:
            present = states[parameter]
            for name in [name for name in present if name not in state]:
                del present[name]
            for name, value in state.items():
                present[name] = put_back(present.get(name), value, parameter)
        else:
            states.pop(parameter, None)
    for group, saved_group in zip(_groups(optimizer), snapshot.groups, strict=False):
        for name, value in saved_group.items():
            group[name] = put_back(group.get(name), value, None)
    return other


_FSDP1 = "FullyShardedDataParallel"


def is_sharded(optimizer: Optimizer, models: Sequence[nn.Module]) -> bool:
    """Whether every process holds another share of the parameters (FSDP1, FSDP2 or DeepSpeed's ZeRO)."""
    zero = zero_of(optimizer)
    if zero is not None:
        return zero.num_shares > 1
    if any(hasattr(p, "to_local") for p in parameters_of(optimizer)):
        return True
    return any(type(m).__name__ == _FSDP1 for model in models for m in model.modules())


def num_shares(optimizer: Optimizer, models: Callable[[], Sequence[nn.Module]]) -> int:
    """Into how many shares the processes divide the parameters (FSDP, DeepSpeed's ZeRO); 1 where each has all of them.

    Args:
        optimizer: of the parameters.
        models: called for those that have them.
    """
    zero = zero_of(optimizer)
    if zero is not None:
        return zero.num_shares
    if any(hasattr(p, "to_local") for p in parameters_of(optimizer)):
        return collective.num_processes()
    wraps: list[Any] = [m for model in models() for m in model.modules() if type(m).__name__ == _FSDP1]
    divided = [wrap for wrap in wraps if wrap.sharding_strategy.name != "NO_SHARD"]
    return max((int(wrap.process_group.size()) for wrap in divided), default=1)


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups of an optimizer and of those inside it, each once: the first ones of all, innermost first,
    then the second ones; so those of groups that are added later come last.
    """
    columns = itertools.zip_longest(*(layer.param_groups for layer in reversed(layers(optimizer))))
    return [*{id(group): group for column in columns for group in column if group is not None}.values()]


def _trained(optimizer: Optimizer) -> list[Any]:
    """Parameters, state and options of the groups, as a snapshot has them."""
    parameters = parameters_of(optimizer)
    states = [states.get(p, {}) for p in parameters for states in states_of(optimizer)]
    groups = [{k: v for k, v in group.items() if k not in _OWN_OF_GROUPS} for group in _groups(optimizer)]
    return [parameters, states, groups]
