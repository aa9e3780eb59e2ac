"""The picture of a decision: the LR, the losses with the Gaussian process over them, and P_min of every test."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...loss_curve.divergence import ceiling
from ...loss_curve.gp import GRID, Array, FastGP, GPParameters
from ...loss_curve.spikes import usable
from ...shapes import LRCurve
from ..course.legs import lr_of_legs
from .report import headline, in_optimizer_steps, read_report, write_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours keep apart for colour-blind readers, and these differ in lightness too.
_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#8c8c8c"


class Reporting(Protocol):
    """An ``AutoWUScheduler``."""

    def report(self) -> dict[str, Any]: ...


def plot_autowu(
    scheduler_or_json: Reporting | dict[str, Any] | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws what AutoWU saw and decided.

    Above, the LR of every step on a log axis; in the middle, the training losses of the warm-up with the posterior
    mean of the Gaussian process at the last test and its 95 % band (and the losses that Trainer logged later, if
    there are any); below, P_min of every test (the probability that the cliff has been passed, under that rule), filled
    where the test was positive. Lines mark t*, the switch, and the step whose weights the switch went back to.

    Args:
        scheduler_or_json: a scheduler, bare or prepared; the path of an ``autowu.json``; or what is in it.
        path: where to save the picture, 800 x 720 pixels as PNG; None saves nothing.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: it is none of these.
        ValueError: the file is not a report of AutoWU.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_autowu needs matplotlib; install it with: pip install matplotlib") from error

    if isinstance(scheduler_or_json, dict):
        report = scheduler_or_json
    elif isinstance(scheduler_or_json, (str, bytes, os.PathLike)):
        report = read_report(scheduler_or_json)
    else:
        scheduler = getattr(scheduler_or_json, "scheduler", scheduler_or_json)  # accelerate wraps prepared schedulers
        if not hasattr(scheduler, "report"):
            raise TypeError(
                f"plot_autowu draws an AutoWU schedule or what is in its autowu.json, got {type(scheduler).__name__}; "
                'pass the scheduler of lr_scheduler_type="autowu", or the path of an autowu.json'
            )
        report = scheduler.report()
    report = in_optimizer_steps(report)

    figure = Figure(figsize=(8.0, 7.2), dpi=100, layout="constrained")
    lr_axes, loss_axes, test_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 4, 2))
    _draw_lr(lr_axes, report)
    _draw_losses(loss_axes, report)
    _draw_tests(test_axes, report)
    if report["switch_step"] is not None:
        for axes in (lr_axes, loss_axes, test_axes):
            if report["minimum_step"] is not None:
                axes.axvline(report["minimum_step"], color=_RED, linestyle="--", linewidth=1.2, label="minimum t*")
            axes.axvline(report["switch_step"], color="black", linestyle=":", linewidth=1.4, label="switch")
            if report["rewound_to"] is not None:
                axes.axvline(
                    report["rewound_to"], color=_BLUE, linestyle="-.", linewidth=1.2, label="weights taken back"
                )
    for axes in (lr_axes, loss_axes, test_axes):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if loss_axes.get_legend_handles_labels()[0]:
        loss_axes.legend(loc="upper right", fontsize=9, framealpha=0.9)
    test_axes.set_xlabel("step")
    test_axes.set_xlim(0, report["num_training_steps"])
    figure.suptitle(headline(report), fontsize=11)
    if path is not None:
        figure.savefig(path)
    return figure


def write_files(report: dict[str, Any], folder: str, file: bool, picture: bool) -> None:
    """Writes ``autowu.json``, and ``autowu.png`` where matplotlib is installed.

    Args:
        report: what ``AutoWUScheduler.report`` returned, perhaps with more.
        folder: where.
        file: whether to write the former.
        picture: whether to draw the latter.
    """
    if file:
        write_report(report, os.path.join(folder, "autowu.json"))
    if picture and importlib.util.find_spec("matplotlib") is not None:
        plot_autowu(report, os.path.join(folder, "autowu.png"))


def _draw_lr(axes: Axes, report: dict[str, Any]) -> None:
    curve = _curve(report)
    switch, peak = report["switch_step"], report["peak_lr"]
    end = report["warmup_cap"] if switch is None else switch
    # The step at which the warm-up ends runs at the peak LR already, so the curve jumps there.
    warmup = np.unique(np.linspace(0, end - 1, min(end, 2000)).astype(int))
    lrs = [_warmup_lr(report, curve, int(t)) for t in warmup]
    axes.plot(warmup, lrs, color=_BLUE, linestyle="-" if switch else "--")
    approach = report.get("approach")
    if approach is not None and approach["scale"] is not None:
        lr = approach["scale"]["lr"]
        axes.axhline(lr, color=_GREY, linestyle=":", linewidth=1.0)
        axes.annotate(
            f"scale {lr:.2g}",
            (1.0, lr),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            fontsize=8,
            textcoords="offset points",
            ha="right",
            color=_GREY,
        )
    if switch is not None and switch < curve.num_training_steps:
        decay = np.unique(np.linspace(switch, curve.num_training_steps - 1, 2000).astype(int))
        values = [curve.decay(int(t), switch, peak) for t in decay]
        axes.plot(decay, values, color=_BLUE)
        axes.annotate(f"{peak:.2g}", (switch, peak), xytext=(6, 4), textcoords="offset points", color=_BLUE, fontsize=9)
        axes.set_ylim(min(lrs) / 1.5, max(peak, *lrs) * 4.0)
    axes.set_yscale("log")
    axes.set_ylabel("learning rate")


def _curve(report: dict[str, Any]) -> LRCurve:
    """The LRs of the report's run; a report of an earlier release has them in its settings."""
    if "curve" in report:
        return LRCurve(**report["curve"])
    names = ("min_lr", "max_lr", "growth", "decay_type", "decay_fraction")
    options = {name: report["settings"][name] for name in names}
    return LRCurve(report["num_training_steps"], report["growth_steps"], **options)


def _warmup_lr(report: dict[str, Any], curve: LRCurve, step: int) -> float:
    approach, start = report.get("approach"), report.get("sweep_start", 0)
    if approach is None or (step >= start and (approach["scale"] is None or approach["sweep"] is not None)):
        return curve.warmup(step - start)
    return lr_of_legs(approach["legs"], approach["first_lr"], step)


def _draw_losses(axes: Axes, report: dict[str, Any]) -> None:
    losses = np.array(report["losses"], dtype=np.float64)
    last = report["tests"][-1] if report["tests"] else None
    end = report["step"] if report["switch_step"] is None else report["switch_step"]
    steps = np.arange(len(losses)) * (end / max(len(losses), 1))
    later = np.array([pair for pair in report.get("logged_losses", []) if pair[0] > end and np.isfinite(pair[1])])
    later = later.reshape(-1, 2)
    finite = np.isfinite(losses)
    if finite.any():
        shown = losses[finite]
        low = min([float(shown.min()), *later[:, 1]])
        high = max(float(np.quantile(shown, 0.98)), float(np.median(shown[:5])))
        margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
        high += margin
        axes.set_ylim(low - margin, high)
        axes.plot(steps[finite], shown, ".", color=_GREY, markersize=3, label="training loss")
        above = finite & (losses > high)
        if above.any():
            axes.plot(
                steps[above],
                np.full(int(above.sum()), high),
                "^",
                color=_GREY,
                markersize=5,
                clip_on=False,
                label="loss above",
            )
    if len(later):
        axes.plot(later[:, 0], later[:, 1], "-", color=_GREY, linewidth=1.0, label="logged loss")
    if last is not None and np.isfinite(np.array([last["mean"], last["noise"]], dtype=np.float64)).all():
        before = report.get("losses_before", 0)
        seen = losses[before : before + last["num_losses"]]
        _draw_posterior(axes, seen, last, report["settings"], report.get("sweep_start", 0))
    axes.set_ylabel("loss")


def _draw_posterior(axes: Axes, losses: Array, record: dict[str, Any], settings: dict[str, Any], start: int) -> None:
    used = usable(losses, settings["standardize"])
    if settings["guard"]:
        losses = np.minimum(losses, ceiling(losses))
    params = GPParameters(record["outputscale"], record["noise"], record["mean"])
    (posterior,) = FastGP().posteriors(params, [(np.flatnonzero(used) / len(losses), losses[used])])
    band = 1.96 * np.sqrt(np.maximum(posterior.variance, 0.0))
    x = start + GRID * record["step"]
    axes.fill_between(x, posterior.mean - band, posterior.mean + band, color=_BLUE, alpha=0.25, linewidth=0)
    axes.plot(x, posterior.mean, color=_BLUE, linewidth=1.8, label="Gaussian process, 95 % band")


def _draw_tests(axes: Axes, report: dict[str, Any]) -> None:
    confidence = report["settings"]["confidence"]
    name = "p_cliff" if report["peak_rule"] == "cliff" else "p_min"
    for record in report["tests"]:
        p_min = record[name]
        face = _RED if record["positive"] else "white"
        step = report.get("sweep_start", 0) + record["step"]
        axes.plot([step] * 2, [min(p_min), max(p_min)], color=_GREY, linewidth=1.0)
        axes.plot(step, float(np.median(p_min)), "o", color=_RED, markerfacecolor=face, markersize=4)
    axes.axhline(confidence, color="black", linewidth=0.8)
    axes.annotate(
        f"confidence {confidence:g}",
        (1.0, confidence),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -12),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axes.set_ylim(-0.05, 1.08)
    axes.set_ylabel("P_cliff" if report["peak_rule"] == "cliff" else "P_min")
