"""What is said of the losses where the scale's LR, or what became of it, is the peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...loss_curve.lost import LEAST_LOST, level
from ..course.signs import have_hardly_fallen


def at_scale(report: Mapping[str, Any], approach: Mapping[str, Any], step: int) -> str:
    """Whether they ask for a higher LR, as a part of a sentence.

    Args:
        report: of a run after the switch, in optimizer steps.
        approach: that of its approach, or what stands in for it after a resume over a range.
        step: the steps done at the switch.
    """
    if approach.get("breaks_too_often"):
        look = "look for NaN or a change in the data, and whether what is handed over is a loss, which is to fall"
        return f"the losses are still far above their start at step {step}; {look}"
    if not approach["looks"]:
        return f"too few steps to look on from step {step}"
    losses = report.get("losses", [])
    if 0 < 2 * len(losses) < step:  # the loop hands them over now and then, or no more
        return f"no more than {len(losses)} losses were seen by step {step}, too few to say anything of this LR"
    if are_still_high(losses, approach, step):
        has_turned = approach.get("breaks") or approach.get("changes")
        seen = "hardly fallen since" if has_turned else _moved(losses, approach)
        return f"the losses have {seen} by step {step}, and do not speak for this LR yet"
    if approach.get("is_too_short"):
        return f"the losses had halved by step {step}, and there are too few steps to look for a higher LR"
    return f"the losses ask for no more at step {step}"


def _moved(losses: Sequence[float], approach: Mapping[str, Any]) -> str:
    """What losses have done that lie where they began, or above."""
    if approach.get("transient") is not None:
        return f"fallen to half by step {approach['transient']} and come back"
    num = max(3, len(losses) // 3)
    first, last = (level(np.array(part)) for part in (losses[:num], losses[-num:]))
    return "risen" if last > (1.0 + LEAST_LOST) * first else "neither fallen nor risen far"


def are_still_high(losses: Sequence[float], approach: Mapping[str, Any], step: int) -> bool:
    """Whether the last third of the losses, or of those since the run last went back, are hardly less than the first
    ones.

    Args:
        losses: one per optimizer step.
        approach: its report.
        step: the steps done.
    """
    back = [*approach.get("breaks", []), *(at for at, _ in approach.get("overshot", [])), approach.get("stalled") or 0]
    since = max(back)
    num = max(3, (len(losses) - since) // 3 if since else min(step // 3, len(losses)))
    return have_hardly_fallen(np.array([*losses[:num], *losses[since:]] if since else losses), num)
