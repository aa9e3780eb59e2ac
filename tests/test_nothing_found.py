"""The runs whose losses tell little or nothing; see ``examples/benchmarks/nothing_found.py``."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from margins import assert_above, assert_below, assert_close
from result_pages import shown

from autowu_hf.autowu.course.later import overshoot


@pytest.fixture(scope="module")
def nothing_found(load):
    return load("nothing_found")


@pytest.fixture(scope="module")
def tasks(load):
    return load("nothing_found_tasks")


def test_every_task_runs_by_both_methods_and_nothing_twice(nothing_found):
    jobs = nothing_found.needed([])
    assert len(jobs) == 2 * (12 * 5 + 10)
    assert {job[0] for job in jobs} == set(nothing_found.TASKS)
    row = nothing_found.RUNS.row(jobs[3], {"test": 0.5})
    assert nothing_found.needed([row]) == [*jobs[:3], *jobs[4:]]


@pytest.mark.once
def test_losses_that_are_always_0_leave_the_default_lr(nothing_found):
    results = nothing_found.run(("policy gradient", "autowu", 10))
    assert (results["ended_by"], results["peak_lr"], results["looked"]) == ("nothing", 5e-5, 0)
    assert results["test"] >= results["start"]


@pytest.mark.once
def test_a_trained_model_that_goes_on_is_hardly_harmed(nothing_found, tasks, monkeypatch):
    """It was trained for three eighths of what it is in the benchmark."""
    whole = tasks.gpt
    monkeypatch.setattr(tasks, "gpt", lambda seed: dataclasses.replace(whole(seed), steps=150))
    tasks.trained_gpt.cache_clear()
    job = ("trained GPT, 20 steps", "autowu", 10)
    asked = nothing_found.run(job)
    monkeypatch.setattr(overshoot, "OVERSHOT", math.inf)
    unasked = nothing_found.run(job)
    tasks.trained_gpt.cache_clear()
    harm = unasked["start"] - unasked["test"]
    assert_above(harm, 0.0, harm)
    assert_below(asked["start"] - asked["test"], 0.5 * harm, harm)


def test_the_value_of_a_policy_gradients_loss_is_next_to_nothing_and_its_gradient_is_not(tasks):
    torch.manual_seed(0)
    run = tasks.TASKS["policy gradient"](0)
    loss = run.loss_of(run.model, run.batches(0))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert_above(sum(p.grad.abs().sum().item() for p in run.model.parameters()), 0.1, 1.0)


def test_dpo_begins_at_ln_2_and_ranks_by_chance(tasks):
    torch.manual_seed(0)
    run = tasks.TASKS["DPO, fresh GPT"](0)
    metric, loss, _ = run.evaluate(run.model)
    assert metric == 0.5
    assert_close([loss], [0.6931472], 1e-6)


def test_the_table_on_the_page_is_what_the_committed_runs_give(nothing_found, capsys):
    nothing_found.show(nothing_found.RUNS.rows())
    printed = capsys.readouterr().out.strip()
    assert len(printed.splitlines()) >= 2 + 5
    assert printed == shown("nothing_found")


def test_the_table_has_the_gap_and_the_worst_seed(nothing_found, capsys):
    def row(method, seed, test, **results):
        columns = {"steps": 60, "start": 0.2, "test": test, **results}
        return nothing_found.RUNS.row(("policy gradient", method, seed), columns)

    rows = [row("linear 5e-5", seed, 0.3) for seed in nothing_found.SEEDS]
    for seed in nothing_found.SEEDS:
        test, ending = (0.1, "nothing") if seed == 11 else (0.35, "scale")
        rows.append(row("autowu", seed, test, peak_lr=5e-5, ended_by=ending))
    nothing_found.show(rows[:-1])
    assert "policy" not in capsys.readouterr().out  # a run is missing
    nothing_found.show(rows)
    *_, line = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        *("policy gradient", "60", "20.0", "30.0", "35.0", "+50"),
        *("20.0", "10.0", "5.0e-05 to 5.0e-05", "nothing 1, scale 4"),
    ]
