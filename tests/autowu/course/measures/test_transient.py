"""Whether losses that have halved were those of a transient, and what the LR makes of it."""

from __future__ import annotations

import copy
import io
import logging
import math

import pytest
import torch
from scale_runs import made, quickly, run
from torch import nn

from autowu_hf import get_autowu_schedule
from autowu_hf.autowu.course.measures.scale import FAR, POLYAK_SHARE, TRUST_SHARE
from autowu_hf.autowu.course.measures.transient import FARTHEST, KEPT, MOST_RISEN

STEPS = 120


class Regression:
    """A fresh network whose outputs are far too large for small and noisy targets."""

    def __init__(self, steps=STEPS, size=0.01, seed=3, **options):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0)
        self.schedule = get_autowu_schedule(self.optimizer, steps, **options)
        self.size, self.done = size, 0
        self.losses, self.lrs = [], []

    def go(self, num):
        for _ in range(num):
            generator = torch.Generator().manual_seed(1000 + self.done)
            x = 2.0 * torch.rand(32, 8, generator=generator) - 1.0
            noise = torch.randn(32, 1, generator=generator)
            y = self.size * (torch.sin(3.0 * x[:, :1]) + torch.sin(3.0 * x[:, 1:2]) + 0.3 * noise)
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.model(x), y)
            loss.backward()
            self.lrs.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.schedule.step(loss.detach())
            self.losses.append(float(loss.detach()))
            self.done += 1
        return self

    @property
    def approach(self):
        return self.schedule.report()["approach"]


def test_after_a_transient_the_lr_grows_on_and_that_is_said(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        regression = Regression().go(STEPS)
    approach = regression.approach
    scale, at = approach["scale"], approach["transient"]
    by_polyak, by_trust = POLYAK_SHARE * scale["polyak"], TRUST_SHARE * scale["trust"]
    assert FAR * by_polyak < by_trust < FARTHEST * by_polyak
    assert KEPT <= approach["kept"] < approach["risen"] <= MOST_RISEN
    wanted = math.sqrt(min(approach["risen"] * by_polyak, by_trust) * by_trust)
    assert regression.schedule.peak_lr == pytest.approx(wanted)
    assert regression.lrs[at] > regression.lrs[at - 1]  # training steps: nothing is given up
    assert max(regression.lrs) == pytest.approx(wanted)
    assert regression.schedule.num_steps_lost == 0
    assert regression.schedule.ended_by == "scale"
    assert f"half by step {at}, and P is {approach['risen']:.2g} times what it was" in caplog.text
    assert (
        f"on from it since P was {approach['risen']:.2g} times as high after a transient, at step {at}" in caplog.text
    )


def test_the_raised_lr_trains_better_than_that_of_the_first_gradients():
    raised, kept = Regression(), Regression()
    transient = kept.schedule._course.approach.transient
    transient.is_over, transient.risen, transient.raised_at = True, 1.0, 0  # so that the LR stays
    assert sum(raised.go(STEPS).losses[-20:]) < 0.8 * sum(kept.go(STEPS).losses[-20:])
    assert kept.schedule.peak_lr < 0.1 * raised.schedule.peak_lr


def test_where_targets_are_as_large_as_the_outputs_nothing_is_measured():
    approach = Regression(size=1.0).go(STEPS).approach
    assert approach["risen"] is None
    assert approach["transient"] is None


def test_where_p_is_not_far_below_r_halved_losses_make_the_lr_grow_as_before():
    model, optimizer, schedule = made(200)
    run(model, optimizer, schedule, quickly(200))
    approach = schedule.report()["approach"]
    assert approach["risen"] is None
    assert approach["sweep"] is not None


def test_the_loss_may_be_in_any_unit():
    once = Regression().go(STEPS)
    other = Regression()
    step, of = other.schedule.step, nn.functional.mse_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "mse_loss", lambda *args: 1024.0 * of(*args))
        other.go(STEPS)
    assert step == other.schedule.step
    assert other.approach["transient"] == once.approach["transient"]
    assert other.schedule.peak_lr == pytest.approx(once.schedule.peak_lr, rel=1e-3)


def test_the_run_goes_back_to_the_end_of_the_transient_where_the_lr_is_too_high():
    regression = Regression().go(STEPS)
    at = regression.approach["transient"]
    broken = Regression()
    broken.go(at)
    kept = [p.detach().clone() for p in broken.model.parameters()]
    for _ in range(STEPS - at):  # and losses that say the LR has broken the run
        broken.optimizer.zero_grad()
        loss = 0.0 * sum(p.sum() for p in broken.model.parameters()) + 1e3 * broken.losses[0]
        loss.backward()
        broken.optimizer.step()
        broken.schedule.step(loss.detach())
        if broken.approach["breaks"]:
            break
    assert broken.approach["breaks"]
    assert all(map(torch.equal, broken.model.parameters(), kept))
    assert broken.approach["num_lost"] == broken.approach["breaks"][0] - at
    assert broken.approach["legs"][-1]["to_lr"] == pytest.approx(broken.approach["legs"][-2]["to_lr"] / 10.0)


@pytest.mark.parametrize("later", [-3, 2])
def test_a_resume_while_it_is_measured_and_after_changes_nothing(later):
    whole = Regression().go(STEPS)
    begun = Regression().go(whole.approach["transient"] + later)
    state = io.BytesIO()
    parts = begun.model, begun.optimizer, begun.schedule
    torch.save([part.state_dict() for part in parts], state)
    state.seek(0)
    resumed = Regression(seed=1)
    for part, saved in zip((resumed.model, resumed.optimizer, resumed.schedule), torch.load(state), strict=True):
        part.load_state_dict(saved)
    resumed.done = begun.done
    resumed.go(STEPS - begun.done)
    assert begun.lrs + resumed.lrs == whole.lrs
    assert resumed.schedule.peak_lr == whole.schedule.peak_lr
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


def test_a_state_of_a_release_that_did_not_measure_goes_on():
    begun = Regression().go(10)
    approach = begun.schedule._course.approach
    state = copy.deepcopy(approach.state_dict())
    del state["transient"]
    approach.load_state_dict(state)
    assert begun.go(STEPS - 10).approach["transient"] is not None


def test_in_half_precision_nothing_is_measured():
    regression = Regression()
    regression.model.to(torch.bfloat16)
    transient = regression.schedule._course.approach.transient
    assert not transient.may_be(True, regression.schedule._course.approach.way)
