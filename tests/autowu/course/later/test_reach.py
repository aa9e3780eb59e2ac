"""How far later updates take the weights, and what the LR makes of it."""

from __future__ import annotations

import copy
import io
import logging
import math
from unittest import mock

import numpy as np
import pytest
import torch
from scale_runs import made, run, slowly
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import AdamW

from autowu_hf import LoopWarning, get_autowu_schedule
from autowu_hf.autowu.course.later import later_measures, overshoot
from autowu_hf.autowu.course.later.reach import reach_factor
from autowu_hf.autowu.course.measures.scale import Scale

BY_P = Scale(polyak=1.0, trust=100.0, alignment=0.5, loss=1.0, num_steps=2)
BY_R = Scale(polyak=100.0, trust=1.0, alignment=0.5, loss=1.0, num_steps=2)
SIZES = (1.0, 0.5)
"""Of later updates, so that the LR may be lowered and raised."""


@pytest.fixture(autouse=True)
def _never_too_far(monkeypatch):
    """The losses here are given, and say nothing of where these optimizers take the weights."""
    monkeypatch.setattr(overshoot, "OVERSHOT", math.inf)


class Steady(torch.optim.SGD):
    """The sign of the first gradient, always; the first two updates are ``times`` as large, and from step ``late`` on
    those before are.
    """

    times = 1.0
    late = 2

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in [p for p in group["params"] if p.grad is not None]:
                state = self.state[parameter]
                state["steps"] = state.get("steps", 0) + 1
                state.setdefault("sign", parameter.grad.sign())
                parameter.sub_(group["lr"] * (self.times if state["steps"] <= self.late else 1.0) * state["sign"])


class Shrinking(Steady):
    times = 20.0


class ShrinkingLate(Steady):
    times = 20.0
    late = 40


@pytest.mark.parametrize(("make", "is_late"), [(Shrinking, False), (ShrinkingLate, True)])
def test_an_optimizer_whose_later_updates_are_small_gets_a_larger_lr(make, is_late, caplog):
    model, optimizer, schedule = made(400, make=make)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        lrs = run(model, optimizer, schedule, slowly(400))
    approach = schedule.report()["approach"]
    soon, later = approach["reaches"]
    assert soon == pytest.approx(1.0 if is_late else 1 / 20, rel=0.01)
    assert later == pytest.approx(1 / 20, rel=0.01)
    first, *_, last = approach["legs"]
    assert len(approach["legs"]) == 2 + is_late
    wanted = 0.2 / later if is_late else 1.4 / 30**0.5 / soon
    assert approach["factor"] == pytest.approx(wanted)
    assert schedule.peak_lr == last["to_lr"] == pytest.approx(wanted * first["to_lr"])
    assert lrs[first["end"]] == pytest.approx(first["to_lr"])
    assert max(lrs) == pytest.approx(schedule.peak_lr)
    assert f"times {wanted:.2g} since later updates get less far" in caplog.messages[-1]


@pytest.mark.parametrize(("make", "share", "is_raised"), [(Steady, 2.2, True), (AdamW, 2.2, False), (AdamW, 2.8, True)])
def test_updates_with_momentum_must_get_less_far_for_the_lr_to_rise(make, share, is_raised, monkeypatch):
    """On a plateau, AdamW's steps go to and fro: a ViT from scratch, whose LR was doubled for that, learned nothing."""

    def found(search, update, step, since, distance):
        return max(0.2, 1.4 / step**0.5) / share, step, (0.5, 0.5)

    monkeypatch.setattr(later_measures, "reach_of", found)
    model, optimizer, schedule = made(400, make=make)
    run(model, optimizer, schedule, 0.1 * slowly(400))  # so that P holds the LR
    approach = schedule.report()["approach"]
    assert schedule._course.scale.held_by == "polyak"
    assert approach["factor"] == pytest.approx(share if is_raised else 1.0)


@pytest.mark.parametrize("make", [Shrinking, ShrinkingLate])
def test_a_run_resumed_while_that_is_measured_takes_the_same_lrs(make):
    model, optimizer, schedule = made(400, make=make)
    losses, whole, saved = slowly(400), [], {}
    for step in range(110):
        if step in (*range(18, 33, 2), *range(69, 82, 3)):  # on both sides of each leg and within
            saved[step] = copy.deepcopy((model.state_dict(), optimizer.state_dict(), schedule.state_dict()))
        whole += run(model, optimizer, schedule, losses[: step + 1], since=step)
    assert len(schedule.report()["approach"]["reaches"]) == 2
    for step, (of_model, of_optimizer, of_schedule) in saved.items():
        model, optimizer, schedule = made(400, make=make)
        model.load_state_dict(of_model)
        optimizer.load_state_dict(of_optimizer)
        file = io.BytesIO()
        torch.save(of_schedule, file)
        file.seek(0)
        schedule.load_state_dict(torch.load(file, weights_only=True))
        assert run(model, optimizer, schedule, losses[:110], since=step) == whole[step:]


@pytest.mark.parametrize("other", ["4 tensors, 2 processes, signs by 16", "4 tensors, 163 weights"])
def test_weights_that_are_shared_out_or_added_up_in_another_way_leave_it_unknown(other):
    model, optimizer, schedule = made(400, make=Shrinking)
    losses = slowly(400)
    run(model, optimizer, schedule, losses[:25])
    assert schedule._course.approach.later._distance._kind == "4 tensors, 163 weights, signs by 16"
    schedule._course.approach.later._distance._kind = other
    run(model, optimizer, schedule, losses, since=25)
    first, second = schedule.report()["approach"]["reaches"]
    assert (first, second) == (None, pytest.approx(1 / 20, rel=0.01))


def test_weights_that_are_added_while_that_is_measured_leave_it_unknown():
    model, optimizer, schedule = made(400, make=Steady)
    losses = slowly(400)
    run(model, optimizer, schedule, losses[:25])
    more = nn.Parameter(torch.randn(30, 30))
    optimizer.add_param_group({"params": [more], "lr": optimizer.param_groups[0]["lr"]})
    with pytest.warns(LoopWarning, match="frozen, or not there, when AutoWU measured"):
        run(model, optimizer, schedule, losses, since=25)
    approach = schedule.report()["approach"]
    assert (approach["reaches"][0], approach["factor"]) == (None, 1.0)


def test_weights_that_are_all_zero_at_first_are_measured():
    model, optimizer, schedule = made(400, make=Steady)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    run(model, optimizer, schedule, slowly(400))
    approach = schedule.report()["approach"]
    assert 0.9 < approach["reaches"][0] < 1.5  # in the first of the two steps, nothing had a size
    assert 0.13 < approach["factor"] < 0.25


@pytest.mark.parametrize("step", [10, 35])
def test_weights_that_are_frozen_before_that_is_measured_leave_it_unknown(step):
    model, optimizer, schedule = made(400)
    losses = slowly(400)
    run(model, optimizer, schedule, losses[:step])
    model[0].requires_grad_(False)
    run(model, optimizer, schedule, losses, since=step)
    approach = schedule.report()["approach"]
    assert approach["reaches"][-1] is None
    assert approach["factor"] == 1.0


def test_weights_that_join_before_that_is_measured_leave_it_unknown():
    model, optimizer, schedule = made(400)
    model[0].requires_grad_(False)
    losses = slowly(400)
    run(model, optimizer, schedule, losses[:10])
    model[0].requires_grad_(True)
    with pytest.warns(LoopWarning, match="frozen, or not there, when AutoWU measured"):
        run(model, optimizer, schedule, losses, since=10)
    approach = schedule.report()["approach"]
    assert approach["reaches"] == [None, None]


@pytest.mark.parametrize(
    ("steps", "warm_up"), [(t, w) for t in (6, 7, 8, 10, 12, 29, 40) for w in (0, 3, 4, 5, 6, 8) if w < t]
)
@pytest.mark.parametrize("make", [Steady, Shrinking])
def test_the_peak_is_known_by_the_end_of_the_warm_up_that_was_asked_for(steps, make, warm_up):
    model, optimizer, schedule = made(steps, make=make, num_warmup_steps=warm_up)
    run(model, optimizer, schedule, slowly(steps))
    assert schedule.switch_step <= (warm_up or steps - 1)


def test_that_the_steps_get_less_far_is_said_where_the_lr_changes(caplog):
    model, optimizer, schedule = made(400, make=Shrinking)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, slowly(400))
    corrections = schedule._course.approach.later.factors
    assert caplog.text.count("the steps take the weights less far than the first updates promised") == len(corrections)
    assert corrections


def test_an_lr_that_has_broken_the_run_is_not_raised_again():
    class Late(ShrinkingLate):
        late = 46

    model, optimizer, schedule = made(400, make=Late, rewind=False)
    losses = slowly(400)
    losses[34:46] *= 4.0
    lrs = run(model, optimizer, schedule, losses)
    approach = schedule.report()["approach"]
    assert approach["breaks"]
    assert len(approach["reaches"]) == 1
    assert max(lrs[100:]) < 0.2 * max(lrs[:40])


def test_another_lr_in_the_middle_begins_the_measure_anew():
    model, optimizer, schedule = made(400, make=Shrinking)
    run(model, optimizer, schedule, 0.01 * slowly(400)[:29])
    assert schedule._course.scale.held_by == "polyak"
    assert schedule._course.approach.later.since == 20
    state = copy.deepcopy(schedule.state_dict())
    schedule = get_autowu_schedule(optimizer, 600)
    schedule.load_state_dict(state)
    assert schedule._course.approach.later.since is None
    assert schedule._course.approach.later.overshoot.is_open  # of the way since the start, whatever the LR
    run(model, optimizer, schedule, 0.01 * slowly(600)[:33], since=29)
    assert schedule._course.approach.later.since >= 29
    run(model, optimizer, schedule, 0.01 * slowly(600), since=33)
    assert schedule.report()["approach"]["reaches"] == pytest.approx([1 / 20, 1 / 20], rel=0.01)


def test_steps_that_nobody_counts_leave_it_unknown():
    model, optimizer, schedule = made(400, make=Shrinking)
    losses = slowly(400)
    run(model, optimizer, schedule, losses[:25])
    for step in range(25, 100):
        optimizer.step()  # once more than the schedule knows
        run(model, optimizer, schedule, losses[: step + 1], since=step)
    assert schedule.report()["approach"]["reaches"] == [None, None]


@pytest.mark.parametrize("learns", [True, False])
def test_an_optimizer_whose_updates_stay_large_gets_a_smaller_lr(learns):
    """And starts again where nothing was learned at the larger one."""
    model, optimizer, schedule = made(400, make=Steady)
    losses = slowly(400) if learns else np.full(400, 1.2)
    run(model, optimizer, schedule, losses[:2])
    before = [p.detach().clone() for p in model.parameters()]
    lrs = run(model, optimizer, schedule, losses[:30], since=2)
    assert all(map(torch.equal, before, model.parameters())) is not learns
    approach = schedule.report()["approach"]
    assert approach["factor"] == pytest.approx(0.2, rel=0.01)
    first, second, *_ = approach["legs"]
    assert second["to_lr"] == pytest.approx(approach["factor"] * first["to_lr"])
    assert approach["num_lost"] == schedule.num_steps_lost == (0 if learns else 28)
    lrs += run(model, optimizer, schedule, losses[:31], since=30)
    assert lrs[28] < (lrs[27] if learns else 0.1 * lrs[27])


@pytest.mark.parametrize(
    ("reach", "step", "factor"),
    [
        (0.2, 50, 1.0),  # Adam's mean of noise
        (0.33, 50, 1.0),  # and of gradients that have one direction
        (0.5, 4, 1.0),
        (0.92, 8, 8**-0.5 / 0.92),  # LoRA
        (1.0, 49, 0.2),  # Lion
        (1.0, 4, 1.0),
        (0.02, 49, 10.0),  # LAMB, whose first update was large
        (0.03, 4, 20.0),
        (1e-3, 49, 20.0),
        (100.0, 49, 0.01),
    ],
)
def test_how_far_later_updates_get_corrects_the_scale(reach, step, factor):
    assert reach_factor(BY_P, reach, step, SIZES) == pytest.approx(factor)
    assert reach_factor(BY_R, reach, step, SIZES) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("reach", "raised", "done", "factor"),
    [
        (0.02, 3.0, 1.0, 10 / 3),
        (0.02, 6.0, 1.0, 1.0),  # what is left is too little
        (0.02, 30.0, 1.0, 1.0),  # no raise is taken back
        (1.0, 30.0, 1.0, 0.2),
        (0.02, 1.0, 3.0, 10 / 3),
        (0.02, 1.0, 9.0, 1.0),
        (0.2 / 1.5, 1.0, 3.0, 1.0),  # what was lifted before is not lifted again by the way down
    ],
)
def test_only_what_was_not_corrected_before_is_corrected(reach, raised, done, factor):
    assert reach_factor(BY_P, reach, 49, SIZES, raised=raised, done=done) == pytest.approx(factor)


@pytest.mark.parametrize(("share", "factor"), [(2.02, 1.0), (2.47, 1.0), (2.53, 2.53)])
def test_with_momentum_the_lr_is_raised_where_updates_surely_get_less_far(share, factor):
    assert reach_factor(BY_P, 0.2 / share, 49, SIZES, has_momentum=True) == pytest.approx(factor)


def test_a_raise_is_not_taken_back_where_updates_get_a_little_less_far():
    assert reach_factor(BY_P, 0.34, 16, SIZES, raised=7.0) == 1.0


@pytest.mark.parametrize(
    ("scale", "reach", "sizes", "factor"),
    [
        (BY_P, 0.2 / 2.02, SIZES, 2.02),
        (BY_P, 0.2 / 2.02, (1.0, 0.13), 1.0),  # 0.76 of its size
        (BY_P, 0.2 / 2.53, (1.0, 0.1), 2.53),
        (BY_P, 0.2 / 1.98, SIZES, 1.0),
        (BY_R, 0.2 / 2.53, SIZES, 2.53),
        (BY_R, 0.2 / 2.47, SIZES, 1.0),
        (BY_P, 0.2 / 0.606, SIZES, 1.0),
        (BY_P, 0.2 / 0.594, SIZES, 0.594),
        (BY_R, 0.2 / 0.594, SIZES, 0.594),
        (BY_P, 0.4, (0.673, 0.1), 0.5),
        (BY_P, 0.4, (0.66, 1.0), 1.0),
        (BY_P, 0.02, (1.0, 0.66), 10.0),
        (BY_P, 0.02, (0.1, 0.673), 1.0),
    ],
)
def test_the_bounds_of_a_correction_are_where_they_are_said_to_be(scale, reach, sizes, factor):
    assert reach_factor(scale, reach, 49, sizes) == pytest.approx(factor)


@pytest.mark.parametrize("sizes", [(0.5, 0.5), (1.0, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("done", [0.2, 1.0, 5.0])
def test_the_farther_updates_get_the_lower_is_the_lr(sizes, done):
    factors = [reach_factor(BY_P, 0.01 * 1.1**i, 80, sizes, done=done) for i in range(80)]
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize(("size", "factor"), [(0.6, 1.0), (0.7, 8**-0.5 / 0.9)])
def test_the_lr_is_not_lowered_where_updates_become_smaller(size, factor):
    """As AdamW's in a transient."""
    assert reach_factor(BY_P, 0.9, 8, (size, 0.5)) == pytest.approx(factor)
    assert reach_factor(BY_P, 0.02, 49, (size, 0.5)) == pytest.approx(10.0)


def test_the_lr_is_not_raised_where_updates_of_the_same_size_get_less_far():
    """They go to and fro, as those of a LR that is too high."""
    assert reach_factor(BY_P, 0.05, 49, (0.7, 0.7)) == 1.0


class TwoHeads(nn.Module):
    """One linear layer in two modules: of one alone, P would hold the LR."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 10), nn.Linear(32, 10)

    def forward(self, x):
        return self.first(x[:, :32]) + self.second(x[:, 32:])


def trained_head():
    """Its gradients go one way for long, for hardly any of them is noise."""
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16.0, torch.tensor(digits.target)
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()).requires_grad_(False)(x)
    head = TwoHeads()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    schedule = get_autowu_schedule(optimizer, 100)
    for _ in range(40):
        batch = torch.randint(len(x), (64,))
        loss = nn.functional.cross_entropy(head(features[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step(loss)
    return schedule


def test_a_head_that_is_trained_alone_by_adam_keeps_its_lr():
    later = trained_head().report()["approach"]
    assert later["reaches"][0] > 0.5
    assert later["factor"] == 1.0
    with mock.patch.object(later_measures, "averages_noise", return_value=False):
        assert trained_head().report()["approach"]["factor"] < 0.6
