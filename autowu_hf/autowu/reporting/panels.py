"""The panels of the picture; all steps in a report are optimizer steps here.

A row of panels shows one thing over the warm-up, on the left, and over what follows; each panel draws all of it and
shows what lies in its limits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...loss_curve.divergence import ceiling
from ...loss_curve.gp import GRID, Array, FastGP, GPParameters
from ...loss_curve.spikes import usable
from ...shapes import LRCurve
from ..course.legs import lr_of_legs
from ..peak_rule import CLIFF_SHARE, MINIMUM_SHARE
from ..verdict import DIVERGENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours keep apart for colour-blind readers, and these differ in lightness or in dashes too.
_BLUE, _RED, _GREEN, _ORANGE, _GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#8c8c8c"

_FEW = 40
"""So many steps are shown as points, too."""


def draw_lr(row: Iterable[Axes], report: dict[str, Any]) -> None:
    """The LR of every step, the scale, and the LRs at the cliff and at the peak."""
    curve = _curve(report)
    switch, peak = report["switch_step"], report["peak_lr"]
    done = report["step"] if switch is None else switch
    # The step at which the warm-up ends runs at the peak LR already, so the curve jumps there.
    ways: list[tuple[int, int, str, str | None]] = [(0, done - 1, "-", None)]
    if switch is None:
        ways.append((done, report["warmup_cap"] - 1, "--", "LR to come"))
    drawn = []
    for first, last, style, label in ways:
        steps = np.unique(np.linspace(first, max(last, first), 2000).astype(int))
        drawn.append((steps, [_warmup_lr(report, curve, int(t)) for t in steps], style, label))
    lrs = [lr for _, values, _, _ in drawn for lr in values]
    if switch is not None and switch < curve.num_training_steps:
        steps = np.unique(np.linspace(switch, curve.num_training_steps - 1, 2000).astype(int))
        values = [_factor(report, int(t)) * curve.decay(int(t), switch, peak) for t in steps]
        drawn.append((steps, values, "-", None))
        lrs += [peak * factor for _, factor in [(0, 1.0), *_relapses(report)["lr_factors"]]]
    scale = (report.get("approach") or {}).get("scale")
    if scale is not None:
        lrs.append(scale["lr"])
    for i, axes in enumerate(row):
        for steps, values, style, label in drawn:
            marker = "." if len(steps) < _FEW else ""
            axes.plot(steps, values, color=_BLUE, linestyle=style, marker=marker, markersize=4, label=label)
        if scale is not None:
            axes.axhline(scale["lr"], color=_GREY, linestyle=(0, (1, 1.5)), linewidth=1.2, label="scale")
        if i == 0:
            axes.set_ylabel("learning rate")
            if report.get("cliff_lr") is not None:
                place = (max(report["cliff_step"] - 1, 0), report["cliff_lr"])
                axes.plot(*place, "D", color=_RED, markersize=5)
                _note(axes, f"{place[1]:.2g} at the cliff", place, (-7, 2), "right", _RED)
        elif switch is not None:
            _note(axes, f"peak {peak:.2g}", (switch, peak), (4, 4), "left", _BLUE)
        axes.set_yscale("log")
        axes.set_ylim(min(lrs) / 1.5, max(lrs) * 4.0)
    if scale is not None:
        axes.annotate(
            f"scale {scale['lr']:.2g}",
            (1.0, scale["lr"]),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            color="#5c5c5c",
            fontsize=8,
        )


def _note(axes: Axes, text: str, place: tuple[float, float], offset: tuple[int, int], ha: str, color: str) -> None:
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    axes.annotate(text, place, xytext=offset, textcoords="offset points", ha=ha, color=color, fontsize=9, bbox=box)


def _curve(report: dict[str, Any]) -> LRCurve:
    """The LRs of the report's run; a report of an earlier release has them in its settings."""
    if "curve" in report:
        return LRCurve(**report["curve"])
    names = ("min_lr", "max_lr", "growth", "decay_type", "decay_fraction")
    options = {name: report["settings"][name] for name in names}
    return LRCurve(report["num_training_steps"], report["growth_steps"], **options)


def _factor(report: dict[str, Any], step: int) -> float:
    """Of the decay's LR after ``step`` steps."""
    return next((factor for since, factor in reversed(_relapses(report)["lr_factors"]) if since <= step), 1.0)


def _relapses(report: dict[str, Any]) -> dict[str, Any]:
    """What was tried after the switch; a report may be older than that."""
    found: dict[str, Any] = report.get("relapses", {"attempts": [], "lr_factors": []})
    return found


def _warmup_lr(report: dict[str, Any], curve: LRCurve, step: int) -> float:
    approach, start = report.get("approach"), report.get("sweep_start", 0)
    if approach is None or (step >= start and (approach["scale"] is None or approach["sweep"] is not None)):
        return curve.warmup(step - start)
    return lr_of_legs(approach["legs"], approach["first_lr"], step)


def draw_losses(row: Iterable[Axes], report: dict[str, Any]) -> None:
    """The losses of the warm-up with the Gaussian process of the last test, and those that were logged later."""
    losses = np.array(report["losses"], dtype=np.float64)
    end = report["step"] if report["switch_step"] is None else report["switch_step"]
    steps = np.arange(len(losses)) * (end / max(len(losses), 1))
    later = np.array([pair for pair in report.get("logged_losses", []) if pair[0] > end and np.isfinite(pair[1])])
    later = later.reshape(-1, 2)
    finite = np.isfinite(losses)
    shown = losses[finite]
    high = None
    if len(shown):
        low = min([float(shown.min()), *later[:, 1]])
        usual = [float(np.quantile(values, 0.98)) for values in (shown, later[:, 1]) if len(values)]
        start = float(np.median(shown[:5]))
        if report["ended_by"] == DIVERGENCE and start > low:  # else nothing could be seen of what came before
            usual[0] = min(usual[0], low + 3.0 * (start - low))
        high = max(*usual, start)
        margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
        high += margin
    for i, axes in enumerate(row):
        if i == 0 and high is not None:
            size = 3 if len(shown) > _FEW else 6
            axes.plot(steps[finite], shown, ".", color=_GREY, markersize=size, label="training loss")
            above = finite & (losses > high)
            if above.any():
                top = np.full(int(above.sum()), high)
                (line,) = axes.plot(steps[above], top, "^", color=_GREY, markersize=5, clip_on=False)
                line.set_label("loss above the frame")
            _draw_posterior(axes, losses, report)
        if i == 0:
            axes.set_ylabel("loss")
        if len(later):
            axes.plot(later[:, 0], later[:, 1], "-", color=_GREY, linewidth=1.0, label="logged loss")
        if high is not None:
            axes.set_ylim(low - margin, high)


def _draw_posterior(axes: Axes, losses: Array, report: dict[str, Any]) -> None:
    last = report["tests"][-1] if report["tests"] else None
    if last is None or not np.isfinite(np.array([last["mean"], last["noise"]], dtype=np.float64)).all():
        return
    before, settings = report.get("losses_before", 0), report["settings"]
    losses = losses[before : before + last["num_losses"]]
    used = usable(losses, settings["standardize"])
    if settings["guard"]:
        losses = np.minimum(losses, ceiling(losses))
    params = GPParameters(last["outputscale"], last["noise"], last["mean"])
    (posterior,) = FastGP().posteriors(params, [(np.flatnonzero(used) / len(losses), losses[used])])
    band = 1.96 * np.sqrt(np.maximum(posterior.variance, 0.0))
    x = report.get("sweep_start", 0) + GRID * last["step"]
    axes.fill_between(x, posterior.mean - band, posterior.mean + band, color=_BLUE, alpha=0.25, linewidth=0)
    axes.plot(x, posterior.mean, color=_BLUE, linewidth=1.8, label="Gaussian process, 95 % band")


def draw_tests(axes: Axes, report: dict[str, Any]) -> None:
    """The probability that every test saw: the median of its subsets, and their spread."""
    confidence = report["settings"]["confidence"]
    is_cliff = report["peak_rule"] == "cliff"
    for record in report["tests"]:
        p = record["p_cliff" if is_cliff else "p_min"]
        face = _RED if record["positive"] else "white"
        step = report.get("sweep_start", 0) + record["step"]
        axes.plot([step] * 2, [min(p), max(p)], color=_GREY, linewidth=1.0)
        axes.plot(step, float(np.median(p)), "o", color=_RED, markerfacecolor=face, markersize=4)
    axes.axhline(confidence, color="black", linewidth=0.8, label=f"confidence {confidence:g}")
    axes.set_ylim(-0.05, 1.08)
    axes.set_ylabel(f"probability\nof the {'cliff' if is_cliff else 'minimum'}")


def draw_taken_back(axes: Axes, report: dict[str, Any]) -> None:
    """The steps that were taken back."""
    for i, (first, last) in enumerate(_taken_back(report)):
        axes.axvspan(first, last, color=_ORANGE, alpha=0.18, linewidth=0, label=None if i else "steps taken back")


def draw_marks(axes: Axes, report: dict[str, Any]) -> None:
    """The cliff, the minimum t*, the switch, and the snapshot that was restored."""
    switch, minimum = report["switch_step"], report["minimum_step"]
    if switch is None:
        return
    if report.get("cliff_lr") is not None:
        axes.axvline(report["cliff_step"], color=_RED, linewidth=1.3, label="cliff")
    if minimum is not None and _minimum_decides(report):
        axes.axvline(minimum, color=_GREEN, linestyle="--", linewidth=1.3, label="minimum t*")
    axes.axvline(switch, color="black", linestyle=":", linewidth=1.4, label="switch")
    if report["rewound_to"] is not None:
        axes.axvline(report["rewound_to"], color=_BLUE, linestyle="-.", linewidth=1.2, label="weights restored")


def _minimum_decides(report: dict[str, Any]) -> bool:
    """Whether what the losses say of the LR comes from their minimum. Under the cliff rule it comes from the cliff, or
    where none was found from the end of the growth, if that asks for the lower LR; so it does before a minimum that was
    hidden by the noise and lies after the cliff.
    """
    minimum, last = report["minimum_step"], report["switch_step"]
    if report.get("cliff_lr") is not None:
        last = report["cliff_step"]
    if minimum >= last or report["peak_rule"] != "cliff":
        return bool(minimum < last)
    curve, since = _curve(report), report.get("sweep_start", 0) + 1
    minimum_lr, last_lr = (curve.warmup(max(step - since, 0)) for step in (minimum, last))
    return MINIMUM_SHARE * minimum_lr <= CLIFF_SHARE * last_lr


def _taken_back(report: dict[str, Any]) -> list[tuple[int, int]]:
    """From which step to which the run only looked, since it then went back to earlier weights."""
    spans = []
    approach = report.get("approach")
    if approach is not None and approach["num_lost"]:
        # A leg from 0 begins where the run goes back to where the first one began; so may a sweep without a scale.
        starts = [leg["since"] for leg in approach["legs"] if leg["from_lr"] == 0.0]
        starts += [report["sweep_start"]] * (approach["scale"] is None)
        spans = [*itertools.pairwise(starts)]
    if report["switch_step"] is not None and report["rewound_to"] is not None:
        spans.append((report["rewound_to"], report["switch_step"]))
    for attempt in _relapses(report)["attempts"]:
        first = attempt["back_to" if attempt["was_lost"] else "since"]
        spans.append((first, report["step"] if attempt["end"] is None else attempt["taken_at"]))
    return spans
