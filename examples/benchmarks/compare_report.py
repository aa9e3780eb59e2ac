"""Tables and figures of what ``compare.py`` measured.

    python examples/benchmarks/compare_report.py             # the tables of results/compare.md
    python examples/benchmarks/compare_report.py --figures   # writes examples/pictures/compare_*.png too

Every number is of the part of the data that nothing was tuned on. Losses stand beside wins. A cell with runs missing is
left out, and the last line says how many such cells there are.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import numpy as np
from compare import BUDGETS, GUESSES, QUICK_CSV, RUNS
from compare_results import MARGIN, Cell, Results
from methods import AT_ONE_LR, GUESSING, TUNED, UNTUNED
from tasks import TASKS
from tuning import percent_of_gain

EARLIER = {"autowu earlier": "AutoWU's first default", "autowu three tenths": "AutoWU's default before"}
"""Defaults before today's, whose runs are kept. The first: "exponential" growth, a peak of a tenth of the LR at the
cliff. The second: the growth of today, three tenths of the LR at the cliff, and nothing known of the noise.
"""
OTHER = {**EARLIER, "autowu range": "AutoWU, `scale=False`"}
"""Settings of AutoWU that are shown beside the default, and have no rank: the ranks are those of methods."""
LONG = 200
"""Steps from which on a run counts as long."""
NAMES = {"autowu": "AutoWU", "autowu paper": 'AutoWU, `preset="paper"`', **OTHER}


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
    untuned = [n for n in UNTUNED if n not in OTHER and all(results.values(cell, n) for cell in results.cells)]
    ranks: dict[str, list[float]] = {name: [] for name in untuned}
    for cell in results.cells:
        means = {name: results.mean(cell, name) for name in untuned}
        for name in untuned:
            higher = sum(other > means[name] for other in means.values())
            equal = sum(other == means[name] for other in means.values())
            ranks[name].append(1 + higher + (equal - 1) / 2)
    order = sorted(untuned, key=lambda name: statistics.mean(ranks[name]))
    others = [name for name in UNTUNED if name not in untuned and name not in OTHER]
    for name in [*TUNED, *order, *others, *OTHER]:
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
        if name == AT_ONE_LR:
            trials = f"all cells together: {results.reported_lr(cells[0], name):g}"
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
        f"* The tuned cosine beside itself, on as many other seeds: a standard error above {MARGIN} % in "
        f"{sum(error > MARGIN for error in errors)} cells, so that it would be more than {MARGIN} % behind in "
        f"{by_chance:.0f} by chance."
    )
    parts = [
        (f"{budget} % of the steps", "autowu", [cell for cell in cells if cell[2] == budget]) for budget in BUDGETS
    ]
    for name, title in OTHER.items():
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
        tuned_lr = results.reported_lr(cell)
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


SHOWN = ("autowu", "autowu range", AT_ONE_LR, "schedule-free")
"""The methods of the last table."""


def percents(results: Results) -> None:
    """Gaps between medians over the seeds, in percent of what the tuned cosine gains; mean and median over cells."""
    names = [name for name in SHOWN if results.cells and all(results.values(cell, name) for cell in results.cells)]
    print("| steps | " + " | ".join(f"{NAMES.get(name, name)}: mean, median" for name in names) + " |")
    print("|---|" + "---|" * len(names))
    for title, budgets in [*((f"{budget} %", (budget,)) for budget in BUDGETS), ("all", BUDGETS)]:
        chosen = [cell for cell in results.cells if cell[2] in budgets]
        entries = []
        for name in names if chosen else []:
            gaps = [percent(results, cell, name) for cell in chosen]
            entries.append(f"{statistics.mean(gaps):+.1f}, {statistics.median(gaps):+.1f}")
        if entries:
            print(f"| {title} |", " | ".join(entries), "|")


def percent(results: Results, cell: Cell, name: str) -> float:
    """One of these gaps; where the tuned cosine gains nothing, 100 or -100."""
    value, tuned = (statistics.median(results.values(cell, method)) for method in (name, "cosine"))
    return percent_of_gain(value, tuned, TASKS[cell[0]].chance)


def tables(results: Results) -> None:
    """Prints all but the figures."""
    for part in (gaps, methods, robustness, merits, profile, percents):
        part(results)
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="instead of compare.csv")
    parser.add_argument("--quick", action="store_true", help="of compare.py --quick")
    parser.add_argument("--figures", action="store_true")
    options = parser.parse_args()
    results = Results(RUNS.at(options.csv or (QUICK_CSV if options.quick else RUNS.path)))
    tables(results)
    missing = len(TASKS) * 2 * len(BUDGETS) - len(results.cells)
    if missing and not options.quick:
        print(f"{missing} cells are not there yet.")
    if options.figures:
        from compare_figures import figures

        figures(results)


if __name__ == "__main__":
    main()
