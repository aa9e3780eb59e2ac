"""A short vector in the place of all weights: the distance of two of them is that which the weights have gone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..finite import numbers_of
from .shares import Shares
from .update import summed_in, wide

SIZE = 1021
"""The length of a sketch, a prime, so that a row of weights is not as long. The distance of two is that of the weights
to 2 % (one standard deviation).
"""

_CHUNK = 1 << 18
_WORD = 16
_MASK = (1 << 31) - 1
_MIXERS = (0x1E3779B1, 0x2545F491, 0x3C6EF372)  # below 2^31, so that no product overflows


@torch.no_grad()
def sketch(parameters: Sequence[Tensor], shares: Shares) -> Tensor:
    """All weights, added up with random signs in ``SIZE`` sums (the tug-of-war sketch of Alon et al. 1996, with the
    buckets of Charikar et al. 2002). The signs are the same at every call and on every device. One collective where
    weights are shared out.

    Args:
        parameters: in the order of the optimizer; those that cannot be read are left out.
        shares: how the processes share them.

    Returns:
        (SIZE,), float64, on the CPU; the same on every process.
    """
    total, first = torch.zeros(SIZE, dtype=torch.float64, device="cpu"), 0
    begin = shares.process * SIZE // shares.num_processes  # few weights of a process then have sums of their own
    for parameter in parameters:
        weights = numbers_of(parameter)
        if weights is None or not weights.numel():
            continue
        own = torch.zeros(SIZE, dtype=summed_in(weights.device), device=weights.device)
        for part in torch.split(weights.reshape(-1), _CHUNK):
            signed = wide(part) * _signs(first, len(part), shares.process, part.device)
            around = ((begin + first) % SIZE, -(begin + first + len(part)) % SIZE)
            own += torch.nn.functional.pad(signed, around).reshape(-1, SIZE).sum(0, dtype=own.dtype)
            first += len(part)
        # Copies have other signs on every process, so that the square of their sum is that of all together.
        total += own.cpu() / math.sqrt(shares.copies_of(parameter))
    return shares.gather_sum(total)


def kind_of(parameters: Sequence[Tensor], shares: Shares) -> str:
    """What a sketch depends on beside the weights. Sketches of other kinds have nothing to do with each other."""
    if shares.is_shared:  # how many weights a process has is its own
        counted = f"{shares.num_processes} processes"
    else:
        counted = f"{sum(p.numel() for p in parameters)} weights"
    return f"{len(parameters)} tensors, {counted}, signs by {_WORD}"  # a release before this one drew them one by one


def _signs(first: int, number: int, process: int, device: torch.device) -> Tensor:
    """Signs of as many weights from the one with number ``first`` on, for a process; by arithmetic, since generators of
    random numbers differ from device to device. Every number that is mixed has the signs of ``_WORD`` weights.
    """
    begin, end = first // _WORD, (first + number - 1) // _WORD + 1
    places = torch.arange(begin, end, device=device)
    mixed = (places & _MASK) * _MIXERS[0] + (places >> 31) * _MIXERS[1] + process * _MIXERS[2]
    for mixer in _MIXERS[1:]:
        mixed &= _MASK
        mixed = (mixed ^ (mixed >> 15)) * mixer
    words = (mixed >> 23 & (1 << _WORD) - 1).to(torch.int32)  # the bits in the middle of a product depend on all others
    bits = words.unsqueeze(1) >> torch.arange(_WORD, dtype=torch.int32, device=device) & 1
    return (bits * 2 - 1).reshape(-1)[first - begin * _WORD :][:number]
