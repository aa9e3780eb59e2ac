"""Whether the losses that were heard before an optimizer step are those of that step, and the warnings where not."""

from __future__ import annotations

import warnings

from ..checks import caller_level


class LossOfStepWarning(UserWarning):
    """Perhaps not all of the losses that were heard belong to the step that they count for, or some are missing."""


class DividedGradientsWarning(UserWarning):
    """The loss that a schedule was handed may not be the one whose gradients the optimizer got."""


_DIVIDED = (
    "the gradients were divided by {divisor:.4g} after the backward, and are taken for those of the loss that step() "
    "was handed, which is divided, too, presumably. If it is not, pass it divided, scheduler.step(loss / n), or divide "
    "the loss before its backward, and not the gradients. Where it is, filter this warning"
)


def warn_of_divisor(divisor: float) -> None:
    """Warns that gradients which were divided after their backward are taken for those of a divided loss."""
    warnings.warn(_DIVIDED.format(divisor=divisor), DividedGradientsWarning, stacklevel=caller_level())


_OFTEN = 3
"""The steps in a row whose gradients were set to zero on the way, for a warning; now and then a batch is dropped."""

_ZEROED = (
    "optimizer.zero_grad() was called between two backward calls of an optimizer step, in three steps in a row; AutoWU "
    "counts the losses since then only. Where the step is made of more than these gradients, pass its loss: "
    "scheduler.step(loss)"
)

_MIXED = (
    "another optimizer of the Accelerator was stepped between two backward calls of this one's step, so that AutoWU "
    "counts losses of both. Pass the loss of this one, scheduler.step(loss), or call its zero_grad() before its "
    "backward"
)


class LossDoubts:
    """What happened between the backward calls of one optimizer's steps."""

    def __init__(self) -> None:
        self._was_dropped = self._other_stepped = self._is_mixed = False
        self._num_dropped = 0
        self._unsaid = {_ZEROED, _MIXED}

    def other_stepped(self) -> None:
        """Another optimizer of the accelerator was stepped, after a backward."""
        self._other_stepped = True

    def backward(self, is_first: bool) -> None:
        """A loss was heard; ``is_first``: of the step."""
        self._is_mixed = self._is_mixed or (self._other_stepped and not is_first)
        self._other_stepped = False

    def dropped(self) -> None:
        """The gradients were set to zero, after a backward. If it was another optimizer's, that is as it should be."""
        self._was_dropped = self._was_dropped or not self._other_stepped
        self._other_stepped = False

    def stepped(self, has_closure: bool) -> None:
        """The optimizer was stepped; a closure sets gradients to zero as often as it is called."""
        self._num_dropped = self._num_dropped + 1 if self._was_dropped and not has_closure else 0
        self._was_dropped = self._other_stepped = False

    def warn(self) -> None:
        """Warns of each doubt once."""
        if self._num_dropped < _OFTEN and not self._is_mixed:
            return
        found = ((self._num_dropped >= _OFTEN, _ZEROED), (self._is_mixed, _MIXED))
        for said in [said for holds, said in found if holds and said in self._unsaid]:
            self._unsaid.discard(said)
            warnings.warn(said, LossOfStepWarning, stacklevel=caller_level())
