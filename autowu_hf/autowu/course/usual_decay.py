"""The decay that follows a peak around the scale, where none was asked for. (Ours.)

P is the loss over the slope: it says how far the loss allows to go, and falls as the loss does. Where P holds the LR,
and the losses have fallen by a tenth when the warm-up is over, that LR is right for the beginning of the run, and too
high by and by, so that it falls from the switch on, as REX. R and M say how far the weights may turn in a step. That
stays as it is, so that an LR that they hold is kept, and falls over the last steps only. So is one that P holds where
the losses have hardly fallen, or nobody looks at them, in runs of a few steps; and one that was raised after a
transient: P, which spoke of that, has been left behind. Scale-invariant weights have an LR above P, which is too high
sooner.
"""

from __future__ import annotations

from ...shapes import DECAY_FRACTION
from .approach import Approach
from .measures.scale_invariant import decay_fraction

BEFORE = "constant_then_cosine"
"""The decay around the scale where a state names none: that of a release which kept every LR."""


class UsualDecay:
    """The decay of a run around the scale.

    Attributes:
        decay_type: that of the run. Once its switch is over it stays, whatever the length of a run that goes on.
    """

    decay_type = BEFORE

    def of(self, approach: Approach, num_steps: int, is_over: bool) -> tuple[str, float]:
        """Decides, unless the warm-up is over.

        Args:
            approach: one that knows the scale.
            num_steps: the run's optimizer steps.
            is_over: whether the warm-up is.

        Returns:
            ``decay_type``, and the ``decay_fraction`` that goes with "constant_then_cosine".
        """
        scale = approach.scale
        assert scale is not None
        if not is_over:
            falls = {"polyak": approach.has_fallen, "invariance": True}.get(scale.held_by_for(num_steps), False)
            is_by_loss = falls and approach.transient.raised_at is None
            self.decay_type = "rex" if is_by_loss else "constant_then_cosine"
        return self.decay_type, decay_fraction(num_steps) if scale.is_scale_invariant else DECAY_FRACTION
