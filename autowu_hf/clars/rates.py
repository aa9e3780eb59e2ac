"""The formula of CLARS: the rate gamma of every layer, from the norms of its samples' gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .per_sample import probes


def is_distributed() -> bool:
    """Whether a process group has been set up."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def layer_rates(layers: Mapping[Tensor, Mapping[str, Any]], records: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """gamma of each layer, (); one collective, where there are several processes.

    The records were taken at the backward. What has scaled all gradients since is found by comparing the probes of
    then with those of now, and it scales the norms too.

    Args:
        layers: at least one, each with its parameter group.
        records: this process's record of each layer, (1 + probes,): the mean norm and the probes of the mean gradient.
    """
    everything = torch.cat([record.to(records[0].device) for record in records])
    if is_distributed():
        torch.distributed.all_reduce(everything)  # the scale below makes means of the sums
    records = list(torch.split(everything, [len(record) for record in records]))
    before = torch.linalg.vector_norm(torch.cat([record[1:] for record in records]))
    now = torch.linalg.vector_norm(torch.cat([probes(cast(Tensor, p.grad)).to(everything) for p in layers]))
    scale = torch.where(before > 0, now / before, 1.0)
    rates = {}
    for (p, group), record in zip(layers.items(), records, strict=True):
        weight, norm = torch.linalg.vector_norm(p).to(everything), record[0] * scale
        rate = group["eta"] * weight / (norm + group["weight_decay"] * weight + group["eps"])
        rates[p] = torch.where((weight > 0) & (norm > 0), rate, 1.0)
    return rates
