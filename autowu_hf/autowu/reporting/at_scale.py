"""What is said of the losses where the scale's LR, or what became of it, is the peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..course.signs import have_hardly_fallen


def at_scale(report: Mapping[str, Any], approach: Mapping[str, Any], step: int) -> str:
    """Whether they ask for a higher LR, as a part of a sentence.

    Args:
        report: of a run after the switch, in optimizer steps.
        approach: that of its approach, or what stands in for it after a resume over a range.
        step: the steps done at the switch.
    """
    if approach.get("breaks_too_often"):
        return f"the losses are still far above their start at step {step}, look for NaN or a change in the data"
    if not approach["looks"]:
        return f"too few steps to look on from step {step}"
    if are_still_high(report.get("losses", []), approach, step):
        has_turned = approach.get("breaks") or approach.get("changes")
        seen = "hardly fallen since" if has_turned else "neither fallen nor risen far"
        return f"the losses have {seen} by step {step}, and do not speak for this LR yet"
    if approach.get("is_too_short"):
        return f"the losses had halved by step {step}, and there are too few steps to look for a higher LR"
    return f"the losses ask for no more at step {step}"


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
