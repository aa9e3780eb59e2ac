"""How much of the promised fall lasts on later batches, and what the LR makes of it."""

from __future__ import annotations

import copy
import functools
import io
import logging

import numpy as np
import pytest
import torch
from scale_runs import made, noisy, run, run_noisy, slowly

from autowu_hf import get_autowu_schedule
from autowu_hf.autowu.course.later.lasting import (
    HELD,
    LASTING,
    LEAST_LASTING,
    MOST_ASKED,
    MOST_RAISED,
    UNSURE_BELOW,
)
from autowu_hf.autowu.course.later.reach import SURELY_LIFTED_FROM
from autowu_hf.autowu.reporting.report import headline
from autowu_hf.runtime.checks import closed, opened

STEPS = 100
LOSSES = 10.0 * slowly(STEPS)  # for so large a slope, a loss near 1 would be next to nothing


def approach_of(signal, steps=STEPS, **options):
    weights, optimizer, schedule = noisy(steps, **options)
    lrs = run_noisy(weights, optimizer, schedule, signal, 10.0 * slowly(steps))
    return schedule.report()["approach"], lrs


def test_of_gradients_with_little_noise_all_of_the_slope_lasts_and_the_lr_is_not_raised():
    approach, _ = approach_of(signal=3.0)
    assert approach["lasting"] == pytest.approx(1.0, abs=0.1)
    assert approach["raised"] == 1.0


@pytest.mark.parametrize("signal", [0.1, 0.2])
def test_what_lasts_is_the_share_of_the_signal(signal):
    """Adam's first update has the signs of the gradient g, so that the slope is E|g|, 0.8 per weight; its later ones
    have signal / sqrt(E g^2) in the mean, and other batches see the signal times that."""
    approach, _ = approach_of(signal)
    assert approach["lasting"] == pytest.approx(signal**2 / 0.8, rel=0.4)


def test_where_most_of_the_slope_is_noise_the_lr_grows_on_and_that_is_said(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        approach, lrs = approach_of(signal=0.11)
    first, second = approach["legs"]
    assert approach["raised"] == pytest.approx(LASTING / approach["lasting"])
    assert second["to_lr"] == pytest.approx(approach["raised"] * first["to_lr"] / HELD)
    assert lrs[second["since"] - 1] == pytest.approx(first["to_lr"])
    assert lrs[second["since"] - 1] < lrs[second["since"]]
    assert max(lrs) == pytest.approx(second["to_lr"])
    percent = f"{100 * approach['lasting']:.2g} %"
    assert f"see {percent} of the fall that the first updates promised" in caplog.text
    assert f"times {approach['raised']:.2g} since later batches see {percent} of the promised fall" in caplog.text


def test_where_nothing_lasts_batches_are_asked_three_times_and_the_lr_is_that_of_the_scale():
    """There may be nothing to learn, as for a trained model that goes on."""
    weights, optimizer, schedule = noisy(STEPS)
    run_noisy(weights, optimizer, schedule, 0.0, LOSSES)
    asked = schedule._course.approach.later.asked
    assert (len(asked.answers), asked.is_clear, asked.raised) == (MOST_ASKED, False, 1.0)
    assert schedule.report()["approach"]["raised"] == 1.0


def test_where_little_lasts_the_lr_is_raised_by_more_than_one_answer_may():
    approach, _ = approach_of(signal=0.1)
    assert MOST_RAISED < approach["raised"] <= LASTING / LEAST_LASTING


def test_where_it_was_no_noise_the_lr_goes_on_to_the_scale_s_and_that_is_said(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        approach, lrs = approach_of(signal=1.0)
    first, second, *_ = approach["legs"]
    scale_lr = 0.3 * approach["scale"]["polyak"]
    assert (first["to_lr"], second["to_lr"]) == pytest.approx((HELD * scale_lr, scale_lr))
    assert lrs[second["end"]] == pytest.approx(scale_lr)
    percent = f"{100 * approach['lasting']:.2g} %"
    said = f"see {percent} of the fall that the first updates promised; the learning rate goes on to {scale_lr:.1e}"
    assert said in caplog.text
    assert "may be nearly all noise; the learning rate stays at" in caplog.text
    assert "was noise" not in caplog.text


def test_the_lr_stays_low_until_all_batches_have_answered():
    weights, optimizer, schedule = noisy(60)
    lrs = run_noisy(weights, optimizer, schedule, 0.11, 10.0 * slowly(60)[:30])
    way = schedule._course.approach.way
    assert len(schedule._course.approach.later.asked.answers) == 2
    assert way.legs[1].since == 14
    assert max(lrs[2:14]) == pytest.approx(HELD * schedule._course.scale.peak_lr)


@pytest.mark.parametrize(
    ("signal", "steps", "watched"),
    [(1.0, 60, [5]), (0.18, 60, [5, 5]), (0.18, 100, [8, 8]), (0.18, 200, [10]), (1.0, 200, [10])],
)
def test_few_batches_are_asked_once_more_where_little_lasts_although_that_raises_nothing(signal, steps, watched):
    weights, optimizer, schedule = noisy(steps)
    asked, since = [], set()
    for step in range(steps // 2):
        run_noisy(weights, optimizer, schedule, signal, 10.0 * slowly(steps)[: step + 1], since=step)
        way = schedule._course.approach.way
        if schedule._course.approach.later.asked.is_open and way.watched_since not in since:
            since.add(way.watched_since)
            asked.append(way.watch_end - way.watched_since - 1)
    assert asked == watched
    assert len(schedule._course.approach.later.asked.answers) == len(watched)
    assert schedule.report()["approach"]["raised"] == 1.0
    assert (schedule.report()["approach"]["lasting"] < UNSURE_BELOW) == (signal < 1.0)


def test_a_loss_ten_times_as_high_as_that_of_the_first_batches_makes_p_as_much_higher():
    """The first two batches are easy ones; the signal is the same."""
    found = []
    for easy in (1.0, 0.1):
        weights, optimizer, schedule = noisy(200)
        losses = 10.0 * slowly(200)
        losses[:2] *= easy
        run_noisy(weights, optimizer, schedule, 0.02, losses[:20])
        approach = schedule._course.approach
        found.append((approach.scale.polyak, approach.later.asked.lasting))
    (usual, lasting), (low, of_low) = found
    assert low == pytest.approx(0.1 * usual)
    assert low / of_low == pytest.approx(usual / lasting, rel=0.1)


def test_a_state_of_a_release_whose_answers_were_shares_goes_on():
    weights, optimizer, schedule = noisy(STEPS)
    run_noisy(weights, optimizer, schedule, 0.1, LOSSES[:15])
    state = schedule.state_dict()
    inner = copy.deepcopy(opened(state))
    later = inner["course"]["approach"]["later"]
    (falls,) = later.pop("answers")
    lasting = sum(fallen for fallen, _ in falls) / sum(promised for _, promised in falls)
    later["lastings"] = [lasting]
    schedule.load_state_dict({key: state[key] for key in ("version", "last_epoch", "step_count")} | closed(inner))
    assert schedule.report()["approach"]["lasting"] == pytest.approx(lasting)
    run_noisy(weights, optimizer, schedule, 0.1, LOSSES, since=15)
    assert schedule.ended_by == "scale"


def test_where_noise_raised_the_lr_losses_that_halve_make_it_grow_no_further():
    ends = []
    for signal in (0.1, 3.0):
        weights, optimizer, schedule = noisy(200)
        losses = np.interp(np.arange(200), [0, 20, 40, 200], [10.0, 10.0, 4.0, 3.0])
        run_noisy(weights, optimizer, schedule, signal, losses)
        ends.append((schedule.report()["approach"]["raised"] > 1.0, schedule.ended_by == "scale"))
    assert ends == [(True, True), (False, False)]


@pytest.mark.parametrize("steps", [10, 30, 1000])
def test_in_a_run_of_any_length(steps):
    approach, lrs = approach_of(signal=0.1, steps=steps)
    assert approach["raised"] > 0.5 * MOST_RAISED
    assert max(lrs) > 0.9 * approach["raised"] * approach["legs"][0]["to_lr"] / HELD
    assert approach["legs"][1]["since"] <= 24


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_nobody_asks_where_the_update_is_the_gradient_or_the_weights_hold_the_scale(make):
    model, optimizer, schedule = made(STEPS, make=make)
    run(model, optimizer, schedule, LOSSES)
    approach = schedule.report()["approach"]
    assert approach["scale"]["alignment"] > 0.99 or not schedule._course.scale.may_be_noise
    assert (approach["lasting"], approach["raised"]) == (None, 1.0)


def test_in_half_precision_nobody_asks_and_that_is_said(caplog):
    weights = torch.nn.Parameter(torch.randn(20_000).bfloat16())
    optimizer = torch.optim.AdamW([weights], lr=1e-3)
    _, _, schedule = noisy(STEPS)
    schedule = type(schedule)(optimizer, STEPS)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run_noisy(weights, optimizer, schedule, 0.0, LOSSES)
    assert schedule._course.scale.may_be_noise
    approach = schedule.report()["approach"]
    assert (approach["lasting"], approach["unasked"]) == (None, "half precision would hide it")
    assert caplog.text.count("later batches cannot tell, for half precision would hide it") == 1


def test_that_a_warm_up_is_too_short_to_ask_is_said_and_stays_in_the_state(caplog):
    weights, optimizer, schedule = noisy(STEPS, num_warmup_steps=8)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run_noisy(weights, optimizer, schedule, 0.0, LOSSES[:20])
    assert caplog.text.count("later batches cannot tell, for there are too few steps") == 1
    state = copy.deepcopy(schedule.state_dict())
    _, _, other = noisy(STEPS, num_warmup_steps=8)
    other.load_state_dict(state)
    assert other.report()["approach"]["unasked"] == "there are too few steps"


def test_nothing_is_said_where_batches_were_asked(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        approach, _ = approach_of(signal=0.0)
    assert approach["unasked"] is None
    assert "cannot tell, for" not in caplog.text


@pytest.mark.parametrize("stop", range(1, 30, 3))
def test_a_run_resumed_anywhere_takes_the_same_lrs(stop):
    weights, optimizer, schedule = noisy(STEPS)
    whole = run_noisy(weights, optimizer, schedule, 0.1, LOSSES)
    weights, optimizer, schedule = noisy(STEPS)
    run_noisy(weights, optimizer, schedule, 0.1, LOSSES[:stop])
    file = io.BytesIO()
    torch.save([weights.detach(), optimizer.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    saved, of_optimizer, of_schedule = torch.load(file, weights_only=True)
    weights, optimizer, schedule = noisy(STEPS)
    with torch.no_grad():
        weights.copy_(saved)
    optimizer.load_state_dict(of_optimizer)
    schedule.load_state_dict(of_schedule)
    assert run_noisy(weights, optimizer, schedule, 0.1, LOSSES, since=stop) == whole[stop:]
    assert schedule.report()["approach"]["raised"] > MOST_RAISED


@pytest.mark.parametrize("how", ["without snapshots", "copied"])
def test_where_the_first_weights_are_gone_the_lr_is_not_raised(how):
    options = {"rewind": False} if how == "without snapshots" else {}
    weights, optimizer, schedule = noisy(STEPS, **options)
    run_noisy(weights, optimizer, schedule, 0.0, LOSSES[:5])
    if how == "copied":
        weights, optimizer, schedule = copy.deepcopy((weights, optimizer, schedule))
    else:
        state = copy.deepcopy(schedule.state_dict())
        schedule.load_state_dict(state)
    run_noisy(weights, optimizer, schedule, 0.0, LOSSES, since=5)
    approach = schedule.report()["approach"]
    assert (approach["lasting"], approach["raised"], schedule.ended_by) == (None, 1.0, "scale")
    assert approach["unasked"] == "their steps, or their losses, could not be measured"


def test_a_run_that_breaks_while_it_is_watched_goes_back_and_asks_no_more():
    losses = np.full(200, 10.0)
    losses[4:8] = 500.0
    weights, optimizer, schedule = noisy(200)
    run_noisy(weights, optimizer, schedule, 0.0, losses)
    approach = schedule.report()["approach"]
    assert approach["breaks"]
    assert approach["lasting"] is None or approach["legs"][1]["to_lr"] < approach["legs"][0]["to_lr"]
    assert not schedule._course.approach.later.asked.is_open


def test_the_headline_says_that_nothing_lasts():
    weights, optimizer, schedule = noisy(STEPS)
    run_noisy(weights, optimizer, schedule, 0.1, LOSSES)
    report = schedule.report()
    report["approach"]["lasting"] = -0.01
    assert "since later batches see nothing of the promised fall" in headline(report)


@pytest.mark.parametrize("back_to", [1, 2, 4, 6])
def test_a_state_that_is_loaded_while_batches_are_asked_starts_anew(back_to):
    whole = run_noisy(*noisy(STEPS), 0.05, LOSSES)
    weights, optimizer, schedule = noisy(STEPS)
    run_noisy(weights, optimizer, schedule, 0.05, LOSSES[:back_to])
    states = copy.deepcopy((weights.detach(), optimizer.state_dict(), schedule.state_dict()))
    run_noisy(weights, optimizer, schedule, 0.05, LOSSES[:6], since=back_to)
    with torch.no_grad():
        weights.copy_(states[0])
    optimizer.load_state_dict(states[1])
    schedule.load_state_dict(states[2])
    assert run_noisy(weights, optimizer, schedule, 0.05, LOSSES, since=back_to) == whole[back_to:]


class Shrinking(torch.optim.Optimizer):
    """Signs of gradients; the first two updates are 150 times as large as the others."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad.sign(), alpha=-group["lr"] * (150.0 if self.steps <= 2 else 1.0))


def test_updates_that_become_smaller_are_corrected_once():
    weights, optimizer, schedule = noisy(STEPS, make=Shrinking)
    run_noisy(weights, optimizer, schedule, 5.0, 10.0 * LOSSES)
    approach = schedule.report()["approach"]
    assert approach["raised"] > 1.0
    assert all(1.4 / 23**0.5 / reach > 20.0 for reach in approach["reaches"])
    assert 20.0 / SURELY_LIFTED_FROM <= approach["raised"] * approach["factor"] <= 20.0


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_updates_that_become_smaller_late_raise_the_lr_only_without_momentum(momentum):
    """On a plateau gradients become smaller than the mean of their squares remembers, and Adam's updates with them."""
    steps, make = 200, functools.partial(torch.optim.AdamW, betas=(momentum, 0.999))
    weights, optimizer, schedule = noisy(steps, make=make)
    for step in range(steps):
        optimizer.zero_grad()
        gradient = torch.randn(len(weights), generator=torch.Generator().manual_seed(step)) + 0.3
        (weights * gradient * (0.02 if step >= 22 else 1.0)).sum().backward()
        optimizer.step()
        schedule.step(float(3000.0 * slowly(steps)[step]))
    approach = schedule.report()["approach"]
    first, second = approach["reaches"]
    assert first > 5.0 * second
    assert (approach["factor"] > 2.0) == (momentum == 0.0)


@pytest.mark.parametrize("is_used", [True, False])
def test_the_lr_of_a_used_adam_is_not_raised_for_its_small_updates(is_used):
    """It remembers the squares of larger gradients for a thousand steps."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(20_000))
    optimizer = torch.optim.AdamW([weights], lr=0.0)
    for step in range(30 * is_used):
        weights.grad = 60.0 * torch.randn(len(weights), generator=torch.Generator().manual_seed(1000 + step))
        optimizer.step()
    for state in optimizer.state.values():
        state["exp_avg"].zero_()
    optimizer.param_groups[0]["lr"] = 1e-3
    schedule = get_autowu_schedule(optimizer, STEPS)
    run_noisy(weights, optimizer, schedule, 0.3, 300.0 * LOSSES)
    approach = schedule.report()["approach"]
    assert (approach["reaches"][0] < 0.1) == is_used
    assert approach["factor"] == 1.0


@pytest.mark.parametrize("signal", [0.1, 5.0])
@pytest.mark.parametrize("steps", [6, 7, 8, 10, 12, 20, 29])
def test_a_short_run_asks_only_where_a_step_is_left_to_measure(steps, signal):
    approach, lrs = approach_of(signal, steps=steps)
    assert (approach["raised"] == 1.0) == (steps < 8 or signal > 1.0)
    has_room = steps != 8  # there, batches have just answered as the warm-up ends
    assert len(approach["reaches"]) == has_room
    assert all(reach > 0.1 for reach in approach["reaches"])
    assert max(lrs[2:]) <= 1.001 * max(leg["to_lr"] for leg in approach["legs"])


def test_a_second_answer_may_say_the_opposite_of_the_first():
    weights, optimizer, schedule = noisy(STEPS)
    run_noisy(weights, optimizer, schedule, 0.1, LOSSES[:12])
    assert schedule._course.approach.later.asked.raised == MOST_RAISED
    run_noisy(weights, optimizer, schedule, 3.0, LOSSES, since=12)
    approach = schedule.report()["approach"]
    assert approach["raised"] == 1.0
    assert approach["legs"][1]["to_lr"] == pytest.approx(approach["legs"][0]["to_lr"] / HELD)
    assert "later batches see" not in headline(schedule.report())


@pytest.mark.parametrize("stop", [5, 10])
def test_a_run_that_goes_on_shorter_than_its_questions_lets_go_of_the_lr(stop):
    weights, optimizer, schedule = noisy(STEPS)
    run_noisy(weights, optimizer, schedule, 0.11, LOSSES[:stop])
    state, steps = copy.deepcopy(schedule.state_dict()), stop + 8
    schedule = get_autowu_schedule(optimizer, steps)
    schedule.load_state_dict(state)
    assert schedule._course.approach.way.is_held
    lrs = run_noisy(weights, optimizer, schedule, 0.11, LOSSES[:steps], since=stop)
    assert not schedule._course.approach.way.is_held
    assert max(lrs) > 0.9 * schedule.peak_lr > HELD * schedule._course.scale.peak_lr


@pytest.mark.parametrize(("saved", "raises"), [(5, []), (12, [10.0])])
def test_a_state_of_a_release_that_held_no_lr_goes_on_to_what_the_batches_say(saved, raises):
    """It asked at the scale's LR, or at ten times that."""
    weights, optimizer, schedule = noisy(60)
    losses = 10.0 * slowly(60)
    run_noisy(weights, optimizer, schedule, 0.11, losses[:saved])
    state = schedule.state_dict()
    inner = copy.deepcopy(opened(state))
    approach, later = inner["course"]["approach"], inner["course"]["approach"]["later"]
    since, end, _, low = approach["legs"][0]
    assert approach.pop("held") == HELD
    approach["raises"] = raises
    approach["legs"] = [[since, end, 0.0, low / HELD], *([9, 11, low / HELD, 10.0 * low / HELD] for _ in raises)]
    later["lastings"] = [np.sum(falls, axis=0)[0] / np.sum(falls, axis=0)[1] for falls in later.pop("answers")]
    schedule.load_state_dict({key: state[key] for key in ("version", "last_epoch", "step_count")} | closed(inner))
    run_noisy(weights, optimizer, schedule, 0.11, losses, since=saved)
    way = schedule._course.approach.way
    assert way.raised == pytest.approx(schedule._course.approach.later.asked.raised)
    assert way.raised > 5.0
    assert max(leg.to_lr for leg in way.legs) == pytest.approx(way.raised * low / HELD)


@pytest.mark.parametrize("until", [STEPS, 60])
def test_processes_that_may_be_at_different_steps_let_go_of_the_lr(until):
    weights, optimizer, schedule = noisy(STEPS)
    lrs = run_noisy(weights, optimizer, schedule, 0.11, LOSSES[:5])
    assert schedule._course.approach.way.is_held
    schedule.hold_tests(True)
    lrs += run_noisy(weights, optimizer, schedule, 0.11, LOSSES[:until], since=5)
    schedule.hold_tests(False)
    lrs += run_noisy(weights, optimizer, schedule, 0.11, LOSSES, since=until)
    assert lrs[10] == pytest.approx(schedule._course.scale.peak_lr)
    assert schedule.report()["approach"]["unasked"] == "the processes may be at different steps"


def test_losses_that_rise_after_a_raise_are_looked_at_once_more_before_the_peak_is_known():
    """Batches are asked until step 21 whether that was too far; the losses have told by then."""
    ends = {}
    for rises in (False, True):
        weights, optimizer, schedule = noisy(60)
        losses = 10.0 * slowly(60)
        losses[18:21] += 30.0 * rises
        run_noisy(weights, optimizer, schedule, 0.11, losses[:22])
        approach = schedule._course.approach
        ends[rises] = (approach.way.raised > 1.0, approach.breaks.steps)
    assert ends[False] == (True, [])
    assert ends[True] == (True, [21])


def test_a_run_that_breaks_while_the_lr_is_held_goes_on_at_a_tenth_of_the_scale_s():
    losses = np.full(200, 10.0)
    losses[4:9] = 500.0
    weights, optimizer, schedule = noisy(200)
    run_noisy(weights, optimizer, schedule, 0.11, losses[:12])
    way = schedule._course.approach.way
    assert schedule._course.approach.breaks.steps
    assert not way.is_held
    assert way.peak_lr == pytest.approx(0.1 * way.legs[0].to_lr / HELD)
    assert schedule._course.approach.later.asked.unasked == "the run has gone back before they had answered"


@pytest.mark.parametrize(("counted", "raised"), [(2, 1.0), (12, MOST_RAISED)])
def test_optimizer_steps_that_nobody_counts_leave_it_unknown(counted, raised):
    weights, optimizer, schedule = noisy(STEPS)
    run_noisy(weights, optimizer, schedule, 0.1, LOSSES[:counted])
    for step in range(counted, 40):
        for _ in range(6):
            optimizer.zero_grad()
            (weights * torch.randn(len(weights))).sum().backward()
            optimizer.step()
        schedule.step(float(LOSSES[step]))
    assert schedule.report()["approach"]["raised"] == raised
    assert schedule.ended_by == "scale"


@pytest.mark.parametrize(("saved", "steps"), [(5, 8), (7, 9), (9, 11)])
def test_a_run_resumed_with_too_few_steps_left_decides_without_asking(saved, steps):
    weights, optimizer, schedule = noisy(STEPS)
    run_noisy(weights, optimizer, schedule, 0.0, LOSSES[:saved])
    state = copy.deepcopy(schedule.state_dict())
    schedule = get_autowu_schedule(optimizer, steps)
    schedule.load_state_dict(state)
    run_noisy(weights, optimizer, schedule, 0.0, LOSSES[:steps], since=saved)
    approach = schedule._course.approach
    assert schedule.ended_by == "scale"
    assert not approach.later.asked.is_open
