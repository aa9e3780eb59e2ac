"""Breaks, and losses that have changed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from autowu_hf.autowu.course.breaks import Breaks
from autowu_hf.autowu.course.signs import Signs

SEEN = Signs(400, 20)
WAY = SimpleNamespace(signs=SEEN, since=2)
GOOD = 1.0 + 0.01 * np.random.default_rng(0).standard_normal(60)


def after_a_break(goes_back=True, later=3.0):
    """Losses that jump after 20, a break, and what comes after the way back."""
    breaks, losses = Breaks(), np.append(GOOD[:20], GOOD[:10] + 2.0)
    assert breaks.find(losses, WAY, 30)
    breaks.go_back(30)
    if goes_back:
        breaks.went_back(30)
    return breaks, np.append(losses, np.full(3, later))


def test_losses_of_0_at_the_start_are_not_the_first_ones():
    breaks = Breaks()
    assert not breaks.find(np.append(np.zeros(4), GOOD), WAY, 64)
    assert len(breaks.counted(np.append(np.zeros(4), GOOD))) == 60
    assert Breaks().find(np.append(np.zeros(4), np.append(GOOD, GOOD[:10] + 2.0)), WAY, 74)


def test_a_loss_that_is_as_high_with_the_weights_from_before_has_changed():
    breaks, losses = after_a_break()
    assert not breaks.find_change(losses[:-1], SEEN, 32)  # too few to say
    assert breaks.find_change(losses, SEEN, 33)
    assert not breaks.find_change(losses, SEEN, 33)  # once
    assert (breaks.steps, breaks.changes) == ([], [33])
    np.testing.assert_equal(breaks.counted(losses), [3.0] * 3)


def test_what_is_good_again_unknown_or_not_finite_has_not_changed():
    for options in ({"later": 1.0}, {"later": np.nan}, {"goes_back": False}):
        breaks, losses = after_a_break(**options)
        assert not breaks.find_change(losses, SEEN, 33)
        assert (breaks.steps, breaks.changes) == ([30], [])


def test_a_state_goes_on_and_one_of_an_older_release_too():
    breaks, losses = after_a_break()
    again = Breaks()
    again.load_state_dict(breaks.state_dict())
    assert again.find_change(losses, SEEN, 33)
    again.load_state_dict({"breaks": [7], "sound_since": 7})
    assert again.steps == [7]


def test_a_loss_that_changes_again_and_again_breaks_the_run_in_the_end():
    breaks, losses = after_a_break()
    breaks.changes += [5, 9]
    assert not breaks.find_change(losses, SEEN, 33)
    assert breaks.steps == [30]
