"""The LR for losses that may fall below 0, so that P says nothing: how far they can is taken to be how far they fell in
the warm-up, so that the LR is rather too low. (Ours.)
"""

from __future__ import annotations

from .approach import Approach
from .measures.first_steps import is_without_bound


def lr_of_fall(approach: Approach | None, fall: float) -> float | None:
    """The LR of the scale, with how far the losses fell in the place of the loss, which stands for how far they can.

    Args:
        approach: whose search has measured the first updates; None where the range of the LRs was given.
        fall: how far the losses fell, in their unit; 0 where that is not sure.

    Returns:
        The LR, in optimizer units, for a group of ratio 1; None where there is a scale, or nothing to tell it by.
    """
    if approach is None or fall <= 0.0 or not is_without_bound(approach.search.obstacle):
        return None
    search = approach.search
    if not search.updates:
        return None
    try:
        return search.scale_of([fall] * len(search.updates)).peak_lr_for(approach.times.num_steps)
    except ValueError:  # the updates do not go down the gradient, say
        return None
