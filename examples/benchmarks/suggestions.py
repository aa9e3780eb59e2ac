"""Compares what ``suggest_lr``, torch-lr-finder and Lightning's ``lr_find`` suggest with tuned LRs.

    pip install -e '.[benchmarks]'
    pip install lightning
    python examples/benchmarks/suggestions.py           # all that is not in suggestions.csv yet; two worker processes
    python examples/benchmarks/suggestions.py --table   # the CSV as tables

Each tool suggests an LR for AdamW on every task of ``compare.py`` at both batch sizes, on three seeds: ``suggest_lr``
from two optimizer steps, the others from 100, with their own defaults but for the highest LR of torch-lr-finder, 10.
The suggestion is compared with the LR that the cosine was tuned to in ``compare.csv``, at each of the three budgets.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import compare
import torch
from fine_tuning_tasks import adamw
from methods import range_test
from runs import VERSIONS, Job, Row, RunTable
from task_runs import TaskRun, prepared_run
from tasks import TASKS
from tuning import lrs_to_tune, score_by_lr

from autowu_hf import suggest_lr

RUNS = RunTable(
    Path(__file__).with_suffix(".csv"),
    key={"task": str, "batch": int, "tool": str, "seed": int},
    results=("lr", "seconds", "versions"),
)
SEEDS = (10, 11, 12)
STEPS = 100
"""Of Lightning's search, its default."""
NEAR = 0.5
"""Decades from the tuned LR that count as near: one step of the grid that it was tuned on."""


class Batches(torch.utils.data.IterableDataset[Any]):
    """The batches of a run, for any number of iterations.

    Args:
        run: whose batches.
        steps: how many.
    """

    def __init__(self, run: TaskRun, steps: int) -> None:
        self.run, self.steps = run, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return map(self.run.batches, range(self.steps))


def by_us(run: TaskRun) -> float:
    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        return run.task.loss(model(batch[0]), batch[1])

    return float(suggest_lr(run.model, adamw(run.model, 1e-3), loss_of, Batches(run, 8)))


def by_torch_lr_finder(run: TaskRun) -> float:
    return range_test(run.model, run.task.loss, run.batches)


def by_lightning(run: TaskRun) -> float:
    """NaN where Lightning suggests nothing."""
    import lightning
    from lightning.pytorch.tuner import Tuner

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = run.model, 1e-3

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return run.task.loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self, self.lr)

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        loader = torch.utils.data.DataLoader(Batches(run, STEPS), batch_size=None)
        finder = Tuner(trainer).lr_find(Module(), train_dataloaders=loader, num_training=STEPS)
    lr = None if finder is None else finder.suggestion()
    return math.nan if lr is None else float(lr)


TOOLS: dict[str, Callable[[TaskRun], float]] = {
    "suggest_lr": by_us,
    "torch-lr-finder": by_torch_lr_finder,
    "Lightning": by_lightning,
}
"""Tool -> what makes its suggestion."""


def run(job: Job) -> dict[str, Any]:
    """One suggestion: a task, a batch size, a tool, a seed -> the results of its row."""
    task, batch, tool, seed = job
    prepared = prepared_run(task, batch, 100, seed)
    start = time.perf_counter()
    lr = TOOLS[tool](prepared)
    return {"lr": f"{lr:.4g}", "seconds": round(time.perf_counter() - start, 2), "versions": VERSIONS}


def needed(rows: list[Row]) -> list[Job]:
    """All suggestions that have no row."""
    made = {RUNS.job(row) for row in rows}
    jobs = [
        (task, batch, tool, seed)
        for task, spec in TASKS.items()
        for batch, tool, seed in itertools.product(spec.batches, TOOLS, SEEDS)
    ]
    return [job for job in jobs if job not in made]


def tuned_lrs() -> dict[tuple[str, int, int], float]:
    """Cell -> the LR that the cosine was tuned to."""
    by_job = {compare.RUNS.job(row): row for row in compare.RUNS.rows()}
    cells = [
        (task, batch, budget)
        for task, spec in TASKS.items()
        for batch, budget in itertools.product(spec.batches, compare.BUDGETS)
    ]
    return {cell: lrs_to_tune(score_by_lr(by_job, (*cell, "cosine")))[0][0] for cell in cells}


def distances(rows: list[Row], tool: str, tuned: dict[tuple[str, int, int], float]) -> dict[Any, float]:
    """Cell -> decades from the tuned LR to the suggestion, the median over the seeds; infinite without a suggestion.

    Args:
        rows: of the suggestions.
        tool: one of ``TOOLS``.
        tuned: cell -> LR.
    """
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        task, batch, name, _ = RUNS.job(row)
        if name == tool:
            lr = float(row["lr"])
            found.setdefault((task, batch), []).append(math.log10(lr) if lr > 0.0 else math.inf)
    return {
        cell: statistics.median(found[cell[:2]]) - math.log10(lr) for cell, lr in tuned.items() if cell[:2] in found
    }


def show(rows: list[Row]) -> None:
    """Prints how near every tool comes, and its suggestions by task."""
    tuned = tuned_lrs()
    print(f"| tool | within {NEAR:g} decades | median distance, decades | worst | too high, too low | seconds |")
    print("|---|---|---|---|---|---|")
    for tool in TOOLS:
        decades = distances(rows, tool, tuned)
        if not decades:
            continue
        near = sum(abs(d) <= NEAR + 1e-6 for d in decades.values())
        worst = max(decades, key=lambda cell: abs(decades[cell]))
        seconds = statistics.median(float(row["seconds"]) for row in rows if row["tool"] == tool)
        far = f"{sum(d > NEAR for d in decades.values())}, {sum(d < -NEAR for d in decades.values())}"
        print(
            f"| {tool} | {near} of {len(decades)} | {statistics.median(map(abs, decades.values())):.2f} | "
            f"{decades[worst]:+.1f} ({', '.join(map(str, worst))} %) | {far} | {seconds:.1f} |"
        )
    print(f"\n| task | batch | tuned: {', '.join(f'{b} %' for b in compare.BUDGETS)} | {' | '.join(TOOLS)} |")
    print("|---|---|---|" + "---|" * len(TOOLS))
    for task, spec in TASKS.items():
        for batch in spec.batches:
            entries = [", ".join(f"{tuned[task, batch, budget]:.0e}" for budget in compare.BUDGETS)]
            for tool in TOOLS:
                lrs = [float(row["lr"]) for row in rows if RUNS.job(row)[:3] == (task, batch, tool)]
                entries.append(f"{statistics.median(lrs):.1e}" if lrs else "")
            print(f"| {task} | {batch} | {' | '.join(entries)} |")


if __name__ == "__main__":
    RUNS.command(__doc__, run, needed, show)
