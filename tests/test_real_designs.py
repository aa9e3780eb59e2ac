"""The best design judged on real models; see ``examples/benchmarks/real_designs.py``."""

from __future__ import annotations

import pytest
from result_pages import shown

VIT, PAIRS = "ViT, 3 epochs", "MiniLM, pairs, 60 steps"


@pytest.fixture(scope="module")
def real_designs(load):
    return load("real_designs")


def rows_of(real_designs, task, start, tests_by_design):
    """One row a seed and design, whose metric is ``test``."""
    results = {"start": start, "peak_lr": 0.01}
    return [
        real_designs.RUNS.row((task, design, seed), {**results, "test": test})
        for design, tests in tests_by_design.items()
        for seed, test in enumerate(tests, 10)
    ]


def test_every_design_has_the_seeds_and_tasks_of_the_cosine(real_designs):
    jobs = real_designs.needed([])
    assert len(jobs) == len(set(jobs)) == len(real_designs.JUDGES) * 3 * (1 + len(real_designs.JUDGED))
    assert {job[0] for job in jobs} == set(real_designs.JUDGES)
    assert jobs[0][0] == VIT
    made = [real_designs.RUNS.row(job, {}) for job in jobs[:5]]
    assert real_designs.needed(made) == jobs[5:]


def test_a_gap_is_to_the_cosine_of_the_same_seed(real_designs, capsys):
    tests = {real_designs.COSINE: [0.5, 0.7], real_designs.BEFORE: [0.6, 0.7], "0.2 P": [0.5, 0.6], "REX": [0.5, 0.7]}
    rows = rows_of(real_designs, VIT, 0.1, tests)
    found = real_designs.gaps(rows)  # the cosine gains 0.5 in the mean
    assert found[VIT, real_designs.BEFORE] == pytest.approx([20, 0])
    assert found[VIT, "0.2 P"] == pytest.approx([0, -20])
    real_designs.show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("| +10.0 (1.0e-02) | -10.0 (1.0e-02) | +0.0 (1.0e-02) |")
    assert lines[3].startswith("| mean / median |  | +10.0 / +10.0 | -10.0 / -10.0 | +0.0 / +0.0 |")


def test_a_task_that_one_design_has_not_run_counts_for_none(real_designs, capsys):
    whole = {real_designs.COSINE: [0.5], **{design: [0.5] for design in real_designs.JUDGED}}
    rows = rows_of(real_designs, VIT, 0.1, whole)
    rows += rows_of(real_designs, PAIRS, 0.1, {real_designs.COSINE: [0.5], "REX": [0.1]})
    real_designs.show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {VIT}", "| mean / median"]


@pytest.mark.once
@pytest.mark.usefixtures("little_pretraining")
def test_the_designs_differ_in_the_peak_and_the_cosine_has_its_tuned_lr(real_designs):
    results = {design: real_designs.run((VIT, design, 1)) for design in (*real_designs.JUDGED, real_designs.COSINE)}
    assert results["0.2 P"]["peak_lr"] < 0.8 * results[real_designs.BEFORE]["peak_lr"]
    assert results[real_designs.COSINE]["peak_lr"] == real_designs.tuned_lr(VIT)
    today = real_designs.run((VIT, "default", 1))
    names = ("peak_lr", "switch", "test")
    assert [today[name] for name in names] in [
        [results[design][name] for name in names] for design in (real_designs.BEFORE, "REX")
    ]


def test_the_table_on_the_page_is_what_the_committed_rows_give(real_designs, capsys):
    rows = real_designs.RUNS.rows()
    assert real_designs.needed(rows) == []
    real_designs.show(rows)
    assert capsys.readouterr().out.strip() == shown("designs", "real designs")
