"""The benchmark of networks with batch norm; see ``examples/benchmarks/batch_norm.py``."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from result_pages import shown

CELL = ("signals MLP", 16, 60)


@pytest.fixture(scope="module")
def batch_norm(load):
    return load("batch_norm")


@pytest.fixture(scope="module")
def batch_norm_tasks(load):
    return load("batch_norm_tasks")


@pytest.fixture
def little_pretraining(batch_norm_tasks, monkeypatch):
    """Networks have learned for five epochs before, not 20 or 25."""
    known = {name: (task, 5) for name, (task, _) in batch_norm_tasks.PRETRAINING.items()}
    monkeypatch.setattr(batch_norm_tasks, "PRETRAINING", known)
    batch_norm_tasks.pretrained.cache_clear()
    yield
    batch_norm_tasks.pretrained.cache_clear()


def row(batch_norm, method, lr, seed, value, cell=CELL):
    results = {"tune": value, "test": value, "peak_lr": 0.01}
    return batch_norm.RUNS.row((*cell, method, lr, seed), results)


def test_the_cosine_is_tuned_before_it_is_reported_and_all_designs_have_the_same_seeds(batch_norm):
    jobs = [job for job in batch_norm.needed([]) if job[:3] == CELL]
    assert {job[4] for job in jobs if job[3] == "cosine"} == set(batch_norm.GRID)
    assert {job[5] for job in jobs if job[3] == "cosine"} == {0, 1, 2}
    for design in batch_norm.DESIGNS:
        judges = batch_norm.SEEDS if design in batch_norm.JUDGED else ()
        assert [job[5] for job in jobs if job[3] == design] == [*batch_norm.CHOOSING_SEEDS, *judges]
    rows = [row(batch_norm, "cosine", lr, seed, 0.9 - abs(lr - 0.01)) for lr in batch_norm.GRID for seed in range(3)]
    wanted = [job for job in batch_norm.needed(rows) if job[:4] == (*CELL, "cosine")]
    assert wanted == [(*CELL, "cosine", 0.01, seed) for seed in batch_norm.SEEDS]


def test_a_gap_is_that_of_the_means_in_percent_of_what_the_cosine_gains(batch_norm):
    seeds = batch_norm.SEEDS
    rows = [row(batch_norm, "cosine", 0.01, seed, 0.5 + 0.1 * (seed % 2)) for seed in seeds]
    rows += [row(batch_norm, "cosine", 0.1, 0, 0.9), row(batch_norm, "without", None, seeds[0], 0.1)]
    rows += [row(batch_norm, batch_norm.DEFAULT, None, seed, 0.32) for seed in seeds]
    found = batch_norm.by_method(rows)
    assert batch_norm.gap(found, CELL, batch_norm.DEFAULT, seeds) == pytest.approx(100.0 * (0.32 - 0.54) / 0.44)
    assert batch_norm.gap(found, CELL, "without", seeds) is None


def test_the_table_has_what_is_there(batch_norm, capsys):
    rows = [row(batch_norm, "cosine", 0.01, seed, 0.6) for seed in batch_norm.SEEDS]
    rows += [row(batch_norm, batch_norm.DEFAULT, None, seed, 0.35) for seed in batch_norm.SEEDS]
    batch_norm.show(rows)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| signals MLP | 60.0")]
    assert line.startswith("| signals MLP | 60.0 (0.01) | -50 % (1.0e-02) |  |  |")


@pytest.mark.once
@pytest.mark.usefixtures("little_pretraining")
def test_designs_differ_in_the_peak(batch_norm):
    task = ("other digits, MobileNet", 16, 60)
    peaks = {design: batch_norm.run((*task, design, None, 20))["peak_lr"] for design in ("without", "0.3")}
    assert peaks["without"] < peaks["0.3"]


def test_one_design_keeps_an_lr_that_is_above_p(batch_norm):
    from autowu_hf.autowu.course.measures.scale import Scale

    above = Scale(0.001, 0.1, 0.3, 2.3, 2, layer_trust=0.1, scale_invariant=0.9)
    seen = SimpleNamespace(
        **{"scale": above, "has_fallen": True, "sweep": None, "unmoved": None},
        transient=SimpleNamespace(raised_at=None),
    )
    found = {}
    for design, (patches, _) in batch_norm.DESIGNS.items():
        with batch_norm.patched(patches):
            found[design] = batch_norm.UsualDecay().of(seen, 60, False)[0]
    assert found["REX by P"] == "constant_then_cosine"
    assert found[batch_norm.DEFAULT] == "rex"


@pytest.mark.usefixtures("little_pretraining")
@pytest.mark.parametrize("name", ["signals MLP", "other signals", "turned digits, ResNet", "digits, MobileNet"])
def test_a_run_has_its_steps_and_starts_from_its_seed(batch_norm_tasks, name):
    task = batch_norm_tasks.TASKS[name]
    if task.before is not None:
        pytest.importorskip("sklearn")
    one, other = (batch_norm_tasks.prepared(name, 16, 7, seed) for seed in (3, 3))
    assert one.steps == 7
    for before, again in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(before, again)
    x, y = one.batches(0)
    assert one.model(x).shape == (16, task.classes)
    assert 0 <= int(y.min()) <= int(y.max()) < task.classes


def test_the_tables_on_the_page_are_what_the_committed_rows_give(batch_norm, capsys):
    rows = batch_norm.RUNS.rows()
    assert batch_norm.needed(rows) == []
    batch_norm.show(rows)
    assert capsys.readouterr().out.strip() == shown("batch_norm")
