"""How the processes of a run share out the weights: not at all, as under DDP, or each has a part, as under FSDP."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .. import collective


class Shares:
    """That of some parameters.

    Args:
        parameters: of the optimizer.
        is_sharded: whether every process holds another share of each, as under FSDP1; FSDP2's parameters say so
            themselves.

    Attributes:
        is_shared: whether what the processes have of them has to be put together.
    """

    def __init__(self, parameters: Iterable[Tensor], is_sharded: bool) -> None:
        self._is_sharded, self._has_dtensors = is_sharded, any(map(_is_dtensor, parameters))
        self.is_shared = self._is_sharded or self._has_dtensors

    @property
    def num_processes(self) -> int:
        """Those that the weights are shared out to."""
        return collective.num_processes() if self.is_shared else 1

    @property
    def process(self) -> int:
        """The number of this process among them."""
        return collective.process_index() if self.is_shared else 0

    def copies_of(self, parameter: Any) -> int:
        """How many processes hold the same share of a parameter, where shares are summed over the processes."""
        if _is_dtensor(parameter):
            places = enumerate(parameter.placements)
            return math.prod(parameter.device_mesh.size(i) for i, place in places if place.is_replicate())
        if self._is_sharded or not self._has_dtensors:
            return 1
        return collective.num_processes()  # one that FSDP2 leaves whole

    def gather_sum(self, numbers: Tensor) -> Tensor:
        """(k,) -> (k,), the sum of what the processes have; one collective where the weights are shared out."""
        return collective.gather_sum(numbers) if self.is_shared else numbers


def _is_dtensor(parameter: Any) -> bool:
    return hasattr(parameter, "to_local")
