"""The share of the first slope that later batches see; ``test_later_measures.py`` has what the LR makes of it."""

from __future__ import annotations

import dataclasses

import pytest

from autowu_hf.autowu.course.measures.lasting import lasting_of
from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.autowu.course.timetable import MOST_WATCHED
from autowu_hf.runtime.update_meter import START_IS_GONE, Update

SCALE = Scale(polyak=0.5, trust=1.0, alignment=0.5, loss=2.0, num_steps=2)  # a slope of 4


def update(lr, fallen):
    numbers = {field.name: 1.0 for field in dataclasses.fields(Update)}
    return Update(**{**numbers, "lr": lr, "fallen": fallen})


def test_each_batch_is_asked_for_the_way_before_it():
    share, way = lasting_of(SCALE, [update(0.1, 0.0), update(0.2, 0.04), update(0.3, 0.12)], 0.0)
    assert share == pytest.approx(0.16 / (4.0 * 0.1 + 4.0 * 0.3))
    assert way == pytest.approx(0.6)


def test_the_way_goes_on_from_that_of_earlier_steps():
    share, way = lasting_of(SCALE, [update(0.1, 0.2)], 0.5)
    assert share == pytest.approx(0.2 / (4.0 * 0.5))
    assert way == pytest.approx(0.6)


@pytest.mark.parametrize(
    "updates",
    [[], [update(0.1, 0.0)], [update(0.1, 0.0), START_IS_GONE], [update(0.1, 0.1)] * (MOST_WATCHED + 2)],
    ids=["none", "no way yet", "not measured", "gaps"],
)
def test_without_a_way_or_with_gaps_nothing_is_known(updates):
    assert lasting_of(SCALE, updates, 0.0)[0] is None


def test_losses_that_are_not_finite_tell_nothing():
    assert lasting_of(SCALE, [update(0.1, float("nan"))], 0.5)[0] is None
