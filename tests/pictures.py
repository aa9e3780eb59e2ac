"""Runs on given losses, and what is seen in the pictures of them, for the tests."""

from __future__ import annotations

import numpy as np
import torch
from tiny import get_schedule


def run(losses, steps: int, total: int = 200, ticks: int = 1, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = get_schedule(optimizer, total * ticks, **options)
    if ticks > 1:
        scheduler.prepared(ticks, [optimizer])
    for i in range(steps):
        optimizer.step()
        for _ in range(ticks):
            scheduler.step(float(losses[min(i, len(losses) - 1)]))
    return scheduler


def dip(count: int = 100) -> np.ndarray:
    s = np.arange(count) / count
    noise = 0.02 * np.random.default_rng(0).standard_normal(count)
    return 2.0 - 1.5 * np.exp(-(((s - 0.6) / 0.3) ** 2)) + noise


def marks(axes) -> dict[str, float]:
    """The vertical lines of a panel."""
    lines = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
    return {line.get_label(): line.get_xdata()[0] for line in lines if not line.get_label().startswith("_")}


def shaded(axes) -> list[tuple[float, float]]:
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]


def rows_of(figure):
    """The panels of the warm-up and of what follows, as they stand."""
    columns = sorted({round(axes.get_subplotspec().colspan.start) for axes in figure.axes})
    return [[axes for axes in figure.axes if axes.get_subplotspec().colspan.start == column] for column in columns]
