"""Replays recorded loss curves: when does the warm-up end, beside the authors' released code?

    python examples/benchmarks/faithfulness.py

``tests/data/loss_curves.json.gz`` has 24 curves and the authors' decision on each. Three replays of every curve:
``preset="paper"`` under eight subsampling seeds, with the steps of GPyTorch's Adam written out in numpy (``replay.py``,
which the tests compare with GPyTorch); the default settings with ``peak_rule="minimum"`` and tests at epoch ends, once;
and these again with one loss replaced by 1e6, at every place before the switch.
"""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
from replay import FastPaperGP, is_early, replay

from autowu_hf.autowu.settings import AutoWUSettings

CURVES = Path(__file__).resolve().parents[2] / "tests" / "data" / "loss_curves.json.gz"
DEFAULT = AutoWUSettings(test_every="epoch", peak_rule="minimum")
SEEDS = range(8)


def load() -> list[dict[str, Any]]:
    with gzip.open(CURVES) as file:
        records = json.load(file)
    return [{**record, "losses": np.array(record["losses"]), "cap": record["total_steps"] // 2} for record in records]


def lr_factor(record: dict[str, Any], minimum: float) -> float:
    ratio = 1e-5 * 1e5 ** (minimum / record["cap"]) / record["decay_lr"]
    return max(ratio, 1.0 / ratio)


def paper(record: dict[str, Any]) -> list[tuple[float, float]]:
    """Tests between our switch and theirs, and the factor between the LRs the decay starts from, for every seed."""
    rows = []
    for seed in SEEDS:
        settings = AutoWUSettings.from_options("paper", {"seed": seed})
        switch, minimum, _ = replay(record["losses"], record["cap"], record["steps_per_epoch"], settings, FastPaperGP())
        tests = abs(switch - record["switch_step"]) / record["steps_per_epoch"]
        rows.append((tests, lr_factor(record, minimum)))
    return rows


def default(record: dict[str, Any]) -> tuple[float, float, bool, int, int]:
    """As ``paper``, and whether the switch is early, places of a spike, and those that moved it by more than a test."""
    interval, losses = record["steps_per_epoch"], record["losses"]
    switch, minimum, _ = replay(losses, record["cap"], interval, DEFAULT)
    moved = 0
    for place in range(min(switch, record["cap"])):
        spiked = losses.copy()
        spiked[place] = 1e6
        moved += (
            abs(replay(spiked, record["cap"], interval, DEFAULT, stop=switch + 2 * interval)[0] - switch) > interval
        )
    tests = abs(switch - record["switch_step"]) / interval
    return tests, lr_factor(record, minimum), is_early(record, switch), min(switch, record["cap"]), moved


def row(name: str, tests: list[float], factors: list[float]) -> str:
    within = np.array(tests)
    return (
        f"| {name} | {100 * (within <= 1).mean():.0f} % | {100 * (within <= 2).mean():.0f} % "
        f"| {np.median(factors):.2f} | {np.quantile(factors, 0.9):.2f} |"
    )


def main() -> None:
    records = load()
    with ProcessPoolExecutor(2) as pool:
        of_paper = [pair for rows in pool.map(paper, records) for pair in rows]
        of_default = list(pool.map(default, records))
    print("| | switch within one test | within two | LR within a factor, median | 90th percentile |")
    print("|---|---|---|---|---|")
    print(row('`preset="paper"`, eight seeds', *map(list, zip(*of_paper, strict=True))))
    print(
        row(
            'defaults, `peak_rule="minimum"`, `test_every="epoch"`',
            [r[0] for r in of_default],
            [r[1] for r in of_default],
        )
    )
    theirs = sum(is_early(record, record["switch_step"]) for record in records)
    print(f"\nearly switches: {sum(r[2] for r in of_default)} by default, {theirs} by the authors' code")
    moved, places = sum(r[4] for r in of_default), sum(r[3] for r in of_default)
    print(f"switches that one spike moved by more than a test: {moved} of {places}")


if __name__ == "__main__":
    main()
