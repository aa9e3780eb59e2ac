"""Tables and figures of what ``compare.py`` measured.

    python examples/benchmarks/compare_report.py             # the README's tables, as Markdown
    python examples/benchmarks/compare_report.py --figures   # writes examples/pictures/compare_*.png too

Everything is on the part of the data that nothing was tuned on. Losses stand beside wins; a cell with runs missing is
left out, and said.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from pathlib import Path

import numpy as np
from compare import BUDGETS, CSV, GUESSES, GUESSING, QUICK_CSV, SEEDS, TUNED, TUNING_SEEDS, UNTUNED, key, read
from tasks import TASKS

PICTURES = Path(__file__).parents[1] / "pictures"
Cell = tuple[str, int, int]
EARLIER = {"autowu earlier": "AutoWU's first default", "autowu three tenths": "AutoWU's default before"}
"""Defaults before today's, whose runs are kept. The first: "exponential" growth, a peak of a tenth of the LR at the
cliff. The second: the growth of today, three tenths of the LR at the cliff, and nothing known of the noise.
"""
MARGIN = 2
"""How far behind the tuned cosine a method should never be, in percent of the metric."""
LONG = 200
"""Steps from which on a run counts as long."""
NAMES = {"autowu": "AutoWU", "autowu paper": 'AutoWU, `preset="paper"`', **EARLIER}


class Results:
    """The rows of the CSV, by cell (task, batch, budget in percent) and method."""

    def __init__(self, path: Path) -> None:
        self._runs: dict[tuple[Cell, str], list[tuple[float | None, int, dict[str, str]]]] = {}
        for (*where, name, lr, seed), row in {key(row): row for row in read(path)}.items():
            self._runs.setdefault((tuple(where), name), []).append((lr, seed, row))
        self.cells = [
            (task, batch, budget)
            for task, spec in TASKS.items()
            for batch in spec.batches
            for budget in BUDGETS
            if all(len(self.values((task, batch, budget), m)) == len(SEEDS) for m in ("cosine", "autowu"))
        ]

    def values(self, cell: Cell, method: str, field: str = "test") -> list[float]:
        """Of the seeds to report on."""
        return [float(row[field]) for _, seed, row in self._runs.get((cell, method), []) if seed in SEEDS]

    def tuned_lr(self, cell: Cell) -> float | None:
        """The LR that the tuned cosine is reported with."""
        return next(lr for lr, seed, _ in self._runs[cell, "cosine"] if seed == SEEDS[0])

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
        """The standard error of the relative gap; of that to the tuned cosine on five other seeds for "cosine"."""
        error = self.deviation(cell, method, "cosine") * math.sqrt(2 / len(SEEDS))
        return error / abs(self.mean(cell, "cosine"))

    def behind(self, cells: list[Cell], method: str) -> tuple[list[Cell], list[Cell]]:
        """The cells in which it is more than ``MARGIN`` behind, and those of them where two standard errors say so."""
        below = [cell for cell in cells if 100 * self.relative(cell, method) < -MARGIN]
        # A run that failed has no deviation.
        return below, [c for c in below if not self.relative(c, method) > -2 * self.relative_error(c, method)]

    def steps(self, cell: Cell) -> int:
        """Optimizer steps of a run."""
        return int(self.values(cell, "autowu", "steps")[0])

    def failures(self, method: str) -> int:
        """Runs that learned less than half of what the tuned cosine did."""
        return sum(
            not value - TASKS[cell[0]].chance > 0.5 * (self.mean(cell, "cosine") - TASKS[cell[0]].chance)
            for cell in self.cells
            for value in self.values(cell, method)
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


def shown(cell: Cell, value: float, sign: bool = True) -> str:
    _, factor = TASKS[cell[0]].unit
    digits = 3 if abs(factor) == 1 else 1
    return f"{value * abs(factor):{'+' if sign else ''}.{digits}f}"


def gaps(results: Results) -> None:
    budgets = " | ".join(f"{budget} %: tuned | AutoWU | in sd" for budget in BUDGETS)
    print(f"| task | batch | {budgets} |")
    print("|---|---|" + "---|" * 3 * len(BUDGETS))
    for task, spec in TASKS.items():
        for batch in spec.batches:
            entries = []
            for budget in BUDGETS:
                cell = (task, batch, budget)
                if cell not in results.cells:
                    entries += ["", "", ""]
                    continue
                gap = results.gap(cell, "autowu")
                _, factor = spec.unit
                tuned = results.mean(cell, "cosine") * factor
                entries += [
                    f"{tuned:.{3 if abs(factor) == 1 else 1}f}",
                    shown(cell, gap),
                    f"{gap / results.deviation(cell):+.1f}",
                ]
            if any(entries):
                print(f"| {task} ({spec.unit[0]}) | {batch} |", " | ".join(entries), "|")


def methods(results: Results) -> None:
    print(
        "| method | tuned on | mean rank of the untuned | better than, tied with, worse than the tuned cosine | "
        f"more than {MARGIN} % behind (certainly) | median relative gap | worst | failed runs |"
    )
    print("|---|---|---|---|---|---|---|---|")
    untuned = [name for name in UNTUNED if all(results.values(cell, name) for cell in results.cells)]
    ranks: dict[str, list[float]] = {name: [] for name in untuned}
    for cell in results.cells:
        means = {name: results.mean(cell, name) for name in untuned}
        for name in untuned:
            higher = sum(other > means[name] for other in means.values())
            equal = sum(other == means[name] for other in means.values())
            ranks[name].append(1 + higher + (equal - 1) / 2)
    order = sorted(untuned, key=lambda name: statistics.mean(ranks[name]))
    others = [name for name in UNTUNED if name not in untuned]
    for name in [*TUNED, *order, *others, *EARLIER]:
        cells = [cell for cell in results.cells if results.values(cell, name)]
        if not cells:
            continue
        signs = []
        for cell in cells:
            gap, deviation = results.gap(cell, name), results.deviation(cell)
            signs.append(0 if abs(gap) <= deviation else math.copysign(1, gap))
        counts = ", ".join(str(signs.count(sign)) for sign in (1, 0, -1))
        worst = min(cells, key=lambda cell: results.relative(cell, name))
        rank = f"{statistics.mean(ranks[name]):.2f}" if name in ranks else ""
        trials = "nine LRs" if name == "cosine" else "three LRs around its best" if name in TUNED else "nothing"
        where = f"{100 * results.relative(worst, name):+.1f} % ({worst[0]}, {worst[1]}, {worst[2]} %)"
        median = f"{100 * statistics.median(results.relative(cell, name) for cell in cells):+.1f} %"
        few = "" if len(cells) == len(results.cells) else f" ({len(cells)} cells)"
        behind = "{} ({})".format(*map(len, results.behind(cells, name)))
        title, failed = NAMES.get(name, name) + few, str(results.failures(name))
        columns = (title, trials, rank, counts, behind, median, where, failed)
        print("|", " | ".join(columns), "|")


def merits(results: Results) -> None:
    cells = results.cells
    saved = [results.runs_saved(cell) for cell in cells]
    reached = [value for value in saved if value is not None]
    if reached:
        print(
            f"* Runs saved: {statistics.median(reached):g} in the median, {min(reached)} to {max(reached)}; "
            f"not reached in {saved.count(None)} of {len(saved)} cells."
        )
    shares = [
        sum(results.values(cell, "autowu", "schedule_s")) / sum(results.values(cell, "autowu", "seconds"))
        for cell in cells
    ]
    if shares:
        print(
            f"* The schedule's share of the wall time: {100 * statistics.median(shares):.1f} % in the median, "
            f"{100 * max(shares):.1f} % at most."
        )
    gaps = [100 * results.relative(cell, "autowu") for cell in cells]
    behind, certainly = results.behind(cells, "autowu")
    errors = [100 * results.relative_error(cell, "cosine") for cell in cells]
    by_chance = sum(statistics.NormalDist(0.0, max(error, 1e-12)).cdf(-MARGIN) for error in errors)
    print(
        f"* AutoWU beats or ties the tuned cosine in {not_behind(results, cells, 'autowu')} of {len(gaps)} cells; "
        f"it is more than {MARGIN} % behind in {len(behind)}, by {min(gaps, default=math.nan):+.1f} % at worst, and in "
        f"{len(certainly)} of these by more than two standard errors: {worst_by_length(results, certainly)}.\n"
        f"* The tuned cosine beside itself, on five other seeds: a standard error above {MARGIN} % in "
        f"{sum(error > MARGIN for error in errors)} cells, so that it would be more than {MARGIN} % behind in "
        f"{by_chance:.0f} by chance."
    )
    parts = [
        (f"{budget} % of the steps", "autowu", [cell for cell in cells if cell[2] == budget]) for budget in BUDGETS
    ]
    for name, title in EARLIER.items():
        its_cells = [cell for cell in cells if results.values(cell, name)]
        parts += [
            (f"The {len(its_cells)} cells of {title}", "autowu", its_cells),
            (f"The same, {title}", name, its_cells),
        ]
    for title, name, chosen in parts:
        if chosen:
            median = statistics.median(100 * results.relative(cell, name) for cell in chosen)
            print(f"* {title}: {not_behind(results, chosen, name)} of {len(chosen)}, {median:+.1f} % in the median.")


def worst_by_length(results: Results, cells: list[Cell]) -> str:
    """How many of the cells have short runs, how many long ones, and the worst gap of each."""
    parts = []
    for name, chosen in (
        ("fewer than", [cell for cell in cells if results.steps(cell) < LONG]),
        ("at least", [cell for cell in cells if results.steps(cell) >= LONG]),
    ):
        worst = min((results.relative(cell, "autowu") for cell in chosen), default=0.0)
        parts.append(
            f"{len(chosen)} with {name} {LONG} steps" + (f" ({100 * worst:+.1f} % at worst)" if chosen else "")
        )
    return ", ".join(parts)


def not_behind(results: Results, cells: list[Cell], name: str) -> int:
    """How many cells the method wins or ties: not more than a seed's deviation behind the tuned cosine."""
    return sum(results.gap(cell, name) >= -results.deviation(cell) for cell in cells)


def profile(results: Results) -> None:
    """How much of the gap is due to AutoWU's LR, as far as the cosine's runs with other LRs tell."""
    factors, parts = [], []
    for cell in results.cells:
        tuning = results.tuning(cell, "cosine")
        tuned_lr = results.tuned_lr(cell)
        peaks = results.values(cell, "autowu", "peak_lr")
        if tuned_lr not in tuning or not peaks:
            continue
        lrs = sorted(tuning)
        at = [statistics.mean(tuning[lr]) for lr in lrs]
        by_lr = float(np.mean(np.interp(np.log(peaks), np.log(lrs), at))) - statistics.mean(tuning[tuned_lr])
        gain = results.mean(cell, "cosine") - TASKS[cell[0]].chance
        factors.append(statistics.geometric_mean(peaks) / tuned_lr)
        parts.append((cell[2], 100 * results.gap(cell, "autowu") / gain, 100 * by_lr / gain))
    grid_step = math.sqrt(10)
    lower, higher = sum(f < 1 / grid_step for f in factors), sum(f > grid_step for f in factors)
    print(
        f"* AutoWU's peak LR is within one place of the grid of the tuned one in {len(factors) - lower - higher} of "
        f"{len(factors)} cells, below in {lower}, above in {higher}."
    )
    for budget in BUDGETS:
        chosen = [part[1:] for part in parts if part[0] == budget]
        if chosen:
            gap, by_lr = (statistics.median(values) for values in zip(*chosen, strict=True))
            print(
                f"* {budget} % of the steps: a gap of {gap:+.1f} % of what the tuned cosine gains, in the median; of "
                f"the cosine with AutoWU's peak LR: {by_lr:+.1f} %."
            )


def robustness(results: Results) -> None:
    """What is left of the tuned cosine's gain over chance, in percent, at an LR of the user's; mean over the tasks."""
    print("| method | " + " | ".join(f"{lr:g}" for lr in GUESSES) + " |")
    print("|---|" + "---|" * len(GUESSES))
    for method in ("cosine", *GUESSING):
        cells = []
        for lr in GUESSES:
            left = []
            for task, spec in TASKS.items():
                cell = (task, spec.batches[0], 30)
                values = results.tuning(cell, method).get(lr)
                if values and cell in results.cells:
                    gain = results.mean(cell, "cosine") - spec.chance
                    left.append(max(statistics.mean(values) - spec.chance, 0.0) / gain)
            cells.append(f"{100 * statistics.mean(left):.0f}" if left else "")
        print(f"| {NAMES.get(method, method)} |", " | ".join(cells), "|")


def tables(results: Results) -> None:
    """Prints all but the figures."""
    for part in (gaps, methods, robustness, merits, profile):
        part(results)
        print()


def figures(results: Results) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = [task for task in TASKS if any(cell[0] == task for cell in results.cells)]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(tasks) + 1.6))
    for i, task in enumerate(tasks):
        for cell in [cell for cell in results.cells if cell[0] == task]:
            small = cell[1] == TASKS[task].batches[0]
            axes.scatter(
                max(results.gap(cell, "autowu") / results.deviation(cell), -8),
                i + (-0.15 if small else 0.15),
                s={10: 18, 30: 45, 100: 90}[cell[2]],
                color="#1f77b4" if small else "#d95f02",
                alpha=0.8,
            )
    axes.axvspan(-1, 1, color="0.9", zorder=0)
    axes.axvline(0, color="0.6", linewidth=1, zorder=0)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.invert_yaxis()
    axes.set_xlabel("AutoWU minus the tuned cosine, in standard deviations of a seed (right: AutoWU is better)")
    for label, color in (("small batch", "#1f77b4"), ("large batch", "#d95f02")):
        axes.scatter([], [], color=color, label=label)
    for budget, size in ((10, 18), (30, 45), (100, 90)):
        axes.scatter([], [], s=size, color="0.5", label=f"{budget} % of the steps")
    figure.legend(ncols=5, loc="lower center", frameon=False, fontsize="small")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(PICTURES / "compare_gaps.png", dpi=110)
    plt.close(figure)

    columns = 3
    rows = math.ceil(len(tasks) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(10, 2.4 * rows))
    for axes, task in itertools.zip_longest(grid.flat, tasks):
        if task is None:
            axes.set_axis_off()
            continue
        spec = TASKS[task]
        cell = (task, spec.batches[0], 30)
        for method in ("cosine", *GUESSING):
            points = sorted((lr, statistics.mean(v)) for lr, v in results.tuning(cell, method).items())
            if points:
                style = {"linewidth": 2.5, "color": "black"} if method == "autowu" else {"linewidth": 1.2}
                lrs, values = zip(*points, strict=True)
                name = "AutoWU" if method == "autowu" else method
                axes.plot(lrs, [v * spec.unit[1] for v in values], marker=".", label=name, **style)
        axes.set_xscale("log")
        axes.set_xlim(7e-6, 0.14)
        axes.set_title(task, fontsize="medium")
        axes.set_ylabel(spec.unit[0], fontsize="small")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="lower center", frameon=False)
    figure.supxlabel("the user's learning_rate", y=0.05, fontsize="medium")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(PICTURES / "compare_guesses.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="instead of compare.csv")
    parser.add_argument("--quick", action="store_true", help="of compare.py --quick")
    parser.add_argument("--figures", action="store_true")
    options = parser.parse_args()
    results = Results(options.csv or (QUICK_CSV if options.quick else CSV))
    tables(results)
    missing = len(TASKS) * 2 * len(BUDGETS) - len(results.cells)
    if missing and not options.quick:
        print(f"{missing} cells are not there yet.")
    if options.figures:
        figures(results)


if __name__ == "__main__":
    main()
