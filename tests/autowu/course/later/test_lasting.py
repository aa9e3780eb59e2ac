"""The share of the promised fall that later batches see, and by what it raises the LR; ``test_later_measures.py`` has
runs.
"""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from autowu_hf.autowu.course.later.lasting import (
    LASTING,
    LEAST_LASTING,
    LEAST_ROOM,
    MOST_RAISED,
    NOISE_BELOW,
    UNSURE_BELOW,
    LaterBatches,
    falls_of,
    may_be_raised,
    raised_factor,
)
from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.autowu.course.timetable import MOST_WATCHED
from autowu_hf.runtime.update_meter import START_IS_GONE, Update

SCALE = Scale(polyak=0.5, trust=1.0, alignment=0.5, loss=2.0, num_steps=2)  # a slope of 4


def update(lr, fallen):
    numbers = {field.name: 1.0 for field in dataclasses.fields(Update)}
    return Update(**{**numbers, "lr": lr, "fallen": fallen})


def test_each_batch_is_asked_for_the_way_before_it_and_held_against_its_own_loss():
    updates = [update(0.1, 0.0), update(0.2, 0.04), update(0.3, 0.12)]
    falls, way = falls_of(SCALE, updates, [9.0, 9.0, 2.0, 1.0], 0.0)  # P is 0.5
    assert falls == [pytest.approx((0.04, 2.0 * 0.1 / 0.5)), pytest.approx((0.12, 1.0 * 0.3 / 0.5))]
    assert way == pytest.approx(0.6)


def test_the_way_goes_on_from_that_of_earlier_steps():
    falls, way = falls_of(SCALE, [update(0.1, 0.2)], [2.0], 0.5)
    assert falls == [pytest.approx((0.2, 2.0 * 0.5 / 0.5))]
    assert way == pytest.approx(0.6)


@pytest.mark.parametrize(
    "updates",
    [[], [update(0.1, 0.0)], [update(0.1, 0.0), START_IS_GONE], [update(0.1, 0.1)] * (MOST_WATCHED + 2)],
    ids=["none", "no way yet", "not measured", "gaps"],
)
def test_without_a_way_or_with_gaps_nothing_is_known(updates):
    assert falls_of(SCALE, updates, [2.0] * 20, 0.0)[0] == []


def test_updates_whose_losses_are_missing_tell_nothing():
    assert falls_of(SCALE, [update(0.1, 0.1)] * 3, [2.0] * 2, 0.5)[0] == []


@pytest.mark.parametrize(("fallen", "loss"), [(math.nan, 2.0), (0.1, math.nan), (0.1, math.inf), (0.1, 0.0)])
def test_numbers_that_are_not_finite_and_losses_of_zero_tell_nothing(fallen, loss):
    assert falls_of(SCALE, [update(0.1, fallen)], [loss], 0.5)[0] == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_single_loss_that_is_not_finite_leaves_the_answers_of_the_others(loss):
    updates = [update(0.1, 0.1), update(0.1, 7.0), update(0.1, 0.3)]
    falls, way = falls_of(SCALE, updates, [2.0, loss, 2.0], 0.5)
    assert falls == [pytest.approx((0.1, 2.0 * 0.5 / 0.5)), pytest.approx((0.3, 2.0 * 0.7 / 0.5))]
    assert way == pytest.approx(0.8)


def noise(far=1e-4, **options):
    """A scale whose P is that far below R."""
    return Scale(**{"polyak": far, "trust": 1.5, "alignment": 0.5, "loss": 1.0, "num_steps": 2, **options})


@pytest.mark.parametrize(
    ("lasting", "factor"),
    [
        (1.0, 1.0),
        (LASTING, 1.0),
        (NOISE_BELOW * 1.01, 1.0),
        (NOISE_BELOW * 0.99, LASTING / NOISE_BELOW / 0.99),
        (LASTING / 50.0, MOST_RAISED),
        (0.0, MOST_RAISED),
        (-0.1, MOST_RAISED),
        (None, 1.0),
    ],
)
def test_the_lr_is_raised_by_what_does_not_last(lasting, factor):
    assert raised_factor(noise(), lasting) == pytest.approx(factor)


def test_each_answer_raises_the_lr_by_more_but_no_further_than_the_weights_allow():
    most = LASTING / LEAST_LASTING
    assert MOST_RAISED < most < MOST_RAISED**2
    assert [raised_factor(noise(), 0.0, num) for num in (1, 2, 3)] == pytest.approx([MOST_RAISED, most, most])
    assert raised_factor(noise(), LASTING / 15.0, 2) == pytest.approx(15.0)
    little_room = noise(far=1e-3)  # 0.2 R / 30 is 33 times 0.3 P, and 0.3 M is less
    by_layers = dataclasses.replace(little_room, layer_trust=0.012)
    assert raised_factor(by_layers, 0.0, 2) == pytest.approx(12.0)


@pytest.mark.parametrize("options", [{"far": 1.0}, {"far": 0.02}, {"alignment": 1.0}, {"trust": math.inf}])
def test_no_batch_raises_the_lr_where_p_is_not_far_below_r_or_less_sure(options):
    assert not may_be_raised(noise(**options))
    assert raised_factor(noise(**options), 0.0) == 1.0


def test_nobody_is_asked_where_the_weights_leave_too_little_room():
    scale = Scale(polyak=0.001, trust=100.0, alignment=0.5, loss=1.0, num_steps=2)
    assert raised_factor(scale, 1e-4) == MOST_RAISED
    for layers, may in ((1.01, True), (0.99, False)):
        by_layers = dataclasses.replace(scale, layer_trust=layers * LEAST_ROOM * 0.001)
        assert may_be_raised(by_layers) == may
        assert raised_factor(by_layers, 1e-4) == pytest.approx(1.01 * LEAST_ROOM if may else 1.0)
    assert not may_be_raised(dataclasses.replace(scale, layer_trust=0.008, alignment=1.0))


class Meter:
    is_half = False

    def __init__(self):
        self.updates = []

    def hold_start(self, weights=()):
        self.weights = weights


def asked(*fallen, scale=SCALE):
    """Batches that have answered, each time one with a loss of 1, by so much of what P says."""
    batches = LaterBatches(SimpleNamespace(scale=scale, meter=Meter(), updates=[update(0.1, 0.0)]))
    batches.begin(way=1.0)
    for share in fallen:
        batches._meter.updates = [update(0.0, share * 1.0 / scale.polyak)]
        assert batches.take([1.0])
    return batches


def test_all_answers_count_by_what_they_could_tell():
    batches = asked(0.1, 0.2)
    batches._meter.updates = [update(0.0, 0.0)]
    assert batches.take([2.0])  # a batch whose loss could have fallen twice as far
    assert batches.lasting == pytest.approx((0.1 + 0.2 + 0.0) / 4.0)


@pytest.mark.parametrize(
    ("fallen", "num", "needs_more"),
    [
        ([], 5, False),
        ([1.1 * UNSURE_BELOW], 5, False),
        ([0.9 * UNSURE_BELOW], 5, True),
        ([0.9 * UNSURE_BELOW], MOST_WATCHED, False),
        ([0.9 * UNSURE_BELOW] * 2, 5, False),
        ([0.009 * LASTING], MOST_WATCHED, True),  # it raises the LR by as much as one answer may
        ([0.009 * LASTING] * 2, 5, False),  # it is raised no further than that
        ([-0.01] * 4 + [0.01], MOST_WATCHED, False),  # asked often enough
        ([0.1 * LASTING, 0.2 * LASTING], 5, False),
    ],
)
def test_more_batches_are_asked_where_few_leave_doubts_or_the_lr_may_be_raised_further(fallen, num, needs_more):
    assert asked(*fallen, scale=noise(1e-5)).needs_more(num) == needs_more


@pytest.mark.parametrize(
    ("shares", "num", "needs_more"),
    [
        ([0.02, 0.16, 0.0, 0.15, 0.02], 5, True),  # 7 % and an error of 3.5 %
        ([0.02, 0.16, 0.0, 0.15, 0.02], MOST_WATCHED, False),
        ([0.06, 0.08, 0.07, 0.08, 0.06], 5, False),
        ([0.0, 0.14], 2, False),  # too few to know an error of
    ],
)
def test_more_batches_are_asked_where_few_are_not_sure_that_it_is_no_noise(shares, num, needs_more):
    batches = asked(scale=noise(1e-5))
    batches.answers = [[(share, 1.0) for share in shares]]
    assert batches.lasting > UNSURE_BELOW
    assert batches.needs_more(num) == needs_more


def test_updates_of_other_weights_tell_nothing():
    """Some were frozen, say: P promises for all of them."""
    batches = asked()
    batches._meter.updates = [dataclasses.replace(update(0.1, 0.1), num_weights=0.5)]
    assert not batches.take([1.0])
    assert batches.lasting is None


def test_an_answer_of_which_only_the_share_is_known_counts_while_it_is_alone():
    batches = asked()
    batches.load_state_dict({"lastings": [0.3]})
    assert batches.lasting == pytest.approx(0.3)
    batches._meter.updates = [update(0.0, 0.1 / SCALE.polyak)]
    assert batches.take([1.0])
    assert batches.lasting == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize(
    ("shares", "is_clear"),
    [
        ([0.02] * 5, True),
        ([0.01, 0.03, 0.02, 0.01, 0.03], True),
        ([0.08, -0.06, 0.08, -0.06, 0.02], False),
        ([-0.02] * 5, False),
        ([0.08, -0.08, 0.01, 0.0], True),  # too few to say
    ],
)
def test_nothing_is_raised_where_many_batches_are_not_sure_that_anything_lasts(shares, is_clear):
    batches = asked(scale=noise(1e-5))
    batches.answers = [[(share, 1.0) for share in shares]]
    assert batches.is_clear == is_clear
    assert (batches.raised > 1.0) == is_clear
    assert batches.needs_more(MOST_WATCHED) == (not is_clear or batches.raised == MOST_RAISED)


def test_why_nobody_was_asked_is_kept_unless_somebody_was():
    for batches, why in ((asked(), "there are too few steps"), (asked(0.5), None)):
        batches.refuse("there are too few steps")
        assert batches.unasked == why


def test_without_the_weights_from_before_the_way_a_resumed_run_asks_in_vain():
    for way, updates, is_told in ((0.0, [], True), (0.5, [], False), (0.0, [update(0.1, 0.1)], False)):
        batches = asked()
        batches.begin(way)
        batches._meter.updates = [*updates]
        batches.find_start([])
        assert (START_IS_GONE in batches._meter.updates) != is_told
    batches.find_start([torch.ones(2)])
    assert len(batches._meter.weights) == 1
