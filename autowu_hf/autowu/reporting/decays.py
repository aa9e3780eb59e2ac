"""The decay in words: which one it is, and why."""

from __future__ import annotations

from typing import Any

_WHY = {
    "rex": {"polyak": "P held the LR", "invariance": "the LR was above P"},
    "constant_then_cosine": {
        "polyak": "the losses had hardly fallen",
        "trust": "R held the LR",
        "layers": "M held the LR",
    },
}
"""Of each type, by what holds the LR; not the same any more where a run goes on with another length."""


def name_of_decay(report: dict[str, Any]) -> str:
    """The type of the decay; a report may be older than its curve."""
    decay_type = report["curve"]["decay_type"] if "curve" in report else report["settings"]["decay_type"]
    return "REX" if decay_type == "rex" else str(decay_type).replace("_", " ")


def why_this_decay(report: dict[str, Any]) -> str:
    """Why it is that, as the end of a sentence; empty where it was asked for, or does not go by the scale."""
    settings, approach = report["settings"], report.get("approach")
    is_given = settings.get("decay_type") is not None or settings.get("decay_fraction") is not None
    if is_given or approach is None or not approach.get("scale"):
        return ""
    if approach.get("transient") is not None:
        return " since the LR was raised after a transient"
    held_by, decay_type = approach["scale"].get("held_by"), report["curve"]["decay_type"]
    why = _WHY.get(decay_type, {}).get(held_by)
    then = " before it grew on" if approach.get("sweep") is not None and "held" in (why or "") else ""
    return f" since {why}{then}" if why else ""
