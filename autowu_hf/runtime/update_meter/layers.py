"""How large the update of each single tensor is, beside the tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .shares import Shares
from .update import NUM_SUMS

_BORN = 15.0
"""A tensor whose ratio is so many times below that of all weights together was zero before the first step, or near it:
adapters, embeddings of recommenders, a fresh head. It outgrows what it was within a few steps, so that its ratio tells
nothing of them.
"""

_LOWEST = 6.0
"""So many times below that of all weights together the median counts at most. That of a ViT from scratch lies five
times below.
"""

_FEWEST = 0.01
"""The share of ||d||^2 that the tensors must hold that tell: else the weight decay and rounding do."""

_OWN = [1, 3, 2, 9, 10]  # the places of ||w||^2, ||d||^2, ||g||^2, <g, w> and the number of weights in ``sums_of``

_ORTHOGONAL = 0.02
"""The cosine of a gradient and its tensor, in units of that of two random tensors, up to which they are orthogonal.
AdamP, which asks the same, has 0.1 (Heo et al. 2021), which one tensor in ten is below by chance.
"""


def over_processes(rows: Tensor, have_row: Sequence[bool], shares: Shares) -> tuple[Tensor, Tensor]:
    """What the processes have of an update, put together; one collective where weights are shared out.

    Args:
        rows: (n, NUM_SUMS), ``sums_of`` each tensor with a gradient, or this process's share of it.
        have_row: (m,), of each of the optimizer's parameters, whether it has one of the rows, which are in their order;
            m is the same on every process.
        shares: how the processes share them.

    Returns:
        (NUM_SUMS,), the sum over all tensors; and (m, 5), ||w||^2, ||d||^2, ||g||^2, <g, w> and the number of weights
        of each.
    """
    own = torch.zeros(len(have_row), len(_OWN), dtype=torch.float64, device="cpu")
    own[torch.tensor(have_row, device="cpu")] = rows[:, _OWN]
    found = shares.gather_sum(torch.cat([rows.sum(0), own.reshape(-1)]))
    return found[:NUM_SUMS], found[NUM_SUMS:].reshape(-1, len(_OWN))


def layer_trust(layers: Tensor) -> float:
    """The median of ||w|| / ||d|| over the tensors, the trust ratio of LARS (You et al. 2017, section 4), each counting
    by its part of the update's square: half of that is in tensors whose ratio is no higher. A few large tensors, or
    normalization layers, whose weights are ten times those of matrices, do not decide it, as they do for all weights
    together.

    Args:
        layers: (n, 2 or more), ||w||^2 and ||d||^2 of each first.

    Returns:
        The median, but a sixth of the ratio of all weights at least; NaN where the tensors that tell hardly move beside
        those that began at zero.
    """
    seen = layers[(layers[:, 0] > 0.0) & (layers[:, 1] > 0.0)]
    of_all = math.sqrt(float(seen[:, 0].sum() / seen[:, 1].sum())) if len(seen) else math.nan
    ratios, order = (seen[:, 0] / seen[:, 1]).sqrt().sort()
    changes = seen[order, 1] * (ratios >= of_all / _BORN)
    below = changes.cumsum(0)
    if not len(seen) or below[-1] < _FEWEST * layers[:, 1].sum():
        return math.nan
    return max(float(ratios[int((below < 0.5 * below[-1]).sum())]), of_all / _LOWEST)


def scale_invariant_share(layers: Tensor) -> float:
    """The share of the update's square in tensors whose gradient is orthogonal to them, as it is for weights whose size
    changes nothing: those before a batch norm (Arora et al. 2018, arXiv 1812.03981, lemma 2.4).

    Args:
        layers: (n, 5), ``over_processes``.
    """
    w2, d2, g2, gw, number = layers.unbind(1)
    are_free = (w2 > 0.0) & (g2 > 0.0) & (gw.square() * number <= _ORTHOGONAL**2 * g2 * w2)
    of_all = float(d2.sum())
    return float(d2[are_free].sum()) / of_all if of_all > 0.0 else 0.0
