"""States of SALSA's scheduler: a loop goes on from one bit for bit."""

from __future__ import annotations

import io
import math

import pytest
import torch
from margins import assert_above, assert_below
from salsa_models import QUICK, Point
from tiny import batches
from torch import nn

from autowu_hf.runtime.checks import opened
from autowu_hf.salsa.factory import get_salsa_schedule


def loop(steps: int, save_at: int | None = None, state=None):
    """SGD with momentum on a small classifier: LRs, weights, the schedule, and what was saved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    scheduler = get_salsa_schedule(optimizer, steps, **QUICK)
    data = batches(64)
    start, lrs, saved = 0, [], None
    if state is not None:
        state = torch.load(io.BytesIO(state), weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
    for step in range(start, steps):
        batch = [data[(step * 16 + i) % 64] for i in range(16)]
        x, y = torch.stack([b["x"] for b in batch]), torch.stack([b["labels"] for b in batch])

        def closure(x=x, y=y):
            return nn.functional.cross_entropy(model(x), y)

        before = scheduler.random_state()
        optimizer.zero_grad()
        loss = closure()
        loss.backward()
        scheduler.search(model, closure, loss, random_state=before)
        optimizer.step()
        lrs.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
        if step + 1 == save_at:
            saved = io.BytesIO()
            parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "step": step + 1, "random": torch.get_rng_state()}, saved)
    return lrs, [p.detach().clone() for p in model.parameters()], scheduler, saved and saved.getvalue()


@pytest.mark.parametrize("save_at", [7, 150])
def test_a_loop_goes_on_bit_for_bit(save_at):
    lrs, weights, scheduler, saved = loop(240, save_at=save_at)
    assert_above(scheduler.switch_step, 7, scheduler.switch_step)
    assert_below(scheduler.switch_step, 150, 150)
    growth = math.log(max(lrs) / lrs[0])
    assert_above(growth, math.log(5), growth)
    part = loop(240, state=saved)
    assert part[0] == lrs[save_at:]
    assert all(torch.equal(a, b) for a, b in zip(part[1], weights, strict=True))
    for name in ("lr", "switch_step", "ended_by", "drops", "num_probes"):
        assert getattr(part[2], name) == getattr(scheduler, name)


def test_a_flush_between_the_tests_changes_no_decision():
    def train(flushes: bool):
        torch.manual_seed(0)
        model = Point(0.5, dim=10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        scheduler = get_salsa_schedule(optimizer, 1000, line_search=False, **QUICK)
        for step in range(200):
            optimizer.zero_grad()
            model(torch.randn(10, dtype=torch.float64)).backward()
            optimizer.step()
            scheduler.step()
            if flushes and step % 7 == 0:
                scheduler.flush()
                assert len(scheduler.pending_losses()) == 0
        return scheduler.drops, scheduler._deltas.values().tolist()

    assert train(True) == train(False)
    assert train(True)[0]


OLD_STATE = {
    "version": 1,
    "last_epoch": 9,
    "step_count": 10,
    "steps": 9,
    "lr": 0.02,
    "switch_step": 7,
    "ended_by": "slope",
    "drops": [{"step": 8, "lr": 0.02}],
    "num_probes": 12,
    "losses": {"num_added": 0, "kept": torch.empty(0, dtype=torch.float64)},
    "deltas": {"num_added": 8, "kept": torch.tensor([0.5, 0.25], dtype=torch.float64)},
    "new_deltas": torch.tensor([0.125], dtype=torch.float64),
}
"""As the first version of states has been written since there is a SALSA."""


def test_the_format_of_states_stays():
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_salsa_schedule(optimizer, 100)
    scheduler.load_state_dict(OLD_STATE)
    assert optimizer.param_groups[0]["lr"] == 0.02
    state = opened(scheduler.state_dict())
    assert state.pop("added") == [1, []]  # groups at first, and ratios of others; later releases have it
    assert state.keys() == OLD_STATE.keys()
    for name, value in OLD_STATE.items():
        assert repr(state[name]) == repr(value), name


def test_another_schedulers_state_is_refused():
    model = Point()
    scheduler = get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1), 100)
    with pytest.raises(ValueError, match=r"not a state of SalsaScheduler, version 1: it has the keys \['last_epoch'\]"):
        scheduler.load_state_dict({"last_epoch": 3})
