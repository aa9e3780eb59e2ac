"""Whether somebody else sets the learning rates, too: another scheduler, or the loop by itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from ..checks import caller_level

_NEAR = 0.01  # the share by which an LR may differ for rounding
_OFTEN = 2  # steps in a row; a state that is loaded into the optimizer has another LR once


class ForeignLRWarning(UserWarning):
    """The optimizer does not train at the learning rate that the schedule has set, for something else sets it, too."""


class ForeignLR:
    """Watches that the LRs are those that a schedule has set.

    Args:
        name: of the schedule.

    Attributes:
        is_found: whether something else sets them, too.
    """

    def __init__(self, name: str) -> None:
        self.is_found = False
        self._name = name
        self._num_seen = 0  # in a row, up to ``_OFTEN``

    def look(self, optimizer: Optimizer, lrs: Sequence[float | Tensor], step: int) -> None:
        """Warns once, before the schedule sets its next LRs.

        Args:
            optimizer: any torch optimizer, or accelerate's wrap of one.
            lrs: that the schedule has set, one per group; groups that were added since have none.
            step: the scheduler steps done since then, this one included.
        """
        if self.is_found:
            return
        for group, lr in zip(optimizer.param_groups, lrs, strict=False):
            if group["lr"] is not lr:  # which it is at every step of most runs
                break
        else:
            self._num_seen = 0
            return
        pairs = enumerate(zip(optimizer.param_groups, lrs, strict=False))
        found = next((number for number, (group, lr) in pairs if _differ(group["lr"], lr)), None)
        if found is None:
            self._num_seen = 0
            return
        self._num_seen += 1
        if self._num_seen == _OFTEN:
            self.is_found = True
            present = optimizer.param_groups[found]["lr"]
            warnings.warn(
                f"at scheduler step {step} the learning rate of parameter group {found} was {present:.3g}, but "
                f"{self._name} had set it to {lrs[found]:.3g}, and so it was at the step before: something else in the "
                'script sets it, too, such as another scheduler, or a line with group["lr"] = ... Remove that, or the '
                f"run trains at other learning rates than {self._name} says",
                ForeignLRWarning,
                stacklevel=caller_level(),
            )


def _differ(present: float | Tensor, lr: float | Tensor) -> bool:
    """Whether two LRs are not the same; those that are tensors are not read, for that may wait for a device."""
    if isinstance(present, Tensor) or isinstance(lr, Tensor):
        return False
    return not math.isclose(present, lr, rel_tol=_NEAR)
