"""The decay in words: which one it is, and why."""

from __future__ import annotations

from typing import Any

from ..course.usual_decay import WHY


def name_of_decay(report: dict[str, Any]) -> str:
    """The type of the decay; a report may be older than its curve."""
    decay_type = report["curve"]["decay_type"] if "curve" in report else report["settings"]["decay_type"]
    return "REX" if decay_type == "rex" else str(decay_type).replace("_", " ")


def decay_in_words(report: dict[str, Any], num_steps: int) -> str:
    """The decay over the steps that are left, why it is that, and how long."""
    if num_steps == 0:
        return "no step is left to decay in"
    steps = "1 step" if num_steps == 1 else f"{num_steps} steps"
    return f"{name_of_decay(report)} decay over {steps}{why_this_decay(report)}"


def why_this_decay(report: dict[str, Any]) -> str:
    """Why it is that, as the end of a sentence; empty where it was asked for, or does not go by the scale."""
    settings, approach = report["settings"], report.get("approach")
    is_given = settings.get("decay_type") is not None or settings.get("decay_fraction") is not None
    why = report.get("usual_decay")  # a report may be older
    if is_given or approach is None or not approach.get("scale") or why is None:
        return ""
    return f" since {WHY[why][1]}"
