"""What ``real_models.py`` prints of its rows: gaps to the tuned cosine, what is kept, and AutoWU's warm-ups."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable

from head_tasks import ALL_TASKS
from runs import Row

Results = dict[tuple[str, str], list[Row]]
"""Task and method -> its rows to report."""


def gaps(own: list[Row], tuned: list[Row]) -> list[float]:
    """How far a method is above the tuned cosine (negative: below) in percent of what the cosine gains over the start
    in the mean, cut at 100.

    Args:
        own: the method's rows.
        tuned: the tuned cosine's rows.

    Returns:
        One gap for every seed that both have; none where the cosine gains nothing.
    """
    gain = statistics.fmean(float(row["test"]) - float(row["start"]) for row in tuned) if tuned else 0.0
    if not gain > 0:
        return []
    by_seed = {row["seed"]: float(row["test"]) for row in tuned}
    differences = [float(row["test"]) - by_seed[row["seed"]] for row in own if row["seed"] in by_seed]
    return [max(-100.0, min(100.0, 100 * value / gain)) if math.isfinite(value) else -100.0 for value in differences]


def mean(rows: list[Row], column: str, scale: float = 1.0, decimals: int = 2) -> str:
    """The mean over the rows that have the column; nothing where none has."""
    values = [float(row[column]) for row in rows if row[column]]
    return f"{scale * statistics.fmean(values):.{decimals}f}" if values else ""


def print_table(title: str, head: Iterable[str], lines: Iterable[Iterable[str]]) -> None:
    head = list(head)
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")


def show_gaps(results: Results, names: list[str], methods: list[str]) -> None:
    """One line a task, and the mean and the median over the tasks that have a gap."""
    lines = []
    medians: dict[str, list[float]] = {method: [] for method in methods}
    for name in names:
        unit, scale = ALL_TASKS[name].unit
        decimals = 1 if scale == 100 else 3
        tuned = results.get((name, "cosine"), [])
        line = [f"{name} ({unit})", mean(tuned, "start", scale, decimals), mean(tuned, "test", scale, decimals)]
        line.append(tuned[0]["lr"] if tuned else "")
        for method in methods:
            found = gaps(results.get((name, method), []), tuned)
            medians[method] += [statistics.median(found)] if found else []
            line.append(f"{medians[method][-1]:+.0f}" if found else "")
        lines.append(line)
    averages: dict[str, Callable[[list[float]], float]] = {"mean": statistics.fmean, "median": statistics.median}
    for label, average in averages.items():
        lines.append([label, "", "", "", *(f"{average(m):+.1f} ({len(m)})" if m else "" for m in medians.values())])
    title = "The gap to the tuned cosine, in percent of what it gains over the start; the median over the seeds"
    print_table(title, ["task", "start", "tuned cosine", "at", *methods], lines)


def show(results: Results, methods: Iterable[str], autowu: Iterable[str]) -> None:
    """Prints all tables.

    Args:
        results: what to report.
        methods: the names of all methods, in the order of their columns.
        autowu: those of them that are AutoWU.
    """
    names = [name for name in ALL_TASKS if any(name == task for task, _ in results)]
    methods = [method for method in methods if any(method == other for _, other in results)]
    show_gaps(results, names, [method for method in methods if method != "cosine"])

    lines = []
    for name in names:
        by_method = {method: results.get((name, method), []) for method in methods}
        rows = [row for own in by_method.values() for row in own]
        if any(row["kept_start"] for row in rows):
            lines.append([name, mean(rows, "kept_start"), *(mean(own, "kept") for own in by_method.values())])
    if lines:  # of a frozen model all is
        print_table("What is kept of the pretraining; the mean over the seeds", ["task", "before", *methods], lines)

    def warm_up(rows: list[Row]) -> str:
        if not rows:
            return ""
        peak = statistics.geometric_mean(float(row["peak_lr"]) for row in rows)
        return f"{peak:.1e}, {statistics.median(int(row['looked']) for row in rows):g} of {rows[0]['steps']}"

    columns = [method for method in methods if method in autowu]
    lines = [[name, *(warm_up(results.get((name, method), [])) for method in columns)] for name in names]
    print_table("AutoWU's peak LR, and the steps whose weights it gave up", ["task", *columns], lines)
