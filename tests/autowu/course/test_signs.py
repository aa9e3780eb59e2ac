"""What the first losses of a run say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autowu_hf.autowu.course.signs import Signs, are_broken, have_fallen, window


def losses(*levels, length=10, noise=0.01):
    rng = np.random.default_rng(0)
    return np.concatenate([level + noise * rng.standard_normal(length) for level in levels])


def test_noise_that_the_first_losses_do_not_show_by_chance_is_no_rise():
    """Losses of few examples, most of them small: three in a row may be large at any LR."""
    noisy = np.array([1.27, 1.15, 1.22, 0.36, 2.15, 0.4, 0.006, 1.9, 0.006, 3.25, 4.33, 1.76])
    assert not are_broken(noisy, 3, 3, 0)
    calm = np.array([1.27, 1.15, 1.22, 1.2, 1.21, 1.19, 1.18, 1.2, 1.17, 3.25, 4.33, 1.76])
    assert are_broken(calm, 3, 3, 0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape: rng.chisquare(16, shape),  # squared errors, 16 a batch
        lambda rng, shape: rng.lognormal(0.0, 0.5, shape),
    ],
)
def test_noise_alone_sends_few_short_runs_back(draw):
    """Flat losses, of which the first ones show too little of the noise now and then. By the noise before the last
    losses alone, 5 and 8 % of the runs would go back.
    """
    seen, runs = Signs(60, 3), draw(np.random.default_rng(0), (500, 18))
    num_back = sum(any(seen.are_broken(run[:num], 2) for num in range(4, 19)) for run in runs)
    assert num_back < 0.03 * len(runs)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ([1.3, 9.0, 1.4], True),  # they scatter, and all of them are too high
        ([1.24, 1.3, 1.3], True),  # one of them is not, but they hardly scatter
        ([0.5, 9.0, 1.4], False),  # of such losses two in a row may be high by chance
        ([-0.5, 9.0, 8.0], True),  # there are no ratios to judge by
    ],
)
def test_the_last_losses_may_scatter_where_all_of_them_are_too_high(last, expected):
    assert are_broken(np.append(np.tile([1.0, 1.02, 0.98], 4), last), 3, 3, 0) is expected


def test_the_window_grows_with_the_run():
    assert [window(steps) for steps in (10, 120, 200, 4000)] == [3, 3, 5, 10]


def test_losses_have_fallen_where_the_last_are_below_a_share_of_the_first():
    assert have_fallen(losses(2.0, 0.9), 5, 5, 0.5)
    assert not have_fallen(losses(2.0, 1.1), 5, 5, 0.5)
    assert have_fallen(losses(2.0, 1.9), 5, 5, 1.0)
    assert not have_fallen(losses(2.0, 0.9)[:6], 5, 5, 0.5)
    assert have_fallen(np.append(losses(2.0, 0.9), np.nan), 5, 5, 0.5)  # one that is not finite is left out
    assert not have_fallen(np.append(losses(2.0, 0.9), [np.nan] * 3), 5, 5, 0.5)


def test_a_run_is_judged_once_and_is_not_stalled_where_nothing_can_be_known():
    seen = Signs(400, 20)
    assert seen.stall_step == 48
    flat = np.full(48, 2.0)
    assert seen.are_stalled(flat, 48)
    assert not seen.are_stalled(flat, 49)
    assert not seen.are_stalled(flat[:10], 48)
    assert not seen.are_stalled(np.full(48, np.nan), 48)
    assert not seen.are_stalled(np.concatenate([np.full(30, 2.0), np.full(18, 1.9)]), 48)
    assert Signs(30, 3).stall_step == 11
    assert not Signs(20, 3).are_stalled(np.full(11, 2.0), Signs(20, 3).stall_step)


@pytest.mark.parametrize(
    ("change", "noise", "expected"),
    [
        (0.0, 0.01, True),
        (0.5, 0.01, True),  # higher is not lower
        (-0.03, 0.01, True),  # 1.5 % of the first ones
        (-0.06, 0.01, False),  # 3 %
        (-0.02, 0.3, False),  # a fall of 6 % could not be told
        (0.2, 0.3, True),  # for that they would have to be lower
        (0.0, 0.0, False),  # such losses say nothing
        (math.nan, 0.01, False),
    ],
)
def test_losses_that_certainly_have_not_fallen(change, noise, expected):
    losses = 2.0 + noise * np.random.default_rng(0).standard_normal(60)
    losses[20:] += change
    assert Signs(200, 10).are_unlearned(losses, 12) is expected
    assert not Signs(29, 4).are_unlearned(losses, 12)
    assert not Signs(200, 10).are_unlearned(losses[:18], 12)


def test_first_losses_that_are_calm_tell_through_the_noise_of_later_ones():
    """As a fresh head's, whose outputs are all nearly 0 at first."""
    losses = 2.0 + 0.3 * np.random.default_rng(0).standard_normal(60)
    losses[20:] -= 0.1
    assert not Signs(200, 10).are_unlearned(losses, 12)
    losses[:10] = 2.0 + 0.01 * np.random.default_rng(0).standard_normal(10)
    assert Signs(200, 10).are_unlearned(losses, 12)


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_losses_a_quarter_above_their_start_are_broken(unit):
    assert are_broken(unit * losses(2.0, 2.6), 5, 5, 0)
    assert not are_broken(unit * losses(2.0, 2.4), 5, 5, 0)
    assert not are_broken(unit * losses(2.0, 1.0), 5, 5, 0)


def test_scale_invariant_weights_bear_four_times_the_rise():
    rising = losses(2.0, 3.8)
    assert Signs(400, 20).are_broken(rising, 0)
    assert not Signs(400, 20, borne=4.0).are_broken(rising, 0)
    assert Signs(400, 20, borne=4.0).are_broken(losses(2.0, 4.2), 0)
    assert Signs(400, 20, borne=4.0).are_broken(np.append(losses(2.0), [np.nan] * 10), 0)


@pytest.mark.parametrize("unit", [1.0, 1000.0])
@pytest.mark.parametrize(
    ("levels", "found"),
    [
        ((2.0, 1.2, 1.2, 1.7), (0.5, True)),  # more than half of what had been learned
        ((2.0, 1.2, 1.2, 1.55), None),
        ((2.0, 1.95, 1.95, 2.0), None),  # little had been learned
        ((2.0, 2.0, 2.2, 2.2), (0.2, False)),
        ((2.0, 2.0, 2.05, 2.05), None),
        ((2.0, 1.6, 1.2, 1.0), None),
    ],
)
def test_what_had_been_learned_is_lost_where_half_of_it_is_given_back(levels, found, unit):
    lost = Signs(400, 20).lost(unit * losses(*levels), 0)
    if found is None:
        assert lost is None
    else:
        assert lost == (pytest.approx(unit * found[0], rel=0.1), found[1])


def test_what_is_lost_is_told_apart_from_noise_and_needs_losses_enough():
    lost = losses(2.0, 1.2, 1.2, 1.7)
    rng, seen = np.random.default_rng(0), Signs(400, 20)
    assert sum(seen.lost(2.0 + rng.standard_normal(40), 0) is not None for _ in range(500)) < 25
    assert Signs(29, 3).lost(lost, 0) is None  # too short a run
    assert Signs(400, 20, borne=4.0).lost(lost, 0) is None
    assert Signs(400, 20).lost(lost, 30) is None  # after a way back nothing has been lost again
    assert Signs(400, 20).lost(np.append(lost, [np.nan] * 6), 0) is None
    assert Signs(400, 20).lost(lost[:35], 20) is None  # 15 losses are too few
    assert Signs(400, 20).lost(lost[:36], 20) is not None


@pytest.mark.parametrize(("back_at", "has_changed"), [(2.0, False), (2.2, False), (2.4, True), (np.nan, False)])
def test_weights_from_before_tell_whether_it_was_the_data(back_at, has_changed):
    """0.5 had been lost; with the weights from before the losses are as they were, or much higher."""
    run = np.append(losses(2.0, 1.2, 1.2, 1.7), [back_at] * 3)
    assert Signs(400, 20).have_changed(run, 40, 0.5) is has_changed


def test_noisy_losses_have_to_rise_by_more_than_their_noise():
    noisy = losses(2.0, 2.6, noise=0.5)
    assert not are_broken(noisy, 10, 5, 0)


def test_losses_that_are_not_finite_are_broken():
    for bad in (np.nan, np.inf):
        assert are_broken(np.append(losses(2.0), [bad] * 5), 5, 5, 0)
    assert not are_broken(np.append(losses(2.0), [np.nan]), 5, 5, 0)


def test_losses_of_before_a_way_back_do_not_count_again():
    assert not are_broken(losses(2.0, 4.0), 5, 5, 18)
    assert are_broken(losses(2.0, 4.0, 4.0), 5, 5, 18)
