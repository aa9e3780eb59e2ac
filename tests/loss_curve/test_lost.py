from __future__ import annotations

import math

import numpy as np
import pytest

from autowu_hf.loss_curve.lost import error, has_hardly_fallen, is_lost, level


def test_the_level_is_the_median():
    assert level(np.array([1.0, 2.0, 100.0])) == 2.0
    assert level(np.array([1.0, math.nan, 2.0])) == 2.0
    assert level(np.array([1.0, math.nan, math.inf])) == math.inf
    assert level(np.empty(0)) == math.inf


def test_the_error_falls_with_the_number_of_losses():
    losses = np.random.default_rng(0).normal(size=4000)
    medians = np.median(losses.reshape(-1, 20), axis=1)
    assert error(losses, 20) == pytest.approx(np.std(np.diff(medians)), rel=0.15)
    assert error(losses, 80) == pytest.approx(error(losses, 20) / 2.0)
    assert error(losses[:1], 20) == 0.0


def judged(first: float, best: float, now: float, noise: float = 0.0) -> bool:
    losses = now + noise * np.resize([-1.0, 1.0, 0.0, -1.0, 1.0], 20)
    return is_lost(first, best, level(losses), losses, 10)


@pytest.mark.parametrize(
    ("first", "best", "now", "expected"),
    [
        (2.0, 1.0, 1.45, False),
        (2.0, 1.0, 1.55, True),  # more than half of what had been learned
        (1.0, 0.99, 1.03, False),  # little had been learned: a twentieth of the first losses
        (1.0, 0.99, 1.05, True),
        (1.0, math.inf, 5.0, False),  # nothing to compare with
    ],
)
def test_half_of_what_was_learned_must_be_lost(first, best, now, expected):
    assert judged(first, best, now) is expected


def test_noise_is_no_loss():
    assert judged(2.0, 1.0, 1.8, noise=0.1)
    assert not judged(2.0, 1.0, 1.8, noise=0.5)


def test_one_look_may_be_asked_for_fewer_errors():
    losses = 1.8 + 0.3 * np.resize([-1.0, 1.0, 0.0, -1.0, 1.0], 20)
    now, spread = level(losses), error(losses, 10)
    assert now - 1.0 < 4.0 * spread
    assert not is_lost(2.0, 1.0, now, losses, 10)
    assert is_lost(2.0, 1.0, now, losses, 10, errors=0.9 * (now - 1.0) / spread)


@pytest.mark.parametrize(
    ("now", "noise", "expected"),
    [
        (2.0, 0.0, True),
        (1.91, 0.0, True),
        (1.89, 0.0, False),  # by more than a twentieth
        (1.97, 0.01, True),
        (1.93, 0.05, False),  # so noisy that they may have, and lower by a standard error
        (1.97, 0.2, True),  # of which none can be seen
        (2.0, 0.5, True),
        (1.8, 0.5, False),  # by less than that, but by a twentieth
        (3.0, 0.2, True),
        (math.inf, 0.0, False),
    ],
)
def test_losses_that_have_not_fallen_certainly_or_as_far_as_can_be_seen(now, noise, expected):
    losses = now + noise * np.resize([-1.0, 1.0, 0.0, -1.0, 1.0], 20)
    assert has_hardly_fallen([(2.0, 10)], losses, 10) == expected


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([(2.0, 3)], True),  # three losses may have been low by chance
        ([(2.0, 3), (2.3, 9)], False),
        ([(2.0, 3), (2.05, 9)], True),
        ([(2.3, 3), (2.0, 9)], False),  # the more losses have learned meanwhile
    ],
)
def test_more_of_the_first_losses_see_a_fall_that_a_few_do_not(starts, expected):
    losses = 1.97 + 0.2 * np.resize([-1.0, 1.0, 0.0, -1.0, 1.0], 20)
    assert has_hardly_fallen(starts, losses, 10) == expected


def test_a_fall_is_less_certain_by_the_fewer_first_losses():
    losses = 1.97 + 0.05 * np.resize([-1.0, 1.0, 0.0, -1.0, 1.0], 20)
    assert error(losses, 10, 3) > error(losses, 10, 10) == error(losses, 10)
    assert error(losses, 4, 4) == pytest.approx(error(losses, 3, 6))
