"""The picture of a decision: the LR, the losses with the Gaussian process over them, and what every test said."""

from __future__ import annotations

import importlib.util
import os
import re
import textwrap
from typing import TYPE_CHECKING, Any

from . import panels
from .report import headline, in_optimizer_steps
from .report_file import write_report
from .sources import Reporting, report_from

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_SHARE, _LARGEST_SHARE = 0.5, 0.75
"""Of the width, for the warm-up; within these limits it has its share of the steps."""

_HEIGHTS = (3, 4, 2)
_TITLE_WIDTH = 100
"""In characters."""


def plot_autowu(
    scheduler_or_json: Reporting | dict[str, Any] | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws what AutoWU saw and decided.

    On the left is the warm-up, which has at least half of the width, and on the right what follows; each has its own
    axis of optimizer steps. Above, the LR on a log axis; below it, the training losses of the warm-up, with the
    posterior mean of the Gaussian process at the last test and its 95 % band (and the losses that were logged later, if
    there are any); at the bottom, where there were tests, the probability of the cliff that each of them saw (of the
    minimum, under that rule), filled where the test was positive. Lines mark the cliff and the minimum t*, where they
    were found, the switch, and the step whose weights the switch went back to. The steps that were taken back are
    shaded.

    Args:
        scheduler_or_json: a scheduler, bare or prepared; the path of an ``autowu.json``, of the file in which a
            checkpoint keeps the scheduler (Trainer's "scheduler.pt", accelerate's "scheduler.bin"), or of a folder with
            one of them; or what is in the first.
        path: where to save the picture, 800 x 720 pixels as PNG; None saves nothing.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: it is none of these.
        ValueError: the file holds no report, or no state of AutoWU; or the folder holds not one report.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_autowu needs matplotlib; install it with: pip install matplotlib") from error

    report = in_optimizer_steps(report_from(scheduler_or_json))
    figure = Figure(figsize=(8.0, 7.2), dpi=100, layout="constrained")
    columns = _columns(report)
    rows = 3 if report["tests"] else 2
    grid = figure.subplots(
        rows,
        len(columns),
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=_HEIGHTS[:rows],
        width_ratios=[share for _, _, share, _ in columns],
    )
    panels.draw_lr(grid[0], report)
    panels.draw_losses(grid[1], report)
    if rows == 3:
        panels.draw_tests(grid[2, 0], report)
    for axes in grid[:, 0]:
        panels.draw_marks(axes, report)
    filled = [rows] * len(columns)
    if len(columns) == 2:  # no test is run after the switch, and losses may not have been logged
        filled[1] = 2 if report.get("logged_losses") else 1
    for i, (start, end, _, title) in enumerate(columns):
        for axes in grid[: filled[i], i]:
            panels.draw_taken_back(axes, report)
        grid[0, i].set_title(title, fontsize=9)
        lowest = grid[filled[i] - 1, i]
        lowest.set_xlim(start, max(end, start + 1))
        lowest.set_xlabel("optimizer step")
        lowest.tick_params(labelbottom=True)
        lowest.xaxis.get_major_locator().set_params(integer=True)
        for axes in grid[filled[i] :, i]:
            axes.set_axis_off()
    for axes in grid.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, [*grid.flat], grid[filled[-1], -1] if filled[-1] < rows else None)
    figure.suptitle(_wrapped(headline(report)), fontsize=10.5)
    if path is not None:
        figure.savefig(path)
    return figure


def _columns(report: dict[str, Any]) -> list[tuple[float, float, float, str]]:
    """First step, last step, share of the width and title of each."""
    switch, total = report["switch_step"], report["num_training_steps"]
    if switch is None:
        cap = max(report["warmup_cap"], report["step"])
        return [(-0.02 * cap, 1.02 * cap, 1.0, f"the warm-up, at most to step {cap}")]
    share = min(max(switch / total, _LEAST_SHARE), _LARGEST_SHARE)
    return [
        (-0.02 * switch, 1.03 * switch, share, f"until the switch: steps 0 to {switch}"),
        (switch, total, 1.0 - share, f"from the switch on: steps {switch} to {total}"),
    ]


def _wrapped(title: str) -> str:
    """The title in lines, of which none begins with a number that belongs to the words before it."""
    glued = re.sub(r" (?=LR|\d)", "\0", title)
    return textwrap.fill(glued, _TITLE_WIDTH).replace("\0", " ")


def _add_legend(figure: Figure, all_axes: list[Axes], corner: Axes | None) -> None:
    """Where no line is: in the free corner, or below everything."""
    handles: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if corner is not None:
        legend = corner.legend(handles.values(), handles, loc="center", fontsize=8, ncols=2, frameon=False)
        legend.set_in_layout(False)  # else it would push the columns apart
    else:
        figure.legend(handles.values(), handles, loc="outside lower center", fontsize=8, ncols=4, frameon=False)


def write_files(report: dict[str, Any], folder: str, name: str, file: bool, picture: bool) -> None:
    """Writes a JSON file, and a PNG where matplotlib is installed.

    Args:
        report: what ``AutoWUScheduler.report`` returned, perhaps with more.
        folder: where; it is made.
        name: of the files, without an ending.
        file: whether to write the former.
        picture: whether to draw the latter.
    """
    os.makedirs(folder, exist_ok=True)
    if file:
        write_report(report, os.path.join(folder, f"{name}.json"))
    if picture and importlib.util.find_spec("matplotlib") is not None:
        plot_autowu(report, os.path.join(folder, f"{name}.png"))
