"""Breaks, and losses that have changed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from autowu_hf.autowu.course.breaks import (
    ABOVE,
    BREAK_DIVISOR,
    LOST,
    LOST_DIVISOR,
    NO_LOWER,
    NOT_FINITE,
    RISEN,
    STALL_DIVISOR,
    THIN,
    UNLEARNED,
    Breaks,
    divisor_of,
)
from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.autowu.course.signs import Signs
from autowu_hf.autowu.course.timetable import Timetable

SEEN = Signs(400, 20)
WAY = SimpleNamespace(
    signs=SEEN,
    since=2,
    raised=1.0,
    peak_lr=0.3,
    has_gone_back=False,
    is_held=False,
    lr_before=lambda step: 0.3 / step,
    times=Timetable.of(400, None),
)
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


@pytest.mark.parametrize(("rise", "usual", "held"), [(0.2, False, False), (0.8, True, False), (1.2, True, True)])
def test_while_the_lr_is_held_far_below_that_of_p_losses_may_rise_farther(rise, usual, held):
    losses = np.append(GOOD[:20], GOOD[:10] + rise)
    assert Breaks().find(losses, WAY, 30) is usual
    assert Breaks().find(losses, SimpleNamespace(**{**vars(WAY), "is_held": True}), 30) is held


def test_a_loss_that_is_as_high_with_the_weights_from_before_has_changed():
    breaks, losses = after_a_break()
    assert not breaks.find_change(losses[:-1], SEEN, 32)  # too few to say
    assert breaks.find_change(losses, SEEN, 33) == BREAK_DIVISOR
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
    assert (again.steps, again.reasons) == ([7], [RISEN])


def test_a_loss_that_changes_again_and_again_breaks_the_run_in_the_end():
    breaks, losses = after_a_break()
    breaks.changes += [5, 9]
    assert not breaks.find_change(losses, SEEN, 33)
    assert breaks.steps == [30]


def test_the_reason_is_kept():
    breaks = Breaks()
    assert breaks.find(np.append(GOOD, GOOD[:10] + 2.0), WAY, 70)
    breaks.go_back(70)
    assert breaks.find(np.append(GOOD, np.append(GOOD[:10] + 2.0, np.full(10, np.nan))), WAY, 80)
    assert breaks.reasons == [RISEN, NOT_FINITE]


def given_back(now=0.9, back_at=1.0):
    """Losses that have fallen from 1 to 0.5, and given that back; and what comes after the way back."""
    return np.concatenate([GOOD[:20], GOOD[:20] - 0.5, GOOD[:20] - 1.0 + now, GOOD[:3] - 1.0 + back_at])


def test_what_had_been_learned_is_looked_for_once_at_the_end():
    breaks, losses = Breaks(), given_back()
    assert not breaks.find(losses[:60], WAY, 60)
    assert breaks.lr_at_end(given_back(now=0.7)[:60], WAY, 60) is None
    assert breaks.lr_at_end(losses[:60], WAY, 60) is not None
    assert (breaks.steps, breaks.reasons) == ([60], [LOST])
    breaks.go_back(60)
    breaks.went_back(60)
    again = Breaks()
    again.load_state_dict(breaks.state_dict())
    for found in (breaks, again):
        assert not found.find_change(losses, SEEN, 63)
        assert found.lr_at_end(np.append(losses, given_back()), WAY, 126) is None


def test_data_that_became_harder_took_nothing_away():
    breaks, losses = Breaks(), given_back(back_at=1.4)
    assert breaks.lr_at_end(losses[:60], WAY, 60) is not None
    breaks.go_back(60)
    breaks.went_back(60)
    assert breaks.find_change(losses, SEEN, 63) == LOST_DIVISOR
    assert (breaks.steps, breaks.reasons, breaks.changes) == ([], [], [63])
    assert breaks.lr_at_end(np.append(losses, given_back()), WAY, 126) is None  # they may change again


def test_nobody_goes_back_where_too_few_steps_are_left():
    way = SimpleNamespace(**{**vars(WAY), "times": Timetable.of(400, 62)})
    assert Breaks().lr_at_end(given_back()[:60], way, 60) is None


def test_losses_that_lie_above_their_start_in_the_end_send_the_run_back_too():
    breaks = Breaks()
    assert breaks.lr_at_end(np.append(GOOD[:20], GOOD + 0.1), WAY, 80) is not None
    assert breaks.reasons == [ABOVE]


BY_P = Scale(polyak=0.01, trust=0.2, alignment=0.3, loss=1.0, num_steps=2, layer_trust=0.1)


def at(factor=1.0, raised=1.0):
    """A way at that LR, or at a part of it."""
    return SimpleNamespace(**{**vars(WAY), "raised": raised, "peak_lr": factor * BY_P.peak_lr_for(400)})


def test_an_lr_of_p_that_has_taught_nothing_by_the_end_is_too_high():
    breaks, losses = Breaks(), np.append(GOOD, GOOD)
    assert breaks.lr_at_end(losses, at(), 120) is None  # nobody knows whether it should have
    assert breaks.lr_at_end(losses, at(), 120, BY_P) == BY_P.peak_lr_for(400) / BREAK_DIVISOR
    assert (breaks.steps, breaks.reasons, breaks.divisor) == ([120], [UNLEARNED], BREAK_DIVISOR)
    breaks.go_back(120)
    breaks.went_back(120)
    again = np.append(losses, GOOD)
    assert not breaks.find_change(again, SEEN, 180)  # that the losses are as high as before says nothing
    assert breaks.lr_at_end(again, at(1.0 / BREAK_DIVISOR), 180, BY_P) is None


def test_where_most_tensors_hardly_had_a_gradient_an_lr_of_m_is_too_high_as_well():
    losses, thin = np.append(GOOD, GOOD), replace(BY_P, layer_trust=1e-4, density=0.125)
    breaks = Breaks()
    assert breaks.lr_at_end(losses, WAY, 120, thin) == pytest.approx(0.3 / 8.0)
    assert breaks.reasons == [THIN]
    assert Breaks().lr_at_end(losses, SimpleNamespace(**{**vars(WAY), "has_gone_back": True}), 120, thin) is None
    assert Breaks().lr_at_end(losses, WAY, 120, replace(thin, density=0.6)) is None  # for so little it does not go back
    assert Breaks().lr_at_end(losses - 0.1 * (losses > 0.0) * (np.arange(120) > 60), WAY, 120, thin) is None


@pytest.mark.parametrize(("later", "is_back"), [(0.5, True), (0.48, True), (0.46, False), (0.7, True)])
def test_a_raise_has_to_bring_the_losses_down(later, is_back):
    losses = np.concatenate([GOOD[:40], GOOD[:40] - 0.5, GOOD[:40] - 1.0 + later])
    breaks = Breaks()
    lr = breaks.lr_at_end(losses, WAY, 120, replace(BY_P, layer_trust=1e-4), raised_at=80)
    assert lr == (0.3 / 80 if is_back else None)
    assert breaks.reasons == ([NO_LOWER] if is_back else [])
    breaks.go_back(120)
    breaks.went_back(120)
    assert breaks.find_change(np.append(losses, GOOD), SEEN, 180) is None
    assert not Signs(59, 3).are_no_lower(losses, 80)  # in a short run it would cost more


@pytest.mark.parametrize(
    ("scale", "way"),
    [
        (replace(BY_P, layer_trust=1e-4), at()),  # M holds it, as on the plateau of a transformer
        (replace(BY_P, narrowing=0.5), at()),
        (replace(BY_P, alignment=1.0), at()),  # SGD has its own rule
        (BY_P, at(factor=0.5)),  # it was lowered before
        (BY_P, at(raised=2.0)),  # or raised, since most of the gradient is noise
    ],
)
def test_elsewhere_losses_that_have_not_fallen_say_nothing(scale, way):
    assert Breaks().lr_at_end(np.append(GOOD, GOOD), way, 120, scale) is None


def test_a_run_that_learns_nothing_goes_back_where_the_scale_is_less_sure():
    usual = Scale(polyak=1.0, trust=1.0, alignment=0.5, loss=1.0, num_steps=2)
    assert divisor_of(usual) == 1.0
    assert divisor_of(replace(usual, alignment=1.0)) == STALL_DIVISOR
    assert divisor_of(replace(usual, density=0.2)) == 5.0
    assert divisor_of(replace(usual, density=0.6)) == 1.0  # the steps that are lost cost more


def raised_at(num=40, later=1.1):
    """Losses that have fallen to half after ``num``, and what they are at an LR that was raised then."""
    return np.concatenate([GOOD[:20], np.linspace(1.0, 0.5, num - 20), later * GOOD[:10]])


def test_a_raise_after_a_transient_that_costs_what_was_learned_is_taken_back():
    breaks = Breaks()
    assert not breaks.find(raised_at()[:49], WAY, 49, raised_at=40)  # too few to say
    assert breaks.find(raised_at(), WAY, 50, raised_at=40)
    assert (breaks.steps, breaks.reasons, breaks.divisor) == ([50], [LOST], LOST_DIVISOR)
    assert not breaks.find(raised_at(), WAY, 51, raised_at=40)  # once


def test_a_raise_that_costs_less_than_half_stays():
    for later, at in ((0.7, 40), (1.1, None)):
        breaks = Breaks()
        assert not breaks.find(raised_at(later=later), WAY, 50, raised_at=at)
        assert breaks.steps == []


def test_losses_that_rise_far_after_a_raise_are_broken_as_before():
    breaks = Breaks()
    assert breaks.find(raised_at(later=3.0), WAY, 50, raised_at=40)
    assert (breaks.reasons, breaks.divisor) == ([RISEN], BREAK_DIVISOR)
