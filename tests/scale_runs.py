"""Runs around the scale, of a small model with real gradients and given losses, for the tests."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from autowu_hf import get_autowu_schedule


def made(steps, seed=0, make=torch.optim.AdamW, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = make(model.parameters(), lr=1e-3)
    return model, optimizer, get_autowu_schedule(optimizer, steps, **options)


class Thin(nn.Module):
    """Nearly all of its weights have next to no gradient, as those below the last layers of some transformers."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))

    def forward(self, x):
        return self.head(x) + 1e-3 * self.body(x)


def thin(steps, make=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = Thin()
    optimizer = make(model.parameters(), lr=1e-3)
    return model, optimizer, get_autowu_schedule(optimizer, steps, **options)


def run(model, optimizer, schedule, losses, since=0):
    """Real gradients, of noise, and given losses; the LR of every step."""
    lrs = []
    for step in range(since, len(losses)):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(4, 6, generator=generator), torch.randint(3, (4,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(float(losses[step]))
    return lrs


def resumed(new: Callable[[], Any], losses: np.ndarray, stops: Iterable[int]) -> Iterator[tuple[Any, Any]]:
    """Runs that go on from a whole run's states after ``stops`` steps and take its LRs: each, and the whole one.

    Args:
        new: makes what ``run`` takes before the losses.
        losses: of the whole run.
        stops: rising.
    """
    whole, lrs, files = new(), [], {}
    for stop in (*stops, len(losses)):
        lrs += run(*whole, losses[:stop], since=len(lrs))
        files[stop] = io.BytesIO()
        torch.save([part.state_dict() for part in whole], files[stop])
    for stop, file in files.items():
        file.seek(0)
        again = new()
        for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        assert run(*again, losses, since=stop) == lrs[stop:]
        yield again, whole


def slowly(n, seed=0):
    """Falls by a third."""
    return np.linspace(1.2, 0.8, n) + 0.01 * np.random.default_rng(seed).standard_normal(n)


def surely(n):
    """Falls by a third within a third of the run, and to half by its end."""
    return np.interp(np.arange(n), [0, n // 3, n], [1.2, 0.8, 0.6])


def quickly(n, rise=None, seed=0):
    """Falls to a tenth within 15 % of the run, and rises again after ``rise``."""
    t = np.arange(n)
    losses = 0.1 + 1.1 * np.exp(-t / (0.05 * n))
    if rise is not None:
        losses = losses + np.where(t > rise, 0.3 * (t - rise), 0.0)
    return losses + 0.005 * np.random.default_rng(seed).standard_normal(n)


def flat(steps: int) -> np.ndarray:
    return 2.3 + 0.01 * np.random.default_rng(0).standard_normal(steps)


def noisy(steps: int, make=torch.optim.AdamW, **options):
    """A run for ``run_noisy``, whose P lies far below R."""
    torch.manual_seed(0)
    weights = nn.Parameter(torch.randn(20_000))
    optimizer = make([weights], lr=1e-3)
    return weights, optimizer, get_autowu_schedule(optimizer, steps, **options)


def run_noisy(weights, optimizer, schedule, signal: float, losses, since=0) -> list[float]:
    """Gradients of ``signal`` plus noise of size 1, and given losses; the LR of every step."""
    lrs = []
    for step in range(since, len(losses)):
        optimizer.zero_grad()
        gradient = torch.randn(len(weights), generator=torch.Generator().manual_seed(step)) + signal
        (weights * gradient).sum().backward()
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(float(losses[step]))
    return lrs
