"""How the LR comes to the scale, and what the losses say then; on schedules whose losses are given."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch
from torch import nn

from autowu_hf import get_autowu_schedule, plot_autowu
from autowu_hf.autowu.course.approach import ramp
from autowu_hf.autowu.reporting.report import headline


def made(steps, seed=0, make=torch.optim.AdamW, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = make(model.parameters(), lr=1e-3)
    return model, optimizer, get_autowu_schedule(optimizer, steps, **{"preset": "scale", **options})


def run(model, optimizer, schedule, losses, since=0):
    """Real gradients, of one batch per step, and given losses; the LR of every step."""
    lrs = []
    for step in range(since, len(losses)):
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(float(losses[step]))
    return lrs


def slowly(n, seed=0):
    """Falls by a third."""
    return np.linspace(1.2, 0.8, n) + 0.01 * np.random.default_rng(seed).standard_normal(n)


def quickly(n, rise=None, seed=0):
    """Falls to a tenth within 15 % of the run, and rises again after ``rise``."""
    t = np.arange(n)
    losses = 0.1 + 1.1 * np.exp(-t / (0.05 * n))
    if rise is not None:
        losses = losses + np.where(t > rise, 0.3 * (t - rise), 0.0)
    return losses + 0.005 * np.random.default_rng(seed).standard_normal(n)


def test_a_loss_that_falls_slowly_keeps_to_the_scale():
    model, optimizer, schedule = made(400)
    lrs = run(model, optimizer, schedule, slowly(400))
    scale = schedule.report()["approach"]["scale"]
    assert schedule.ended_by == "scale"
    assert schedule.peak_lr == pytest.approx(0.3 * min(scale["polyak"], scale["trust"] / 1.5))
    assert schedule.switch_step == 120
    assert (schedule.minimum_step, schedule.rewound_to, schedule.tests) == (None, None, [])
    assert max(lrs[:2]) < 1e-3 * schedule.peak_lr
    assert lrs[2:20] == pytest.approx([schedule.peak_lr * (t - 1) / 19 for t in range(2, 20)])
    assert lrs[20:320] == pytest.approx([schedule.peak_lr] * 300)  # constant, then a cosine over the last fifth
    assert all(a > b for a, b in zip(lrs[320:], lrs[321:], strict=False))
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_a_loss_that_has_soon_fallen_to_half_is_followed_to_its_cliff():
    model, optimizer, schedule = made(400)
    run(model, optimizer, schedule, quickly(400, rise=28))
    report = schedule.report()
    scale = report["approach"]["scale"]
    assert report["approach"]["sweep"]["min_lr"] == scale["peak_lr"]
    assert schedule.ended_by in ("cliff", "divergence")
    assert 20 <= report["sweep_start"] < schedule.switch_step < 60
    assert schedule.peak_lr >= scale["peak_lr"]
    assert schedule.rewound_to is not None
    assert report["sweep_start"] <= schedule.rewound_to < schedule.switch_step
    assert len(report["losses"]) == schedule.switch_step


def test_a_sweep_that_meets_no_cliff_ends_between_the_scale_and_a_fifth_of_its_end():
    model, optimizer, schedule = made(400)
    run(model, optimizer, schedule, quickly(400))
    scale = schedule.report()["approach"]["scale"]
    assert schedule.ended_by == "cap"
    assert f"no cliff up to {scale['trust']:.1e}".replace("e-0", "e-") in headline(schedule.report())
    assert schedule.curve.max_lr == pytest.approx(scale["trust"])
    highest = np.sqrt(scale["peak_lr"] * 0.2 * scale["trust"])
    assert scale["peak_lr"] <= schedule.peak_lr <= max(highest, scale["peak_lr"]) * (1 + 1e-6)


def test_a_short_run_does_not_look_on():
    model, optimizer, schedule = made(20)
    run(model, optimizer, schedule, quickly(20))
    assert schedule.ended_by == "scale"
    assert schedule.switch_step == 3


def test_num_warmup_steps_is_the_longest_warm_up():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = get_autowu_schedule(optimizer, 400, 40, preset="scale")
    run(model, optimizer, schedule, quickly(400))
    assert schedule.switch_step <= 40


def test_where_there_is_no_scale_the_range_is_looked_over_and_it_is_said(caplog):
    for negative in (True, False):
        model, optimizer, schedule = made(400)
        caplog.clear()
        with caplog.at_level(logging.INFO, "autowu_hf"):
            lrs = run(model, optimizer, schedule, slowly(400) - (2.0 if negative else 0.0))
        said = [r.getMessage() for r in caplog.records if "cannot tell the scale" in r.getMessage()]
        assert len(said) == negative
        if negative:
            assert "not positive" in said[0]
            assert "from 1e-05 to 1 instead" in said[0]
            assert schedule.report()["approach"]["scale"] is None
            assert max(lrs) > 0.5


def test_an_optimizer_whose_weights_are_out_of_reach_is_said_at_once(caplog):
    class Lomo(torch.optim.SGD):
        """By its name an optimizer that steps inside the backward."""

    with caplog.at_level(logging.INFO, "autowu_hf"):
        _, optimizer, schedule = made(400, make=Lomo)
    assert sum("cannot tell the scale" in record.getMessage() for record in caplog.records) == 1
    assert schedule.get_last_lr() == [1e-5]
    assert not optimizer._optimizer_step_pre_hooks


def test_sgd_looks_over_the_range(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        model, optimizer, schedule = made(400, make=torch.optim.SGD)
        lrs = run(model, optimizer, schedule, slowly(400))
    assert sum("the gradient itself" in record.getMessage() for record in caplog.records) == 1
    assert max(lrs) > 0.5


def test_a_loss_without_gradients_gives_the_range_from_the_first_step_on():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedules = [get_autowu_schedule(optimizer, 200, preset="scale", decay_type="rex")]
    schedules.append(get_autowu_schedule(torch.optim.AdamW([nn.Parameter(torch.zeros(1))]), 200))
    lrs = []
    for schedule in schedules:
        lrs.append([])
        for loss in slowly(200):
            schedule.optimizer.step()
            schedule.step(float(loss))
            lrs[-1].append(schedule.get_last_lr()[0])
    assert lrs[0] == lrs[1]


@pytest.mark.parametrize("cut", [1, 2, 5, 30, 45, 120])
@pytest.mark.parametrize("losses", [slowly(200), quickly(200, rise=25)], ids=["slowly", "quickly"])
def test_a_run_that_was_resumed_goes_on_bit_for_bit(cut, losses):
    model, optimizer, schedule = made(200)
    whole = run(model, optimizer, schedule, losses)
    model, optimizer, schedule = made(200)
    first = run(model, optimizer, schedule, losses[:cut])
    buffer = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), schedule.state_dict()), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    model, optimizer, again = made(200, seed=1)
    for part, state in zip((model, optimizer, again), saved, strict=True):
        part.load_state_dict(state)
    assert first + run(model, optimizer, again, losses, since=cut) == whole


def test_a_state_over_a_range_goes_on_over_its_range():
    model, optimizer, schedule = made(200, preset=None)
    run(model, optimizer, schedule, slowly(200)[:20])
    state = schedule.state_dict()
    del state["course"]  # as releases without a scale wrote it
    _, other, again = made(200)
    again.load_state_dict(state)
    assert again.get_last_lr() == schedule.get_last_lr()
    assert not other._optimizer_step_pre_hooks


def test_the_line_in_the_log_says_how_the_lr_was_found(caplog):
    model, optimizer, schedule = made(200)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, slowly(200))
    (line,) = [r.getMessage() for r in caplog.records if "peak LR" in r.getMessage()]
    scale = schedule.report()["approach"]["scale"]["lr"]
    assert f"scale {scale:.1e}".replace("e-0", "e-") in line
    assert "from the first gradients; the losses ask for no more at step 60" in line
    assert schedule.log_values()["autowu/scale"] == scale


def test_a_range_beside_the_scale_is_refused():
    with pytest.raises(ValueError, match=r"scale=True finds the range .* leave them out, or scale=False"):
        made(100, max_lr=0.1)


def test_the_ramp_is_linear_and_ends_at_the_peak():
    assert [ramp(t, 2, 5, 1.0) for t in (2, 3, 4, 5, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_picture_places_tests_and_gaussian_process_where_the_sweep_was():
    pytest.importorskip("matplotlib")
    model, optimizer, schedule = made(400)
    run(model, optimizer, schedule, quickly(400, rise=28))
    report = schedule.report()
    lr_axes, loss_axes, test_axes = plot_autowu(report).axes
    start, end = report["sweep_start"], report["switch_step"]
    posterior = next(line for line in loss_axes.get_lines() if line.get_label().startswith("Gaussian"))
    assert start <= min(posterior.get_xdata()) < max(posterior.get_xdata()) <= end
    marks = [x for line in test_axes.get_lines() if line.get_marker() == "o" for x in line.get_xdata()]
    assert len(marks) == len(report["tests"])
    assert start < min(marks) <= max(marks) <= end
    lrs = lr_axes.get_lines()[0].get_ydata()
    assert lrs[0] == report["approach"]["first_lr"]
    assert max(lrs) > report["approach"]["scale"]["peak_lr"]
    assert any("scale" in text.get_text() for text in lr_axes.texts)
