"""How the processes of a run share out the weights: not at all, as under DDP, or each has a part, as under FSDP; and
how all of them go on with the same numbers.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import collective
from .update import MOST_WAITING, Update

logger = logging.getLogger(__name__)

_ALIKE = 1e-2
"""The share by which the gradients of two processes may differ that have been averaged: rounding is far below that."""

_UNMEASURED = "the main process could not measure a step"


class Shares:
    """How the processes share one optimizer's parameters.

    Args:
        parameters: of the optimizer.
        num_shares: into how many shares the weights are divided (FSDP); 1, or 0, where every process has all of them.
            FSDP2's parameters say themselves how many processes hold a copy.

    Attributes:
        is_shared: whether what the processes have of them has to be put together.
    """

    def __init__(self, parameters: Iterable[Tensor], num_shares: int) -> None:
        self._num_shares, self._has_dtensors = num_shares, any(map(_is_dtensor, parameters))
        self.is_shared = num_shares > 1 or self._has_dtensors

    @property
    def num_processes(self) -> int:
        """Those that the weights are shared out to; 1 under DDP."""
        return collective.num_processes() if self.is_shared else 1

    @property
    def process(self) -> int:
        """The number of this process among them."""
        return collective.process_index() if self.is_shared else 0

    def copies_of(self, parameter: Any) -> int:
        """How many processes hold the same share of a parameter, where shares are summed over the processes."""
        if _is_dtensor(parameter):
            places = enumerate(parameter.placements)
            sizes = [parameter.device_mesh.size(i) for i, place in places if not place.is_replicate()]
            return collective.num_processes() // int(math.prod(sizes))  # its mesh may be a part of the processes
        if self._has_dtensors:
            return collective.num_processes()  # one that FSDP2 leaves whole
        return collective.num_processes() // self._num_shares if self.is_shared else 1

    def gather_sum(self, numbers: Tensor) -> Tensor:
        """(k,) -> (k,), the sum of what the processes have; one collective where the weights are shared out."""
        return collective.gather_sum(numbers) if self.is_shared else numbers


def agreed(updates: Sequence[Update | str], shares: Shares) -> tuple[list[Update | str], float]:
    """What all processes go on with of the steps that each has measured: the main process's numbers. One collective,
    unless weights are shared out, for then the numbers are sums over the processes already. Where gradients are
    averaged (DDP), all have measured the same, to rounding.

    Args:
        updates: of this process, ``MOST_WAITING`` at most.
        shares: how the processes share out the weights.

    Returns:
        As many as the main process has, each an update or why there is none, as a part of a sentence; and by what share
        of it the norm of a gradient differs between processes at most.
    """
    if shares.is_shared:
        return [*updates], 0.0
    names = [field.name for field in dataclasses.fields(Update)]
    table = torch.full((1 + MOST_WAITING, len(names)), math.nan, dtype=torch.float64, device="cpu")
    table[0] = len(updates)
    for row, update in zip(table[1:], updates, strict=False):
        if not isinstance(update, str):
            row.copy_(torch.tensor([float(getattr(update, name)) for name in names], dtype=torch.float64))
    everyone = collective.gather_rows(table.reshape(-1)).reshape(-1, *table.shape)
    norms = everyone[:, 1:, names.index("gradient_norm")]
    apart = ((norms.amax(0) - norms.amin(0)) / norms.amax(0)).nan_to_num()
    main, found = everyone[0], []
    for i in range(int(main[0, 0])):
        own = updates[i] if i < len(updates) else _UNMEASURED
        is_measured = not bool(main[1 + i, names.index("slope")].isnan())
        numbers = Update(**dict(zip(names, main[1 + i].tolist(), strict=True)))
        found.append(numbers if is_measured else own if isinstance(own, str) else _UNMEASURED)
    return found, float(apart.max())


def say_apart(share: float) -> bool:
    """Warns, on the main process, where the gradients of processes differ, by a share of their norm, as they do under
    LocalSGD, or if nobody has prepared the model; whether they do.
    """
    if share > _ALIKE and collective.is_main_process():
        logger.warning(_DIFFER, 100.0 * share)
    return share > _ALIKE


_DIFFER = (
    "AutoWU: the gradients of the processes differ, by %.0f %% in their norm, as if they were not averaged. Prepare "
    "the model with accelerate, or wrap it in DDP; where that is what you want (LocalSGD), all processes take the "
    "learning rate that the main process finds"
)


def _is_dtensor(parameter: Any) -> bool:
    return hasattr(parameter, "to_local")
