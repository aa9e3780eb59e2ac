"""A short vector in the place of all weights: the distance of two of them is that which the weights have gone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..finite import numbers_of
from .shares import Shares
from .update import summed_in, wide

SIZE = 1024
"""The length of a sketch. The distance of two is that of the weights to 2 % (one standard deviation)."""

_CHUNK = 1 << 22


@torch.no_grad()
def sketch(parameters: Iterable[Tensor], shares: Shares) -> Tensor:
    """All weights, added up with random signs in ``SIZE`` sums (the tug-of-war sketch of Alon et al. 1996, with the
    buckets of Charikar et al. 2002). The signs are the same at every call. One collective where weights are shared out.

    Args:
        parameters: in the order of the optimizer; those that cannot be read are left out.
        shares: how the processes share them.

    Returns:
        (SIZE,), float64, on the CPU; the same on every process.
    """
    parts: dict[torch.device, Tensor] = {}
    offset = 0
    for place, parameter in enumerate(parameters):
        weights = numbers_of(parameter)
        if weights is None:
            continue
        own = torch.zeros(SIZE, dtype=summed_in(weights.device), device=weights.device)
        signs = torch.Generator(weights.device).manual_seed(place * shares.num_processes + shares.process)
        for chunk in torch.split(wide(weights).reshape(-1), _CHUNK):
            sign = torch.randint(0, 2, chunk.shape, generator=signs, device=chunk.device, dtype=torch.int8) * 2 - 1
            padded = torch.nn.functional.pad(chunk * sign, (offset, -(offset + len(chunk)) % SIZE))
            offset = (offset + len(chunk)) % SIZE
            own += padded.reshape(-1, SIZE).sum(0, dtype=own.dtype)
        # Copies have other signs on every process, so that the square of their sum is that of all together.
        own /= math.sqrt(shares.copies_of(parameter))
        device = weights.device
        parts[device] = parts[device] + own if device in parts else own
    total = torch.zeros(SIZE, dtype=torch.float64)
    for part in parts.values():
        total += part.cpu()
    return shares.gather_sum(total)


def kind_of(parameters: Iterable[Tensor], shares: Shares) -> str:
    """What a sketch depends on beside the weights. Sketches of other kinds have nothing to do with each other."""
    devices = sorted({parameter.device.type for parameter in parameters})
    return f"{'+'.join(devices)} of {shares.num_processes if shares.is_shared else 1}"
