"""The decision in words: the line in the log, the picture's title, the model card."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...loss_curve import divergence
from ...loss_curve.gp import Array
from ..course.measures.scale import Scale
from ..course.words import lasting, setbacks, times
from ..relapse.words import in_short
from ..verdict import DIVERGENCE, MAX_LR, NOTHING, MinimumTestRecord
from .at_scale import at_scale
from .decays import decay_in_words, name_of_decay
from .peak_words import contested, given

_STEPS = ("num_training_steps", "growth_steps", "switch_step", "minimum_step", "cliff_step", "rewound_to")
"""Fields of a report, and of its curve, that are scheduler steps."""

SCHEDULER_STEPS = "scheduler steps, ticks_per_step of them an optimizer step; optimizer steps in approach and relapses"
"""What a report says of its unit."""


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
    curve = part(report["curve"], (*_STEPS, "since", "shift"))
    curve["before"] = [[*(round(value / ticks) for value in pace[:3]), *pace[3:]] for pace in curve.get("before", ())]
    return {
        **report,
        "ticks_per_step": 1,
        "steps_are": "optimizer steps",
        "curve": curve,
        "tests": [part(record, ("step", "minimum_step", "cliff_step")) for record in report["tests"]],
    }


def describe(report: dict[str, Any]) -> str:
    """The switch in one line, as it is logged; in optimizer steps.

    Args:
        report: what ``AutoWUScheduler.report`` returned after the switch.

    Returns:
        For example "cliff at step 121, seen at step 146, minimum at step 114; peak LR 9.5e-3, weights and optimizer
        state of step 91, REX decay over 654 steps".
    """
    report = in_optimizer_steps(report)
    step = report["switch_step"]
    scale, approach = _scale(report), report.get("approach") or {"looks": True}  # none after a resume over a range
    if report["ended_by"] == "minimum":
        found = f"{_minimum(report)} of {step}"
    elif report["ended_by"] in (MAX_LR, NOTHING) or (report["ended_by"] == "cap" and scale is not None):
        found = f"{_ending(report)}, at step {step}"
    elif report["ended_by"] == "scale":
        found = at_scale(report, approach, step)
    elif report["ended_by"] == "cliff" and report.get("cliff_step") is not None:
        found = f"cliff at step {report['cliff_step']}, seen at step {step}, {_minimum(report)}"
    else:
        found = f"{_ending(report)} at step {step}, {_minimum(report)}"
    if scale is not None:
        found = f"{scale} from the first gradients{_corrections(approach)}; {found}"
    restored = "" if report["rewound_to"] is None else f", weights and optimizer state of step {report['rewound_to']}"
    steps = max(report["num_training_steps"] - step, 0)  # less where a finished run was resumed as a shorter one
    return f"{found}; peak LR {_peak(report)}{restored}, {decay_in_words(report, steps)}{in_short(report)}"


def with_sentence(report: dict[str, Any]) -> dict[str, Any]:
    """A report with how the LR was found in one sentence, ``found``: after the switch the line in the log."""
    return {"found": headline(report) if report["switch_step"] is None else describe(report), **report}


def is_doubtful(report: dict[str, Any]) -> bool:
    """Whether the peak of a report after the switch is one that the losses do not speak for."""
    approach = report["approach"] or {"breaks_too_often": False, "sweep": None}
    was_seen = report["minimum_step"] is not None or approach["sweep"] is not None
    is_unseen = report["ended_by"] == NOTHING or (report["ended_by"] in (DIVERGENCE, "cap") and not was_seen)
    return (is_unseen and report.get("lr_of_fall") is None) or bool(approach["breaks_too_often"])


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
        found = f"from the first gradients{_corrections(report.get('approach'))}"
    elif report["ended_by"] == "minimum":
        found = f"minimum at {report['minimum_step']}, seen at step {step}"
    elif report["ended_by"] == "cliff" and report.get("cliff_step") is not None:
        found = f"cliff at {report['cliff_step']}, seen at step {step}"
    elif report["ended_by"] in (MAX_LR, NOTHING) or (report["ended_by"] == "cap" and scale is not None):
        found = _ending(report)
    else:
        found = f"{_ending(report)} at step {step}"
    if scale is not None:
        is_all = report["ended_by"] == "scale"
        found = f"{scale} {found}" if is_all else f"{scale}{_corrections(report.get('approach'))}; {found}"
    back = "" if report["rewound_to"] is None else f"; back to step {report['rewound_to']}"
    then = "" if scale is not None else f"; {name_of_decay(report)} decay"
    return f"AutoWU: {found}{back}; peak LR {_peak(report)}{then}{in_short(report)}"


def lr_in_words(report: dict[str, Any]) -> str:
    """The peak LR of a report after the switch, as a model card names it."""
    said, whose = f"{report['peak_lr']:.3g}", given(report)
    if whose:
        said += f"{whose}; AutoWU found none"
    elif report["ended_by"] == MAX_LR:
        said += ", which is max_lr; the losses fell all the way up to it"
    else:
        said += f", {'chosen' if is_doubtful(report) else 'found'} by AutoWU{in_short(report)}"
    return said + contested(report)


def _peak(report: dict[str, Any]) -> str:
    return _lr(report["peak_lr"]) + given(report) + contested(report)


def _ending(report: dict[str, Any]) -> str:
    if report["ended_by"] == "cap" and _scale(report) is not None:
        losses = _losses_of_growth(report)
        if divergence.has_ended_high(losses):
            return f"the losses rose, without a certain cliff, up to {_highest(report)}"
        fell = report["rewound_to"] is None and divergence.has_fallen(losses)
        return f"{'the losses fell all the way' if fell else 'no cliff'} up to {_highest(report)}"
    if report["ended_by"] == NOTHING and (report["approach"] or {}).get("is_blind"):
        return str(report["approach"]["obstacle"])
    if report["ended_by"] == NOTHING:
        highest = _highest(report)
        if report.get("lr_of_fall") is not None:
            told = f"the losses fell, and for as far a fall the first gradients say {_lr(report['lr_of_fall'])}"
            return f"{told}; no LR was told up to {highest}"
        if divergence.has_gained(_losses_of_growth(report)):
            return f"the losses fell, but told no LR up to {highest} (a higher max_lr may)"
        return f"the losses told nothing up to LR {highest}"
    names = {
        "cliff": "cliff",
        "cap": "warm-up ended by its cap,",
        DIVERGENCE: "losses diverged",
        MAX_LR: "the losses fell all the way up to max_lr, which is the peak",
    }
    return names[report["ended_by"]]


def _losses_of_growth(report: dict[str, Any]) -> Array:
    return np.array(report.get("losses", [])[report.get("losses_before", 0) :], dtype=np.float64)


def _highest(report: dict[str, Any]) -> str:
    """The highest LR under tests; a report may be older than the field."""
    return _lr(report.get("highest_lr") or report["curve"]["max_lr"])


def _minimum(report: dict[str, Any]) -> str:
    cliff, minimum = report.get("cliff_step"), report["minimum_step"]
    if minimum is not None and cliff is not None and minimum > cliff and report["ended_by"] == "cliff":
        return "no minimum that stands out of the noise"  # the last place as good as it may lie after the cliff
    if minimum is not None:
        return f"minimum at step {minimum}"
    is_nothing = report["ended_by"] == DIVERGENCE and _scale(report) is None  # around a scale, they fell before
    return "nothing gained before" if is_nothing else "no minimum seen"


def _scale(report: dict[str, Any]) -> str | None:
    """The scale; None without one."""
    approach = report.get("approach")
    if approach is None or approach["scale"] is None:
        return None
    return f"scale {_lr(approach['scale']['lr'])}"


def _corrections(approach: dict[str, Any] | None) -> str:
    """What was done to the scale's LR; nothing without one."""
    if approach is None or not approach.get("scale"):
        return ""
    is_invariant = approach["scale"].get("held_by") == "invariance"
    said = ", told by M and R since most weights are scale-invariant" if is_invariant else ""
    if (rectified := approach["scale"].get("rectified", 1.0)) < 1.0:
        said += f", over {rectified:.2g} since the optimizer's rectified updates are as much smaller in this run"
    if (scaling := approach["scale"].get("scaling", 1.0)) < 1.0 and approach["scale"].get("held_by") != "polyak":
        said += f", times {scaling:.2g} since factors of channels are trained alone"
    if (narrowing := approach["scale"].get("narrowing", 1.0)) < 1.0:
        said += f", times {narrowing:.2g} since the gradient lies in few weights"
    if approach.get("raised", 1.0) > 1.001:  # a raise that was taken back leaves 1, to rounding
        seen = lasting(approach["lasting"])
        said += f", times {approach['raised']:.2g} since later batches see {seen} of the promised fall"
    if approach["factor"] != 1.0:
        why = f"later updates get {'farther' if approach['factor'] < 1.0 else 'less far'}"
        if approach["factor"] > 1.0 and approach["scale"].get("small_weights"):
            why = "the weights, which began small, have grown"
        said += f", times {approach['factor']:.2g} since {why}"
    if approach.get("transient") is not None:
        left, at = times(approach["kept"], approach["risen"]), approach["transient"]
        said += f", on from it since P, per unit of the way, was {left} as high after a transient, at step {at}"
    if approach.get("changes"):
        said += f", the loss having changed by step {approach['changes'][-1]}"
    said += setbacks(approach["breaks"], approach.get("break_reasons"))
    for step, rise in approach.get("overshot", []):
        seen = "made losses that are not finite" if rise is None else f"raised the loss by {100.0 * rise:.0f} %"
        said += f", a tenth of it since the way up to step {step} had {seen}"
    if approach.get("stalled") is not None:
        thin = " and most tensors hardly had a gradient" if approach["scale"].get("density", 1.0) < 1.0 else ""
        if approach.get("ruined"):
            thin = f" and many gradients were {approach['ruined'][1]:.2g} times as large as at first"
        said += f", lowered since nothing had been learned by step {approach['stalled']}{thin}"
    if approach.get("unmoved") is not None and approach["sweep"] is not None:
        said += f", and on from it since nothing had been learned by step {approach['unmoved']}"
    return said


def _lr(lr: float) -> str:
    """1.0e-3, say."""
    return f"{lr:.1e}".replace("e-0", "e-").replace("e+0", "e+")
