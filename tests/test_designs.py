"""The designs of the default side by side; see ``examples/benchmarks/designs.py``."""

from __future__ import annotations

import pytest
from result_pages import shown

CELL = ("digits MLP", 32, 10)


@pytest.fixture(scope="module")
def designs(load):
    return load("designs")


def row(designs, design, cell, seed, test):
    return designs.RUNS.row((design, *cell, seed), {"steps": 84, "test": test, "peak_lr": 0.01})


def test_a_patch_lasts_for_its_block(designs):
    from autowu_hf.autowu.course import timetable
    from autowu_hf.autowu.course.measures import scale

    before = (scale.POLYAK_SHARE, timetable.LOOK)
    for patches, _ in designs.DESIGNS.values():
        with designs.patched(patches):
            for module, name, value in patches:
                assert getattr(module, name) is value
    assert before == (scale.POLYAK_SHARE, timetable.LOOK)


@pytest.mark.once
def test_a_design_changes_the_run(designs):
    names = ("default", designs.BEFORE, "0.2 P", "range")
    peaks = {design: designs.run((design, *CELL, 1))["peak_lr"] for design in names}
    assert peaks["0.2 P"] < 0.95 * peaks["default"]
    assert peaks["range"] != peaks["default"]
    assert peaks[designs.BEFORE] == peaks["default"]  # they differ in the decay


def test_the_second_seed_is_for_the_default_and_the_best_of_the_first(designs):
    assert len(designs.CELLS) == 54
    jobs = designs.needed([])
    assert len(jobs) == 54 * len(designs.FIRST)
    assert {job[-1] for job in jobs} == {designs.FIRST_SEED}
    rows = []
    for place, design in enumerate(designs.FIRST):
        for cell in designs.CELLS:
            chance = designs.TASKS[cell[0]].chance
            test = chance + (designs.tuned()[cell] - chance) * (0.5 + 0.01 * place)
            rows.append(row(designs, design, cell, designs.FIRST_SEED, test))
    assert designs.needed(rows[:-1]) == [("range", *designs.CELLS[-1], designs.FIRST_SEED)]
    later = designs.needed(rows)
    asked = {seed: set(names) for names, seeds in designs.AGAIN for seed in seeds}
    assert {job[-1] for job in later} == {designs.SECOND_SEED, *designs.MORE_SEEDS, *asked}
    assert {job[0] for job in later if job[-1] == designs.SECOND_SEED} == {designs.BEFORE, *designs.FIRST[-3:]}
    assert {job[0] for job in later if job[-1] in designs.MORE_SEEDS} == set(designs.NEAREST)
    for seed, names in asked.items():
        of_seed = [job for job in later if job[-1] == seed]
        assert {job[0] for job in of_seed} == names
        assert len(of_seed) == len(designs.telling()) * len(names)


def test_cells_count_for_later_questions_where_the_tuned_cosine_is_certainly_above_chance(designs):
    left_out = set(designs.CELLS) - set(designs.telling())
    assert left_out == {("waves", 128, 10), ("digits ViT", 32, 10), ("digits ViT", 128, 10)}
    assert CELL in designs.telling()


def test_a_line_has_mean_and_median_gap(designs, capsys):
    chance, tuned = designs.TASKS[CELL[0]].chance, designs.tuned()[CELL]
    designs.show([row(designs, "0.2 P", CELL, designs.FIRST_SEED, chance + 1.1 * (tuned - chance))])
    *_, line = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")][:3] == ["0.2 P", "+10.0 / +10.0", "+10.0 / +10.0"]


def test_where_the_tuned_cosine_gains_nothing_a_better_run_counts_as_better(designs):
    cell = ("waves", 128, 10)
    tuned = designs.tuned()[cell]
    assert tuned < designs.TASKS[cell[0]].chance
    rows = [row(designs, name, cell, designs.FIRST_SEED, tuned + by) for name, by in (("0.2 P", 0.1), ("REX", -0.1))]
    found = designs.gaps(rows)
    assert found["0.2 P", designs.FIRST_SEED] == {cell: 100.0}
    assert found["REX", designs.FIRST_SEED] == {cell: -100.0}


def test_the_table_on_the_page_is_what_the_committed_rows_give(designs, capsys):
    rows = designs.RUNS.rows()
    designs.show(rows)
    printed = capsys.readouterr().out.strip()
    assert len(printed.splitlines()) == 2 + len(designs.FIRST) + sum(3 + len(names) for names, _ in designs.AGAIN)
    assert printed == shown("designs")
    assert designs.needed(rows) == []
