"""DeepSpeed's ZeRO: which weights this process trains, and which copies of them the model computes with.

ZeRO puts the weights of a parameter group end to end, and divides this flat tensor over the processes. The optimizer
steps this process's share of it, in single precision; the model's own parameters are copies, which ZeRO fills after
each step. So the optimizer's parameters say neither which tensors the weights belong to, nor what has to be put back.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .groups import Obstacle, innermost, layers, partitioned_by, weights_out_of_reach
from .masters import KIND, half_copies, has_masters

_ELSEWHERE = "DeepSpeed keeps some of the weights, or of the optimizer's state, out of reach"
_ALONE = "DeepSpeed has an optimizer of its own, {}, which may keep weights and state to itself"
_OTHER = "DeepSpeed has put an optimizer of its own in the place of the one that the schedule was made for"
_REMEDY = "use ZeRO without experts, tensor parallelism, NVMe and partial offload, or DDP or FSDP"


class Zero:
    """What one process has of the weights under ZeRO 1, 2 or 3.

    Args:
        optimizer: DeepSpeed's, which is held weakly.

    Attributes:
        flats: this process's shares of the weights, in single precision, in the order in which they are stepped.
        parameters: the model's own, of those that are trained.
        pieces: of every parameter, this process's share of it, a view of a flat tensor; (0,) where it has none. It has
            the parameter's shape where it is all of it.
        param_groups: the optimizer's, all of them, which DeepSpeed cuts down while it steps; each as it was when it was
            stepped last, for a state that is loaded brings its own.
        groups: the pieces of every parameter group.
        num_shares: into how many shares the processes divide the weights.

    Raises:
        ValueError: DeepSpeed keeps them in a way that is not known here; the message is the reason.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = weakref.ref(optimizer)
        find = _KINDS[type(optimizer).__name__]
        try:
            self.flats, self.parameters, self._places, self.num_shares = find(optimizer)
        except (AttributeError, IndexError, KeyError, TypeError) as error:  # another release of DeepSpeed
            raise ValueError(_ELSEWHERE) from error
        ends = [0.0] * len(self.flats)
        num_groups = len(innermost(optimizer).param_groups)
        for group, flat, start, length in self._places:
            ends[flat] = max(ends[flat], start + length if group < num_groups else math.inf)
        if not self.flats or any(flat.numel() < end for flat, end in zip(self.flats, ends, strict=True)):
            raise ValueError(_ELSEWHERE)
        self.pieces = self.cut(self.flats)
        self.param_groups = [*innermost(optimizer).param_groups]
        self.groups: list[list[Tensor]] = [[] for _ in self.param_groups]
        for (group, *_), piece in zip(self._places, self.pieces, strict=True):
            self.groups[group].append(piece)

    def cut(self, flats: Sequence[Tensor]) -> list[Tensor]:
        """The pieces of flat tensors like those of this process."""
        pairs = zip(self._places, self.parameters, strict=True)
        cut = [(flats[flat].detach().narrow(0, start, length), p) for (_, flat, start, length), p in pairs]
        return [piece.view(shape) if piece.numel() == shape.numel() else piece for piece, shape in map(_shaped, cut)]

    def trained(self) -> list[Tensor]:
        """All that training changes of the weights: the flat tensors, and what the model computes with."""
        optimizer = self._optimizer()
        copies: list[Any] = []
        for name in _COPIES:
            copies += getattr(optimizer, name, None) or []
        gathered = [p.data for p in getattr(optimizer, "persistent_parameters", None) or []]
        return [*self.flats, *(copy for copy in copies if isinstance(copy, Tensor)), *gathered]

    def show_gradients(self, optimizer: Optimizer) -> list[Tensor]:
        """Gives the pieces that an optimizer is about to step their gradients, and returns those that have one.

        Args:
            optimizer: the innermost one; ZeRO has it step one flat tensor after the other.
        """
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        shown = []
        gradients = [flat.grad if id(flat) in stepped else None for flat in self.flats]
        for (_, flat, start, length), piece in zip(self._places, self.pieces, strict=True):
            gradient = gradients[flat]
            if gradient is not None:
                piece.grad = gradient.detach().narrow(0, start, length).view(piece.shape)
                shown.append(piece)
        return shown

    def hide_gradients(self) -> None:
        """Lets go of the gradients that were shown."""
        for piece in self.pieces:
            piece.grad = None

    def begins(self, optimizer: Optimizer) -> bool:
        """Whether the step that the innermost optimizer makes now is the first of those that make up one of ZeRO's;
        takes notice of the groups that it steps.
        """
        group_of = {id(self.flats[flat]): group for group, flat, *_ in self._places}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in group_of:
                    self.param_groups[group_of[id(parameter)]] = group
        return self._steps(optimizer, self.flats[0])

    def ends(self, optimizer: Optimizer) -> bool:
        """Whether it is the last of them."""
        return self._steps(optimizer, self.flats[-1])

    @staticmethod
    def _steps(optimizer: Optimizer, flat: Tensor) -> bool:
        return any(p is flat for group in optimizer.param_groups for p in group["params"])

    def clipping(self) -> float | None:
        """By what ZeRO has divided the gradients of the step that is under way to clip them; None: it does not say."""
        optimizer = self._optimizer()
        limit, norm = getattr(optimizer, "clip_grad", 0.0), getattr(optimizer, "_global_grad_norm", None)
        if not limit:
            return 1.0
        return None if norm is None else max((float(norm) + 1e-6) / float(limit), 1.0)


_COPIES = ("bit16_groups_flat", "bf16_groups_flat", "fp16_partitioned_groups_flat")

_Place = tuple[int, int, int, int]
"""Of a piece: its parameter group, its flat tensor, where it begins there, and its length."""

_Found = tuple[list[Tensor], list[Tensor], list[_Place], int]


def _of_flat_groups(optimizer: Any, flats: Sequence[Tensor], groups: Sequence[Sequence[Any]]) -> _Found:
    """Of ZeRO 1 and 2: a process has one stretch of each flat group, which may begin and end within a parameter."""
    places = []
    for group, parameters in enumerate(groups):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            address = None if mapping is None else mapping.get_hp_fragment_address()
            places.append((group, group, 0, 0) if address is None else (group, group, address.start, address.numel))
    counts = {torch.distributed.get_world_size(group) for group in optimizer.real_dp_process_group}
    is_divided = getattr(optimizer, "model_parallel_world_size", 1) != 1
    if len(counts) != 1 or is_divided or len(flats) != len(groups):  # experts have groups of their own
        raise ValueError(_ELSEWHERE)
    return [*flats], [p for parameters in groups for p in parameters], places, counts.pop()


def _of_zero(optimizer: Any) -> _Found:
    return _of_flat_groups(optimizer, optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups)


def _of_bf16(optimizer: Any) -> _Found:
    return _of_flat_groups(optimizer, optimizer.fp32_groups_flat_partition, optimizer.bf16_groups)


def _of_zero_3(optimizer: Any) -> _Found:
    """Of ZeRO 3: a process has a stretch of each parameter, all of one length, so that the last ones may be padded."""
    rank, places = torch.distributed.get_rank(optimizer.dp_process_group), []
    for flat, parameters in enumerate(optimizer.fp16_groups):
        start = 0
        for parameter in parameters:
            length = int(parameter.partition_numel())
            own = min(max(int(parameter.ds_numel) - rank * length, 0), length)
            places.append((optimizer.sub_group_to_group_id[flat], flat, start, own))
            start += length
    is_on_disk = any(copy is None for copy in optimizer.fp16_partitioned_groups_flat)
    has_second = getattr(optimizer, "offload_optimizer", False) and getattr(optimizer, "partial_offload", 1.0) < 1.0
    if is_on_disk or has_second:  # a second optimizer has a state of its own
        raise ValueError(_ELSEWHERE)
    found = [p for parameters in optimizer.fp16_groups for p in parameters]
    return [*optimizer.fp32_partitioned_groups_flat], found, places, int(optimizer.partition_count)


def _shaped(cut: tuple[Tensor, Any]) -> tuple[Tensor, torch.Size]:
    piece, parameter = cut
    return piece, getattr(parameter, "ds_shape", parameter.shape)


_KINDS = {
    "DeepSpeedZeroOptimizer": _of_zero,
    "BF16_Optimizer": _of_bf16,
    "DeepSpeedZeroOptimizer_Stage3": _of_zero_3,
}

_known: weakref.WeakKeyDictionary[Any, Zero] = weakref.WeakKeyDictionary()
"""By the innermost optimizer: a schedule may have been made for it before DeepSpeed wrapped it."""


def zero_of(optimizer: Any) -> Zero | None:
    """What a process has of an optimizer's weights under ZeRO; None without ZeRO, or where they are out of reach.

    Args:
        optimizer: with its wraps, or the innermost one of an optimizer that was asked for with its wraps before.
    """
    found, inner = layers(optimizer), innermost(optimizer)
    known = _known.get(inner)
    wrap = next((layer for layer in found if type(layer).__name__ in _KINDS), None)
    if known is None and wrap is not None:
        try:
            known = _known[inner] = Zero(wrap)
        except ValueError:
            return None
    return known


def parameters_of(optimizer: Any) -> list[Tensor]:
    """All tensors that training changes of an optimizer's weights: its parameters, and what DeepSpeed copies them to;
    under ZeRO, see ``Zero.trained``.
    """
    zero = zero_of(optimizer)
    if zero is not None:
        return zero.trained()
    return [*(p for group in optimizer.param_groups for p in group["params"]), *half_copies(optimizer)]


def trained_ids(optimizer: Any) -> set[int]:
    """The ids of the model's parameters that an optimizer trains."""
    zero = zero_of(optimizer)
    own: Iterable[Tensor] = half_copies(optimizer) if zero is None else zero.parameters
    return {id(p) for group in optimizer.param_groups for p in group["params"]} | {id(p) for p in own}


def shares_out_of_reach(optimizer: Any, made_for: Any = None) -> Obstacle | None:
    """As ``weights_out_of_reach``, but it is enough that each process can look at its own share, and put it back.

    Args:
        optimizer: with accelerate's and DeepSpeed's wraps or without.
        made_for: the optimizer that the schedule was made for, if it was another; it must be the same one inside.
    """
    if zero_of(optimizer) is not None:
        is_other = made_for is not None and innermost(made_for) is not innermost(optimizer)
        return Obstacle(_OTHER, "pass DeepSpeed's optimizer to the schedule, or use DDP or FSDP") if is_other else None
    names = [type(layer).__name__ for layer in layers(optimizer)]
    if any(name in _KINDS for name in names):
        return Obstacle(_ELSEWHERE, _REMEDY)
    if partitioned_by(optimizer) is None:
        return weights_out_of_reach(optimizer)
    # Without ZeRO: accelerate's wrap around torch's optimizer, and DeepSpeed's between them in half precision.
    strange = [name for name in names[:-1] if name not in ("DeepSpeedOptimizerWrapper", KIND)]
    strange += names[-1:] if partitioned_by(innermost(optimizer)) is not None else []
    if not strange and (KIND not in names or has_masters(optimizer)):
        return None
    return Obstacle(_ALONE.format(*strange, KIND), "use ZeRO 1, 2 or 3, DDP or FSDP")
