"""The decay that follows a peak around the scale, where none was asked for. (Ours.)

P is the loss over the slope: it says how far the loss allows to go, and falls as the loss does. Where P holds the LR,
that is right for the beginning of the run, and too high by and by, so that the LR falls from the switch on, as REX. R
and M say how far the weights may turn in a step. That stays as it is, so that an LR that they hold is kept, and falls
over the last steps only. So is one that was raised after a transient: P, which spoke of that, has been left behind.
Scale-invariant weights have an LR above P: it is too high sooner.
"""

from __future__ import annotations

from ...shapes import DECAY_FRACTION
from .measures.scale import Scale
from .measures.scale_invariant import decay_fraction


def usual_decay(scale: Scale, num_steps: int, was_transient: bool) -> tuple[str, float]:
    """The decay of a run around the scale.

    Args:
        scale: what the first gradients said.
        num_steps: the run's optimizer steps.
        was_transient: whether the LR was raised, since what was learned first was a transient.

    Returns:
        ``decay_type``, and the ``decay_fraction`` that goes with "constant_then_cosine".
    """
    is_by_loss = scale.held_by_for(num_steps) in ("polyak", "invariance") and not was_transient
    fraction = decay_fraction(num_steps) if scale.is_scale_invariant else DECAY_FRACTION
    return ("rex" if is_by_loss else "constant_then_cosine"), fraction
