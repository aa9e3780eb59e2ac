"""A small model with batch norm, its training, and losses that have a minimum, for the tests of rewind."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters())


def state_of(model, optimizer):
    return copy.deepcopy([list(model.state_dict().values()), optimizer.state_dict()["state"]])


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def train_step(model, optimizer, scheduler, loss=None):
    """A real step, of which the scheduler is told ``loss``."""
    real = model(torch.randn(16, 4)).square().mean()
    real.backward()
    optimizer.step()
    scheduler.step(real.detach() if loss is None else loss)
    optimizer.zero_grad()


def valley(minimum, length, slope=4.0):
    """Falls to 0 at ``minimum``, then rises ``slope`` times as fast."""
    t = np.arange(length) - minimum
    return np.where(t < 0, -t, slope * t) / minimum + 0.01 * np.random.default_rng(0).standard_normal(length)


def run(scheduler, model, optimizer, losses, since=0):
    """Every state on the way, by the steps done."""
    states = {}
    for step, loss in enumerate(losses, since + 1):
        warming_up = scheduler.phase == "warmup"
        train_step(model, optimizer, scheduler, float(loss))
        if warming_up and scheduler.phase == "warmup":
            states[step] = state_of(model, optimizer)
    return states
