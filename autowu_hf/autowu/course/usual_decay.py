"""The decay that follows a peak around the scale, where none was asked for. (Ours.)

P is the loss over the slope: it says how far the loss allows to go, and falls as the loss does. Where P is the lowest
bound, and the losses have fallen by a tenth when the warm-up is over, the LR is right for the beginning of the run, and
too high by and by, so that it falls from the switch on, as REX. What R and M say, how far the weights may turn in a
step, does not change with the loss, so that an LR that they hold is kept, and falls over the last steps only. So is one
that P holds where the losses have not fallen by a tenth, or too few steps tell; and one that was raised after a
transient: P, which spoke of that, has been left behind. Scale-invariant weights have an LR above P, which is too high
sooner. And where weights begin at zero in products with others, as LoRA's, each step gets farther as both grow, so that
the LR has to fall whatever holds it, and whatever the losses do. How the LR was corrected on the way does not count.
Evaluations hardly get better under an LR that is kept, so that early stopping would end the run before it falls: there
it falls from the switch on, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...shapes import DECAY_FRACTION
from .approach import Approach
from .measures.scale_invariant import decay_fraction

BEFORE = "constant_then_cosine"
"""The decay around the scale where a state names none: that of a release which kept every LR."""

WHY = {
    "polyak": ("rex", "P held the LR at first"),
    "invariance": ("rex", "the LR was above P"),
    "trust": ("constant_then_cosine", "R held the LR at first"),
    "layers": ("constant_then_cosine", "M held the LR at first"),
    "growth": ("rex", "steps get farther as weights grow that were zero"),
    "transient": ("constant_then_cosine", "the LR was raised after a transient"),
    "losses": ("constant_then_cosine", "the losses had not fallen by a tenth"),
    "steps": ("constant_then_cosine", "so few steps do not tell whether the losses fall"),
    "early stopping": ("rex", "evaluations may stop the run early"),
}
"""What decides -> the type of the decay, and that in words."""


class UsualDecay:
    """The decay of a run around the scale.

    Attributes:
        why: a key of ``WHY``; None before it is known, and after a resume from a state that knew none. Once the warm-up
            is over it stays, whatever the length of a run that goes on.
        stops_early: whether evaluations may stop the run.
    """

    why: str | None = None
    stops_early = False

    @property
    def decay_type(self) -> str:
        """That of the run."""
        return BEFORE if self.why is None else WHY[self.why][0]

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
            self.why = "growth" if scale.others_follow else scale.held_by_for(num_steps)
            # A growth begins where the losses have fallen to half, unless they have not moved; a state may be older.
            has_halved = approach.sweep is not None and approach.unmoved is None
            if approach.transient.raised_at is not None and not approach.way.has_gone_back:
                self.why = "transient"
            elif self.why == "polyak" and not (approach.has_fallen or has_halved):
                self.why = "steps" if approach.has_fallen is None else "losses"
            if self.stops_early and self.decay_type != "rex":
                self.why = "early stopping"
        return self.decay_type, decay_fraction(num_steps) if scale.is_scale_invariant else DECAY_FRACTION

    def load_state_dict(self, state: Mapping[str, str | None] | None) -> None:
        """Restores what ``state_dict`` returned; None is that of a release that kept every LR."""
        self.why = None if state is None else state["why"]

    def state_dict(self) -> dict[str, str | None]:
        """A name."""
        return {"why": self.why}
