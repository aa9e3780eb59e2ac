"""How a tensor of any kind is copied into host memory, put back, and known again when it has not changed.

All of it works on the parts of a tensor, see ``runtime.finite.rebuilt``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime.finite import OutOfReachError, parts, rebuilt

Mark = tuple[Any, ...]

_COLUMNS = 65521
"""A prime number of int64, so that numbers which change places in a regular pattern change columns too."""


def num_bytes(tensor: Any, is_pinned: bool = False) -> int:
    """The host memory, in bytes, that a copy takes; 0 for a tensor whose values are out of reach.

    Args:
        tensor: of any kind.
        is_pinned: whether what lies on an accelerator goes into pinned memory, which is handed out in powers of two.
    """
    sizes = [(part.numel() * part.element_size(), part.device.type) for part in parts(tensor) or []]
    return sum(size if device == "cpu" or not is_pinned else _next_power_of_two(size) for size, device in sizes)


def copied(tensor: Any, old: Any = None) -> Tensor:
    """A copy of this process's share in host memory: pinned, and without waiting for it, from an accelerator.

    Args:
        tensor: of any kind.
        old: a copy that is needed no more; its memory is used again where it fits.

    Raises:
        OutOfReachError: its values cannot be copied.
    """
    olds = iter(parts(old) or [] if isinstance(old, Tensor) else [])
    return rebuilt(tensor, lambda part: _copied_part(part, next(olds, None)))


def _copied_part(part: Tensor, old: Tensor | None) -> Tensor:
    fits = old is not None and old.shape == part.shape and old.dtype == part.dtype
    if part.device.type == "cpu":
        return old.copy_(part) if fits and old is not None else part.clone()
    on_cuda = part.device.type == "cuda"
    if not fits or old is None:
        old = torch.empty(part.shape, dtype=part.dtype, device="cpu", pin_memory=on_cuda)
    return old.copy_(part, non_blocking=on_cuda)  # in its stream's order: before anything changes it


def fill(live: Any, saved: Tensor) -> bool:
    """Gives a tensor the values of a copy, in place; False, and nothing is done, where it has other parts now."""
    present, wanted = parts(live), parts(saved)
    if present is None or wanted is None or [p.shape for p in present] != [w.shape for w in wanted]:
        return False
    for part, values in zip(present, wanted, strict=True):
        with torch.inference_mode(part.is_inference()), torch.no_grad():  # such tensors can be filled there only
            part.copy_(values)
    return True


def copied_all(value: Any, old: Any = None) -> Any:
    """``copied`` for all tensors in nested dicts and lists; the rest is deep-copied.

    Raises:
        OutOfReachError: something in it cannot be copied.
    """
    if isinstance(value, Tensor):
        return copied(value, old)
    if isinstance(value, dict):
        olds = old if isinstance(old, dict) else {}
        return {k: copied_all(v, olds.get(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = old if isinstance(old, (list, tuple)) and len(old) == len(value) else [None] * len(value)
        return type(value)(copied_all(v, item) for v, item in zip(value, items, strict=True))
    try:
        return copy.deepcopy(value)
    except Exception as error:  # whatever an optimizer's own class does there
        raise OutOfReachError(f"a {type(value).__name__}, which cannot be copied ({error})") from error


def put_back(present: Any, saved: Any, parameter: Any) -> Any:
    """The saved value; in the present one's place, where both are tensors.

    Args:
        present: what is there now, tensors in nested dicts and lists.
        saved: what ``copied_all`` made of it earlier.
        parameter: whose state it is, so that a tensor that is gone goes to its device; None for that of the copy.
    """
    if isinstance(saved, Tensor):
        if isinstance(present, Tensor) and fill(present, saved):
            return present
        device = saved.device if parameter is None or saved.dim() == 0 else parameter.device
        return rebuilt(saved, lambda part: part.to(device, copy=True))
    if isinstance(saved, dict) and isinstance(present, dict):
        for name in [name for name in present if name not in saved]:
            del present[name]
        present.update({k: put_back(present.get(k), v, parameter) for k, v in saved.items()})
        return present
    if isinstance(saved, (list, tuple)):
        presents = present if isinstance(present, (list, tuple)) and len(present) == len(saved) else [None] * len(saved)
        return type(saved)(put_back(p, v, parameter) for p, v in zip(presents, saved, strict=True))
    return copy.deepcopy(saved)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


@torch.no_grad()
def marks(tensors: Mapping[str, Tensor]) -> dict[str, Mark | None]:
    """A mark of every tensor's values, the same later if no bit of them has changed; without those out of reach.

    torch's own counter of changes will not do: writes to ``parameter.data`` pass it by. One pass over the tensors, on
    their device, then one wait for each device. None stands for a tensor that its device cannot do this with.
    """
    shapes: dict[str, Mark | None] = {}
    sums: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        found = parts(tensor)
        if found is None:
            continue
        shapes[name] = tuple((part.shape, part.dtype) for part in found)
        try:
            numbers = [_sum_of_bits(part) for part in found]
        except (NotImplementedError, RuntimeError):
            shapes[name] = None
            continue
        for number in numbers:
            sums.setdefault(number.device, []).append((name, number))
    for named in sums.values():
        values = torch.stack([value for _, value in named]).tolist()
        for (name, _), value in zip(named, values, strict=True):
            shapes[name] = (*(shapes[name] or ()), value)
    return shapes


def _sum_of_bits(part: Tensor) -> Tensor:
    """A number, int64, on the tensor's device: the weighted sum of its memory taken for int64, modulo 2^64."""
    part = part.resolve_conj().resolve_neg().contiguous().reshape(-1)
    part = part.as_strided(part.shape, (1,))  # a single element counts as contiguous whatever its stride
    if part.storage_offset() * part.element_size() % 8:
        part = part.clone()
    memory = part.view(torch.uint8)
    words, rest = memory[: len(memory) // 8 * 8].view(torch.int64), memory[len(memory) // 8 * 8 :]
    rows = len(words) // _COLUMNS
    table, tail = words[: rows * _COLUMNS].view(rows, _COLUMNS), words[rows * _COLUMNS :]
    numbers = torch.cat([table.sum(0) if rows else words[:0], tail, rest.to(torch.int64)])
    return (numbers * _weights(part.device)[: len(numbers)]).sum()


@functools.lru_cache(maxsize=8)
def _weights(device: torch.device) -> Tensor:
    """Odd ones, so that a change of a single number always shows."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-(2**62), 2**62, (2 * _COLUMNS + 8,), generator=generator, device="cpu")
    return (2 * numbers + 1).to(device)


def _next_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
