"""How the LR comes to the scale, and what the losses say then; on schedules whose losses are given."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
import warnings
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from scale_runs import flat, made, quickly, resumed, run, slowly, thin
from sklearn.datasets import load_digits
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from autowu_hf import get_autowu_schedule, plot_autowu
from autowu_hf.autowu.course.later.lasting import LaterBatches
from autowu_hf.autowu.course.measures.first_steps import LEAST_DENSITY, NARROW
from autowu_hf.autowu.course.signs import Signs
from autowu_hf.autowu.reporting.report import headline
from autowu_hf.runtime.finite import DivergedError
from autowu_hf.runtime.losses.doubts import DividedGradientsWarning
from autowu_hf.runtime.losses.history import AccumulatedLossWarning, MissingLossWarning


def test_a_loss_that_falls_slowly_keeps_to_the_scale():
    model, optimizer, schedule = made(400)
    lrs = run(model, optimizer, schedule, slowly(400))
    scale = schedule.report()["approach"]["scale"]
    assert schedule.ended_by == "scale"
    assert schedule.peak_lr == pytest.approx(min(0.3 * scale["polyak"] / 4**0.25, 0.2 * scale["trust"]))
    assert all(0.1 < reach < 0.5 for reach in schedule.report()["approach"]["reaches"])
    assert schedule.switch_step == 120
    assert (schedule.minimum_step, schedule.rewound_to, schedule.tests) == (None, None, [])
    assert max(lrs[:2]) < 1e-3 * schedule.peak_lr
    assert lrs[2:20] == pytest.approx([schedule.peak_lr * (t - 1) / 19 for t in range(2, 20)])
    assert lrs[20:320] == pytest.approx([schedule.peak_lr] * 300)  # constant, then a cosine over the last fifth
    assert all(a > b for a, b in zip(lrs[320:], lrs[321:], strict=False))
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_a_loss_that_has_soon_fallen_to_half_is_followed_to_its_cliff():
    model, optimizer, schedule = made(400)
    run(model, optimizer, schedule, quickly(400, rise=28)[:60])
    report = schedule.report()
    base_lr = report["approach"]["sweep"]["min_lr"]
    assert base_lr == report["approach"]["legs"][-1]["to_lr"]
    (reach,) = report["approach"]["reaches"]  # before the LR grew on
    assert 0.1 < reach < 1.0
    assert schedule.ended_by in ("cliff", "divergence")
    assert 20 <= report["sweep_start"] < schedule.switch_step < 60
    assert schedule.peak_lr >= base_lr
    assert schedule.rewound_to is not None
    assert schedule.num_steps_lost == schedule.switch_step - schedule.rewound_to
    assert report["sweep_start"] <= schedule.rewound_to < schedule.switch_step
    assert len(report["losses"]) == schedule.switch_step


@pytest.mark.parametrize(("others", "size", "grows"), [(1.0, 0.02, True), (1e-4, 0.004, False)])
def test_the_lr_does_not_grow_on_where_the_gradient_lies_in_few_weights(others, size, grows):
    """Of inputs of which nearly all are next to nothing: an update is as large in their weights all the same."""
    torch.manual_seed(0)
    model = nn.Linear(600, 3, bias=False)  # with a bias, R and M would say nothing
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = get_autowu_schedule(optimizer, 200)
    for step, loss in enumerate(size * quickly(200)):  # so that P holds the LR
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 600, generator=generator) * torch.tensor([1.0] * 6 + [others] * 594)
        nn.functional.cross_entropy(model(x), torch.randint(3, (4,), generator=generator)).backward()
        optimizer.step()
        schedule.step(float(loss))
        optimizer.zero_grad()
    approach = schedule._course.approach
    assert (approach.search.updates[0].evenness < NARROW) is (approach.scale.narrowing < 1.0) is not grows
    assert (approach.sweep is not None) is grows


def test_a_growth_does_not_wait_for_an_optimizer_that_makes_no_steps():
    model, optimizer, schedule = made(400)
    losses = quickly(400)
    run(model, optimizer, schedule, losses[:20])
    for loss in losses[20:30]:
        schedule.step(float(loss))
    approach = schedule.report()["approach"]
    assert approach["reaches"] == []
    assert approach["sweep"] is not None
    assert schedule.report()["sweep_start"] == 27  # after three steps of waiting


def at_once(n, seed=0):
    """Falls to a third within two steps, and stays there."""
    return np.where(np.arange(n) < 12, 1.2, 0.4) + 0.005 * np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize("falls_on", [True, False])
def test_a_sweep_that_meets_no_cliff_outgrows_the_scale_only_where_the_losses_fell_on(falls_on):
    model, optimizer, schedule = made(400)
    run(model, optimizer, schedule, quickly(400) if falls_on else at_once(400))
    approach = schedule.report()["approach"]
    trust, base_lr = approach["scale"]["trust"], approach["sweep"]["min_lr"]
    assert schedule.ended_by == "cap"
    highest = schedule.curve.warmup(approach["sweep"]["num_steps"] - 1)  # of the last step
    found = "the losses fell all the way" if falls_on else "no cliff"
    assert f"{found} up to {highest:.1e}".replace("e-0", "e-") in headline(schedule.report())
    assert schedule.curve.max_lr == pytest.approx(trust)
    if falls_on:  # a fifth of the sweep's end, and no weights are given up
        assert schedule.peak_lr == pytest.approx(0.2 * highest)
        assert (schedule.rewound_to, schedule.num_steps_lost, len(schedule.rewind.snapshots)) == (None, 0, 0)
    else:  # at most the mean of that and the scale's, in log
        assert base_lr <= schedule.peak_lr <= max(np.sqrt(base_lr * 0.2 * trust), base_lr) * (1 + 1e-6)
        assert schedule.rewound_to is not None


def test_a_short_run_does_not_look_on():
    model, optimizer, schedule = made(20)
    run(model, optimizer, schedule, quickly(20))
    assert schedule.ended_by == "scale"
    assert schedule.switch_step == 8  # the measured ones, the growth, and one more; then four batches are asked


def test_a_run_that_is_too_short_to_ask_batches_does_not_wait_for_them():
    model, optimizer, schedule = made(11)
    run(model, optimizer, schedule, quickly(11))
    assert schedule.ended_by == "scale"
    assert schedule.switch_step == 5  # the measured ones, the growth, and two more that are measured


@pytest.mark.parametrize(("size", "switch_step"), [(0.0, 2), (1e-9, 2), (-1e-9, 6)])
def test_losses_that_are_next_to_nothing_leave_the_given_lr_at_once(size, switch_step, caplog):
    """A policy gradient's, whose advantages cancel; negative ones may lie around 0, which the next ones tell."""
    model, optimizer, schedule = made(400)
    lrs = run(model, optimizer, schedule, size * np.random.default_rng(0).random(400))
    assert (schedule.switch_step, schedule.ended_by, schedule.peak_lr) == (switch_step, "nothing", 1e-3)
    assert max(lrs) == 1e-3
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "the first losses are next to nothing" in said
    assert "peak LR 1.0e-3, which the optimizer was given" in said


@pytest.mark.parametrize(
    ("first", "switch_step"),
    [
        ([0.05, -0.02], 2),
        ([-0.01, -0.05, -0.03, 0.06, 0.02, 0.04], 4),
        ([0.0, -0.05, -0.03, -0.01, 0.06, 0.04], 5),
    ],
)
def test_losses_around_0_leave_the_given_lr_after_a_few_steps(first, switch_step, caplog):
    """A policy gradient's of several updates per generation, or of batches whose advantages do not cancel."""
    model, optimizer, schedule = made(400)
    noise = 0.05 * np.random.default_rng(0).standard_normal(400)
    lrs = run(model, optimizer, schedule, np.concatenate([first, noise[len(first) :]]))
    assert (schedule.switch_step, schedule.ended_by, schedule.peak_lr) == (switch_step, "nothing", 1e-3)
    assert max(lrs) == 1e-3
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "the first losses lie around 0 (from -0.0" in said


def test_losses_that_turn_out_to_lie_around_0_leave_it_too(caplog):
    model, optimizer, schedule = made(400)
    losses = 0.05 * np.random.default_rng(0).standard_normal(400)
    losses[:2] = 0.05
    lrs = run(model, optimizer, schedule, losses)
    assert (schedule.ended_by, schedule.peak_lr) == ("nothing", 1e-3)
    assert max(lrs) <= 1e-3
    assert "the losses are not positive throughout" in caplog.text


def test_sgd_that_learns_nothing_at_the_scale_goes_back_once_to_a_half(caplog):
    model, optimizer, schedule = made(400, make=partial(torch.optim.SGD, momentum=0.9))
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, flat(400))
    assert schedule.peak_lr == pytest.approx(schedule._course.scale.peak_lr_for(400) / 2)
    assert 0 < schedule.num_steps_lost <= 0.15 * 400
    assert "have not fallen" in caplog.text
    assert "lowered since nothing had been learned by step" in caplog.text


def test_where_most_tensors_hardly_have_a_gradient_a_run_that_learns_nothing_goes_back_to_a_tenth(caplog):
    model, optimizer, schedule = thin(400)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, flat(400))
    scale = schedule._course.scale
    assert scale.density == LEAST_DENSITY
    assert schedule.peak_lr == pytest.approx(scale.peak_lr_for(400) * LEAST_DENSITY)
    assert 0 < schedule.num_steps_lost <= 0.15 * 400
    assert "have not fallen" in caplog.text
    assert "since nothing had been learned by step 48 and most tensors hardly had a gradient" in caplog.text


@pytest.mark.parametrize("falls", [slowly, quickly])
def test_where_they_hardly_have_one_and_it_learns_the_lr_is_the_scales(falls):
    model, optimizer, schedule = thin(400)
    run(model, optimizer, schedule, falls(400))
    scale = schedule._course.scale
    assert scale.density < 1.0
    assert schedule.ended_by == "scale"  # it does not grow on, either
    assert schedule.peak_lr == pytest.approx(scale.peak_lr_for(400))
    assert schedule.num_steps_lost == 0


def test_where_they_hardly_have_one_the_lr_does_not_grow_on_either_where_it_is_ps():
    """A fall to a plateau, as that of CTC's losses to blanks alone, and a sweep over it would find no cliff."""
    falls = np.append(np.full(10, 0.06), np.full(390, 0.015))
    for factor in (1.0, 0.1):  # P alone leaves less than that would, where it is lower; there are few such weights, too
        model, optimizer, schedule = thin(400)
        run(model, optimizer, schedule, factor * falls)
        scale = schedule._course.scale
        assert scale.held_by == "polyak"
        assert scale.density < 1.0 or scale.narrowing < 1.0
        assert scale.density * 0.3 * scale.polyak == pytest.approx(min(0.1 * scale.trusted_lr, 0.3 * scale.polyak))
        assert schedule.ended_by == "scale"


def test_an_optimizer_that_is_not_like_adam_does_not_go_back_for_that():
    model, optimizer, schedule = thin(400, make=torch.optim.RMSprop)
    run(model, optimizer, schedule, flat(400))
    assert schedule._course.scale.density == 1.0
    assert schedule.num_steps_lost == 0


def test_a_transformer_from_scratch_with_its_norms_after_the_sums_leaves_chance():
    """At the LR that R and M allow it stays there; its losses tell, once they should have fallen."""
    digits = load_digits()
    x, y = torch.tensor(digits.data[:, 16:48]).long(), torch.tensor(digits.target)  # the rows in the middle
    config = BertConfig(
        vocab_size=17, num_labels=10, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    schedule, losses = get_autowu_schedule(optimizer, 240, model=model), []
    for _ in range(240):
        batch = torch.randint(len(x), (16,))
        loss = model(input_ids=x[batch], labels=y[batch]).loss
        loss.backward()
        optimizer.step()
        schedule.step(loss)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert schedule.num_steps_lost > 0
    assert schedule.peak_lr == pytest.approx(schedule._course.scale.peak_lr_for(240) * schedule._course.scale.density)
    assert np.mean(losses[-24:]) < 0.95 * np.mean(losses[:24])


@pytest.mark.parametrize("finds", [True, False])
@pytest.mark.parametrize("steps", [60, 400])
def test_where_noise_may_make_the_scale_too_low_a_run_that_learns_nothing_looks_on(steps, finds, caplog):
    losses, since = 5e-4 * flat(steps), Signs(steps, round(0.05 * steps)).stall_step  # so small that P may be noise
    if finds:  # a little is learned once the LR has grown tenfold, and all is lost when it has grown a hundredfold
        losses[since + max(3, round(0.05 * steps)) :] *= 0.8
        losses[since + max(9, round(0.1 * steps)) :] *= 4.0
    model, optimizer, schedule = made(steps)
    assert not schedule._course.approach.scale
    nobody = mock.patch.object(LaterBatches, "can_tell", False)  # as in half precision
    with nobody, caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, losses)
    scale = schedule._course.scale
    assert scale.may_be_noise
    assert "and on from it since nothing had been learned by step" in caplog.text
    assert 0 < schedule.num_steps_lost <= 0.2 * steps
    if finds:
        assert 2.0 * scale.peak_lr_for(steps) < schedule.peak_lr < 0.2 * scale.trust
    else:
        assert schedule.peak_lr == pytest.approx(scale.peak_lr_for(steps))


def test_a_run_that_learns_nothing_does_not_look_on_where_it_is_short_or_the_weights_hold_the_scale():
    for steps, size, held_by in ((50, 5e-4, "polyak"), (400, 1.0, "trust"), (400, 0.01, "polyak")):
        model, optimizer, schedule = made(steps)
        with mock.patch.object(LaterBatches, "can_tell", False):
            run(model, optimizer, schedule, size * flat(steps))
        assert schedule._course.scale.held_by == held_by
        assert schedule.ended_by == "scale"


@pytest.mark.parametrize("steps", [30, 36, 50, 60, 100, 400])
def test_sgd_that_learns_is_never_called_stalled(steps):
    for momentum in (0.0, 0.9):
        model, optimizer, schedule = made(steps, make=partial(torch.optim.SGD, momentum=momentum))
        run(model, optimizer, schedule, slowly(steps) - 0.2 * np.minimum(np.arange(steps) / (0.1 * steps), 1.0))
        assert schedule.report()["approach"]["stalled"] is None


def test_a_loss_of_0_is_no_loss_below_it():
    model, optimizer, schedule = made(400)
    losses = slowly(400)
    losses[30] = 0.0
    run(model, optimizer, schedule, losses)
    assert schedule.ended_by == "scale"


def test_an_optimizer_whose_weights_are_out_of_reach_is_said_at_once(caplog):
    class Lomo(torch.optim.SGD):
        """By its name an optimizer that steps inside the backward."""

    with caplog.at_level(logging.INFO, "autowu_hf"):
        _, optimizer, schedule = made(400, make=Lomo)
    assert sum("cannot tell the scale" in record.getMessage() for record in caplog.records) == 1
    assert schedule.get_last_lr() == [1e-5]
    assert not optimizer._optimizer_step_pre_hooks


def test_sgd_goes_at_what_its_momentum_leaves_of_the_scale():
    peaks = []
    for momentum in (0.0, 0.9):
        model, optimizer, schedule = made(400, make=partial(torch.optim.SGD, momentum=momentum))
        run(model, optimizer, schedule, slowly(400))
        assert schedule.ended_by == "scale"
        assert schedule.report()["approach"]["reaches"] == [None, None]
        peaks.append(schedule.peak_lr)
    assert 0.05 * peaks[0] < peaks[1] < 0.11 * peaks[0]  # the second measured step has momentum already


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("what", ["head", "biases", "LoRA's B"])
def test_what_begins_at_zero_and_is_trained_alone_learns(make, what):
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    y = (x @ torch.randn(6, 3)).argmax(1)
    body = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)).requires_grad_(False)
    zero = {"head": (32, 3), "biases": (32,), "LoRA's B": (4, 32)}[what]
    trained, down = nn.Parameter(torch.zeros(zero)), torch.randn(6, 4)

    def output(x):
        if what == "head":
            return body[:2](x) @ trained
        return body[2](torch.tanh(body[0](x) + (trained if what == "biases" else x @ down @ trained)))

    optimizer = make([trained], lr=1e-3)
    schedule, losses = get_autowu_schedule(optimizer, 100), []
    for _ in range(100):
        loss = nn.functional.cross_entropy(output(x), y)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        schedule.step(loss)
        optimizer.zero_grad()
    assert schedule.report()["approach"]["scale"]["trust"] == math.inf
    untuned = losses[0]
    assert losses[-1] < untuned - 0.05
    assert losses[-1] < losses[5] - 0.05  # not in a lucky first step


def test_that_all_weights_were_zero_stays_in_the_state():
    model, optimizer, schedule = made(100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    losses = slowly(100)
    run(model, optimizer, schedule, losses[:1])
    _, _, other = made(100)
    other.load_state_dict(copy.deepcopy(schedule.state_dict()))
    assert other._course.approach.search.first == schedule._course.approach.search.first
    assert other._course.approach.search.first.weight_norm == 0.0


def test_lazy_parameters_do_not_stop_the_schedule_from_being_made():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about lazy modules
        model = nn.LazyLinear(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = get_autowu_schedule(optimizer, 100)
    assert schedule.phase == "warmup"


def rising(n, at, height=3.0):
    losses = slowly(n)
    losses[at:] += height
    return losses


def test_losses_that_rise_at_the_scale_send_the_run_back_at_a_tenth(caplog):
    model, optimizer, schedule = made(400)
    losses = rising(400, 12)
    run(model, optimizer, schedule, losses[:2])
    before = [p.detach().clone() for p in model.parameters()]
    lrs = run(model, optimizer, schedule, losses[:11], since=2)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        for step in range(11, 24):
            lrs += run(model, optimizer, schedule, losses[: step + 1], since=step)
            breaks = schedule.report()["approach"]["breaks"]
            if breaks:
                break
        assert breaks == [step + 1]
        assert step > 12
        assert all(map(torch.equal, before, model.parameters()))
        losses[breaks[0] :] = slowly(400)[breaks[0] :]
        run(model, optimizer, schedule, losses, since=step + 1)
    first, second = schedule.report()["approach"]["legs"]
    assert schedule.peak_lr == second["to_lr"] == pytest.approx(0.1 * first["to_lr"])
    assert sum("have risen far above their start" in message for message in caplog.messages) == 1
    assert f"a tenth of it since the losses rose too far by step {breaks[0]}" in caplog.messages[-1]


def test_a_run_that_breaks_anywhere_ends_at_a_hundredth_of_the_scale_and_says_that_it_is_broken(caplog):
    model, optimizer, schedule = made(400)
    good, num_back = slowly(400), 0
    with caplog.at_level(logging.INFO, "autowu_hf"):
        for step in range(400):
            is_broken = step > 4 and num_back > 3  # after each way back the weights are good for a while
            run(model, optimizer, schedule, np.append(good[:step], good[step] + is_broken), since=step)
            num_back = 0 if step + 1 in schedule.report()["approach"]["breaks"] else num_back + 1
    approach = schedule.report()["approach"]
    assert len(approach["breaks"]) == 2
    assert schedule.peak_lr == pytest.approx(0.01 * approach["legs"][0]["to_lr"])
    assert schedule.ended_by == "scale"
    (said,) = [record for record in caplog.records if "; peak LR" in record.getMessage()]
    assert said.levelno == logging.WARNING
    assert "still far above their start" in said.getMessage()
    assert sum("a loss, which is to fall" in message for message in caplog.messages) == 2  # the second time, and here


@pytest.mark.parametrize("rewind", [True, False])
def test_a_loss_that_changes_in_mid_run_is_no_break(rewind, caplog):
    """With the weights from before the losses are as high; without rewind nobody can know."""
    model, optimizer, schedule = made(400, rewind=rewind)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, rising(400, 30))
    approach = schedule.report()["approach"]
    if rewind:
        assert len(approach["changes"]) == 1
        assert approach["breaks"] == []
        assert schedule.peak_lr == pytest.approx(approach["legs"][0]["to_lr"])
        assert sum("it is the loss that has changed" in message for message in caplog.messages) == 1
        assert f"having changed by step {approach['changes'][0]}" in caplog.messages[-1]
    else:
        assert approach["changes"] == []
        assert len(approach["breaks"]) == 2


@pytest.mark.parametrize("is_harder", [False, True])
def test_what_was_learned_and_lost_before_the_switch_sends_the_run_back(is_harder, caplog):
    """With the weights from before, the losses are as they were at first; or higher, where it was the data."""
    model, optimizer, schedule = made(400)
    losses = np.interp(np.arange(400), [0, 40, 80, 120, 121, 400], [1.2, 0.8, 1.15, 1.15, 1.2 + 0.4 * is_harder, 0.9])
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, losses + 0.01 * np.random.default_rng(0).standard_normal(400))
    approach = schedule.report()["approach"]
    first, second, *_ = approach["legs"]
    assert second["since"] == 120
    assert second["to_lr"] == pytest.approx(first["to_lr"] / 3.0)
    assert any("by step 120 the losses have given back half or more of what had been" in m for m in caplog.messages)
    if is_harder:
        assert approach["breaks"] == approach["break_reasons"] == []
        assert len(approach["changes"]) == 1
        assert schedule.peak_lr == pytest.approx(first["to_lr"])
    else:
        assert (approach["breaks"], approach["break_reasons"]) == ([120], ["lost"])
        assert schedule.peak_lr == pytest.approx(second["to_lr"])
        assert "a third of it since the losses had given back what had been learned by step 120" in caplog.messages[-1]


def test_nan_at_the_scale_is_gone_after_the_way_back():
    model, optimizer, schedule = made(400)
    losses = slowly(400)
    run(model, optimizer, schedule, losses[:10])
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    broken = np.where(np.arange(400) >= 10, np.nan, losses)
    for step in range(10, 40):
        run(model, optimizer, schedule, broken[: step + 1], since=step)
        if schedule.report()["approach"]["breaks"]:
            break
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert schedule.report()["approach"]["break_reasons"] == ["not finite"]


def test_nan_at_the_scale_without_rewind_stops_the_run():
    model, optimizer, schedule = made(400, rewind=False)
    run(model, optimizer, schedule, slowly(400)[:10])
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(DivergedError, match="no earlier state to go back to"):
        run(model, optimizer, schedule, np.where(np.arange(400) >= 10, np.nan, slowly(400)), since=10)


def test_a_loss_without_gradients_gives_the_range_from_the_first_step_on():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedules = [get_autowu_schedule(optimizer, 200)]
    schedules.append(get_autowu_schedule(torch.optim.AdamW([nn.Parameter(torch.zeros(1))]), 200, scale=False))
    lrs = []
    for schedule in schedules:
        lrs.append([])
        for loss in slowly(200):
            schedule.optimizer.step()
            schedule.step(float(loss))
            lrs[-1].append(schedule.get_last_lr()[0])
    assert lrs[0] == lrs[1]


def test_weights_that_stay_nan_stop_the_run():
    model, optimizer, schedule = made(100)
    losses = slowly(100)
    run(model, optimizer, schedule, losses[:6])

    def spoil(*_):
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)

    optimizer.register_step_post_hook(spoil)
    with pytest.raises(DivergedError, match="parameters are infinite or NaN"):
        run(model, optimizer, schedule, np.where(np.arange(100) >= 6, np.nan, losses), since=6)


def test_one_nan_changes_nothing_else():
    lrs = []
    for losses in (quickly(400, rise=28), quickly(400, rise=28)):
        losses[5] = math.nan if lrs else losses[5]
        model, optimizer, schedule = made(400)
        lrs.append(run(model, optimizer, schedule, losses[:60]))
        assert schedule.report()["approach"]["sweep"] is not None
    assert lrs[0][:24] == lrs[1][:24]


def test_a_run_resumed_with_fewer_steps_still_reaches_its_peak_and_its_end():
    model, optimizer, schedule = made(1000)
    run(model, optimizer, schedule, slowly(1000)[:20])
    _, other, again = made(40)
    again.load_state_dict(schedule.state_dict())
    lrs = run(model, other, again, slowly(40), since=20)
    assert again.ended_by == "scale"
    assert max(lrs) == pytest.approx(again.peak_lr)
    assert other.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("copies", [copy.deepcopy, lambda things: pickle.loads(pickle.dumps(things))])
@pytest.mark.parametrize("cut", [1, 4, 21])
def test_a_copy_measures_what_the_original_does(copies, cut):
    losses = slowly(400)
    things = made(400)
    run(*things, losses[:cut])
    other = copies(things)
    assert run(*things, losses[:60], since=cut) == run(*other, losses[:60], since=cut)
    assert other[2].report()["approach"]["scale"] is not None


def test_the_ratios_of_groups_hide_no_gradient_descent():
    peaks = []
    for ratio in (1.0, 0.1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": ratio}]
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
        schedule = get_autowu_schedule(optimizer, 400)
        run(model, optimizer, schedule, slowly(400))
        scale = schedule.report()["approach"]["scale"]
        assert scale["alignment"] == pytest.approx(1.0, abs=1e-3)
        assert scale["momentum"] == pytest.approx(0.9)
        peaks.append(schedule.peak_lr)
    assert peaks[0] < peaks[1] < 100 * peaks[0]


def test_dampening_takes_the_momentum_back():
    model, optimizer, schedule = made(400, make=partial(torch.optim.SGD, momentum=0.9, dampening=0.9))
    run(model, optimizer, schedule, slowly(400)[:4])
    assert schedule.report()["approach"]["scale"]["momentum"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    "losses", [slowly(200), quickly(200, rise=25), rising(200, 8)], ids=["slowly", "quickly", "rising"]
)
def test_a_run_that_was_resumed_goes_on_bit_for_bit(losses):
    seeds = iter(range(8))  # other weights at first than those that it goes on with
    assert len([*resumed(lambda: made(200, seed=next(seeds)), losses, (1, 2, 5, 30, 45, 120))]) == 7


def test_a_range_beside_the_scale_is_refused():
    with pytest.raises(ValueError, match=r"scale=True finds the range .* leave that out, or scale=False"):
        made(100, scale=True, max_lr=0.1)


def test_the_picture_places_tests_and_gaussian_process_where_the_sweep_was():
    pytest.importorskip("matplotlib")
    model, optimizer, schedule = made(400)
    run(model, optimizer, schedule, quickly(400, rise=28))
    report = schedule.report()
    figure = plot_autowu(report)
    lr_axes, _, loss_axes, _, test_axes, _ = figure.axes
    start, end = report["sweep_start"], report["switch_step"]
    posterior = next(line for line in loss_axes.get_lines() if line.get_label().startswith("Gaussian"))
    assert start <= min(posterior.get_xdata()) < max(posterior.get_xdata()) <= end
    marks = [x for line in test_axes.get_lines() if line.get_marker() == "o" for x in line.get_xdata()]
    assert len(marks) == len(report["tests"])
    assert start < min(marks) <= max(marks) <= end
    lrs = lr_axes.get_lines()[0].get_ydata()
    assert lrs[0] == report["approach"]["first_lr"]
    assert max(lrs) > report["approach"]["scale"]["peak_lr"]
    assert any("scale" in text.get_text() for axes in figure.axes for text in axes.texts)


def teach(optimizer, schedule, model, steps, since=0, empty=0, do_step=None):
    """A small problem that can be learned; the losses of the first ``empty`` steps are 0. The LR of every step."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(256, 6, generator=generator)
    lrs = []
    for i in range(since, steps):
        x = inputs[torch.randint(256, (16,), generator=torch.Generator().manual_seed(i))]
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)) * (i >= empty)
        loss.backward()
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(loss.detach())
        optimizer.zero_grad()
    return lrs


@pytest.mark.parametrize(("empty", "options"), [(1, {}), (4, {}), (4, {"scale": False})])
def test_first_batches_without_a_gradient_say_nothing(empty, options):
    """Two such batches made the LR a million times larger, and the run ended at a loss of thousands."""
    model, optimizer, schedule = made(200, **options)
    lrs = teach(optimizer, schedule, model, 200, empty=empty)
    assert max(lrs[:empty]) <= 1e-4
    assert 1e-3 < schedule.peak_lr < 0.2
    assert schedule.losses[:empty] == [0.0] * empty
    start = np.mean(schedule.losses[empty : empty + 3])
    assert start > 0.5 * math.log(3.0)  # that of chance: nothing was broken or learned before
    if options:
        assert np.mean(schedule.losses[-10:]) < 0.7 * start
    else:
        assert lrs[: empty + 2] == [lrs[0]] * (empty + 2)
        assert schedule.report()["approach"]["scale"] is not None


def test_dust_in_the_first_gradients_moves_no_weights_at_a_large_lr():
    """Gradients far below Adam's epsilon ask for a large LR, at which the next batch would break the weights."""
    model, optimizer, schedule = made(200, make=partial(torch.optim.AdamW, weight_decay=0.0))
    before = [p.detach().clone() for p in model.parameters()]
    lrs, factors = [], [1e-15] * 3 + [1.0] * 3
    for i, factor in enumerate(factors):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
        loss = factor * nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        loss.backward()
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(max(float(loss.detach()), 1e-15))
        optimizer.zero_grad()
        if i == 1:
            assert len(schedule.rewind.snapshots) == 1
    assert max(lrs) > 1.0
    assert max(float((a - b).detach().abs().max()) for a, b in zip(before, model.parameters(), strict=True)) < 0.02


@pytest.mark.parametrize(("steps", "end"), [(6, 5), (100, 10)])
def test_a_run_without_gradients_gives_up_in_time_and_ends_at_0(steps, end, caplog):
    model, optimizer, schedule = made(steps)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        lrs = teach(optimizer, schedule, model, steps, empty=steps)
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert f"by step {end} too few steps say anything, for the gradients are zero" in caplog.text
    assert lrs[end] <= 1e-4 or steps == 6  # the growth over the range begins there
    assert schedule.peak_lr <= 1e-3


@pytest.mark.parametrize("cut", [1, 4])
def test_a_run_that_was_resumed_among_empty_batches_goes_on_bit_for_bit(cut):
    model, optimizer, schedule = made(200)
    whole = teach(optimizer, schedule, model, 20, empty=3)
    model, optimizer, schedule = made(200)
    first = teach(optimizer, schedule, model, cut, empty=3)
    buffer = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), schedule.state_dict()), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    model, optimizer, schedule = made(200, seed=1)
    for part, state in zip((model, optimizer, schedule), saved, strict=True):
        part.load_state_dict(state)
    assert first + teach(optimizer, schedule, model, 20, since=cut, empty=3) == whole


@pytest.mark.filterwarnings("ignore:Detected call of")  # the schedule is stepped, the optimizer is not
def test_steps_that_a_gradient_scaler_skips_do_not_count():
    model, optimizer, schedule = made(200)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for i in range(12):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        scaler.scale(loss).backward()
        if i < 5:
            next(model.parameters()).grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        schedule.step(loss.detach())
    assert schedule.report()["approach"]["scale"]["num_steps"] == 2


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_gradient_scaler_in_a_plain_loop_changes_nothing(clip):
    def found(scaler):
        model, optimizer, schedule = made(60)
        for i in range(10):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
            loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
            scaler.scale(loss).backward()
            if clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            schedule.step(loss.detach())
        scale = schedule.report()["approach"]["scale"]
        return [scale["polyak"], scale["peak_lr"], schedule.get_last_lr()[0]]

    plain = found(torch.amp.GradScaler("cpu", enabled=False))
    assert found(torch.amp.GradScaler("cpu", init_scale=1000.0)) == pytest.approx(plain, rel=1e-3)


def divided_run(num_tokens, state=None, until=40, clip=None):
    """A run whose loop divides the gradients of a sum of losses by ``num_tokens(step)``, and hands in the loss divided;
    0: the loss is divided before its backward. The LRs from the state on, P, and the state.
    """
    model, optimizer, schedule = made(200, seed=0 if state is None else 1)
    for part, of in zip((model, optimizer, schedule), state or (), strict=False):
        part.load_state_dict(of)
    lrs = []
    for i in range(schedule.last_epoch, until):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
        loss, num = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)), num_tokens(i)
        ((num or 1.0) * loss).backward()
        for parameter in model.parameters():
            parameter.grad /= num or 1.0
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step(loss.detach())
        optimizer.zero_grad()
        lrs.append(schedule.get_last_lr()[0])
    scale = schedule.report()["approach"]["scale"]
    return lrs, scale and scale["polyak"], copy.deepcopy([part.state_dict() for part in (model, optimizer, schedule)])


@pytest.mark.parametrize("num_tokens", [lambda step: 64.0, lambda step: 480.0 + 7 * step], ids=["same", "varies"])
def test_gradients_divided_after_the_backward_are_those_of_the_loss_that_is_handed_in(num_tokens):
    lrs, polyak, _ = divided_run(lambda step: 0.0)
    with pytest.warns(DividedGradientsWarning, match="gradients were divided by .* after the backward") as caught:
        found, as_found, _ = divided_run(num_tokens)
    assert len(caught) == 1
    assert as_found == pytest.approx(polyak, rel=1e-3)
    assert found == pytest.approx(lrs, rel=1e-2)


@pytest.mark.parametrize("cut", [1, 2, 12])
def test_a_resumed_run_knows_of_the_divisor(cut):
    with pytest.warns(DividedGradientsWarning):
        whole, *_ = divided_run(lambda step: 64.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DividedGradientsWarning)
        first, _, state = divided_run(lambda step: 64.0, until=cut)
        rest, *_ = divided_run(lambda step: 64.0, state)
    assert first + rest == whole


def test_gradients_that_are_divided_and_clipped_count_as_clipped():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, polyak, _ = divided_run(lambda step: 64.0, until=3, clip=1e-3)
    assert polyak == pytest.approx(divided_run(lambda step: 0.0, until=3)[1] / 64.0, rel=1e-2)


def test_an_lr_of_0_in_a_loaded_state_is_waited_out():
    model, optimizer, schedule = made(200)
    optimizer.param_groups[0]["lr"] = 0.0
    teach(optimizer, schedule, model, 4)
    assert schedule.report()["approach"]["scale"] is not None


@pytest.mark.parametrize("is_summed", [True, False])
def test_micro_batches_by_hand_are_asked_for_their_sum_once(is_summed):
    model, optimizer, schedule = made(200)
    with pytest.warns(AccumulatedLossWarning, match="4 backward calls add up .* pass the sum") as caught:
        for i in range(14):
            x = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(i))
            losses = []
            for part in x:
                losses.append(nn.functional.cross_entropy(model(part), part[:, :3].argmax(1)) / 4)
                losses[-1].backward()
            optimizer.step()
            schedule.step(sum(losses).detach() if is_summed else losses[-1].detach())
            optimizer.zero_grad()
    assert len(caught) == 1


def micro_batches(num_micro, steps, at_each, skipped=0):
    """A loop whose schedule is stepped at each of an optimizer step's micro-batches, or once after them; the first
    ``skipped`` steps of the optimizer are left out, as by a gradient scaler.
    """
    model, optimizer, schedule = made(steps * (num_micro if at_each else 1))
    for i in range(steps):
        x = torch.randn(num_micro, 8, 6, generator=torch.Generator().manual_seed(i))
        for j, part in enumerate(x):
            loss = nn.functional.cross_entropy(model(part), torch.arange(8) % 3) / num_micro  # nothing to be learned
            loss.backward()
            if j == num_micro - 1:
                if i >= skipped:
                    optimizer.step()
                optimizer.zero_grad()
            if at_each or j == num_micro - 1:
                schedule.step(loss.detach() * num_micro)
    return schedule


@pytest.mark.parametrize("num_micro", [3, 16])
def test_a_schedule_stepped_at_each_micro_batch_is_told_so_and_counts_the_optimizers_steps(num_micro):
    with pytest.warns(AccumulatedLossWarning, match="backward calls add up"):
        once = micro_batches(num_micro, 60, at_each=False).report()["approach"]
    out_of_order = pytest.warns(UserWarning, match="before `optimizer.step")  # torch's own, which says it, too
    words = f"stepped {num_micro} times for an optimizer step"
    with out_of_order, pytest.warns(AccumulatedLossWarning, match=words):
        each = micro_batches(num_micro, 60, at_each=True).report()["approach"]
    assert each["scale"]["lr"] == pytest.approx(once["scale"]["lr"], rel=0.1)
    assert each["factor"] == once["factor"] == 1.0
    assert each["reaches"]
    assert all(reach is None or 0.1 < reach < 0.8 for reach in each["reaches"])


@pytest.mark.parametrize("rewind", [None, False])
def test_where_no_loss_is_ever_seen_the_lr_that_the_optimizer_has_stays(rewind):
    model, optimizer, schedule = made(100, rewind=rewind)
    lrs = []
    with pytest.warns(MissingLossWarning):
        for i in range(100):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
            nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    assert max(lrs) == schedule.peak_lr == 1e-3
    assert schedule.ended_by == "nothing"
    assert "the first losses were not seen" in headline(schedule.report())


def test_the_highest_lr_of_a_run_that_did_not_grow_on_is_one_that_it_had():
    model, optimizer, schedule = made(200)
    lrs = run(model, optimizer, schedule, slowly(200))
    assert schedule.ended_by == "scale"
    assert schedule.report()["highest_lr"] == pytest.approx(max(lrs[: schedule.switch_step]))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_skipped_steps_are_not_taken_for_a_schedule_stepped_at_each_micro_batch():
    with pytest.warns(AccumulatedLossWarning, match="2 backward calls add up"):
        micro_batches(2, 60, at_each=False, skipped=1)  # two scheduler steps to the first one, which has two backwards


class Wrapper(torch.optim.Optimizer):
    """As SAM and Lookahead: a state of its own, beside that of the optimizer inside."""

    def __init__(self, params, **options):
        super().__init__(params, options)
        self.base_optimizer = torch.optim.AdamW(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        self.base_optimizer.step()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["steps"] = self.state[parameter].get("steps", 0) + 1


class WithoutInit(torch.optim.Optimizer):
    """As Opacus' optimizer: never initialised, and all that it has is that of the one inside."""

    def __init__(self, params, **options):
        self.original_optimizer = torch.optim.AdamW(params, **options)

    param_groups = property(lambda self: self.original_optimizer.param_groups)
    state = property(lambda self: self.original_optimizer.state)
    defaults = property(lambda self: self.original_optimizer.defaults)

    def zero_grad(self, set_to_none=True):
        self.original_optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.original_optimizer.step(closure)


class Alone(WithoutInit):
    """The same, of nothing that torch could be asked about."""

    def __init__(self, params, **options):
        self.inside = (torch.optim.AdamW(params, **options),)

    original_optimizer = property(lambda self: self.inside[0])


class Deaf(Wrapper):
    """What is left of a wrapper whose load_state_dict has parted the two."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.param_groups = [dict(group) for group in self.param_groups]


@pytest.mark.parametrize("make", [Wrapper, WithoutInit])
def test_a_wrapped_optimizer_finds_the_scale_of_the_one_inside(make):
    scales = []
    for kind in (torch.optim.AdamW, make):
        model, optimizer, schedule = made(200, make=kind)
        teach(optimizer, schedule, model, 4)
        scales.append(schedule.report()["approach"]["scale"])
    assert scales[0] == scales[1]


def test_all_states_of_a_wrapped_optimizer_are_rewound():
    model, optimizer, schedule = made(200, make=Wrapper, scale=False)
    teach(optimizer, schedule, model, 200)
    first = next(model.parameters())
    lost = schedule.switch_step - schedule.rewound_to
    assert lost > 0
    assert optimizer.state[first]["steps"] == int(optimizer.base_optimizer.state[first]["step"]) == 200 - lost


def test_an_optimizer_without_hooks_gets_the_range_and_the_reason(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        model, optimizer, schedule = made(200, make=Alone)
        teach(optimizer, schedule, model, 4)
    assert "it does not call Optimizer.__init__; it looks from" in caplog.text


@pytest.mark.parametrize("lr", [1e-1, 1e-2, 1e-3, 1e-4])
def test_an_optimizer_that_follows_no_lr_is_said_to_be_deaf(lr, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = Deaf(model.parameters(), lr=lr)
    schedule = get_autowu_schedule(optimizer, 200)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        teach(optimizer, schedule, model, 20)
    said = [record for record in caplog.records if "AutoWU has no effect" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING]


def test_large_gradients_are_measured_at_a_smaller_lr_and_their_optimizer_is_not_deaf(caplog):
    scales = []
    for factor in (1.0, 1e6):
        model, optimizer, schedule = made(200, make=torch.optim.SGD)
        lrs = []
        with caplog.at_level(logging.INFO, "autowu_hf"):
            for i in range(8):
                x = torch.randn(64, 6, generator=torch.Generator().manual_seed(i))
                optimizer.zero_grad()
                loss = factor * nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
                loss.backward()
                lrs.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.step(loss.detach())
                if schedule.report()["approach"]["scale"] is not None:
                    break
        scale = schedule.report()["approach"]["scale"]
        scales.append(factor * scale["polyak"])
    assert scales[1] == pytest.approx(scales[0], rel=0.2)
    assert lrs[-1] < 1e-2 * lrs[0]
    assert "has no effect" not in caplog.text


@pytest.mark.parametrize("steps", [50, 200])
def test_an_lr_of_p_at_which_the_losses_have_not_fallen_by_the_end_is_a_tenth(steps, caplog):
    model, optimizer, schedule = made(steps)
    before = [p.detach().clone() for p in model.parameters()]
    losses = 0.06 * flat(steps)  # so that P holds the LR, and is not so low that it may be noise
    with caplog.at_level(logging.INFO, "autowu_hf"):
        since = 0
        while not schedule._course.approach.breaks.steps:
            run(model, optimizer, schedule, losses[: since + 1], since)
            since += 1
        now = [p.detach() for p in model.parameters()]
        back = max(float((p - b).abs().max()) for p, b in zip(now, before, strict=True))
        run(model, optimizer, schedule, losses, since)
    scale = schedule._course.scale
    assert scale.held_by == "polyak"
    assert not scale.may_be_noise
    assert schedule.peak_lr == pytest.approx(scale.peak_lr_for(steps) / 10.0)
    assert back < scale.peak_lr_for(steps)  # the weights are those from before the growth
    (step,) = schedule.report()["approach"]["breaks"]
    assert step == since
    assert 0.3 * steps <= step <= 0.4 * steps  # a few later: gradients are measured until then
    assert schedule.report()["approach"]["break_reasons"] == ["unlearned"]
    assert f"by step {step} the losses have not fallen, at learning rate" in caplog.text
    assert "a tenth of it since the losses had not fallen" in caplog.text


def test_losses_that_are_always_the_same_say_nothing_of_the_lr():
    model, optimizer, schedule = made(60)
    run(model, optimizer, schedule, np.full(60, 0.14))
    assert schedule._course.scale.held_by == "polyak"
    assert schedule.peak_lr == pytest.approx(schedule._course.scale.peak_lr_for(60))
