"""Whether an LR at which nothing was learned has ruined the model: the size of its gradients tells."""

from __future__ import annotations

import copy
import io
import logging

import numpy as np
import pytest
import torch
from torch import nn

from autowu_hf import get_autowu_schedule
from autowu_hf.autowu.course.later.ruined import EXPLODED, VANISHED
from autowu_hf.autowu.reporting.report import headline

STEPS = 100
CHANCE = 0.05  # so low beside the gradients that P holds the LR
RUINED = 0.2


def made(steps=STEPS, make=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3))
    optimizer = make(model.parameters(), lr=1e-3)
    return model, optimizer, get_autowu_schedule(optimizer, steps, **options)


def losses_of(steps=STEPS, fallen=0.0):
    """At chance, or ``fallen`` by a share of it after a tenth of the run."""
    noise = 1e-4 * np.random.default_rng(0).standard_normal(steps)
    return CHANCE * np.where(np.arange(steps) < steps // 10, 1.0, 1.0 - fallen) + noise


def run(model, optimizer, schedule, losses, left=RUINED, since=0, stop=None):
    """Real gradients, of noise, of which ``left`` is left from the tenth step on, while the LR is as high as at first;
    the LR of every step.
    """
    lrs = []
    for step in range(since, len(losses) if stop is None else stop):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(32, 6, generator=generator), torch.randint(3, (32,), generator=generator)
        optimizer.zero_grad()
        share = left if step >= 10 and schedule._course.approach.stalled is None else 1.0
        (share * nn.functional.cross_entropy(model(x), y)).backward()
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(float(losses[step]))
    return lrs


@pytest.mark.parametrize(("steps", "left"), [(40, RUINED), (60, RUINED), (100, RUINED), (400, RUINED), (100, 8.0)])
def test_a_ruined_model_goes_back_and_on_at_a_tenth(steps, left, caplog):
    model, optimizer, schedule = made(steps)
    before = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.INFO, "autowu_hf"):
        lrs = run(model, optimizer, schedule, losses_of(steps, fallen=-0.005), left)
    approach = schedule.report()["approach"]
    found, times = approach["ruined"]
    assert (times < VANISHED) == (left < 1.0)
    assert (times > EXPLODED) == (left > 1.0)
    assert approach["scale"]["held_by"] == "polyak"
    assert 0.12 * steps <= found == approach["stalled"] <= 0.45 * steps
    assert lrs[found - 1] == pytest.approx(10.0 * schedule.peak_lr)
    assert schedule.num_steps_lost >= found - 3
    assert (
        f"by step {found} the losses have not fallen, and many gradients are {times:.2g} times as large" in caplog.text
    )
    said = (
        f"lowered since nothing had been learned by step {found} and many gradients were {times:.2g} times as large as"
    )
    assert said in headline(schedule.report())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(before[name], now) for name, now in model.state_dict().items())


@pytest.mark.parametrize(
    ("why", "left", "fallen", "options"),
    [
        ("a plateau", 1.0, 0.0, {}),
        ("most are left", 0.95, 0.0, {}),
        ("they have grown a little", 0.6 * EXPLODED, -0.005, {}),
        ("they have grown, and the loss falls by a little", 2.0 * EXPLODED, 0.01, {}),
        ("something was learned", RUINED, 0.05, {}),
        ("SGD is another matter", RUINED, 0.0, {"make": torch.optim.SGD}),
        ("too few steps", RUINED, 0.0, {"steps": 29}),
    ],
)
def test_nothing_goes_back_elsewhere(why, left, fallen, options):
    model, optimizer, schedule = made(**options)
    run(model, optimizer, schedule, losses_of(schedule.num_training_steps, fallen), left)
    assert schedule.report()["approach"]["ruined"] is None, why


def test_where_something_was_learned_nothing_is_measured():
    """So that no step costs more."""
    model, optimizer, schedule = made()
    ruined, meter = schedule._course.approach.later.ruined, schedule._course.approach.search.meter
    measured = []
    for step in range(40):
        run(model, optimizer, schedule, losses_of(fallen=0.05), since=step, stop=step + 1)
        measured.append(ruined.is_open)
    assert not any(measured)
    assert not meter.updates


@pytest.mark.parametrize("saved_at", [12, 15, 17, 20, 25])
def test_a_resumed_run_finds_the_same(saved_at):
    whole = made()
    lrs = run(*whole, losses_of())
    begun, resumed = made(), made()
    run(*begun, losses_of(), stop=saved_at)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in begun], file)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert run(*resumed, losses_of(), since=saved_at) == lrs[saved_at:]
    for a, b in zip(resumed[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_a_release_that_did_not_ask_is_taken():
    model, optimizer, schedule = made()
    run(model, optimizer, schedule, losses_of(), stop=20)
    later = schedule._course.approach.later
    state = later.state_dict()
    del state["ruined"], state["ruining"]
    later.load_state_dict(state)
    assert (later.ruined.is_open, later.ruined.found) == (False, None)


def test_clipping_does_not_hide_it():
    """The first gradients were clipped to a tenth, say, and these would be less than the later ones."""
    model, optimizer, schedule = made()
    for step, loss in enumerate(losses_of()):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(32, 6, generator=generator), torch.randint(3, (32,), generator=generator)
        optimizer.zero_grad()
        share = RUINED if step >= 10 and schedule._course.approach.stalled is None else 1.0
        (share * nn.functional.cross_entropy(model(x), y)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        schedule.step(float(loss))
    assert schedule.report()["approach"]["ruined"] is not None
