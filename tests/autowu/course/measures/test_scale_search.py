"""The search for the scale, on real optimizer steps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from autowu_hf.autowu.course.measures.scale_search import ScaleSearch
from autowu_hf.runtime import collective


def problem(make, seed=0, size=1.0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(size)
    return model, make(model.parameters(), **{"lr": 1e-3, **options})


def search_on(model, optimizer, steps=8, factor=1.0, clip=None):
    """Runs a search; it and the LRs of its steps."""
    search = ScaleSearch(optimizer, [1.0])
    search.start()
    lrs = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(32, 6, generator=generator).to(next(model.parameters()).dtype)
        loss = factor * nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.param_groups[0]["lr"] = search.lr
        lrs.append(search.lr)
        optimizer.step()
        search.take(float(loss.detach()))
        if search.is_over:
            break
    return search, lrs


def test_two_steps_of_adam_suffice_and_the_hooks_are_gone():
    model, optimizer = problem(torch.optim.AdamW)
    search, lrs = search_on(model, optimizer)
    assert search.is_over
    assert search.obstacle is None
    assert len(lrs) == search.scale.num_steps == 2
    assert not optimizer._optimizer_step_pre_hooks
    assert max(lrs) < 1e-3 * search.scale.peak_lr


@pytest.mark.parametrize("seed", range(20))
def test_where_the_slope_is_spread_evenly_no_rounding_makes_it_less(seed):
    search, _ = search_on(*problem(torch.optim.AdamW, seed=seed))
    assert search.scale.held_by in ("trust", "layers")
    assert search.scale.density == 1.0


def test_a_step_that_rounding_hides_is_measured_again_at_a_larger_lr():
    model, optimizer = problem(torch.optim.SGD)
    search, lrs = search_on(model, optimizer, factor=1e-4)
    assert len(lrs) > 2
    assert lrs[-1] > 10 * lrs[0]
    assert search.scale is not None
    plain, _ = search_on(*problem(torch.optim.SGD))
    # SGD's update is the gradient: with a loss of a ten-thousandth, the LR is as many times larger.
    assert search.scale.polyak == pytest.approx(1e4 * plain.scale.polyak, rel=0.3)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_loss_in_another_unit_changes_nothing_under_adam(factor):
    plain, _ = search_on(*problem(torch.optim.AdamW, eps=1e-15))
    other, _ = search_on(*problem(torch.optim.AdamW, eps=1e-15), factor=factor)
    assert other.scale.peak_lr == pytest.approx(plain.scale.peak_lr, rel=1e-3)


def test_half_precision_finds_the_same_and_takes_no_step():
    plain, _ = search_on(*problem(torch.optim.AdamW))
    model, optimizer = problem(torch.optim.AdamW, dtype=torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    half, _ = search_on(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert half.scale.peak_lr == pytest.approx(plain.scale.peak_lr, rel=0.2)


def test_radam_has_the_scale_of_adam_whose_updates_its_own_become():
    search, lrs = search_on(*problem(torch.optim.RAdam))
    assert len(lrs) == 8  # five are not rectified, and rounding hides the sixth
    assert len(set(lrs[:6])) == 1
    adam, _ = search_on(*problem(torch.optim.AdamW))
    for name in ("polyak", "trust"):
        assert 1 / 3 < getattr(search.scale, name) / getattr(adam.scale, name) < 3.0
    assert search.scale.beta2 == 0.999
    assert search.scale.alignment < 0.99
    late = problem(torch.optim.RAdam)
    search_on(*late, steps=7)
    again, lrs = search_on(*late)  # the optimizer's own count goes on
    assert len(lrs) <= 3
    assert again.scale.trust == pytest.approx(search.scale.trust, rel=0.5)


def test_the_first_steps_of_radam_do_not_hide_that_all_weights_were_zero():
    model, optimizer = problem(torch.optim.RAdam, size=0.0)
    search, _ = search_on(model, optimizer)
    assert search.scale.trust == float("inf")


def test_a_search_goes_on_within_the_first_steps_of_radam():
    whole, _ = search_on(*problem(torch.optim.RAdam))
    model, optimizer = problem(torch.optim.RAdam)
    state = ScaleSearch(optimizer, [1.0]).state_dict()
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        search = ScaleSearch(optimizer, [1.0])
        search.start()
        search.load_state_dict(state)
        x = torch.randn(32, 6, generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        loss.backward()
        optimizer.param_groups[0]["lr"] = search.lr
        optimizer.step()
        search.take(float(loss.detach()))
        state = search.state_dict()
        search.stop()
    assert search.scale == whole.scale


def test_an_optimizer_that_follows_its_lr_a_step_late_is_measured_too():
    plain, _ = search_on(*problem(torch.optim.SGD), factor=1e-2)
    late, _ = search_on(*problem(torch.optim.ASGD), factor=1e-2)
    assert late.scale.polyak == pytest.approx(plain.scale.polyak, rel=0.3)
    assert late.scale.trust == pytest.approx(plain.scale.trust, rel=0.3)


class Idle(torch.optim.Optimizer):
    """Goes along the signs of the gradients; makes no step before the sixth."""

    def __init__(self, parameters, lr, num_idle=5):
        super().__init__(parameters, {"lr": lr})
        self.num_idle = num_idle

    @torch.no_grad()
    def step(self, closure=None):
        self.num_idle -= 1
        for group in self.param_groups if self.num_idle < 0 else []:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad.sign())


def test_an_optimizer_that_makes_no_step_at_first_is_waited_for():
    search, lrs = search_on(*problem(Idle))
    plain, _ = search_on(*problem(Idle, num_idle=0))
    assert len(lrs) == 8
    assert lrs[5] == pytest.approx(1e9 * lrs[0])
    assert search.scale.trust == pytest.approx(plain.scale.trust, rel=0.01)
    never, _ = search_on(*problem(Idle, num_idle=100))
    assert never.runs_out(8, 20, 6) is False
    assert "by step 8 too few steps say anything, for the optimizer moves no weights" in never.obstacle


def test_zero_weights_are_put_back_after_the_blind_steps_of_an_idle_optimizer():
    model, optimizer = problem(Idle, size=0.0)
    search, _ = search_on(model, optimizer)
    assert search.scale is not None
    assert max(float(p.detach().abs().max()) for p in model.parameters()) < 1.0


def test_a_rectifying_optimizer_with_a_count_of_its_own_is_measured_as_any_other():
    kind = type("MyRAdam", (Idle,), {})
    model, optimizer = problem(kind, num_idle=0)
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    search, lrs = search_on(model, optimizer)
    assert len(lrs) == 2
    assert search.scale.beta2 == 0.0


def test_as_many_steps_of_radam_are_waited_for_as_of_others_after_those_that_are_not_rectified():
    search, _ = search_on(*problem(torch.optim.RAdam), steps=6)
    assert not search.runs_out(8, 20, 6)
    assert not search.runs_out(12, 20, 6)
    assert search.runs_out(13, 20, 6)
    assert search.obstacle == "by step 13 too few steps say anything, for the updates are too small or too large"


def test_losses_or_gradients_that_say_nothing_are_an_obstacle():
    negative, lrs = search_on(*problem(torch.optim.AdamW), factor=-1.0)
    assert "not positive" in negative.obstacle
    assert len(lrs) == 2
    _, optimizer = problem(torch.optim.AdamW)
    search = ScaleSearch(optimizer, [1.0])
    search.start()
    optimizer.param_groups[0]["lr"] = search.lr
    optimizer.step()
    search.take(1.0)
    assert "gradients" in search.obstacle
    assert not optimizer._optimizer_step_pre_hooks


def test_a_batch_or_two_that_a_loop_skips_do_not_count_and_a_step_that_never_comes_is_given_up():
    _, optimizer = problem(torch.optim.AdamW)
    search = ScaleSearch(optimizer, [1.0])
    search.start()
    for _ in range(2):
        search.take(math.nan)
    assert not search.is_over
    search.take(1.0)
    assert search.obstacle == "no step of the optimizer was seen, and its parameters have no gradients"
    assert not optimizer._optimizer_step_pre_hooks


def test_steps_that_do_not_happen_do_not_count_as_batches_that_a_loop_skips():
    model, optimizer = problem(Idle, num_idle=2)
    search, _ = search_on(model, optimizer, steps=2)
    optimizer.zero_grad()
    for _ in range(2):
        search.meter.idle = None
        search.take(1.0)
    assert not search.is_over
    search.meter.idle = None
    search.take(1.0)
    assert "no step of the optimizer was seen" in search.obstacle


def with_momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, with_momentum])
def test_an_optimizer_that_has_made_steps_is_measured_as_a_new_one(make):
    model, optimizer = problem(make)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        x = torch.randn(32, 6, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    used, _ = search_on(model, optimizer)
    for name, before in weights.items():
        assert torch.equal(model.state_dict()[name], before)
    for own, before in zip(optimizer.state_dict()["state"].values(), state.values(), strict=True):
        assert all(torch.equal(own[name], value) for name, value in before.items())
    new, _ = search_on(model, make(model.parameters(), lr=1e-3))
    assert used.scale.peak_lr == pytest.approx(new.scale.peak_lr, rel=0.3)


def test_a_search_that_goes_on_does_not_take_its_own_steps_for_those_of_others():
    model, optimizer = problem(torch.optim.AdamW)
    first, _ = search_on(model, optimizer, steps=1)
    state = first.state_dict()
    first.give_up("handed over")
    second = ScaleSearch(optimizer, [1.0])
    second.start()
    second.load_state_dict(state)
    assert (first.meter.as_new, second.meter.as_new) == (False, False)


def test_between_the_measured_steps_of_an_optimizer_that_had_made_some_a_resumed_search_begins_anew():
    """What they made of their own state is in no checkpoint."""
    model, optimizer = problem(torch.optim.AdamW)
    nn.functional.cross_entropy(model(torch.randn(32, 6)), torch.zeros(32, dtype=torch.long)).backward()
    for _ in range(20):
        optimizer.step()
    first, _ = search_on(model, optimizer, steps=1)
    assert (first.meter.as_new, len(first.updates), first.is_over) == (True, 1, False)
    second = ScaleSearch(optimizer, [1.0])
    second.load_state_dict(first.state_dict())
    assert (second.meter.as_new, second.updates, second.losses, second.first) == (True, [], [], None)
    assert math.isnan(second.alignment)


def test_what_adagrad_has_added_up_stays_for_its_state_is_made_with_it():
    model, optimizer = problem(torch.optim.Adagrad)
    search_on(model, optimizer)
    search, _ = search_on(model, optimizer)
    assert search.scale is not None
    assert search.meter.as_new is False


def test_a_search_goes_on_from_its_state():
    model, optimizer = problem(torch.optim.AdamW)
    whole, _ = search_on(*problem(torch.optim.AdamW))
    first, _ = search_on(model, optimizer, steps=1)
    assert not first.is_over
    state = first.state_dict()
    first.give_up("handed over")
    second = ScaleSearch(optimizer, [1.0])
    second.start()
    second.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    torch.randn(32, 6, generator=generator)
    x = torch.randn(32, 6, generator=generator)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
    loss.backward()
    optimizer.step()
    second.take(float(loss.detach()))
    assert second.scale == whole.scale
    finished = ScaleSearch(optimizer, [1.0])
    finished.start()
    finished.load_state_dict(second.state_dict())
    assert finished.scale == whole.scale
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(("clip", "is_seen"), [(None, False), (100.0, False), (1e-3, True)])
def test_a_clipping_that_cannot_be_seen_shows_in_equal_norms(monkeypatch, clip, is_seen):
    """With several processes, where nobody hears of the gradients that a backward leaves."""
    monkeypatch.setattr(collective, "num_processes", lambda: 2)
    monkeypatch.setattr("autowu_hf.runtime.update_meter.meter.gradient_hooks", lambda *args, **options: [])
    search, _ = search_on(*problem(torch.optim.AdamW), clip=clip)
    assert (search.scale is None) is is_seen
    assert ("as if they were clipped" in str(search.obstacle)) is is_seen
