"""The figures of what ``compare.py`` measured."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path

from compare_results import Results
from methods import GUESSING
from tasks import TASKS

PICTURES = Path(__file__).parents[1] / "pictures"


def figures(results: Results) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = [task for task in TASKS if any(cell[0] == task for cell in results.cells)]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(tasks) + 1.6))
    for i, task in enumerate(tasks):
        for cell in [cell for cell in results.cells if cell[0] == task]:
            small = cell[1] == TASKS[task].batches[0]
            axes.scatter(
                max(results.gap(cell, "autowu") / results.deviation(cell), -8),
                i + (-0.15 if small else 0.15),
                s={10: 18, 30: 45, 100: 90}[cell[2]],
                color="#1f77b4" if small else "#d95f02",
                alpha=0.8,
            )
    axes.axvspan(-1, 1, color="0.9", zorder=0)
    axes.axvline(0, color="0.6", linewidth=1, zorder=0)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.invert_yaxis()
    axes.set_xlabel("AutoWU minus the tuned cosine, in standard deviations of a seed (right: AutoWU is better)")
    for label, color in (("small batch", "#1f77b4"), ("large batch", "#d95f02")):
        axes.scatter([], [], color=color, label=label)
    for budget, size in ((10, 18), (30, 45), (100, 90)):
        axes.scatter([], [], s=size, color="0.5", label=f"{budget} % of the steps")
    figure.legend(ncols=5, loc="lower center", frameon=False, fontsize="small")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(PICTURES / "compare_gaps.png", dpi=110)
    plt.close(figure)

    columns = 3
    rows = math.ceil(len(tasks) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(10, 2.4 * rows))
    for axes, task in itertools.zip_longest(grid.flat, tasks):
        if task is None:
            axes.set_axis_off()
            continue
        spec = TASKS[task]
        cell = (task, spec.batches[0], 30)
        for method in ("cosine", *GUESSING):
            points = sorted((lr, statistics.mean(v)) for lr, v in results.tuning(cell, method).items())
            if points:
                style = {"linewidth": 2.5, "color": "black"} if method == "autowu" else {"linewidth": 1.2}
                lrs, values = zip(*points, strict=True)
                name = "AutoWU" if method == "autowu" else method
                axes.plot(lrs, [v * spec.unit[1] for v in values], marker=".", label=name, **style)
        axes.set_xscale("log")
        axes.set_xlim(7e-6, 0.14)
        axes.set_title(task, fontsize="medium")
        axes.set_ylabel(spec.unit[0], fontsize="small")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="lower center", frameon=False)
    figure.supxlabel("the user's learning_rate", y=0.05, fontsize="medium")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(PICTURES / "compare_guesses.png", dpi=110)
