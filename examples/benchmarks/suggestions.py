"""Compares what ``suggest_lr``, torch-lr-finder and Lightning's ``lr_find`` suggest with tuned LRs.

    pip install -e '.[benchmarks]'
    pip install lightning
    python examples/benchmarks/suggestions.py           # all that is not in suggestions.csv yet; two worker processes
    python examples/benchmarks/suggestions.py --table   # the CSV as tables

Each tool suggests an LR for AdamW on every task of ``compare.py`` at both batch sizes, and on every model of
``real_models.py``, on three seeds: ``suggest_lr`` from two to 66 optimizer steps, the others from 100, with their
own defaults but for the highest LR of torch-lr-finder, 10. The suggestion is compared with the LR that the cosine was
tuned to in ``compare.csv`` and ``real_models.csv``, at each of the budgets.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import compare
import real_models
import torch
from fine_tuning_tasks import adamw
from methods import range_test
from runs import VERSIONS, Job, Row, RunTable
from task_runs import prepared_run
from tasks import TASKS
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar
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

REAL_MODELS = {
    ("ViT", 32): ("3 epochs", "10 epochs"),
    ("MiniLM, classes", 16): ("1 epoch", "3 epochs"),
    ("MiniLM, pairs", 16): ("10 steps", "60 steps", "200 steps"),
    ("EfficientNet", 16): ("60 steps", "200 steps"),
    ("EfficientNet", 64): ("60 steps", "200 steps"),
    ("SmolLM2, LoRA", 4): ("60 steps", "100 steps", "300 steps"),
    ("SmolLM2, full", 4): ("60 steps", "100 steps", "300 steps"),
}
"""Model and batch size -> its budgets."""

Cell = tuple[str, int, str]
"""Task or model, batch size, and budget as the tables have it."""


@dataclass(frozen=True)
class Subject:
    """What an LR is suggested for.

    Args:
        model: in training mode, with all random numbers at the seed.
        batches: step, from 0 -> a batch.
        loss_of: model and batch -> the scalar loss.
    """

    model: nn.Module
    batches: Callable[[int], Any]
    loss_of: Callable[[Any, Any], Tensor]


def real_task(model: str, batch: int, budget: str) -> str:
    """The name that ``real_models.py`` has for a cell."""
    with_batch = f"{model}, batch {batch}" if model == "EfficientNet" else model
    return f"{with_batch}, {budget}"


def subject(task: str, batch: int, seed: int) -> Subject:
    if budgets := REAL_MODELS.get((task, batch)):
        disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.manual_seed(seed)
        real = real_models.TASKS[real_task(task, batch, budgets[0])].prepare(seed)
        torch.manual_seed(seed)
        return Subject(real.model, real.batches, real.loss_of)
    run = prepared_run(task, batch, 100, seed)
    return Subject(run.model, run.batches, lambda model, batch: run.task.loss(model(batch[0]), batch[1]))


class Batches(torch.utils.data.IterableDataset[Any]):
    """The batches of a subject, for any number of iterations.

    Args:
        batches: step -> a batch.
        steps: how many.
    """

    def __init__(self, batches: Callable[[int], Any], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return map(self.batches, range(self.steps))


class LossOf(nn.Module):
    """A subject's model with the batch as its input and the loss as its output.

    Args:
        subject: whose.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model, self.loss_of = subject.model, subject.loss_of

    def forward(self, batch: Any) -> Tensor:
        return self.loss_of(self.model, batch)


def by_us(subject: Subject) -> float:
    optimizer = adamw(subject.model, 1e-3)
    return float(suggest_lr(subject.model, optimizer, subject.loss_of, Batches(subject.batches, 13)))


def by_torch_lr_finder(subject: Subject) -> float:
    no_target = torch.zeros(())
    return range_test(LossOf(subject), lambda loss, _: loss, lambda step: (subject.batches(step), no_target))


def by_lightning(subject: Subject) -> float:
    """NaN where Lightning suggests nothing."""
    import lightning
    from lightning.pytorch.tuner import Tuner

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = subject.model, 1e-3

        def training_step(self, batch: Any, index: int) -> Tensor:
            return subject.loss_of(self.model, batch)

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
        loader = torch.utils.data.DataLoader(Batches(subject.batches, STEPS), batch_size=None)
        finder = Tuner(trainer).lr_find(Module(), train_dataloaders=loader, num_training=STEPS)
    lr = None if finder is None else finder.suggestion()
    return math.nan if lr is None else float(lr)


TOOLS: dict[str, Callable[[Subject], float]] = {
    "suggest_lr": by_us,
    "torch-lr-finder": by_torch_lr_finder,
    "Lightning": by_lightning,
}
"""Tool -> what makes its suggestion."""


def run(job: Job) -> dict[str, Any]:
    """One suggestion: a task or model, a batch size, a tool, a seed -> the results of its row."""
    task, batch, tool, seed = job
    prepared = subject(task, batch, seed)
    start = time.perf_counter()
    lr = TOOLS[tool](prepared)
    return {"lr": f"{lr:.4g}", "seconds": round(time.perf_counter() - start, 2), "versions": VERSIONS}


def small_cells() -> list[Cell]:
    """The cells of ``compare.py``."""
    return [
        (task, batch, f"{budget} %")
        for task, spec in TASKS.items()
        for batch, budget in itertools.product(spec.batches, compare.BUDGETS)
    ]


def real_cells() -> list[Cell]:
    """The tasks of ``real_models.py``."""
    return [(*which, budget) for which, budgets in REAL_MODELS.items() for budget in budgets]


def needed(rows: list[Row]) -> list[Job]:
    """All suggestions that have no row."""
    made = {RUNS.job(row) for row in rows}
    subjects = dict.fromkeys(cell[:2] for cell in small_cells() + real_cells())
    jobs = [(*which, tool, seed) for which, tool, seed in itertools.product(subjects, TOOLS, SEEDS)]
    return [job for job in jobs if job not in made]


def tuned_lrs() -> dict[Cell, float]:
    """Cell -> the LR that the cosine was tuned to."""
    small = {compare.RUNS.job(row): row for row in compare.RUNS.rows()}
    real = {real_models.RUNS.job(row): row for row in real_models.RUNS.rows()}
    tuned = {}
    for task, batch, budget in small_cells():
        of = score_by_lr(small, (task, batch, int(budget.removesuffix(" %")), "cosine"))
        tuned[task, batch, budget] = lrs_to_tune(of)[0][0]
    for cell in real_cells():
        tuned[cell] = real_models.tuned_lrs(real_task(*cell), real)[0][0]
    return tuned


def distances(rows: list[Row], tool: str, tuned: dict[Cell, float]) -> dict[Cell, float]:
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
    print(f"| tool | within {NEAR:g} decades: small networks | real models | all | ", end="")
    print("median distance, decades: small networks | real models | worst | too high, too low |")
    print("|---|---|---|---|---|---|---|---|")
    for tool in TOOLS:
        decades = distances(rows, tool, tuned)
        parts = [[decades[cell] for cell in cells if cell in decades] for cells in (small_cells(), real_cells())]
        if not all(parts):
            continue
        near = [f"{sum(abs(d) <= NEAR + 1e-6 for d in part)} of {len(part)}" for part in (*parts, [*decades.values()])]
        medians = [f"{statistics.median(map(abs, part)):.2f}" for part in parts]
        worst = max(decades, key=lambda cell: abs(decades[cell]))
        far = f"{sum(d > NEAR for d in decades.values())}, {sum(d < -NEAR for d in decades.values())}"
        entries = [*near, *medians, f"{decades[worst]:+.1f} ({', '.join(map(str, worst))})", far]
        print(f"| {tool} | {' | '.join(entries)} |")
    print(f"\n| task | batch | budgets | tuned | {' | '.join(TOOLS)} | seconds |")
    print("|---|---|---|---|" + "---|" * (len(TOOLS) + 1))
    for task, batch in dict.fromkeys(cell[:2] for cell in tuned):
        budgets = [cell[2] for cell in tuned if cell[:2] == (task, batch)]
        entries = [", ".join(budgets), ", ".join(f"{tuned[task, batch, budget]:.0e}" for budget in budgets)]
        seconds = []
        for tool in TOOLS:
            own = [row for row in rows if RUNS.job(row)[:3] == (task, batch, tool)]
            entries.append(f"{statistics.median(float(row['lr']) for row in own):.1e}" if own else "")
            seconds.append(f"{statistics.median(float(row['seconds']) for row in own):.1f}" if own else "")
        print(f"| {task} | {batch} | {' | '.join(entries)} | {', '.join(seconds)} |")


if __name__ == "__main__":
    RUNS.command(__doc__, run, needed, show)
