"""The numbers of one optimizer step, and the sums over the weights that they are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
"""The types of weights in half precision."""

NUM_SUMS = 9
"""The length of ``sums_of``."""


@dataclass(frozen=True)
class Update:
    """One optimizer step, per unit of learning rate: u is the change of the weights divided by the LR.

    Args:
        slope: -<g, u>, by how much the loss of the step's batch would fall; g is the gradient before clipping.
        update_norm: ||u||, over the weights that are not all zero (see ``weight_norm``).
        weight_norm: ||w||, over the same; tensors that are zero throughout say nothing about the size of weights, such
            as LoRA's B or a fresh bias, and are left out of both norms.
        alignment: -<g, u> / (||g|| ||u||) over all weights, u being per unit of its group's own LR: 1 where the update
            is the gradient itself, as in SGD's first step.
        resolution: ||lr u|| / ||w|| over all weights; far below the precision of the weights, rounding decides.
        clipping: by what the norm of the gradient was divided before the step, at least 1.
        gradient_norm: ||g|| at the step.
        lr: of the step.
    """

    slope: float
    update_norm: float
    weight_norm: float
    alignment: float
    resolution: float
    clipping: float
    gradient_norm: float = math.nan
    lr: float = math.nan

    @classmethod
    def from_sums(cls, sums: Tensor, lr: float, clipping: float) -> Update:
        """The update of a step.

        Args:
            sums: (NUM_SUMS,), finite, the sum of ``sums_of`` over all tensors with a gradient.
            lr: the common LR of the step, positive.
            clipping: as above.
        """
        down, w2, g2, d2, seen_d2, own_g2, own_down, own_d2, _ = sums.tolist()
        return cls(
            slope=clipping * down / lr,
            update_norm=math.sqrt(seen_d2) / lr,
            weight_norm=math.sqrt(w2),
            alignment=own_down / math.sqrt(own_g2 * own_d2) if own_g2 * own_d2 > 0.0 else 0.0,
            resolution=math.sqrt(d2 / w2) if w2 > 0.0 else math.inf if d2 > 0.0 else 0.0,
            clipping=clipping,
            gradient_norm=math.sqrt(g2),
            lr=lr,
        )


def sums_of(before: Tensor, now: Tensor, gradient: Tensor, own_lr: float) -> Tensor:
    """What one tensor, or one share of it, adds to the numbers of a step, d being the change of its weights.

    Args:
        before: its weights before the step.
        now: after it, on the same device.
        gradient: at the step.
        own_lr: of its group.

    Returns:
        (NUM_SUMS,), float64, on the CPU: -<g, d>, ||w||^2, ||g||^2, ||d||^2, the last again where w is not all zero;
        ||g||^2, -<g, d> and ||d||^2 per unit of the group's own LR, 0 where that is 0; and 1.
    """
    change = _wide(now) - _wide(before)
    w2, g2, d2 = (product(t, t) for t in (before, gradient, change))
    down = -product(gradient, change)
    own = [x / own_lr**i if own_lr > 0.0 else 0.0 * x for i, x in enumerate((g2, down, d2))]
    return torch.stack([down, w2, g2, d2, d2 * (w2 > 0.0), *own, torch.ones_like(w2)]).cpu()


def seen_share(sums: Tensor) -> float:
    """||d|| / ||w|| over the weights that are not all zero, of the same sum as in ``from_sums``; NaN without such."""
    w2, seen_d2 = float(sums[1]), float(sums[4])
    return math.sqrt(seen_d2 / w2) if w2 > 0.0 else math.nan


def product(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> as a float64 on their device; of half precision, in single precision first."""
    return (_wide(a) * _wide(b)).sum(dtype=torch.float64)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor
