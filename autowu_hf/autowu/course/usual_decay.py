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

BEFORE = "constant_then_cosine"
"""The decay around the scale where a state names none: that of a release which kept every LR."""


class UsualDecay:
    """The decay of a run around the scale.

    Attributes:
        decay_type: that of the run. Once its switch is over it stays, whatever the length of a run that goes on.
    """

    decay_type = BEFORE

    def of(self, scale: Scale, num_steps: int, raised_at: int | None, is_over: bool) -> tuple[str, float]:
        """Decides, unless the warm-up is over.

        Args:
            scale: what the first gradients said.
            num_steps: the run's optimizer steps.
            raised_at: the steps done when the LR was raised after a transient; None where it was not.
            is_over: whether the warm-up is.

        Returns:
            ``decay_type``, and the ``decay_fraction`` that goes with "constant_then_cosine".
        """
        if not is_over:
            is_by_loss = scale.held_by_for(num_steps) in ("polyak", "invariance") and raised_at is None
            self.decay_type = "rex" if is_by_loss else "constant_then_cosine"
        return self.decay_type, decay_fraction(num_steps) if scale.is_scale_invariant else DECAY_FRACTION
