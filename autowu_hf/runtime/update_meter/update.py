"""The numbers of one optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
