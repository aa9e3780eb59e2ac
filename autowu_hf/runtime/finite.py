"""Whether training is still finite, and the error where it is not any more; and what tensors of any kind consist of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .param_groups import innermost, parameters_of

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


class DivergedError(RuntimeError):
    """Parameters are infinite or NaN, and going back does not help or is not possible."""


class OutOfReachError(ValueError):
    """The values of a tensor can neither be read nor be written."""


def local_share(tensor: Any) -> Tensor:
    """This process's share of a tensor, detached: FSDP2's parameters are DTensors, sharded over the processes."""
    return _local(tensor).detach()


def _local(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def rebuilt(tensor: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Another tensor of the same kind: this process's share, put together from changed parts.

    The parts are what can be copied, compared and filled whatever the tensor's kind: dense tensors in its own memory,
    detached, without the dimensions that it only repeats. A dense tensor is its only part. A sparse one has its
    indices and values, and a subclass that wraps others, like the states of 8-bit optimizers, has those.

    Args:
        tensor: of any kind.
        change: maps a part to the part in its place, of the same shape.

    Raises:
        OutOfReachError: it has no such parts: it lies on the meta device, say, or in oneDNN's layout.
    """
    tensor = _local(tensor)
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        inner = {name: rebuilt(getattr(tensor, name), change) for name in names}
        whole: Tensor = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
        return whole
    if _is_out_of_reach(tensor):
        raise OutOfReachError(f"a tensor of the kind {_kind(tensor)}, whose values cannot be copied")
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        indices, values = change(tensor._indices()), change(tensor._values())
        sparse = torch.sparse_coo_tensor(indices, values, tensor.shape, check_invariants=False)
        return sparse._coalesced_(tensor.is_coalesced())
    if tensor.layout in _COMPRESSED:
        compressed, plain, values = (change(getattr(tensor, name)()) for name in _COMPRESSED[tensor.layout])
        return torch.sparse_compressed_tensor(
            compressed, plain, values, tensor.shape, layout=tensor.layout, check_invariants=False
        )
    with torch._C.DisableTorchFunctionSubclass():
        part = tensor.as_subclass(Tensor)
    for dim, (size, stride) in enumerate(zip(part.shape, part.stride(), strict=True)):
        if stride == 0 and size > 1:
            part = part.narrow(dim, 0, 1)
    changed = change(part)
    return changed if part.shape == tensor.shape else changed.expand(tensor.shape)


def parts(tensor: Any) -> list[Tensor] | None:
    """The parts of this process's share of a tensor, see ``rebuilt``; None where they are out of reach."""
    found: list[Tensor] = []

    def note(part: Tensor) -> Tensor:
        found.append(part)
        return part

    try:
        rebuilt(tensor, note)
    except OutOfReachError:
        return None
    return found


def numbers_of(tensor: Any) -> Tensor | None:
    """This process's share of a tensor as floats to reckon with; None where it is no dense tensor of such, or None."""
    found = [] if tensor is None else parts(tensor) or []
    if len(found) != 1 or found[0].shape != _local(tensor).shape:
        return None
    numbers = torch.view_as_real(found[0].resolve_conj()) if found[0].is_complex() else found[0]
    return numbers if numbers.is_floating_point() and numbers.element_size() > 1 else None


def is_finite(tensor: Any) -> bool:
    """Whether no element is infinite or NaN; whole numbers never are, and values out of reach count as finite."""
    return all(map(_is_finite, parts(tensor) or []))


def has_finite_parameters(optimizer: Optimizer) -> bool:
    """Whether no parameter of an optimizer, of this process's share, is infinite or NaN."""
    return all(map(is_finite, parameters_of(innermost(optimizer))))


def _is_finite(part: Tensor) -> bool:
    if not (part.is_floating_point() or part.is_complex()) or "float4" in str(part.dtype):
        return True
    if part.element_size() == 1:  # torch cannot ask all 8-bit formats
        part = part.float()
    return bool(torch.isfinite(part).all())


def _is_out_of_reach(tensor: Tensor) -> bool:
    if is_lazy(tensor) or tensor.device.type == "meta" or tensor.is_quantized or tensor.is_nested:
        return True
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # a wrapper that does not say of what
        return True
    if tensor.layout is not torch.strided:
        return tensor.layout is not torch.sparse_coo and tensor.layout not in _COMPRESSED
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0  # FSDP frees storages for a while


def _kind(tensor: Tensor) -> str:
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return type(tensor).__name__
    traits = (tensor.device.type, str(tensor.layout), str(tensor.dtype))
    return ", ".join(trait.replace("torch.", "") for trait in traits)
