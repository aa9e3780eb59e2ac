"""Compares designs of AutoWU around the scale, on the tasks of ``compare.py`` and seeds that nothing else uses.

    python examples/benchmarks/designs.py           # all that is not in designs.csv yet; two worker processes
    python examples/benchmarks/designs.py --table   # the CSV as a table

A design is AutoWU with a constant or an option changed. It is judged by the mean, over the 54 cells, of its gap to the
tuned cosine in percent of what that gains over chance, cut at 100 either way; the cosine's metric is the median of its
reported runs in ``compare.csv``.

This was written before the runs: every design is run on seed 30, and the default and the three that are best there on
seed 31 as well. The one with the best mean over both seeds becomes the default if it is more than a point better than
today's. Within a point today's stays, since parts of it are there for other optimizers than AdamW. The default and the
two that came nearest to that were run on seeds 32 and 33 afterwards. The default was then what is called "constant then
cosine" here, and all other designs but REX keep the LR as it does.

By that REX should have become the default, on the strength of two runs in cells whose tuned cosine is at chance. So the
question is asked again, and this was written before these runs: that default and REX are run on seeds 34 to 37, and the
cells do not count in which the tuned cosine gains less over chance than two standard deviations of its own seeds. There
are two means, one over these seeds and cells, one over the real models of ``real_designs.py``. REX becomes the default
if it is more than a point ahead in one of them, and not more than a point behind in the other.

On the seeds up to 37, REX was ahead where P holds the LR, and behind where R or M do. So there is a third design, and
this was written before its runs: REX in the former, and the LR kept in the latter (``usual_decay.py``). It and
"constant then cosine" are run on seeds 38 to 41, in the same cells; it becomes the default by the same criterion. After
these runs it was narrowed, by what other optimizers lost in the shortest runs of MiniLM: an LR that P holds is kept,
too, where the losses have not fallen by a tenth. Runs whose decay that changes were made again.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import compare
from fine_tuning_tasks import adamw
from runs import VERSIONS, Job, Row, RunTable
from task_runs import prepared_run
from tasks import TASKS
from tuning import SEEDS, percent_of_gain

from autowu_hf import DivergedError, get_autowu_schedule
from autowu_hf.autowu.course import signs, timetable
from autowu_hf.autowu.course.later import later_measures
from autowu_hf.autowu.course.measures import scale

RUNS = RunTable(
    Path(__file__).with_suffix(".csv"),
    key={"design": str, "task": str, "batch": int, "budget": int, "seed": int},
    results=("steps", "test", "peak_lr", "switch", "ended_by", "looked", "versions"),
)
FIRST_SEED, SECOND_SEED, MORE_SEEDS = 30, 31, (32, 33)
BEST = 3
"""So many designs, beside the default, are run on the second seed."""
BEFORE = "constant then cosine"
"""The default when the first two questions were asked."""
NEAREST = (BEFORE, "0.2 P", "REX")
"""The designs that are run on more seeds."""
AGAIN: list[tuple[tuple[str, ...], tuple[int, ...]]] = [
    ((BEFORE, "REX"), (34, 35, 36, 37)),
    ((BEFORE, "default"), (38, 39, 40, 41)),
]
"""The designs of the second and of the third question, and their seeds."""
CERTAIN = 2.0
"""The standard deviations by which the tuned cosine must be above chance where these are asked."""

Patch = tuple[Any, str, Any]
"""A module, the name of a constant or a function in it, and another value for it."""
_BLIND: list[Patch] = [
    (signs, "FEWEST_STEPS", 10**9),
    (timetable, "FEWEST_STEPS", 10**9),
]
_NO_LENGTH: Patch = (scale, "HORIZON_POWER", 0.0)
_NO_LATER_MEASURE: Patch = (later_measures, "reach_factor", lambda *args, **options: 1.0)
_KEPT = {"decay_type": "constant_then_cosine"}
DESIGNS: dict[str, tuple[list[Patch], dict[str, Any]]] = {
    BEFORE: ([], _KEPT),
    "first gradients alone": ([*_BLIND, _NO_LENGTH, _NO_LATER_MEASURE], _KEPT),
    "without M": ([(scale, "LAYER_SHARE", math.inf)], _KEPT),
    "without the length": ([_NO_LENGTH], _KEPT),
    "without the later measure": ([_NO_LATER_MEASURE], _KEPT),
    "without a look at the losses": (_BLIND, _KEPT),
    "a look of 15 %": ([(timetable, "LOOK", 0.15)], _KEPT),
    "0.2 P": ([(scale, "POLYAK_SHARE", 0.2)], _KEPT),
    "0.4 P": ([(scale, "POLYAK_SHARE", 0.4)], _KEPT),
    "decay over the last half": ([], {"decay_fraction": 0.5}),
    "REX": ([], {"decay_type": "rex"}),
    "range": ([], {"scale": False}),
    "default": ([], {}),
}
"""Design -> what it changes in the code, and AutoWU's options."""
FIRST = tuple(design for design in DESIGNS if design != "default")
"""Those of the first question."""
Cell = tuple[str, int, int]
"""A task, a batch size, a budget in percent."""
CELLS: list[Cell] = [
    (task, batch, budget) for task, spec in TASKS.items() for batch in spec.batches for budget in compare.BUDGETS
]


@contextlib.contextmanager
def patched(patches: list[Patch]) -> Iterator[None]:
    """Sets other values within the block."""
    with contextlib.ExitStack() as stack:
        for module, name, value in patches:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def run(job: Job) -> dict[str, Any]:
    """One run: a design, a task, a batch size, a budget, a seed -> the results of its row."""
    design, task, batch, budget, seed = job
    patches, options = DESIGNS[design]
    prepared = prepared_run(task, batch, budget, seed)
    results: dict[str, Any] = {"steps": prepared.steps, "versions": VERSIONS}
    with patched(patches):
        optimizer = adamw(prepared.model, 1e-3)
        schedule = get_autowu_schedule(optimizer, prepared.steps, steps_per_epoch=prepared.per_epoch, **options)
        try:
            prepared.train(optimizer, schedule)
            results["ended_by"] = schedule.ended_by
        except DivergedError:
            results["ended_by"] = "DivergedError"
    results |= {"peak_lr": schedule.peak_lr, "switch": schedule.switch_step, "looked": schedule.num_steps_lost}
    return results | {"test": prepared.metrics()["test"]}


@functools.cache
def of_cosine() -> dict[Cell, list[float]]:
    """Cell -> the metric of the tuned cosine on each of the reported seeds."""
    found: dict[Cell, list[float]] = {}
    for row in compare.RUNS.rows():
        task, batch, budget, method, _, seed = compare.RUNS.job(row)
        if method == "cosine" and seed in SEEDS:
            found.setdefault((task, batch, budget), []).append(float(row["test"]))
    return found


@functools.cache
def tuned() -> dict[Cell, float]:
    """Cell -> the median of these."""
    return {cell: statistics.median(values) for cell, values in of_cosine().items()}


@functools.cache
def telling() -> list[Cell]:
    """The cells in which the tuned cosine is certainly above chance."""
    return [
        cell
        for cell, values in of_cosine().items()
        if tuned()[cell] - TASKS[cell[0]].chance >= CERTAIN * statistics.stdev(values)
    ]


def gaps(rows: list[Row]) -> dict[tuple[str, int], dict[Cell, float]]:
    """Design and seed -> cell -> the gap."""
    found: dict[tuple[str, int], dict[Cell, float]] = {}
    for row in rows:
        design, task, batch, budget, seed = RUNS.job(row)
        cell = (task, batch, budget)
        gap = percent_of_gain(float(row["test"]), tuned()[cell], TASKS[task].chance)
        found.setdefault((design, seed), {})[cell] = gap
    return found


def finalists(rows: list[Row]) -> list[str]:
    """The default of before and the designs that are best on the first seed; none before all of its runs are there."""
    found = gaps(rows)
    by_design = {design: found.get((design, FIRST_SEED), {}) for design in FIRST}
    if any(len(by_cell) < len(CELLS) for by_cell in by_design.values()):
        return []
    means = {design: statistics.mean(by_cell.values()) for design, by_cell in by_design.items()}
    others = sorted((design for design in FIRST if design != BEFORE), key=lambda design: -means[design])
    return [BEFORE, *others[:BEST]]


def needed(rows: list[Row]) -> list[Job]:
    """All runs that are known to be needed and have no row, cheap tasks first."""
    made = {RUNS.job(row) for row in rows}
    wanted = [(design, *cell, FIRST_SEED) for cell in CELLS for design in FIRST]
    wanted += [(design, *cell, SECOND_SEED) for cell in CELLS for design in finalists(rows)]
    if finalists(rows):
        wanted += [(design, *cell, seed) for cell in CELLS for design in NEAREST for seed in MORE_SEEDS]
        for designs, seeds in AGAIN:
            wanted += [(design, *cell, seed) for cell in telling() for design in designs for seed in seeds]
    return [job for job in wanted if job not in made]


def show(rows: list[Row]) -> None:
    """Prints a line a design: the mean and the median gap on each seed and by budget, and its worst long cell."""
    budgets = [f"{budget} %" for budget in compare.BUDGETS]
    later = [f"seed {seed}" for seed in (SECOND_SEED, *MORE_SEEDS)]
    print(f"| design | seed {FIRST_SEED} | {' | '.join(budgets)} | worst of 100 steps or more | {' | '.join(later)} |")
    print("|---|---|" + "---|" * (len(budgets) + 1 + len(later)))
    steps = {RUNS.job(row)[1:4]: int(row["steps"]) for row in rows}
    found = gaps(rows)
    for design in FIRST:
        first = found.get((design, FIRST_SEED), {})
        if not first:
            continue
        columns = [_mean_and_median([*first.values()])]
        for budget in compare.BUDGETS:
            columns.append(_mean_and_median([gap for cell, gap in first.items() if cell[2] == budget]))
        long = {cell: gap for cell, gap in first.items() if steps[cell] >= 100}
        worst = min(long, key=lambda cell: long[cell], default=None)
        columns.append("" if worst is None else f"{long[worst]:+.0f} ({', '.join(map(str, worst))} %)")
        columns += [_mean_and_median([*found.get((design, seed), {}).values()]) for seed in (SECOND_SEED, *MORE_SEEDS)]
        print(f"| {design} | {' | '.join(columns)} |")
    for designs, seeds in AGAIN:
        if any((design, seed) in found for design in designs for seed in seeds):
            _show_again(found, designs, seeds)


def _show_again(
    found: dict[tuple[str, int], dict[Cell, float]], designs: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    """Prints what a later question found: a line a design, a column a seed, and the mean over all of them."""
    print(f"\n| in {len(telling())} cells | {' | '.join(f'seed {seed}' for seed in seeds)} | all |")
    print("|---|" + "---|" * (len(seeds) + 1))
    for design in designs:
        by_seed = [[*found.get((design, seed), {}).values()] for seed in seeds]
        columns = [*map(_mean_and_median, by_seed), _mean_and_median([gap for gaps in by_seed for gap in gaps])]
        print(f"| {design} | {' | '.join(columns)} |")


def _mean_and_median(values: list[float]) -> str:
    return f"{statistics.mean(values):+.1f} / {statistics.median(values):+.1f}" if values else ""


if __name__ == "__main__":
    RUNS.command(__doc__, run, needed, show)
