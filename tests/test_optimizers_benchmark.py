"""The benchmark of other optimizers, and the one LR that the comparison's cosine is run at without tuning."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from result_pages import result_page, shown

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
CELL = ("digits MLP", "SGD", 10)
KINDS = ("SGD", "RMSprop", "Adagrad", "Adafactor", "Lion", "LAMB", "RAdam", "AdamP", "Muon")


@pytest.fixture(scope="module")
def optimizers(load):
    return load("optimizers")


@pytest.fixture(scope="module")
def compare(load):
    return load("compare")


@pytest.fixture(scope="module")
def tuning(load):
    return load("tuning")


def row(optimizers, method, lr, seed, value, cell=CELL):
    results = {"tune": value, "test": value, "peak_lr": 0.03 if method == "autowu" else None}
    return optimizers.RUNS.row((*cell, method, lr, seed), results)


def wanted(optimizers, rows, tasks=("digits MLP",), budgets=(10,), names=("SGD",), methods=("cosine", "autowu")):
    return optimizers.needed(rows, tasks, budgets, names, methods)


def table_of(optimizers, folder, rows):
    table = optimizers.RUNS.at(folder / "runs.csv")
    table.path.write_text("\n".join([",".join(table.fields), *(",".join(r.values()) for r in rows)]) + "\n")
    return table


# What is run ----------------------------------------------------------------------------------------------------------


def test_the_grid_of_an_optimizer_comes_first_then_its_best_lr(optimizers):
    grid = optimizers.KINDS["SGD"].grid
    assert grid[0] == 1e-3
    assert grid[-1] == 3.16228
    jobs = wanted(optimizers, [])
    assert {(job[4], job[5]) for job in jobs if job[3] == "cosine"} == {(lr, seed) for lr in grid for seed in (0, 1)}
    assert [job[4:] for job in jobs if job[3] == "autowu"] == [(None, seed) for seed in optimizers.SEEDS]
    rows = [row(optimizers, "cosine", lr, seed, 0.9 - abs(lr - 0.1)) for lr in grid for seed in (0, 1)]
    assert wanted(optimizers, rows, methods=["cosine"]) == [(*CELL, "cosine", 0.1, seed) for seed in optimizers.SEEDS]
    rows = [row(optimizers, "cosine", lr, seed, lr) for lr in grid for seed in (0, 1)]
    assert wanted(optimizers, rows, methods=["cosine"]) == [(*CELL, "cosine", 10.0, seed) for seed in (0, 1)]


def test_cheap_tasks_come_first_and_what_takes_hours_is_left_out(optimizers):
    tasks = optimizers.TASK_NAMES
    jobs = wanted(optimizers, [], tasks[::-1], (100, 10), KINDS)
    assert list(dict.fromkeys(job[0] for job in jobs)) == list(tasks)
    assert list(dict.fromkeys(job[2] for job in jobs if job[0] == "GPT")) == [10, 100]
    cells = {job[:3] for job in jobs}
    assert ("MiniLM", "Muon", 10) in cells
    assert ("MiniLM", "Muon", 100) not in cells
    assert len(cells) == 89
    assert f"each of the {len(cells)} cells" in result_page("optimizers")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_every_optimizer_runs_with_both_schedules(optimizers, name):
    assert tuple(optimizers.KINDS) == KINDS
    cosine = optimizers.run(("digits MLP", name, 1, "cosine", optimizers.KINDS[name].grid[-2], 10))
    autowu = optimizers.run(("digits MLP", name, 1, "autowu", None, 10))
    assert cosine["steps"] == autowu["steps"] == 8
    assert autowu["ended_by"]
    assert 0 <= autowu["looked"] <= autowu["switch"]
    assert 0 < autowu["peak_lr"] <= 1
    for result in (cosine, autowu):
        optimizers.RUNS.row((*CELL, "cosine", None, 10), result)
        assert 0 <= result["test"] <= 1


def test_muon_has_the_hidden_weights_and_adamw_the_rest(load):
    models, makers = load("models"), load("optimizer_makers")
    models_and_shapes = {
        models.mlp(64, 10): [(128, 64), (128, 128)],
        models.SignalCNN(): [(24, 1, 5), (24, 24, 3), (24, 24, 3)],
        models.LogitsOfGPT(models.small_gpt(32, 48)): [(48, 144), (48, 48), (48, 192), (192, 48)] * 2,
    }
    for model, shapes in models_and_shapes.items():
        hidden = makers.hidden_weights(model)
        assert [tuple(weight.shape) for weight in hidden] == shapes
        optimizer = makers.muon_with_adamw(model, 1e-3)
        assert optimizer.param_groups[0]["params"] == hidden
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len([*model.parameters()])
        assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_muons_update_has_singular_values_near_one(load, shape):
    makers = load("optimizer_makers")
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    optimizer = makers.Float32Muon([{"params": [weight], "use_muon": True}], lr=0.1, use_adjusted_lr=True)
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach()) / (0.1 * 0.2 * math.sqrt(40))
    assert 0.6 < values.min() <= values.max() < 1.3


# What is reported -----------------------------------------------------------------------------------------------------


def test_the_percent_of_a_gain(tuning):
    assert tuning.percent_of_gain(0.55, 0.6, 0.1) == pytest.approx(-10)
    assert tuning.percent_of_gain(0.65, 0.6, 0.1) == pytest.approx(10)
    assert tuning.percent_of_gain(-4.5, -4.0, -8.0) == pytest.approx(-12.5)
    assert tuning.percent_of_gain(0.0, 0.6, 0.1) == tuning.percent_of_gain(-math.inf, 0.6, 0.1) == -100
    assert tuning.percent_of_gain(math.nan, 0.6, 0.1) == -100
    assert tuning.percent_of_gain(0.9, 0.2, 0.1) == 100


def test_gap_and_tables(optimizers, tmp_path, capsys):
    seeds = optimizers.SEEDS
    rows = [row(optimizers, "cosine", 0.1, *pair) for pair in zip(seeds, 2 * [0.5, 0.6, 0.7], strict=True)]
    rows += [row(optimizers, "autowu", None, *pair) for pair in zip(seeds, 2 * [0.2, 0.55, math.nan], strict=True)]
    rows += [row(optimizers, "cosine", 0.1, 0, 0.9)]
    guess = ("digits MLP", "SGD", 100)  # no better than chance
    rows += [row(optimizers, method, 0.1, s, 0.1, guess) for method in ("cosine", "autowu") for s in seeds]
    table = table_of(optimizers, tmp_path, rows)
    results = optimizers.Results(table)
    assert results.test(CELL, "cosine") == 0.6
    assert results.gap(CELL, "autowu") == pytest.approx(-80)  # 0.2 beside 0.6, of which 0.1 is chance
    assert results.gap(guess, "autowu") is None
    assert results.gap(("GPT", "SGD", 10), "autowu") is None
    optimizers.tables(table)
    printed = capsys.readouterr().out.splitlines()
    assert "| SGD | digits MLP (accuracy, %) | 60.0 (0.1) | -80 % (3.0e-02) | 10.0 (0.1) |  |" in printed
    assert "| SGD | -80 % | -80 % | 1 |" in printed
    optimizers.tables(table_of(optimizers, tmp_path, rows[:2]))  # one seed is missing
    assert "SGD" not in capsys.readouterr().out


# One LR for all cells -------------------------------------------------------------------------------------------------


def test_the_best_lr_over_all_is_that_of_the_mean_of_cut_percents(tuning):
    first = ({1e-3: 0.9, 1e-2: 0.8, 1e-1: 0.1}, 0.1)  # 0, -12.5 and -100 percent
    second = ({1e-3: -7.0, 1e-2: -5.0, 1e-1: -4.0}, -8.0)  # -75, -25, 0
    assert tuning.best_lr_over_all([first]) == 1e-3
    assert tuning.best_lr_over_all([second]) == 1e-1
    assert tuning.best_lr_over_all([first, second]) == 1e-2
    broken = ({1e-3: 0.2, 1e-2: -1e9, 1e-1: -math.inf}, 0.1)  # counts as -100, not as all that matters
    assert tuning.best_lr_over_all([first, broken] + [second] * 3) == 1e-2
    useless = ({1e-3: -2.0, 1e-2: -1.0, 1e-1: -3.0}, 0.0)  # no better than chance at any LR
    assert tuning.best_lr_over_all([first, useless]) == 1e-3
    grown = ({1e-3: 0.9, 1e-2: 0.8, 1e-1: 0.1, 1.0: 0.95}, 0.1)  # 1.0 was not tried elsewhere
    assert tuning.best_lr_over_all([first, grown]) == 1e-3


@pytest.fixture
def tuned(compare, load, tuning):
    """Rows of the cosine's grid in all cells: 1e-2 is best with the small batch, 3e-2 with the large, by less."""
    rows = []
    for task, spec in load("tasks").TASKS.items():
        for batch, best in zip(spec.batches, (1e-2, 3.16228e-2), strict=True):
            for budget in compare.BUDGETS:
                for i, lr in enumerate(tuning.GRID):
                    away = abs(i - tuning.GRID.index(best)) * (0.3 if batch == spec.batches[0] else 0.1)
                    for seed in tuning.TUNING_SEEDS:
                        job = (task, batch, budget, "cosine", lr, seed)
                        rows.append(compare.RUNS.row(job, {"tune": spec.chance + 0.9 - away, "test": 0.5}))
    return rows


def test_the_cosine_at_one_lr_waits_until_all_cells_are_tuned(compare, load, tuning, tuned):
    tasks = load("tasks").TASKS
    name = load("methods").AT_ONE_LR
    what = [list(tasks), list(compare.BUDGETS), [0, 1], [name]]
    assert compare.needed(tuned[:-1], *what) == []
    jobs = compare.needed(tuned, *what)
    assert len(jobs) == 9 * 2 * 3 * 5
    assert {job[3:5] for job in jobs} == {(name, 1e-2)}
    assert {job[5] for job in jobs} == set(tuning.SEEDS)
    rows = tuned + [compare.RUNS.row(job, {"tune": 0.5, "test": 0.5}) for job in jobs[:-1]]
    assert compare.needed(rows, *what) == jobs[-1:]
    assert compare.needed(tuned, ["GPT"], [10], [1], [name]) == [job for job in jobs if job[:3] == ("GPT", 64, 10)]


def test_the_report_ranks_the_cosine_at_one_lr_once_it_was_run(compare, load, tuning, tmp_path, capsys):
    report, name = load("compare_report"), load("methods").AT_ONE_LR
    rows = []
    for method, lr, value in (("cosine", 1e-3, 0.8), ("autowu", None, 0.78), (name, 1e-2, 0.6), ("greedy", 1e-3, 0.7)):
        for seed in compare.reported_seeds(method):
            results = {"test": value + 0.001 * (seed % 5), "steps": 21, "seconds": 2.0, "schedule_s": 0.1}
            results["peak_lr"] = 1e-3
            rows.append(compare.RUNS.row(("digits MLP", 32, 10, method, lr, seed), results))
    for chosen, rank in ((rows, "3.00"), ([r for r in rows if r["method"] != name], None)):
        report.tables(report.Results(table_of(compare, tmp_path, chosen)))
        line = re.search(rf"^\| {name} \|.*", capsys.readouterr().out, flags=re.MULTILINE)
        assert (line is not None) == (rank is not None)
        if line is not None:
            assert line[0].startswith(f"| {name} | all cells together: 0.01 | {rank} | 0, 0, 1 | 1 (1) |")


def test_the_page_has_what_the_committed_runs_give(optimizers, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["optimizers.py", "--table"])
    optimizers.main()
    tables = shown("optimizers")
    assert capsys.readouterr().out.strip() == tables
    assert all(name in tables for name in KINDS)
