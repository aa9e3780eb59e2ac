"""The runs of ``compare.py`` by cell and method, and AutoWU's gap to the tuned cosine in them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from compare import BUDGETS, reported_seeds
from runs import Row, RunTable
from tasks import TASKS
from tuning import SEEDS, TUNING_SEEDS

Cell = tuple[str, int, int]
"""A task, a batch size, a budget in percent."""
MARGIN = 2
"""How far behind the tuned cosine a method should never be, in percent of the metric."""


class Results:
    """The rows of a table of runs, by cell and method.

    Args:
        table: ``compare.RUNS`` or another file with its columns.

    Attributes:
        cells: those in which every run of AutoWU and of the tuned cosine is there.
    """

    def __init__(self, table: RunTable) -> None:
        self._runs: dict[tuple[Cell, str], list[tuple[float | None, int, Row]]] = {}
        for (*cell, name, lr, seed), row in {table.job(row): row for row in table.rows()}.items():
            self._runs.setdefault((tuple(cell), name), []).append((lr, seed, row))
        self.cells = [
            (task, batch, budget)
            for task, spec in TASKS.items()
            for batch in spec.batches
            for budget in BUDGETS
            if all(len(self.values((task, batch, budget), m)) == len(reported_seeds(m)) for m in ("cosine", "autowu"))
        ]

    def values(self, cell: Cell, method: str, field: str = "test", seeds: Sequence[int] | None = None) -> list[float]:
        """Of some seeds, by default those to report on."""
        seeds = reported_seeds(method) if seeds is None else seeds
        return [float(row[field]) for _, seed, row in self._runs.get((cell, method), []) if seed in seeds]

    def reported_lr(self, cell: Cell, method: str = "cosine") -> float | None:
        """The LR that a method is reported with, by default the tuned cosine; None for those that find it."""
        return next(lr for lr, seed, _ in self._runs[cell, method] if seed == SEEDS[0])

    def tuning(self, cell: Cell, method: str) -> dict[float, list[float]]:
        """LR -> test metric of the seeds to tune on."""
        by_lr: dict[float, list[float]] = {}
        for lr, seed, row in self._runs.get((cell, method), []):
            if seed in TUNING_SEEDS and lr is not None:
                by_lr.setdefault(lr, []).append(float(row["test"]))
        return by_lr

    def mean(self, cell: Cell, method: str) -> float:
        """Minus infinity where a run failed."""
        values = self.values(cell, method)
        return statistics.mean(values) if values and all(map(math.isfinite, values)) else -math.inf

    def gap(self, cell: Cell, method: str) -> float:
        """To the tuned cosine, in the metric's unit; positive is better."""
        return self.mean(cell, method) - self.mean(cell, "cosine")

    def deviation(self, cell: Cell, *methods: str) -> float:
        """Of one seed, pooled over the runs of the methods, by default AutoWU and the tuned cosine."""
        runs = [self.values(cell, method) for method in methods or ("autowu", "cosine")]
        return math.sqrt(statistics.mean(statistics.variance(values) for values in runs))

    def relative(self, cell: Cell, method: str) -> float:
        """The gap, relative to the tuned cosine's metric."""
        return self.gap(cell, method) / abs(self.mean(cell, "cosine"))

    def relative_error(self, cell: Cell, method: str) -> float:
        """The standard error of the relative gap; of that to the tuned cosine on other seeds for "cosine"."""
        shares = sum(1.0 / len(self.values(cell, name)) for name in (method, "cosine"))
        return self.deviation(cell, method, "cosine") * math.sqrt(shares) / abs(self.mean(cell, "cosine"))

    def behind(self, cells: list[Cell], method: str) -> tuple[list[Cell], list[Cell]]:
        """The cells in which it is more than ``MARGIN`` behind, and those of them where two standard errors say so."""
        below = [cell for cell in cells if 100 * self.relative(cell, method) < -MARGIN]
        # A run that failed has no deviation.
        return below, [c for c in below if not self.relative(c, method) > -2 * self.relative_error(c, method)]

    def steps(self, cell: Cell) -> int:
        """Optimizer steps of a run."""
        return int(self.values(cell, "autowu", "steps")[0])

    def failures(self, method: str) -> int:
        """Runs that learned less than half of what the tuned cosine did, of the seeds that all methods have."""
        return sum(
            not value - TASKS[cell[0]].chance > 0.5 * (self.mean(cell, "cosine") - TASKS[cell[0]].chance)
            for cell in self.cells
            for value in self.values(cell, method, seeds=SEEDS)
        )

    def runs_saved(self, cell: Cell) -> int | None:
        """How many LRs of the cosine's grid one must try at random until the best is expected to reach AutoWU's median,
        minus one; None where even all of them do not.
        """
        means = [statistics.mean(values) for values in self.tuning(cell, "cosine").values()]
        goal = statistics.median(self.values(cell, "autowu"))
        for k in range(1, len(means) + 1):
            best = [max(chosen) for chosen in itertools.combinations(means, k)]
            if statistics.mean(best) >= goal:
                return k - 1
        return None
