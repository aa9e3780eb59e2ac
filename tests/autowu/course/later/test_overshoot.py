"""Whether the gradients of later batches say that the way from the start has gone too far."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools
import json
import logging
import math
import pickle
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import scale_runs
import torch
from scale_runs import slowly
from torch import nn

from autowu_hf import get_autowu_schedule
from autowu_hf.autowu.course.later import overshoot
from autowu_hf.autowu.course.later.overshoot import OVERSHOT, Overshoot, rise_of
from autowu_hf.autowu.course.signs import Signs
from autowu_hf.autowu.reporting.report import headline
from autowu_hf.runtime.update_meter import Update

WIDTH = 64
BEST = torch.linspace(-1.0, 1.0, WIDTH)
NEVER = mock.patch.object(overshoot, "OVERSHOT", math.inf)


def made(steps, is_trained=True, make=torch.optim.AdamW, lr=1e-3, **options):
    """A linear regression that is at its best already, or knows nothing."""
    model = nn.Linear(WIDTH, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(BEST if is_trained else 0.01 * BEST.flip(0))
    optimizer = make(model.parameters(), lr=lr)
    return model, optimizer, get_autowu_schedule(optimizer, steps, **options)


def run(model, optimizer, schedule, stop, since=0, unit=1.0, num_micro=1):
    """Batches of 512, each with noise of its own in the targets: the loss has a floor of 1; the LR of every step."""
    lrs = []
    for step in range(since, stop):
        generator = torch.Generator().manual_seed(step)
        x, noise = torch.randn(512, WIDTH, generator=generator), torch.randn(512, generator=generator)
        optimizer.zero_grad()
        total = 0.0
        for part, disturbed in zip(x.chunk(num_micro), (x @ BEST + noise).chunk(num_micro), strict=True):
            loss = unit * nn.functional.mse_loss(model(part)[:, 0], disturbed) / num_micro
            loss.backward()
            total += float(loss.detach())
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(total)
    return lrs


def excess(model):
    """The loss above its floor, of fresh inputs in the mean."""
    return float(((model.weight[0].detach() - BEST) ** 2).sum())


@pytest.mark.parametrize("steps", [12, 20, 29, 60, 150])
def test_a_trained_model_is_hardly_harmed(steps, caplog):
    with NEVER, mock.patch.object(Signs, "lost", return_value=None):  # which may tell at the end
        model, optimizer, schedule = made(steps)
        run(model, optimizer, schedule, steps)
    unasked = excess(model)
    model, optimizer, schedule = made(steps)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        lrs = run(model, optimizer, schedule, steps)
    assert excess(model) < 0.6 * unasked
    approach = schedule.report()["approach"]
    (step, rise), *_ = approach["overshot"]
    (before, after) = next(pair for pair in itertools.pairwise(approach["legs"]) if pair[1]["since"] == step)
    assert (after["from_lr"], after["to_lr"]) == (0.0, pytest.approx(0.1 * before["to_lr"]))
    assert 2 + approach["num_lost"] >= step  # the weights are those from before the growth
    assert lrs[step] < 0.11 * lrs[step - 1]
    said = f"the gradients up to step {step} say that the way so far has raised the loss by {100 * rise:.0f} %"
    assert said in caplog.text
    assert f"it grows again, to at most {after['to_lr']:.1e}" in caplog.text
    told = f"a tenth of it since the way up to step {step} had raised the loss by {100 * rise:.0f} %"
    assert told in caplog.text
    assert told in headline(schedule.report())
    json.dumps(schedule.report())


@pytest.mark.parametrize("steps", [12, 29, 60, 150])
def test_a_model_that_learns_is_not_sent_back(steps):
    lrs = []
    for patched in (NEVER, mock.patch.object(overshoot, "OVERSHOT", OVERSHOT)):
        with patched:
            model, optimizer, schedule = made(steps, is_trained=False)
            lrs.append(run(model, optimizer, schedule, steps))
    assert schedule.report()["approach"]["overshot"] == []
    assert lrs[0] == lrs[1]


@pytest.mark.filterwarnings("ignore:4 backward calls")  # their losses are added up, as it says
def test_the_decision_follows_neither_the_loss_unit_nor_the_number_of_micro_batches():
    found = []
    for unit, num_micro in ((1.0, 1), (1000.0, 1), (1.0, 4)):
        model, optimizer, schedule = made(60)
        run(model, optimizer, schedule, 60, unit=unit, num_micro=num_micro)
        found.append((schedule.peak_lr, schedule.report()["approach"]["overshot"][0][1]))
    for peak_lr, rise in found:
        assert peak_lr == pytest.approx(found[0][0], rel=1e-3)
        assert rise == pytest.approx(found[0][1], rel=1e-2)


@pytest.mark.parametrize("options", [{"rewind": False}, {"num_warmup_steps": 10}, {"make": torch.optim.SGD, "lr": 0.1}])
def test_nobody_is_asked_without_the_first_weights_in_a_short_warm_up_and_for_sgd(options):
    model, optimizer, schedule = made(60, **options)
    run(model, optimizer, schedule, 5)
    for step in range(5, 60):
        run(model, optimizer, schedule, step + 1, since=step)
        assert not schedule._course.approach.later.overshoot.is_open
    assert schedule.report()["approach"]["overshot"] == []


def test_a_run_that_still_goes_too_far_at_a_tenth_goes_back_twice_at_most():
    model, optimizer, schedule = made(400)
    with mock.patch.object(overshoot, "rise_of", return_value=0.5):
        run(model, optimizer, schedule, 400)
    report = schedule.report()
    steps = [step for step, _ in report["approach"]["overshot"]]
    assert len(steps) == 2
    assert schedule.peak_lr == pytest.approx(0.01 * report["approach"]["legs"][0]["to_lr"])
    assert report["approach"]["num_lost"] == steps[-1] - 2


def test_nothing_is_measured_once_that_is_judged():
    model, optimizer, schedule = made(400, is_trained=False)
    run(model, optimizer, schedule, 22)
    meter = schedule._course.approach.search.meter
    assert meter._hooks
    assert meter._start
    run(model, optimizer, schedule, 60, since=22)
    assert not any((meter._hooks, meter._start, meter.updates))


@pytest.mark.parametrize("stop", [*range(2, 12), 14, 20])
@pytest.mark.parametrize("is_trained", [True, False])
def test_a_run_resumed_anywhere_takes_the_same_lrs(stop, is_trained):
    model, optimizer, schedule = made(60, is_trained)
    whole = run(model, optimizer, schedule, 60)
    overshot = schedule.report()["approach"]["overshot"]
    assert bool(overshot) is is_trained
    model, optimizer, schedule = made(60, is_trained)
    run(model, optimizer, schedule, stop)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    of_model, of_optimizer, of_schedule = torch.load(file, weights_only=True)
    model, optimizer, schedule = made(60, is_trained)
    model.load_state_dict(of_model)
    optimizer.load_state_dict(of_optimizer)
    schedule.load_state_dict(of_schedule)
    assert run(model, optimizer, schedule, 60, since=stop) == whole[stop:]
    assert schedule.report()["approach"]["overshot"] == overshot


@pytest.mark.parametrize("copies", [copy.deepcopy, lambda things: pickle.loads(pickle.dumps(things))])
@pytest.mark.parametrize("stop", range(2, 17))
def test_a_copy_of_a_run_that_learns_takes_the_same_lrs(copies, stop):
    whole = run(*made(60, is_trained=False), 60)
    model, optimizer, schedule = made(60, is_trained=False)
    run(model, optimizer, schedule, stop)
    model, optimizer, schedule = copies((model, optimizer, schedule))
    assert run(model, optimizer, schedule, 60, since=stop) == whole[stop:]
    meter = schedule._course.approach.search.meter
    assert not any((meter._hooks, meter._start, meter.updates))


def test_a_copy_that_is_made_while_batches_are_asked_is_not_judged():
    model, optimizer, schedule = made(20)
    run(model, optimizer, schedule, 6)
    assert schedule._course.approach.later.overshoot.is_open
    copied = copy.deepcopy((model, optimizer, schedule))
    for of_run, is_judged in (((model, optimizer, schedule), True), (copied, False)):
        run(*of_run, 9, since=6)
        assert bool(of_run[2].report()["approach"]["overshot"]) is is_judged


def test_losses_that_have_halved_at_the_end_of_the_growth_are_followed_as_before():
    found = []
    for patched in (NEVER, contextlib.nullcontext(), mock.patch.object(Overshoot, "due_after", return_value=None)):
        model, optimizer, schedule = scale_runs.made(31, make=torch.optim.RMSprop)
        with patched:
            lrs = scale_runs.run(model, optimizer, schedule, np.where(np.arange(31) > 2, 0.3, 1.2))
        found.append((lrs, schedule.report()["approach"]["reaches"], schedule.switch_step))
    assert found[0] == found[1] == found[2]


def test_losses_that_rise_while_batches_are_asked_after_the_last_look_change_nothing():
    found = []
    for asked in (True, False):
        model, optimizer, schedule = scale_runs.made(50)
        with contextlib.nullcontext() if asked else mock.patch.object(Overshoot, "ask"):
            lrs = scale_runs.run(model, optimizer, schedule, 1.2 + 0.1 * np.maximum(np.arange(50) - 8, 0))
        found.append((lrs, schedule.report()["approach"]["legs"]))
    assert found[0][0] == pytest.approx(found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("asked", [True, False])
def test_a_loss_below_0_while_batches_are_asked_ends_nothing_in_a_short_run(asked):
    model, optimizer, schedule = scale_runs.made(20)
    losses = slowly(20)
    losses[6] = -1.0
    with contextlib.nullcontext() if asked else mock.patch.object(Overshoot, "ask"):
        scale_runs.run(model, optimizer, schedule, losses)
    assert (schedule.ended_by, schedule.switch_step) == ("scale", 8 if asked else 5)


@pytest.mark.parametrize(("bad", "goes_back"), [((5, 6, 7), True), ((5,), False), ((6, 7), False)])
def test_a_short_run_whose_losses_are_not_finite_goes_back(bad, goes_back, caplog):
    model, optimizer, schedule = scale_runs.made(20)
    losses = slowly(20)
    losses[[*bad]] = math.nan
    with caplog.at_level(logging.INFO, "autowu_hf"):
        scale_runs.run(model, optimizer, schedule, losses)
    assert schedule.report()["approach"]["overshot"] == ([[8, None]] if goes_back else [])
    assert ("the losses up to step 8 are not finite, at learning rate" in caplog.text) is goes_back
    assert ("since the way up to step 8 had made losses that are not finite" in caplog.messages[-1]) is goes_back
    assert schedule.ended_by == "scale"


@pytest.mark.parametrize("steps", [12, 20, 29])
@pytest.mark.parametrize("bad", range(4, 8))
def test_weights_that_break_in_the_window_of_a_short_run_are_put_back(steps, bad):
    model, optimizer, schedule = made(steps)
    run(model, optimizer, schedule, bad)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    run(model, optimizer, schedule, steps, since=bad)
    assert torch.isfinite(model.weight).all()
    assert schedule.report()["approach"]["overshot"]


def test_a_snapshot_whose_file_is_gone_asks_nobody(tmp_path, caplog):
    model, optimizer, schedule = made(20, rewind="disk", rewind_dir=str(tmp_path))
    run(model, optimizer, schedule, 3)
    for path in tmp_path.rglob("step_*"):
        path.unlink()
    run(model, optimizer, schedule, 20, since=3)
    assert (schedule.ended_by, schedule.report()["approach"]["overshot"]) == ("scale", [])
    assert "cannot read the weights from before the growth" in caplog.text


@pytest.mark.parametrize("skipped", [(5,), (5, 6), (4, 5, 6, 7)])
def test_skipped_steps_are_waited_for(skipped):
    model, optimizer, schedule = made(60)
    run(model, optimizer, schedule, 4)
    for step in range(4, 60):
        if step in skipped:  # as by a gradient scaler
            optimizer.zero_grad()
            schedule.step(1.0)
        else:
            run(model, optimizer, schedule, step + 1, since=step)
    ((step, _),) = schedule.report()["approach"]["overshot"]
    assert step == 9 + min(len(skipped), 3)


UPDATE = Update(slope=1.0, update_norm=1.0, weight_norm=1.0, alignment=0.0, resolution=1.0, clipping=1.0)


@pytest.mark.parametrize(
    ("share", "num_steps", "updates", "found"),
    [
        (1.0, 20, 4, True),
        (1.0, 60, 4, True),
        (1.0, 240, 4, False),  # a bar of a tenth
        (2.0, 20, 4, False),  # the gradients are of twice the losses
        (1.0, 20, 3, False),  # one more is waited for
        (1.0, 20, "unseen", False),
    ],
)
def test_the_rise_is_beside_the_loss_whose_gradient_was_taken_and_above_the_bar_of_the_run(
    share, num_steps, updates, found
):
    seen = [dataclasses.replace(UPDATE, fallen=-0.3)] * (3 if updates == "unseen" else updates)
    meter = SimpleNamespace(updates=seen + (["nobody saw it"] if updates == "unseen" else []))
    own = Overshoot(SimpleNamespace(meter=meter, scale=None), tuple)
    own.is_open = True
    way = SimpleNamespace(judges=range(4, 8), times=SimpleNamespace(num_steps=num_steps))
    assert own.judge(8, way, np.full(8, 2.0), 3, share) is found
    assert own.found == ([(8, pytest.approx(0.075))] if found else [])
    assert own.is_open is (updates == 3)


LEVEL = [2.0, 2.1, 1.9]
"""The first losses."""


def rise(rises, last=2.0, bar=0.05):
    return rise_of(rises, np.array(LEVEL), np.full(len(rises), last), bar)


def test_half_of_what_the_gradients_say_counts():
    assert rise([0.4, 0.5, 0.6, 0.5]) == pytest.approx(0.125)
    assert rise([0.4, 0.5, 0.6, 0.9]) == pytest.approx(0.55 / 4)  # the median, which is less than the mean
    assert rise([0.1, 0.5, 0.6, 0.5]) == pytest.approx(0.425 / 4)  # the mean, which is less than the median
    assert rise([0.19, 0.2, 0.2, 0.19]) is None
    assert rise([0.19, 0.2, 0.2, 0.19], bar=0.04) == pytest.approx(0.195 / 4)
    assert rise([-0.4, -0.5, -0.6, -0.5]) is None


def test_what_was_learned_is_taken_off():
    assert rise([0.4, 0.5, 0.6, 0.5], last=1.9) == pytest.approx(0.125)
    assert rise([0.4, 0.5, 0.6, 0.5], last=1.8) is None
    assert rise([0.19, 0.2, 0.2, 0.19], last=3.0) is None  # nothing is put on


def test_what_noise_may_be_does_not_count():
    assert rise([2.0, -1.0, 1.5, 0.5]) is None


def test_scale_invariant_weights_rise_is_sure_by_two_standard_errors():
    rises, bar = [0.5, 1.1, 0.9, 1.8, 1.5], 0.2
    sure = [value + 0.6 for value in rises]
    assert rise(rises, bar=bar) == pytest.approx(1.1 / 4)
    for found, expected in ((rises, None), (sure, pytest.approx(1.7 / 4))):
        assert rise_of(found, np.array(LEVEL), np.full(5, 2.0), bar, is_sure=True) == expected


@pytest.mark.parametrize("rises", [[], [0.5], [0.5, 0.5], [0.5, math.nan, 0.5, 0.5]])
def test_too_few_batches_tell_nothing(rises):
    assert rise(rises) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_left_out(bad):
    first, last = np.array([bad, 2.0, 2.0]), np.array([bad, 2.0, 2.0, 2.0])
    assert rise_of([0.5] * 4, first, last, 0.05) == pytest.approx(0.125)
    assert rise_of([0.5] * 4, np.full(3, bad), last, 0.05) is None
    assert rise_of([0.5] * 4, first, np.full(4, bad), 0.05) is None
