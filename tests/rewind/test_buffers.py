from __future__ import annotations

import torch
from rewind_runs import assert_same, small, state_of, train_step, valley
from tiny import get_schedule
from torch import nn


class Masked(nn.Module):
    """Has a mask of infinities and batch norm among its buffers, and one that changes its shape."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        self.register_buffer("cache", torch.zeros(0))

    def forward(self, x):
        self.cache = torch.arange(len(self.cache) + 1.0)
        return self.net(x)


def test_buffers_that_are_infinite_or_change_their_shape_are_no_hindrance(caplog):
    model = Masked()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = get_schedule(optimizer, 400, model=model)
    states, losses = {}, valley(150, 400)
    for step, loss in enumerate(losses, 1):
        train_step(model, optimizer, scheduler, float(loss))
        if scheduler.phase == "decay":
            break
        states[step] = state_of(model.net, optimizer)
    assert_same(state_of(model.net, optimizer), states[scheduler.rewound_to])
    assert len(model.cache) == scheduler.switch_step
    assert f"go back to step {scheduler.rewound_to}, but these, which its snapshot lacks" in caplog.text
    assert "['0.cache']" in caplog.text


def _last_step_below(scheduler, lr):
    return max(step for step in range(scheduler.switch_step) if scheduler.curve.warmup(step) <= lr)


def test_statistics_that_broke_on_the_way_are_not_gone_back_to():
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model)
    for step, loss in enumerate(valley(150, 250), 1):
        train_step(model, optimizer, scheduler, float(loss))
        if step == 120:
            model[1].running_mean[0] = float("nan")
    assert scheduler.phase == "decay"
    assert scheduler.rewound_to < 120 < _last_step_below(scheduler, scheduler.peak_lr)
    assert torch.isfinite(model[1].running_mean).all()
