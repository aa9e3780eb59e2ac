"""The share of the first slope that later batches see, and by what it raises the LR; ``test_later_measures.py`` has
runs.
"""

from __future__ import annotations

import dataclasses
import math

import pytest

from autowu_hf.autowu.course.measures.lasting import LASTING, LEAST_RAISED, MOST_RAISED, lasting_of, raised_factor
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


def noise(far=1e-4, **options):
    """A scale whose P is that far below R."""
    return Scale(**{"polyak": far, "trust": 1.5, "alignment": 0.5, "loss": 1.0, "num_steps": 2, **options})


@pytest.mark.parametrize(
    ("lasting", "factor"),
    [
        (1.0, 1.0),
        (LASTING, 1.0),
        (LASTING / LEAST_RAISED * 1.01, 1.0),
        (LASTING / LEAST_RAISED * 0.99, LEAST_RAISED / 0.99),
        (LASTING / 50.0, MOST_RAISED),
        (0.0, MOST_RAISED),
        (-0.1, MOST_RAISED),
        (None, 1.0),
    ],
)
def test_the_lr_is_raised_by_what_does_not_last(lasting, factor):
    assert raised_factor(noise(), lasting) == pytest.approx(factor)


def test_the_lr_is_raised_in_steps_and_no_further_than_the_weights_allow():
    far = noise()
    most = 0.2 * 1.5 / 30.0 / (0.3 * 1e-4)
    factors = []
    while math.prod(factors) < 0.99 * most:
        factors.append(raised_factor(far, 0.0, math.prod(factors)))
    assert max(factors) == MOST_RAISED
    assert math.prod(factors) == pytest.approx(most)
    assert raised_factor(far, 0.0, most) == 1.0
    assert raised_factor(far, LASTING / 20.0, 10.0) == pytest.approx(2.0)  # the first raise was enough to ask again


@pytest.mark.parametrize("options", [{"far": 1.0}, {"far": 0.02}, {"alignment": 1.0}, {"trust": math.inf}])
def test_no_batch_raises_the_lr_where_p_is_not_far_below_r_or_less_sure(options):
    assert raised_factor(noise(**options), 0.0) == 1.0


def test_what_noise_hides_is_no_more_than_m_allows():
    scale = Scale(polyak=0.001, trust=100.0, alignment=0.5, loss=1.0, num_steps=2)
    assert raised_factor(scale, 1e-4) == MOST_RAISED
    assert raised_factor(dataclasses.replace(scale, layer_trust=0.008), 1e-4) == pytest.approx(0.008 / 0.001)
    assert raised_factor(dataclasses.replace(scale, layer_trust=0.008, alignment=1.0), 1e-4) == 1.0
