"""The LR that weights need whose size changes nothing. (Ours.)

Those before a batch norm may be multiplied by anything, and the network's outputs are the same: such weights are
scale-invariant. Only the angle by which an update turns them counts. Where that is too large, the updates, which are
orthogonal to the weights, make them larger, and the angle smaller (Arora et al. 2018, arXiv 1812.03981): they
bear an LR that is too high, and R and M tell what an LR is to them. P is too low, by the more the deeper the
network is: the loss is steep along a gradient that is mostly noise of the batch, but only for a small angle.
"""

from __future__ import annotations

import math

from ....shapes import DECAY_FRACTION

INVARIANT_FROM = 0.5
"""The share of the first updates, or of their slope, from which these weights decide. With AdamW it is above 0.9 in
networks with batch norm, and 0 in the others of ``examples/benchmarks/``.
"""

INVARIANT_SHARE = 0.2
"""What they need, as a share of the highest LR that R and M allow; chosen in ``examples/benchmarks/batch_norm.py``."""

BORNE = 4.0
"""So many times as high the losses must rise before the LR counts as too high for them. EfficientNet's gradients, in
batches of 16, are mostly noise: its losses rise by an eighth in runs that end well, and those of a few batches by more.
"""


def least_lr(trusted_lr: float, is_aligned: bool) -> float:
    """The LR that scale-invariant weights need.

    Args:
        trusted_lr: the highest that R and M allow; infinite where they say nothing.
        is_aligned: whether updates are the gradients, which become smaller as the weights grow: then they need it all.

    Returns:
        A fifth of it, or all; 0 where there is none.
    """
    if not math.isfinite(trusted_lr):
        return 0.0
    return trusted_lr if is_aligned else INVARIANT_SHARE * trusted_lr


SETTLING, LONGEST_DECAY = 24, 0.4
"""The LR falls over so many optimizer steps at least, and over so large a share of a run at most for that. A batch norm
uses a mean over its last batches in evaluation, ten or so with torch's momentum of 0.1: it has to catch up with the
weights.
"""


def decay_fraction(num_steps: float) -> float:
    """The last share of a run of so many optimizer steps over which the LR falls, where most weights come before a
    batch norm. In runs of 120 steps or more it is the usual one.
    """
    return max(DECAY_FRACTION, min(SETTLING / max(num_steps, 1.0), LONGEST_DECAY))
