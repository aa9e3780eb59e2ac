"""How large the update of each single tensor is, beside the tensor, and how much of the slope it has."""

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

_OWN = [1, 3, 0, 11, 12, 10, 13]
"""The places in ``sums_of`` of ||w||^2, ||d||^2, -<g, d>, of what it has of the rows, of the number of weights and, of
vectors, of their sum.
"""

_ORTHOGONAL = 0.05
"""The cosine of a row of weights and its gradient, in units of that of random ones, up to which they are orthogonal; in
the root of the rows' mean. AdamP asks whole tensors, up to 0.1 (Heo et al. 2021).
"""

_CONSTANT = 1e-3
"""By what the weights of a norm differ from a constant at most, in the root of the mean square, before training."""


def over_processes(rows: Tensor, have_row: Sequence[bool], shares: Shares) -> tuple[Tensor, Tensor]:
    """What the processes have of an update, put together; one collective where weights are shared out.

    Args:
        rows: (n, NUM_SUMS), ``sums_of`` each tensor with a gradient, or this process's share of it.
        have_row: (m,), of each tensor that the optimizer's parameters are made of, whether it has one of the rows,
            which are in their order; m is the same on every process.
        shares: how the processes share them.

    Returns:
        (NUM_SUMS,), the sum over all tensors; and (m, 7), what ``_OWN`` names, of each.
    """
    own = torch.zeros(len(have_row), len(_OWN), dtype=torch.float64, device="cpu")
    own[torch.tensor(have_row, device="cpu")] = rows[:, _OWN]
    found = shares.gather_sum(torch.cat([rows.sum(0), own.reshape(-1)]))
    return found[:NUM_SUMS], found[NUM_SUMS:].reshape(-1, len(_OWN))


def told_by(layers: Tensor, lr: float) -> dict[str, float]:
    """What single tensors tell of an update.

    Args:
        layers: (n, 7), ``over_processes``.
        lr: the common LR of the step, positive.

    Returns:
        ``layer_trust`` in units of the LR, ``scale_invariant``, ``spread``, ``new_norms`` and ``trained_norms``, by
        these names.
    """
    shares = {"scale_invariant": scale_invariant_share(layers), "spread": spread_of(layers)}
    return {"layer_trust": lr * layer_trust(layers), **shares, **kinds_of_norms(layers)}


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


def spread_of(layers: Tensor) -> float:
    """How evenly the slope of an update is spread over the tensors that it moves.

    Args:
        layers: (n, 3 or more), ``over_processes``.

    Returns:
        The cosine of two vectors of n numbers: ||d|| of each tensor, and its slope per unit of that. 1 where each has
        the slope that its part of the update stands for, or there is one alone; 1 / sqrt(n) where one of n tensors of
        one size has all of it. NaN without a slope.
    """
    _, d2, down, *_ = layers[layers[:, 1] > 0.0].unbind(1)
    per_unit = down.clamp(min=0.0) / d2.sqrt()
    norms = float(per_unit.norm()) * math.sqrt(float(d2.sum()))
    return float((per_unit * d2.sqrt()).sum()) / norms if 0.0 < norms < math.inf else math.nan


def scale_invariant_share(layers: Tensor) -> float:
    """The share that tensors have whose rows' gradients are orthogonal to them, as they are where the size of a row,
    which is a filter or the weights of an output, changes nothing: before a batch norm (Arora et al. 2018, arXiv
    1812.03981). A layer norm makes only the whole of a tensor scale-invariant.

    Args:
        layers: (n, 5 or more), ``over_processes``.

    Returns:
        Their share of the update's square, or of the slope, whichever is larger. The first is that of most optimizers
        whose updates have a size of their own; LAMB's and Muon's are mostly in few other tensors at first.
    """
    _, d2, down, gw2, of_random, *_ = layers.unbind(1)
    are_free = (of_random > 0.0) & (gw2 <= _ORTHOGONAL**2 * of_random)
    shares = [float(part[are_free].sum()) / float(part.sum()) for part in (d2, down) if float(part.sum()) > 0.0]
    return min(max(shares, default=0.0), 1.0)


def kinds_of_norms(layers: Tensor) -> dict[str, float]:
    """How many vectors look like the weights of norms, new ones and trained ones, by their mean and mean square.

    Args:
        layers: (n, 7), ``over_processes``.

    Returns:
        ``new_norms``, those that are 1 throughout; and ``trained_norms``, those that are not constant and have one
        sign: the square of their mean is more than half of their mean square.
    """
    number, of_vector = layers[:, 5:].unbind(1)
    are_norms = (number > 1.0) & (2.0 * of_vector.square() > number * layers[:, 0])
    number, of_vector, w2 = number[are_norms], of_vector[are_norms], layers[are_norms, 0]
    mean = of_vector / number
    are_constant = w2 / number - mean.square() < _CONSTANT**2
    are_new = are_constant & ((mean - 1.0).abs() < _CONSTANT)
    return {"new_norms": float(are_new.sum()), "trained_norms": float((~are_constant).sum())}
