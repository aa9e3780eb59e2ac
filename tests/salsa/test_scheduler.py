from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from salsa_models import QUICK, Point

from autowu_hf.runtime.checks import opened
from autowu_hf.salsa.factory import get_salsa_schedule


def walk(steps: int, lr: float, start: float, *, noise: float = 1.0, dim: int = 10, seed: int = 0, **options):
    """SGD on a noisy ``Point`` with SASA+ alone: the schedule."""
    torch.manual_seed(seed)
    model = Point(start, dim=dim)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = get_salsa_schedule(optimizer, 1000, line_search=False, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(noise * torch.randn(dim, dtype=torch.float64)).backward()
        optimizer.step()
        scheduler.step()
    return scheduler


def test_the_line_search_ends_when_the_loss_no_longer_falls():
    noise = np.random.default_rng(1).normal(scale=0.05, size=400)
    falling = np.maximum(2.0 - np.arange(400) / 100.0, 0.5) + noise  # flat from step 150 on
    model = Point(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scheduler = get_salsa_schedule(optimizer, 400, smoothing=0.001, **{**QUICK, "keep": 0.25})
    for loss in falling:
        optimizer.zero_grad()
        model().backward()
        scheduler.search(model, lambda: 0.0, float(loss))
        optimizer.step()
        scheduler.step()
        assert (scheduler.phase == "sasa") == (scheduler.switch_step is not None)
        if scheduler.phase == "sasa":
            break
    assert scheduler.ended_by == "slope"
    assert scheduler.switch_step == scheduler.last_epoch
    assert 150 < scheduler.switch_step < 250
    assert scheduler.switch_step % 4 == 0
    lr, probes = scheduler.lr, scheduler.num_probes
    scheduler.search(model, lambda: 0.0, 1.0)  # no more
    assert (scheduler.lr, scheduler.num_probes) == (lr, probes)
    assert scheduler.lr == pytest.approx(1e-4 * 1.001**scheduler.switch_step)


def test_a_cap_ends_the_line_search():
    model = Point(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scheduler = get_salsa_schedule(optimizer, 400, 5, **QUICK)
    for _ in range(6):
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        scheduler.search(model, model, loss)
        optimizer.step()
        scheduler.step()
    assert (scheduler.switch_step, scheduler.ended_by) == (5, "cap")
    assert scheduler.lr == pytest.approx(1e-4 * 1.1**5)


def test_delta_is_zero_on_average_at_the_stationary_distribution_and_not_on_the_way():
    def deltas(steps: int, start: float) -> np.ndarray:
        scheduler = walk(steps, 0.2, start, test_every=10_000)
        return scheduler._tap.pending().numpy()

    away, near = deltas(40, 20.0), deltas(2500, 0.0)[100:]
    assert away.mean() > 100.0  # ||x|| shrinks: away from the minimum the update points away from 0
    assert deltas(5, 0.0).mean() < 0.0  # from the minimum the noise drives x out
    error = near.std() / math.sqrt(len(near))
    assert abs(near.mean()) < 3.0 * error
    assert near.std() > 1.0


def test_the_lr_drops_at_the_stationary_distribution():
    for seed in range(5):
        scheduler = walk(400, 0.2, 0.5, seed=seed, **QUICK)
        assert scheduler.drops
        assert scheduler.drops[0]["lr"] == pytest.approx(0.02)
        assert scheduler.drops[0]["step"] >= 32
        assert scheduler.optimizer.param_groups[0]["lr"] == scheduler.drops[-1]["lr"]


def test_it_does_not_drop_while_the_weights_are_on_their_way():
    for seed in range(5):
        assert not walk(400, 0.002, 20.0, seed=seed, **QUICK).drops


def test_a_drop_starts_the_samples_anew():
    scheduler = walk(800, 0.2, 0.5, **QUICK)
    steps = [drop["step"] for drop in scheduler.drops]
    assert len(steps) > 2
    assert all(b - a >= 32 for a, b in zip(steps, steps[1:], strict=False))
    assert [drop["lr"] for drop in scheduler.drops] == pytest.approx([0.2 / 10 ** (k + 1) for k in range(len(steps))])


def test_ticks_without_a_step_of_the_optimizer_do_not_count():
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_salsa_schedule(optimizer, 100, test_every=50)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        scheduler.search(model, model, loss)
        optimizer.step()
        for _ in range(4):
            scheduler.step()
    assert scheduler.last_epoch == 12
    assert scheduler.state_dict()["steps"] == len(opened(scheduler.state_dict())["new_deltas"]) == 3


@pytest.mark.parametrize("line_search", [True, False])
@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_group_changes_nothing(empty, line_search):
    """As Trainer makes one where no weight is decayed (BitFit), or every one is (LoRA)."""

    def train(has_empty: bool):
        model = Point(2.0, dim=3)
        groups = [{"params": [model.x], "weight_decay": 0.1}]
        if has_empty:
            groups.insert(empty, {"params": []})
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        scheduler = get_salsa_schedule(optimizer, 100, line_search=line_search, **QUICK)
        for _ in range(40):
            optimizer.zero_grad()
            model().backward()
            scheduler.search(model, model)
            optimizer.step()
            scheduler.step()
        return scheduler.lr, scheduler.num_probes, model.x.tolist(), scheduler._deltas.values().tolist()

    assert train(True) == train(False)


def test_a_loss_that_is_no_scalar_is_refused():
    model = Point()
    scheduler = get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1), 100)
    model().backward()
    with pytest.raises(ValueError, match=r"the loss passed to search\(\) must be a scalar, got shape \(2,\)"):
        scheduler.search(model, model, torch.ones(2))


def test_a_schedule_that_is_gone_leaves_the_optimizer():
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_salsa_schedule(optimizer, 100)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    del scheduler
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
