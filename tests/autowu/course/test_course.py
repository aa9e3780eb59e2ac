"""Which LRs the warm-up goes through, in how many steps: the approach, the sweep after it, or a range."""

from __future__ import annotations

import copy
import inspect
import logging

import numpy as np
import pytest
import torch
from scale_runs import made, quickly, run, slowly
from torch import nn

from autowu_hf import get_autowu_schedule, plot_autowu


def test_num_warmup_steps_is_the_longest_warm_up():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = get_autowu_schedule(optimizer, 400, 40)
    run(model, optimizer, schedule, quickly(400))
    assert schedule.switch_step <= 40


OTHERS = ("Optimizer", "LBFGS", "SparseAdam", "Rprop", "Muon")
"""Of torch.optim: with closures, for sparse gradients, with its own step sizes, for matrices alone."""
OPTIMIZERS = [kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind) and name not in OTHERS]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_all_of_torchs_optimizers_learn(kind):
    """Their best LRs lie four decades apart."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
    teacher, optimizer = torch.randn(20, 5), kind(model.parameters(), lr=1e-3)
    schedule, losses = get_autowu_schedule(optimizer, 200), []
    for _ in range(200):
        x = torch.randn(32, 20)
        loss = nn.functional.cross_entropy(model(x), (x @ teacher).argmax(1))
        loss.backward()
        optimizer.step()
        schedule.step(loss)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert schedule.report()["approach"]["scale"] is not None
    assert np.mean(losses[-20:]) < 0.5 * losses[0]


@pytest.mark.parametrize("options", [{"scale": False}, {"min_lr": 1e-6}, {"preset": "paper"}])
def test_a_run_resumed_over_a_range_beyond_its_switch_still_leaves_a_report(options, tmp_path):
    model, optimizer, schedule = made(60)
    run(model, optimizer, schedule, slowly(60)[:30])
    state = schedule.state_dict()
    model, optimizer, schedule = made(60, report_dir=tmp_path, **options)
    schedule.load_state_dict(state)
    run(model, optimizer, schedule, slowly(60), since=30)
    assert (tmp_path / "autowu.json").exists()
    assert "the losses ask for no more at step 18; peak LR" in schedule.report()["found"]
    plot_autowu(schedule)


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


def test_losses_that_fall_below_zero_later_take_the_scale_back(caplog):
    """0 is no bound of theirs: the run goes back to before the growth, and looks over the range from there."""
    model, optimizer, schedule = made(400)
    start = None
    losses = slowly(400) - np.where(np.arange(400) < 12, 0.0, 2.0)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        for step in range(60):
            run(model, optimizer, schedule, losses[: step + 1], since=step)
            if step == 1:
                start = copy.deepcopy(model.state_dict())
            if schedule.report()["sweep_start"]:
                break
    assert "not positive throughout; it looks from 1e-05 to 1 instead" in caplog.text
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    began = schedule.report()["sweep_start"]
    assert began == step + 1 == schedule.num_steps_lost + 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    lrs = run(model, optimizer, schedule, losses, since=began)
    assert max(lrs) > 0.5
    assert schedule.report()["approach"]["scale"] is None
    assert schedule.switch_step is not None
    assert lrs[-1] < 0.1 * max(lrs)


@pytest.mark.parametrize("rewind", [True, False])
@pytest.mark.parametrize(("steps", "warm_up"), [(4, 3), (5, 3), (5, 4), (40, 12)])
def test_a_scale_that_is_taken_back_with_no_room_to_look_leaves_the_given_lr(steps, warm_up, rewind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = get_autowu_schedule(optimizer, steps, warm_up, rewind=rewind)
    run(model, optimizer, schedule, np.where(np.arange(steps) < 2, 1.0, -1.0))
    assert (schedule.ended_by, schedule.peak_lr) == ("nothing", 1e-3)
    assert schedule.switch_step <= warm_up
    assert optimizer.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize(("steps", "warm_up"), [(150, 0), (1600, 0), (400, 35)])
def test_a_growth_from_the_scale_that_is_resumed_in_another_run_reaches_its_end(steps, warm_up, caplog):
    model, optimizer, schedule = made(400)
    run(model, optimizer, schedule, quickly(400)[:30])
    before = schedule.report()["approach"]["sweep"]
    model, other, again = made(steps, num_warmup_steps=warm_up)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        again.load_state_dict(schedule.state_dict())
    assert "planned for another run than this one" in caplog.text
    start, end = again.report()["sweep_start"], again.warmup_cap
    assert again.get_last_lr() == schedule.get_last_lr()
    assert again.curve.warmup(end - start) == pytest.approx(before["max_lr"])
    assert (30 < end < schedule.warmup_cap) if steps < 1000 else (end > 60)
    lrs = run(model, other, again, np.resize(quickly(400), steps), since=30)
    assert (again.ended_by, again.switch_step) == ("cap", end)
    assert max(lrs) > 0.6 * before["max_lr"]
    assert other.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize(("steps", "warm_up"), [(2, 0), (3, 0), (5, 0), (6, 0), (7, 0), (100, 1), (100, 2), (100, 3)])
def test_the_shortest_runs_end_at_zero(steps, warm_up, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    with caplog.at_level(logging.INFO, "autowu_hf"):
        schedule = get_autowu_schedule(optimizer, steps, warm_up)
        lrs = run(model, optimizer, schedule, slowly(steps))
    assert optimizer.param_groups[0]["lr"] == 0.0
    is_too_short = steps < 6 or 0 < warm_up < 3
    assert (schedule.report()["approach"]["scale"] is None) is is_too_short
    assert ("is too short to measure the scale and to train" in caplog.text) is is_too_short
    if is_too_short:
        assert lrs[:2] == [1e-3, 1e-3]  # the optimizer's own
        assert max(lrs) == 1e-3
        assert (schedule.ended_by, schedule.rewound_to, len(caplog.messages)) == ("nothing", None, 1)
    plot_autowu(schedule)


def test_a_state_over_a_range_goes_on_over_its_range():
    model, optimizer, schedule = made(200, scale=False)
    run(model, optimizer, schedule, slowly(200)[:20])
    state = schedule.state_dict()
    del state["course"]  # as releases without a scale wrote it
    _, other, again = made(200)
    again.load_state_dict(state)
    assert again.get_last_lr() == schedule.get_last_lr()
    assert not other._optimizer_step_pre_hooks
