"""Other designs where AutoWU misses what was aimed at; see ``examples/benchmarks/misses.py``."""

from __future__ import annotations

import pytest
from result_pages import shown

VIT, LION, GPT = "ViT, 3 epochs", "Lion, signals CNN", "trained GPT, 20 steps"


@pytest.fixture(scope="module")
def misses(load):
    return load("misses")


def kept_of(task, seed):
    """What is kept of the pretraining; only the ViT knew something before."""
    return {"kept": 0.5 + 0.1 * (seed == 42)} if task == VIT else {}


def rows_of(misses, task, start, by_design):
    """One row a seed and design; a design that is not named has the metric of "default"."""
    tests = {design: by_design.get(design, by_design["default"]) for design in (misses.BESIDE, *misses.DESIGNS)}
    return [
        misses.RUNS.row((task, design, seed), {"start": start, "peak_lr": 0.01, "test": test} | kept_of(task, seed))
        for design, values in tests.items()
        for seed, test in zip(misses.SEEDS, values, strict=True)
    ]


def test_every_design_has_the_seeds_and_tasks_of_what_stands_beside_it(misses):
    jobs = misses.needed([])
    assert len(jobs) == len(set(jobs)) == len(misses.MISSES) * len(misses.SEEDS) * (1 + len(misses.DESIGNS))
    assert set(misses.MISSES) == {*misses.REAL, *misses.OPTIMIZERS, *misses.QUIET}
    made = [misses.RUNS.row(job, {}) for job in jobs[:5]]
    assert misses.needed(made) == jobs[5:]


def test_gaps_are_to_the_cosine_of_the_same_seed_and_only_of_tasks_whose_runs_are_all_there(misses, capsys):
    tests = {misses.BESIDE: [0.5, 0.7, 0.6, 0.6, 0.6], "default": [0.6] * 5, "REX": [0.5, 0.7, 0.6, 0.6, 0.6]}
    rows = rows_of(misses, VIT, 0.1, tests)  # the cosine gains 0.5 in the mean
    assert misses.gaps(rows, VIT)["default"] == pytest.approx([20, -20, 0, 0, 0])
    assert misses.gaps(rows, VIT)["REX"] == [0] * 5
    assert misses.gaps(rows[1:], VIT) == {}
    rows += rows_of(misses, LION, 0.1, {misses.BESIDE: [0.6] * 5, "default": [0.5] * 5})
    rows += rows_of(misses, GPT, 0.4, {misses.BESIDE: [0.4] * 5, "default": [0.41, 0.42, 0.39, 0.41, 0.4]})
    misses.show(rows[:-1])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"| design | {VIT} | {LION} | mean |"
    assert lines[2] == "| default | +0.0 (1.0e-02) | -20.0 (1.0e-02) | -10.0 |"
    assert "| growth of all trained models |  |" in lines
    misses.show(rows)
    gaps, learned, kept = ("\n" + part for part in capsys.readouterr().out.strip().split("\n\n"))
    assert "| linear 5e-5 | +0.0, at worst +0.0 |" in learned
    assert learned.endswith("| growth of all trained models | +1.0, at worst -1.0 |")
    assert kept.startswith(f"\n| kept | {VIT} |")
    assert "\n| tuned cosine | 0.520 |" in kept
    assert gaps.count("\n") + 1 == kept.count("\n")  # one line more, of the tuned cosine


@pytest.mark.once
@pytest.mark.usefixtures("little_pretraining")
def test_a_design_changes_the_run(misses):
    peaks = {design: misses.run((VIT, design, 1))["peak_lr"] for design in ("0.2 P", "default")}
    assert peaks["0.2 P"] < 0.8 * peaks["default"]
    assert misses.run((VIT, misses.BESIDE, 1))["peak_lr"] == misses.tuned_lr(VIT)


def test_each_changes_something_that_the_package_has(misses):
    for patches, _ in misses.DESIGNS.values():
        for module, name, value in patches:
            assert type(getattr(module, name)) is type(value)


def test_the_table_on_the_page_is_what_the_committed_rows_give(misses, capsys):
    rows = misses.RUNS.rows()
    assert misses.needed(rows) == []
    misses.show(rows)
    assert capsys.readouterr().out.strip() == shown("misses")
