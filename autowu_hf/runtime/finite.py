"""Whether training is still finite, and the error where it is not any more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .param_groups import innermost


class DivergedError(RuntimeError):
    """Parameters are infinite or NaN, and going back does not help or is not possible."""


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is infinite or NaN; whole numbers never are."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def local_share(tensor: Any) -> Tensor:
    """This process's share of a tensor, detached: FSDP2's parameters are DTensors, sharded over the processes."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach()


def has_finite_parameters(optimizer: Optimizer) -> bool:
    """Whether no parameter of an optimizer, of this process's share, is infinite or NaN."""
    groups = innermost(optimizer).param_groups
    return all(is_finite(local_share(p)) for group in groups for p in group["params"])
