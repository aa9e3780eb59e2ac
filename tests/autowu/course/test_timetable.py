from __future__ import annotations

import pytest

from autowu_hf.autowu.course.timetable import Timetable


def test_a_growth_takes_a_twentieth_of_the_run_and_the_looking_three_tenths():
    times = Timetable.of(400, None)
    assert times.longest == 399
    assert times.ramp_end(2) == 20
    assert times.ramp_end(40) == 58
    assert times.look_end(20) == times.end(20, is_corrected=False) == 120
    assert times.look_end(150) == 153  # a growth that ends later is looked at for three steps
    assert times.look_interval == 6
    assert [Timetable.of(steps, None).look_interval for steps in (30, 100, 179, 240)] == [3, 3, 3, 4]


@pytest.mark.parametrize("longest", [0, 3, 12, 39])
def test_nothing_ends_after_the_longest_warm_up_that_was_asked_for(longest):
    times = Timetable.of(40, longest)
    assert times.ramp_end(2) <= max(longest, 3)  # one step at least
    assert times.look_end(2) <= max(longest, 2)
    assert Timetable.of(40, 100) == Timetable.of(40, None)  # nor after the run


def test_too_short_a_run_is_not_looked_at_but_for_two_steps_that_are_measured():
    times = Timetable.of(20, None)
    assert times.end(4, is_corrected=False) == 6
    assert times.end(4, is_corrected=True) == 4
    assert Timetable.of(20, 4).end(4, is_corrected=False) == 4


@pytest.mark.parametrize(("steps", "end"), [(10, 5), (30, 5), (60, 8), (400, 13), (10_000, 13)])
def test_later_batches_are_asked_for_a_few_steps(steps, end):
    assert Timetable.of(steps, None).watch_end(2) == end


@pytest.mark.parametrize(("steps", "end"), [(10, 6), (50, 8), (84, 11), (400, 14), (10_000, 14)])
def test_how_far_updates_get_is_told_by_a_few_steps(steps, end):
    times = Timetable.of(steps, None)
    assert times.reach_end(4) == end
    assert Timetable.of(steps, 6).reach_end(4) == 5  # a step is left for the LR to change
    assert Timetable.of(steps, 4).reach_end(4) == 4


@pytest.mark.parametrize(("steps", "leg_end", "start"), [(20, 4, None), (50, 4, 6), (50, 9, 9), (400, 20, 70)])
def test_they_are_measured_again_by_a_fifth_of_the_run(steps, leg_end, start):
    assert Timetable.of(steps, None).starts_again(leg_end) == start
