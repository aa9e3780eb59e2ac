from __future__ import annotations

import math

import numpy as np
import pytest

from autowu_hf.autowu.relapse.attempt import Attempt, has_just_broken, start_levels, window


def attempt(**values) -> Attempt:
    return Attempt(**{"since": 100, "back_to": 60, "best": 1.0, "level": 2.0, "factor": 1.0, **values})


def test_the_window_is_a_share_of_the_run():
    assert [window(num) for num in (60, 250, 1000)] == [10, 10, 40]


@pytest.mark.parametrize(
    ("losses", "levels"),
    [
        (np.arange(4.0), [(1.0, 3), (1.0, 3)]),  # three at least
        (np.arange(16.0), [(1.0, 3), (3.5, 8)]),  # an eighth, and a half
        (np.arange(72.0), [(4.0, 9), (4.5, 10)]),
        (np.arange(200.0), [(4.5, 10), (4.5, 10)]),  # as many as are asked for
        (np.array([math.nan, 1.0, 2.0, 9.0]), [(1.5, 2), (1.5, 2)]),
        (np.array([math.nan, 1.0, math.inf, 9.0]), []),
        (np.empty(0), []),
    ],
)
def test_the_first_losses_make_levels_too(losses, levels):
    assert start_levels(losses, 10) == levels


def test_an_attempt_that_is_cut_ends_with_what_is_trained():
    for tried, was_lost in ((None, True), (1.6, False)):
        cut = attempt(tried=tried)
        cut.cut(104, 101)
        assert (cut.was_cut, cut.end, cut.taken_at, cut.was_lost) == (True, 104, 101, was_lost)
        assert cut.num_lost == (41 if was_lost else 1)
    assert attempt().num_lost == 0


def test_it_speaks_for_a_loss_while_each_level_does():
    """The earlier weights must have a third of what was lost, and the later ones lose it again in between."""
    tried = attempt()
    assert tried.is_with_earlier
    assert tried.num_losses(40) == 40
    assert tried.take(1.6, 0.0)
    assert not tried.is_with_earlier
    assert tried.num_losses(40) == 20
    assert tried.take(1.9, 0.0)
    assert tried.is_with_earlier
    assert tried.num_losses(40) == 20
    assert tried.take(1.5, 0.0)
    assert (tried.tried, tried.again, tried.last) == (1.6, 1.9, 1.5)


@pytest.mark.parametrize(("tried", "noise", "expected"), [(1.6, 0.0, True), (1.7, 0.0, False), (1.6, 0.2, False)])
def test_a_lower_lr_alone_lowers_the_losses_a_little(tried, noise, expected):
    assert attempt().take(tried, noise) is expected


@pytest.mark.parametrize(("again", "expected"), [(1.9, True), (1.5, False), (math.inf, True), (math.nan, True)])
def test_the_later_weights_must_lose_it_again(again, expected):
    assert attempt(tried=1.2).take(again, 0.0) is expected


@pytest.mark.parametrize(("tried", "is_lost", "expected"), [(1.2, True, True), (1.2, False, False), (4.5, True, False)])
def test_what_the_later_weights_win_back_may_be_too_little(tried, is_lost, expected):
    """They come down from where they broke, and what had been learned is lost all the same; or the data get easier, and
    the earlier weights were no better.
    """
    again = attempt(level=29.0, tried=tried)
    assert again.take(4.0, 0.0, is_lost) is expected
    if expected:
        assert again.take(2.5, 0.0)


def test_the_earlier_weights_are_compared_with_the_better_level_of_the_later_ones():
    assert not attempt(level=29.0, tried=1.2, again=4.0).take(2.7, 0.0)


@pytest.mark.parametrize(("again", "expected"), [(1.2, False), (4.0, True)])
def test_whether_it_is_still_lost_is_judged_by_the_losses(again, expected):
    losses = again + 0.01 * (np.arange(20) % 3 - 1.0)
    heard = attempt(level=29.0, tried=1.1)
    assert heard.hear(losses, 40, 2.3) is expected
    assert heard.again == pytest.approx(again)


@pytest.mark.parametrize(("last", "expected"), [(1.3, True), (1.7, False), (math.inf, False)])
def test_the_earlier_weights_must_have_it_again(last, expected):
    assert attempt(tried=1.2, again=2.0).take(last, 0.0) is expected


def test_a_few_losses_tell_what_has_just_broken():
    losses = np.full(20, 1.0)
    assert not has_just_broken(2.0, 1.0, losses)
    losses[-2:] = 3.0
    assert not has_just_broken(2.0, 1.0, losses)  # a spike may be one
    losses[-3:] = 3.0
    assert has_just_broken(2.0, 1.0, losses)
    losses[-3:] = [1.0, np.nan, 1.0]  # one is enough, for it is in the weights from then on
    assert has_just_broken(2.0, 1.0, losses)
