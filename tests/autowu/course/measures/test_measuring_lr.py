"""The LR of the measured steps."""

from __future__ import annotations

import pytest

from autowu_hf.autowu.course.measures.measuring_lr import MeasuringLR


def test_it_follows_the_size_of_the_weights():
    assert MeasuringLR(False, 0.02).lr == pytest.approx(2e-6)
    assert MeasuringLR(True, 0.1).lr == pytest.approx(1e-3)


def test_an_update_that_rounding_hides_is_measured_at_a_larger_lr_up_to_a_bound():
    lr = MeasuringLR(False, 0.1)
    assert lr.suits(1e-4, 1e-4)
    assert lr.lr == 1e-5
    assert not lr.suits(1e-6, 1e-6)
    assert lr.lr == pytest.approx(4e-4)
    assert not lr.is_far
    assert not lr.suits(0.0, 0.0)
    assert lr.is_far
    for _ in range(2):
        lr.suits(1e-9, 1e-9)
        lr.suits(1e-9, 1e-9)
    assert lr.is_lost


def test_weights_that_do_not_move_at_all_are_waited_for_at_one_lr():
    lr = MeasuringLR(False, 0.1)
    for _ in range(9):
        assert not lr.suits(0.0, 0.0)
    assert lr.is_highest
    assert not lr.is_lost
    assert lr.lr == pytest.approx(1e4)
    assert not lr.suits(3e4, 3e4)  # the first step that moves them: the next one is a ten-thousandth of the weights
    assert lr.lr == pytest.approx(1e-4)
    assert lr.suits(3e-4, 3e-4)


def test_an_update_that_follows_a_step_late_is_waited_for():
    lr = MeasuringLR(False, 0.1)
    assert not lr.suits(1e-6, 1e-6)
    raised = lr.lr
    assert not lr.suits(1.1e-6, 1.1e-6)
    assert lr.lr == raised
    assert lr.suits(4e-5, 4e-5)
    assert not lr.suits(0.1, 0.1)
    lowered = lr.lr
    assert not lr.suits(0.1, 0.1)
    assert lr.lr == lowered
    assert lr.suits(1e-3, 1e-3)
    assert not lr.is_deaf


def test_an_update_that_is_too_large_is_measured_at_a_hundredth_and_has_to_follow():
    lr = MeasuringLR(False, 0.1)
    assert not lr.suits(0.1, 0.1)
    assert lr.lr == pytest.approx(1e-7)
    assert lr.suits(1e-3, 1e-3)
    assert not lr.is_deaf
    lr = MeasuringLR(False, 0.1)
    assert not lr.suits(0.1, 0.1)
    assert not lr.suits(0.08, 0.08)
    assert not lr.is_deaf
    assert not lr.suits(0.08, 0.08)
    assert lr.is_deaf
    assert MeasuringLR(False, 0.1).suits(float("inf"), 0.0)  # where all weights are zero


def test_a_state_goes_on_and_one_of_an_older_release_too():
    lr, again = MeasuringLR(False, 0.1), MeasuringLR(False, 1.0)
    lr.suits(0.1, 0.1)
    again.load_state_dict(lr.state_dict())
    again.suits(0.08, 0.08)
    lr.load_state_dict(again.state_dict())
    lr.suits(0.08, 0.08)
    assert lr.is_deaf
    again.load_state_dict({"lr": 1e-7, "first_lr": 1e-5, "too_large": 0.1})
    again.suits(0.08, 0.08)
    again.suits(0.08, 0.08)
    assert again.is_deaf
    again.load_state_dict({"lr": 3e-5})
    assert again.lr == 3e-5
    assert not again.is_far
