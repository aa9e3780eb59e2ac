"""The paper's axis in miniature: one task, 200 epochs, four batch sizes, AdamP and LAMB (its section 3 and Table 1).

    pip install pytorch_optimizer scikit-learn
    python examples/benchmarks/batch_sizes.py           # all that is not in batch_sizes.csv yet; two worker processes
    python examples/benchmarks/batch_sizes.py --table   # the CSV as Markdown

The baseline is the paper's: five epochs of linear warm-up, then a cosine from 0.001 (AdamP) or 0.01 (LAMB) times
sqrt(batch / 256). Weight decay 0.1 and label smoothing 0.1 are the paper's too. The task is the MLP on noisy digits of
``tasks.py``. It trains on 896 images, so the largest batch is all of them. pytorch_optimizer's LAMB corrects no bias of
the second moment and counts a weight's norm as 10 at most.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from data import Pair, shuffled
from pytorch_optimizer import AdamP, Lamb
from runs import VERSIONS, Job, RunTable
from tasks import TASKS
from training import outputs, train
from transformers import get_cosine_schedule_with_warmup

from autowu_hf import get_autowu_schedule

RUNS = RunTable(
    Path(__file__).with_suffix(".csv"),
    key={"optimizer": str, "batch": int, "method": str, "seed": int},
    results=("test", "peak_lr", "switch", "steps", "ended_by", "seconds", "versions"),
)
TASK = TASKS["digits MLP"]
EPOCHS, WARM_UP_EPOCHS = 200, 5
BATCHES = (32, 128, 448, 896)
SEEDS = (10, 11, 12)
OPTIMIZERS = {
    "AdamP": (functools.partial(AdamP, weight_decay=0.1, delta=0.1, eps=1e-8), 0.001),
    "LAMB": (functools.partial(Lamb, weight_decay=0.1, eps=1e-6), 0.01),
}
"""Name -> the optimizer, and the LR of its baseline at batch 256."""
METHODS: dict[str, dict[str, Any] | None] = {
    "sqrt rule": None,
    "AutoWU, paper, cosine": {"preset": "paper"},
    "AutoWU, paper, constant-cosine": {"preset": "paper", "decay_type": "constant_then_cosine"},
    "AutoWU, range": {"scale": False},
    "AutoWU": {},
}
"""Name -> AutoWU's options; None for the baseline."""


def run(job: Job) -> dict[str, Any]:
    """One run: an optimizer, a batch size, a method, a seed -> the results of its row."""
    optimizer_name, batch, method, seed = job
    (x, y), _, test = TASK.data()
    torch.manual_seed(seed)
    model = TASK.model()
    make, base_lr = OPTIMIZERS[optimizer_name]
    peak_lr = base_lr * math.sqrt(batch / 256)
    optimizer = make(model.parameters(), lr=peak_lr)
    per_epoch = len(x) // batch
    steps = EPOCHS * per_epoch
    options = METHODS[method]
    schedule: Any
    if options is None:
        schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP_EPOCHS * per_epoch, steps)
    else:
        schedule = get_autowu_schedule(optimizer, steps, steps_per_epoch=per_epoch, **options)

    def loss_of(model: torch.nn.Module, batch: Pair) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)

    start = time.perf_counter()
    batches = ((x[chosen], y[chosen]) for chosen in map(shuffled(len(x), batch, seed), range(steps)))
    train(model, optimizer, schedule, batches, loss_of, max_norm=None)
    results = {
        "test": round(TASK.metric(outputs(model, test[0]), test[1]), 5),
        "peak_lr": f"{peak_lr if options is None else schedule.peak_lr:.3g}",
        "steps": steps,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": VERSIONS,
    }
    return results if options is None else results | {"switch": schedule.switch_step, "ended_by": schedule.ended_by}


def show(table: RunTable) -> None:
    """Prints test accuracy in percent, mean and deviation of the seeds, and the geometric mean of the peak LRs."""
    rows = table.rows()
    print("| optimizer | schedule | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |")
    print("|---|---|" + "---|" * len(BATCHES))
    for optimizer in OPTIMIZERS:
        for method in METHODS:
            entries = []
            for batch in BATCHES:
                found = [row for row in rows if table.job(row)[:3] == (optimizer, batch, method)]
                values = [100 * float(row["test"]) for row in found]
                if len(values) < 2:
                    entries.append("")
                    continue
                lr = statistics.geometric_mean(float(row["peak_lr"]) for row in found)
                entries.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({lr:.1e})")
            print(f"| {optimizer} | {method} |", " | ".join(entries), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=RUNS.path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    options = parser.parse_args()
    table = RUNS.at(options.csv)
    if not options.table:
        jobs = [(o, batch, method, s) for s in SEEDS for o in OPTIMIZERS for batch in BATCHES for method in METHODS]
        table.complete(run, lambda rows: jobs, options.workers)
    show(table)


if __name__ == "__main__":
    main()
