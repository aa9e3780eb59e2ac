"""The ways of the LR, in numbers."""

from __future__ import annotations

import dataclasses

import pytest

from autowu_hf.autowu.course.legs import Leg, Sweep, Way, lr_of_legs
from autowu_hf.autowu.course.timetable import Timetable


def test_a_leg_is_linear_and_stays_at_its_end():
    assert [Leg(2, 5, 0.0, 1.0).lr(t) for t in (2, 3, 4, 5, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [Leg(2, 5, 1.0, 0.2).lr(t) for t in (2, 5)] == pytest.approx([0.8, 0.2])


def test_each_step_is_on_the_leg_that_began_last():
    legs = [dataclasses.asdict(leg) for leg in (Leg(2, 5, 0.0, 1.0), Leg(8, 9, 0.0, 0.1))]
    lrs = [lr_of_legs(legs, 1e-5, step) for step in (0, 1, 2, 7, 8, 20)]
    assert lrs == pytest.approx([1e-5, 1e-5, 0.25, 1.0, 0.05, 0.1])


def test_the_highest_lr_is_that_of_a_step_that_was_made():
    way = Way()
    way.legs = [Leg(2, 5, 0.0, 1.0), Leg(8, 10, 0.0, 0.3)]
    assert [way.highest_lr(steps) for steps in (2, 3, 5, 6, 8, 30)] == pytest.approx([0.0, 0.25, 0.75, 1.0, 1.0, 1.0])
    way.legs = [Leg(2, 5, 0.0, 1.0), Leg(4, 10, 0.0, 0.7)]  # it went back before its end
    assert [way.highest_lr(steps) for steps in (4, 5, 9, 30)] == pytest.approx([0.5, 0.5, 0.5, 0.7])


def test_a_sweep_takes_a_share_of_the_run_for_each_decade():
    assert Sweep.between(1e-3, 1e-1, 1000, room=500) == Sweep(1e-3, 1e-1, 100)
    assert Sweep.between(1e-3, 1e-1, 1000, room=60) == Sweep(1e-3, 1e-1, 60)
    assert Sweep.between(1e-3, 1e-1, 1000, room=9) is None


def test_a_way_sweeps_from_the_lr_that_it_reached():
    way = Way()
    way.times = Timetable.of(100, 30)
    way.set_out(2, 1e-3, borne=1.0)
    assert way.sweep_to(1e-1, since=10) == Sweep(1e-3, 1e-1, 10)
    assert not way.is_too_short
    assert way.sweep_to(1e-1, since=21) is None  # nine steps until the peak has to be known
    assert way.is_too_short


@pytest.mark.parametrize(("borne", "least"), [(1.0, 67), (4.0, 120)])
def test_no_sweep_takes_more_than_its_share_of_a_run_that_has_learned(borne, least):
    """Where losses may rise by far, a sweep needs more of them."""
    for steps, is_enough in ((60, False), (least - 1, False), (least, True)):
        way = Way()
        way.times = Timetable.of(steps, None)
        way.set_out(2, 1e-3, borne=borne)
        assert (way.sweep_to(1.0, since=10) is not None) == is_enough
        assert way.is_too_short != is_enough
        assert way.sweep_to(1.0, since=10, has_learned=False) is not None
        way.sweep_to(1.0, since=10)
        way.set_out(20, 1e-4)
        assert not way.is_too_short
        assert way.sweep_to(1.0, since=steps, has_learned=False) is None
        assert not way.is_too_short  # there was nothing that had halved


@pytest.mark.parametrize("decades", [1, 3, 6])
@pytest.mark.parametrize("steps", [67, 100, 999, 10_000])
def test_a_sweep_is_fifteen_percent_of_the_run_at_most(steps, decades):
    sweep = Sweep.between(1e-6, 10.0 ** (decades - 6), steps, room=steps // 2)
    assert 10 <= sweep.num_steps <= 0.15 * steps
    assert sweep.timed(steps, room=steps // 2) == sweep


def test_three_decades_and_more_take_fifteen_percent():
    assert [Sweep.between(1e-6, 10.0**top, 1000, room=500).num_steps for top in (-4, -3, -2, 0)] == [100, 150, 150, 150]
