"""FSDP1's flat parameters: which tensors of the model a process has in its share of one.

Without ``use_orig_params``, which accelerate leaves out unless it is asked for, FSDP1 puts the tensors of a wrapped
module end to end, and the optimizer steps this process's share of that.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def num_tensors(parameter: Any) -> int:
    """Of how many tensors of the model an optimizer's parameter is made, the same on every process; 1 unless it is
    flat.
    """
    return int(parameter._num_params) if _is_flat(parameter) else 1


def cut(parameter: Any, values: Tensor) -> list[Tensor]:
    """What a process has of each tensor of the model that a parameter is made of.

    Args:
        parameter: of an optimizer, flat or not.
        values: its weights or its gradient, or a copy of one; (n,) where it is flat.

    Returns:
        ``num_tensors`` views, without what pads them: of a tensor's shape where this process has all of it, else flat,
        (0,) where it has none; ``values`` alone where the parameter is not flat.
    """
    if not _is_flat(parameter):
        return [values]
    places = zip(parameter._shard_param_infos, parameter._shapes, parameter._strides, strict=True)
    return [_piece(values, *place) for place in places]


def _piece(values: Tensor, place: Any, shape: Any, strides: Any) -> Tensor:
    if not place.in_shard:
        return values[:0]
    piece = values.narrow(0, place.offset_in_shard, place.numel_in_shard)
    # Its numbers are in the order of the memory, which channels_last changes.
    return piece.as_strided(shape, strides) if place.numel_in_shard == shape.numel() else piece


def _is_flat(parameter: Any) -> bool:
    """Whether it is flat, and holds this process's share, as it does at every step of the optimizer."""
    size = getattr(parameter, "_sharded_size", None)
    return bool(getattr(parameter, "_is_flat_param", False)) and parameter.shape == size
