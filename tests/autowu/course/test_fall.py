"""Losses below 0, of which P says nothing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scale_runs import flat, made, resumed, run, slowly

from autowu_hf.autowu.course.fall import lr_of_fall
from autowu_hf.autowu.reporting.report import headline
from autowu_hf.loss_curve import divergence


def falling(steps, seed=0):
    """By two thirds, from -0.8 on, with no end in sight."""
    return slowly(steps, seed) - 2.0 - np.linspace(0.0, 1.0, steps)


def test_where_they_fell_and_told_no_lr_it_is_that_of_the_first_gradients_for_as_far_a_fall(caplog):
    model, optimizer, schedule = made(400)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, falling(400))
    assert schedule.ended_by == "nothing"
    approach, report = schedule._course.approach, schedule.report()
    fall = divergence.gain(np.array(report["losses"]))
    assert fall > 0.2
    assert schedule.peak_lr == schedule.lr_of_fall == lr_of_fall(approach, fall)
    assert 20 < schedule.rewound_to < 60  # the last weights that saw no higher one
    assert schedule.peak_lr < approach.search.scale_of([2.0, 2.0]).peak_lr_for(400)  # a loss of 2 could fall farther
    said = f"the first gradients say {schedule.peak_lr:.1e}; no LR was told up to ".replace("e-0", "e-")
    (line,) = [record for record in caplog.records if "peak LR" in record.getMessage()]
    assert f"AutoWU: the losses fell, and for as far a fall {said}" in line.getMessage()
    assert said in headline(report)
    assert "which the optimizer was given" not in line.getMessage()
    assert line.levelno == logging.INFO
    assert not report["peak_is_given"]


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_a_fall_in_another_unit_with_the_same_gradients_is_another_lr(unit):
    search = made(400)
    run(*search, falling(400))
    other = made(400)
    approach = search[2]._course.approach
    run(*other, unit * falling(400))  # the gradients are the same, as if the loss were as steep and fell less far
    fall = divergence.gain(np.array(search[2].report()["losses"]))
    assert other[2].lr_of_fall == pytest.approx(lr_of_fall(approach, unit * fall))


def test_where_they_did_not_fall_the_lr_is_the_one_that_was_given(caplog):
    model, optimizer, schedule = made(400)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, flat(400) - 5.0)
    assert (schedule.ended_by, schedule.lr_of_fall, schedule.peak_lr) == ("nothing", None, 1e-3)
    assert "which the optimizer was given" in caplog.text
    assert "as far a fall" not in caplog.text
    assert lr_of_fall(schedule._course.approach, 0.0) is None


def test_with_another_obstacle_or_a_range_there_is_none():
    model, optimizer, schedule = made(400)
    run(model, optimizer, schedule, falling(400))
    approach = schedule._course.approach
    assert lr_of_fall(approach, 1.0) is not None
    assert lr_of_fall(None, 1.0) is None
    approach.search.updates = [update.enlarged(-1.0) for update in approach.search.updates]
    assert lr_of_fall(approach, 1.0) is None  # they go up
    approach.search.updates = []
    assert lr_of_fall(approach, 1.0) is None
    approach.search.give_up("the processes may be at different steps")
    assert lr_of_fall(approach, 1.0) is None


def test_a_resumed_run_finds_the_same():
    stops = (1, 2, 40, 99, 100, 101, 300)
    for (_, _, again), (_, _, whole) in resumed(lambda: made(400), falling(400), stops):
        assert again.lr_of_fall == whole.lr_of_fall
        assert again.report()["found"] == whole.report()["found"]
