"""Compares AutoWU with a tuned cosine on networks with batch norm, and shares of what R and M allow with each other.

    python examples/benchmarks/batch_norm.py           # all that is not in batch_norm.csv yet; two worker processes
    python examples/benchmarks/batch_norm.py --table   # the CSV as tables

Seven small networks from scratch and fine-tuned (``batch_norm_tasks.py``), each with two batch sizes and two lengths.
The cosine with 5 % of warm-up is tuned in each of the 28 cells on a grid of half decades that grows where its edge is
the best, with three seeds, and reported on five others. A design is AutoWU with another share of the highest LR that R
and M allow, as the least LR of scale-invariant weights (``INVARIANT_SHARE``), or with a decay over 24 steps, where
20 % of the run are fewer; "without" has P decide for them as for all others, and decays over 20 %. A gap is that of the
mean over a design's seeds to the reported mean of the cosine, in percent of what that gains over chance, cut at 100
either way.

This was written before the runs, but after sketches on other seeds: every design is run on seeds 20 to 22, and the
share whose mean gap over the cells is the best is the default. The longer decay is the default if it is more than a
point better in the mean over the cells of 60 steps, for in 200 it changes nothing. "without", the share and the default
are then run on the cosine's seeds, 10 to 14, which judge.

These designs keep the LR until it decays. Since then it falls as REX where P holds it (``usual_decay.py``), so there
are three more, which have that longer decay where they keep it: "REX by P", "REX by P or invariance", also where the LR
is above P, and "REX". This was written before their runs: "REX by P" is the default, unless another is more than a
point better than it in the mean over the cells on seeds 20 to 22; the default is judged on the cosine's seeds, too.

Within that point "REX by P or invariance" was ahead. It is the default by the criterion of ``designs.py``: 2.3 points
ahead over the real models, one of which is a deep network with batch norm, and not behind here.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from batch_norm_tasks import TASKS, prepared
from designs import Patch, patched
from fine_tuning_tasks import adamw
from methods import cosine_schedule
from runs import VERSIONS, Job, Row, RunTable, optional_float
from tuning import SEEDS, TUNING_SEEDS, half_decades, lrs_to_tune, percent_of_gain, score_by_lr

from autowu_hf import get_autowu_schedule
from autowu_hf.autowu.course import usual_decay
from autowu_hf.autowu.course.approach import Approach
from autowu_hf.autowu.course.measures import scale, scale_invariant
from autowu_hf.autowu.course.usual_decay import UsualDecay
from autowu_hf.shapes import DECAY_FRACTION

RUNS = RunTable(
    Path(__file__).with_suffix(".csv"),
    key={"task": str, "batch": int, "steps": int, "method": str, "lr": optional_float, "seed": int},
    results=("tune", "test", "peak_lr", "ended_by", "versions"),
)
BATCHES, STEPS = (16, 64), (60, 200)
CELLS = [(task, batch, steps) for steps in STEPS for task, batch in itertools.product(TASKS, BATCHES)]
"""Task, batch size, optimizer steps; cheap ones first."""
GRID = half_decades(1e-3, 1e-1)
SHARES = (0.1, 0.2, 0.3, 0.45)
WITHOUT, DEFAULT = "without", "REX by P or invariance"
_USUAL_SHARE: Patch = (scale_invariant, "LONGEST_DECAY", DECAY_FRACTION)
_OF = UsualDecay.of
_KEPT = {"decay_type": "constant_then_cosine"}


def _by_p_only(self: UsualDecay, approach: Approach, num_steps: int, is_over: bool) -> tuple[str, float]:
    found = _OF(self, approach, num_steps, is_over)
    return (usual_decay.BEFORE if self.why == "invariance" else found[0]), found[1]


DESIGNS: dict[str, tuple[list[Patch], dict[str, Any]]] = {
    WITHOUT: ([(scale, "INVARIANT_FROM", math.inf)], _KEPT),
    **{f"{share:g}": ([(scale_invariant, "INVARIANT_SHARE", share), _USUAL_SHARE], _KEPT) for share in SHARES},
    "0.2, longer decay": ([], _KEPT),
    "REX by P": ([(UsualDecay, "of", _by_p_only)], {}),
    "REX by P or invariance": ([], {}),
    "REX": ([], {"decay_type": "rex"}),
}
"""Design -> what it changes in the code, and AutoWU's options."""
CHOOSING_SEEDS = (20, 21, 22)
JUDGED = (WITHOUT, "0.2", "0.2, longer decay", "REX by P", DEFAULT)
PARTS = {"tune": slice(0, 100), "test": slice(100, None)}
"""Part -> its rows of those that a network is not trained on."""


def run(job: Job) -> dict[str, Any]:
    """One run: a task, a batch size, the steps, a design or the cosine, an LR or None, a seed -> the results of its
    row.
    """
    task, batch, steps, method, lr, seed = job
    prepared_run = prepared(task, batch, steps, seed)
    optimizer = adamw(prepared_run.model, lr or 1e-3)  # AutoWU asks for any LR and does not look at it
    results: dict[str, Any] = {"versions": VERSIONS}
    if method == "cosine":
        prepared_run.train(optimizer, cosine_schedule(optimizer, steps))
    else:
        patches, options = DESIGNS[method]
        with patched(patches):
            schedule = get_autowu_schedule(optimizer, steps, **options)
            prepared_run.train(optimizer, schedule)
        results |= {"peak_lr": schedule.peak_lr, "ended_by": schedule.ended_by}
    found = {part: prepared_run.evaluate(prepared_run.model, rows)[0] for part, rows in PARTS.items()}
    return results | {part: round(accuracy, 5) for part, accuracy in found.items()}


def needed(rows: list[Row]) -> list[Job]:
    """All runs that are known to be needed and have no row; more may follow from what these find."""
    by_job = {RUNS.job(row): row for row in rows}
    wanted: list[Job] = []
    for cell in CELLS:
        where = (*cell, "cosine")
        lrs, are_all_known = lrs_to_tune(score_by_lr(by_job, where), grid=GRID)
        if are_all_known:
            wanted += [(*where, lrs[0], seed) for seed in SEEDS]
        else:
            wanted += [(*where, lr, seed) for lr in lrs for seed in TUNING_SEEDS]
        wanted += [(*cell, design, None, seed) for design in DESIGNS for seed in CHOOSING_SEEDS]
        wanted += [(*cell, design, None, seed) for design in JUDGED for seed in SEEDS]
    return [job for job in dict.fromkeys(wanted) if job not in by_job]


Found = dict[tuple[Any, ...], dict[int, Row]]
"""Task, batch size, steps and method -> seed -> the row; of the cosine's, those that are reported."""


def by_method(rows: list[Row]) -> Found:
    found: Found = {}
    for row in rows:
        *where, _, seed = RUNS.job(row)
        if where[-1] != "cosine" or seed in SEEDS:
            found.setdefault(tuple(where), {})[seed] = row
    return found


def gap(found: Found, cell: tuple[Any, ...], design: str, seeds: tuple[int, ...]) -> float | None:
    """Of a design's runs with these seeds; None while one of them, or of the cosine's, is missing."""
    own, tuned = found.get((*cell, design), {}), found.get((*cell, "cosine"), {})
    if not (set(seeds) <= set(own) and set(SEEDS) <= set(tuned)):
        return None
    test, reference = (
        statistics.mean(float(of[s]["test"]) for s in those) for of, those in ((own, seeds), (tuned, SEEDS))
    )
    return percent_of_gain(test, reference, TASKS[cell[0]].chance)


def show(rows: list[Row]) -> None:
    """Prints the designs on the seeds to choose on, a line a task of the default on those that judge, and means."""
    found = by_method(rows)
    _show_designs(found, DESIGNS, CHOOSING_SEEDS)
    print()
    cells = [(batch, steps) for steps in STEPS for batch in BATCHES]
    print(
        "| task |",
        " | ".join(f"batch {batch}, {steps} steps: tuned (LR) | gap (peak LR)" for batch, steps in cells),
        "|",
    )
    print("|---|" + "---|---|" * len(cells))
    for task in TASKS:
        entries = []
        for cell in [(task, *cell) for cell in cells]:
            if (value := gap(found, cell, DEFAULT, SEEDS)) is None:
                entries += ["", ""]
                continue
            tuned = [found[(*cell, "cosine")][seed] for seed in SEEDS]
            peaks = [float(found[(*cell, DEFAULT)][seed]["peak_lr"]) for seed in SEEDS]
            accuracy = statistics.mean(float(row["test"]) for row in tuned)
            entries.append(f"{100.0 * accuracy:.1f} ({tuned[0]['lr']})")
            entries.append(f"{value:+.0f} % ({statistics.median(peaks):.1e})")
        print(f"| {task} |", " | ".join(entries), "|")
    print()
    _show_designs(found, JUDGED, SEEDS)


def _show_designs(found: Found, designs: Iterable[str], seeds: tuple[int, ...]) -> None:
    """Prints a line a design."""
    print("| design | 60 steps: mean | median | 200 steps: mean | median | all: mean | median | worst cell |")
    print("|---|---|---|---|---|---|---|---|")
    for design in designs:
        gaps = {cell: value for cell in CELLS if (value := gap(found, cell, design, seeds)) is not None}
        if len(gaps) < len(CELLS):
            continue
        groups = [[value for cell, value in gaps.items() if cell[2] in those] for those in ((60,), (200,), STEPS)]
        columns = [f"{of(values):+.1f}" for values in groups for of in (statistics.mean, statistics.median)]
        worst = min(gaps, key=lambda cell: gaps[cell])
        where = f"{worst[0]}, batch {worst[1]}, {worst[2]} steps"
        print(f"| {design} | {' | '.join(columns)} | {gaps[worst]:+.0f} ({where}) |")


if __name__ == "__main__":
    RUNS.command(__doc__, run, needed, show)
