"""What is said of a course before it is gone; all steps here are optimizer steps."""

from __future__ import annotations

from ..settings import AutoWUSettings
from .approach import Approach
from .signs import FEWEST_STEPS


def announcement(approach: Approach | None, settings: AutoWUSettings, steps: int, cap: int, rewinds: bool) -> str:
    """What will be done, in one line.

    Args:
        approach: None where the range of the LRs was given.
        settings: the options.
        steps: of the whole run.
        cap: of the longest growth over a range.
        rewinds: whether weights can be put back.
    """
    back = "the weights then go back" if rewinds else "only the learning rate goes back then, for rewind is off"
    if approach is None or approach.is_over:
        return (
            f"AutoWU looks for the learning rate from {settings.min_lr:g} to {settings.max_lr:g} within "
            f"{cap} of {steps} steps. The loss may rise on the way; {back}"
        )
    end = approach.ramp_end(2)
    if steps < FEWEST_STEPS:
        return f"AutoWU measures the scale of the learning rate in the first 2 of {steps} steps, and grows to it"
    return (
        f"AutoWU measures the scale of the learning rate in the first 2 of {steps} steps, grows to it by step "
        f"{end}, and watches the losses until step {approach.look_end(end)}. The loss may rise on the way; {back}"
    )


def resumption(steps: int, lr: float, step: int, max_lr: float, end: int) -> str:
    """How a growth goes on that was planned for another run than the one of ``steps`` steps: from ``lr`` at ``step`` to
    ``max_lr`` at ``end``.
    """
    return (
        f"AutoWU goes on with a growth that was planned for another run than this one of {steps} steps: from learning "
        f"rate {lr:.1e} at step {step} to {max_lr:.1e} at step {end}"
    )
