"""The decision in words and as a file: the line in the log, the picture's title, ``autowu.json``."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any

from ..course.scale import Scale
from ..verdict import NOTHING, MinimumTestRecord

_STEPS = ("num_training_steps", "growth_steps", "switch_step", "minimum_step", "rewound_to")
"""Fields of a report, and of its curve, that are scheduler steps."""


def log_values(
    phase: str, tests: Sequence[MinimumTestRecord], peak_rule: str, peak_lr: float | None, scale: Scale | None
) -> dict[str, float]:
    """What the training logs get beside the loss: ``autowu/phase``, 0 in the warm-up and 1 in the decay;
    ``autowu/scale``, once it is known; until the switch what the last test goes by, the median over its subsets:
    ``autowu/p_cliff``, or ``autowu/p_min`` under that rule; and ``autowu/peak_lr`` from the switch on.
    """
    values = {"autowu/phase": float(phase == "decay")}
    if scale is not None:
        values["autowu/scale"] = scale.lr
    if tests and phase == "warmup":
        name = "p_cliff" if peak_rule == "cliff" else "p_min"
        values[f"autowu/{name}"] = statistics.median(getattr(tests[-1], name))
    if peak_lr is not None:
        values["autowu/peak_lr"] = peak_lr
    return values


def in_optimizer_steps(report: dict[str, Any]) -> dict[str, Any]:
    """A report whose steps are all optimizer steps, as people count them. In an accelerate loop of several processes
    the schedule makes one step a process for each of them.

    Args:
        report: what ``AutoWUScheduler.report`` returned.
    """
    ticks = report.get("ticks_per_step", 1)
    if ticks == 1:
        return report

    def part(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        found = {name: values[name] for name in names if values.get(name) is not None}
        return {**values, **{name: round(value / ticks) for name, value in found.items()}}

    report = part(report, (*_STEPS, "step", "warmup_cap", "sweep_start"))
    return {
        **report,
        "ticks_per_step": 1,
        "curve": part(report["curve"], _STEPS),
        "tests": [part(record, ("step", "minimum_step", "cliff_step")) for record in report["tests"]],
    }


def describe(report: dict[str, Any]) -> str:
    """The switch in one line, as it is logged; in optimizer steps.

    Args:
        report: what ``AutoWUScheduler.report`` returned after the switch.

    Returns:
        For example "cliff at step 146, minimum at step 114; peak LR 9.5e-3, weights and optimizer state of step 91, rex
        decay over 654 steps".
    """
    report = in_optimizer_steps(report)
    step, minimum = report["switch_step"], report["minimum_step"]
    scale = _scale(report)
    if report["ended_by"] == "minimum":
        found = f"minimum at step {minimum} of {step}"
    elif report["ended_by"] == NOTHING or (report["ended_by"] == "cap" and scale is not None):
        found = f"{_ending(report)}, at step {step}"
    elif report["ended_by"] == "scale":
        found = f"the losses ask for no more at step {step}"
        if report["approach"].get("breaks_too_often"):
            found = f"the losses are still far above their start at step {step}, look for NaN or a change in the data"
        elif not report["approach"]["looks"]:
            found = f"too few steps to look on from step {step}"
    else:
        found = f"{_ending(report)} at step {step}, minimum at step {minimum}"
    if scale is not None:
        found = f"{scale} from the first gradients{_corrections(report['approach'])}; {found}"
    restored = "" if report["rewound_to"] is None else f", weights and optimizer state of step {report['rewound_to']}"
    steps = report["num_training_steps"] - step
    given = ""
    if report["ended_by"] == NOTHING:
        is_highest = report["peak_lr"] == report["settings"].get("max_lr")
        given = ", which is max_lr" if is_highest else ", which the optimizer was given"
    return f"{found}; peak LR {_lr(report['peak_lr'])}{given}{restored}, {_decay(report)} decay over {steps} steps"


def headline(report: dict[str, Any]) -> str:
    """The same as a title of the picture; before the switch, how far the warm-up is."""
    report = in_optimizer_steps(report)
    step, scale = report["switch_step"], _scale(report)
    if step is None:
        approach = report.get("approach")
        if approach is not None and approach["obstacle"] is None and approach["sweep"] is None:
            return f"AutoWU: {scale or 'measuring the scale'}, step {report['step']}"
        return f"AutoWU: warming up, step {report['step']} of at most {report['warmup_cap']}"
    if report["ended_by"] == "scale":
        found = "from the first gradients"
    elif report["ended_by"] == "minimum":
        found = f"minimum at {report['minimum_step']}, seen at step {step}"
    elif report["ended_by"] == NOTHING or (report["ended_by"] == "cap" and scale is not None):
        found = _ending(report)
    else:
        found = f"{_ending(report)} at step {step}"
    if scale is not None:
        found = f"{scale} {found}" if report["ended_by"] == "scale" else f"{scale}; {found}"
    back = "" if report["rewound_to"] is None else f"; back to step {report['rewound_to']}"
    then = "" if scale is not None else f", then {_decay(report)}"
    return f"AutoWU: {found}{back}; peak LR {_lr(report['peak_lr'])}{then}"


def _ending(report: dict[str, Any]) -> str:
    if report["ended_by"] == "cap" and _scale(report) is not None:
        return f"no cliff up to {_lr(report['curve']['max_lr'])}"
    if report["ended_by"] == NOTHING and (report["approach"] or {}).get("is_blind"):
        return str(report["approach"]["obstacle"])
    if report["ended_by"] == NOTHING:
        return f"the losses told nothing up to LR {_lr(report['curve']['max_lr'])}"
    names = {"cliff": "cliff", "cap": "warm-up ended by its cap,", "divergence": "losses diverged"}
    return names[report["ended_by"]]


def _scale(report: dict[str, Any]) -> str | None:
    """The scale; None without one."""
    approach = report.get("approach")
    if approach is None or approach["scale"] is None:
        return None
    return f"scale {_lr(approach['scale']['lr'])}"


def _corrections(approach: dict[str, Any]) -> str:
    """What was done to the scale's LR."""
    said = ""
    if approach["factor"] != 1.0:
        size = "larger" if approach["factor"] < 1.0 else "smaller"
        said += f", times {approach['factor']:.2g} since later updates are {size}"
    if approach.get("changes"):
        said += f", the loss having changed by step {approach['changes'][-1]}"
    if approach["breaks"]:
        said += ", a tenth of it since the losses rose too far by step " + " and again by step ".join(
            map(str, approach["breaks"])
        )
    if approach.get("stalled") is not None:
        said += f", a tenth of it since nothing had been learned by step {approach['stalled']}"
    return said


def _decay(report: dict[str, Any]) -> str:
    decay_type = report["curve"]["decay_type"] if "curve" in report else report["settings"]["decay_type"]
    return str(decay_type).replace("_", " ")


def _lr(lr: float) -> str:
    """1.0e-3, say."""
    return f"{lr:.1e}".replace("e-0", "e-").replace("e+0", "e+")


def write_report(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a report; the file is either whole or the one before.

    Args:
        report: what ``AutoWUScheduler.report`` returned, perhaps with more. Non-finite numbers become null.
        path: where; folders are made.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(_finite(report), file, allow_nan=False)
        file.write("\n")
    os.replace(temporary, path)


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what ``write_report`` wrote; null losses are NaN again.

    Args:
        path: of ``autowu.json``.

    Returns:
        The report.

    Raises:
        ValueError: the file is not such a report.
    """
    with open(path, encoding="utf-8") as file:
        report = json.load(file)
    if not isinstance(report, dict) or "growth_steps" not in report:
        raise ValueError(f"{os.fspath(path)} is not a report of AutoWU; pass the autowu.json of a run")
    report["losses"] = [math.nan if loss is None else loss for loss in report["losses"]]
    return report


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
