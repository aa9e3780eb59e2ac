"""How the processes of a run share out the weights: not at all, as under DDP, or each has a part, as under FSDP."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .. import collective


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


def _is_dtensor(parameter: Any) -> bool:
    return hasattr(parameter, "to_local")
