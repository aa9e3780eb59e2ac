"""What the tools suggest beside the tuned LRs; see ``examples/benchmarks/suggestions.py``."""

from __future__ import annotations

import math

import pytest
from result_pages import shown

CELL = ("digits MLP", 32)
REAL = ("ViT", 32)


@pytest.fixture(scope="module")
def suggestions(load):
    return load("suggestions")


@pytest.fixture(scope="module")
def tuned(suggestions):
    return suggestions.tuned_lrs()


def row(suggestions, tool, lr, seed=10, which=CELL):
    return suggestions.RUNS.row((*which, tool, seed), {"lr": lr, "seconds": 1.0})


def test_every_tool_suggests_for_every_task_and_batch_size(suggestions):
    jobs = suggestions.needed([])
    assert len(jobs) == (9 * 2 + 7) * 3 * 3
    assert suggestions.needed([row(suggestions, "suggest_lr", 0.1)]) == [
        job for job in jobs if job != (*CELL, "suggest_lr", 10)
    ]


def test_the_tuned_lr_is_the_one_that_compare_reports(suggestions, tuned, load):
    results = load("compare_results").Results(load("compare").RUNS)
    small = {
        (task, batch, f"{budget} %"): results.reported_lr((task, batch, budget))
        for task, batch, budget in results.cells
    }
    assert len(small) == 54
    assert {cell: tuned[cell] for cell in suggestions.small_cells()} == small


def test_the_real_models_are_those_of_their_benchmark_at_its_tuned_lrs(suggestions, tuned, load):
    real_models = load("real_models")
    names = {cell: suggestions.real_task(*cell) for cell in suggestions.real_cells()}
    assert sorted(names.values()) == sorted(real_models.TASKS)
    reported = real_models.reported(real_models.RUNS.rows(), [10])
    assert {name: float(reported[name, "cosine"][0]["lr"]) for name in names.values()} == {
        names[cell]: tuned[cell] for cell in names
    }


def test_a_distance_is_that_of_the_median_seed_and_infinite_without_a_suggestion(suggestions, tuned):
    lr = tuned[(*CELL, "10 %")]
    rows = [row(suggestions, "suggest_lr", value, seed) for seed, value in ((10, lr), (11, 10 * lr), (12, 100 * lr))]
    assert suggestions.distances(rows, "suggest_lr", tuned)[(*CELL, "10 %")] == pytest.approx(1.0)
    nothing = [row(suggestions, "Lightning", math.nan, seed) for seed in (10, 11, 12)]
    assert set(suggestions.distances(nothing, "Lightning", tuned).values()) == {math.inf}
    assert len(suggestions.distances(rows, "suggest_lr", tuned)) == 3  # of one task and batch size, three budgets


def test_the_tables_on_the_page_are_what_the_committed_rows_give(suggestions, capsys):
    suggestions.show(suggestions.RUNS.rows())
    printed = capsys.readouterr().out.strip()
    assert len(printed.splitlines()) == 5 + 1 + 2 + 18 + 7
    assert printed == shown("suggestions")


@pytest.mark.once
@pytest.mark.parametrize("which", [CELL, REAL])
def test_our_suggestion_needs_no_more_than_the_run(suggestions, which):
    results = suggestions.run((*which, "suggest_lr", 10))
    assert 1e-4 < float(results["lr"]) < 1.0


def test_the_table_counts_what_is_near(suggestions, tuned, capsys):
    real, lr = tuned[(*REAL, "3 epochs")], tuned[(*CELL, "10 %")]
    suggestions.show([row(suggestions, "suggest_lr", lr), row(suggestions, "suggest_lr", 100 * real, which=REAL)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| suggest_lr"))
    near = sum(abs(math.log10(tuned[(*CELL, budget)] / lr)) <= 0.5 for budget in ("10 %", "30 %", "100 %"))
    assert line.startswith(f"| suggest_lr | {near} of 3 | 0 of 2 | {near} of 5 |")
