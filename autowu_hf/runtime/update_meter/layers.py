"""How large the update of each single tensor is, beside the tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .shares import Shares
from .update import NUM_SUMS

_BORN = 0.25
"""The share of a tensor from which an update of a first step tells that it was zero before that step, or the last one:
those of all weights are a 300th at most in full precision, and a tenth in half.
"""

_WEIGHT, _CHANGE = 1, 3  # the places of ||w||^2 and ||d||^2 in ``sums_of``


def over_processes(rows: Tensor, have_row: Sequence[bool], shares: Shares) -> tuple[Tensor, Tensor]:
    """What the processes have of an update, put together; one collective where weights are shared out.

    Args:
        rows: (n, NUM_SUMS), ``sums_of`` each tensor with a gradient, or this process's share of it.
        have_row: (m,), of each of the optimizer's parameters, whether it has one of the rows, which are in their order;
            m is the same on every process.
        shares: how the processes share them.

    Returns:
        (NUM_SUMS,), the sum over all tensors; and (m, 2), ||w||^2 and ||d||^2 of each.
    """
    own = torch.zeros(len(have_row), 2, dtype=torch.float64, device="cpu")
    own[torch.tensor(have_row, device="cpu")] = rows[:, [_WEIGHT, _CHANGE]]
    found = shares.gather_sum(torch.cat([rows.sum(0), own.reshape(-1)]))
    return found[:NUM_SUMS], found[NUM_SUMS:].reshape(-1, 2)


def layer_trust(layers: Tensor) -> float:
    """The median of ||w|| / ||d|| over the tensors, the trust ratio of LARS (You et al. 2017, section 4), each counting
    by its part of the update's square: half of that is in tensors whose ratio is no higher. A few large tensors, or
    normalization layers, whose weights are ten times those of matrices, do not decide it, as they do for all weights
    together.

    Args:
        layers: (n, 2), ||w||^2 and ||d||^2.

    Returns:
        The median; NaN where no tensor tells. One that was zero before the run does not.
    """
    squares = layers[(layers[:, 1] > 0.0) & (layers[:, 1] < _BORN**2 * layers[:, 0])]
    if not len(squares):
        return math.nan
    ratios, order = (squares[:, 0] / squares[:, 1]).sqrt().sort()
    below = squares[order, 1].cumsum(0)
    return float(ratios[int((below < 0.5 * below[-1]).sum())])
