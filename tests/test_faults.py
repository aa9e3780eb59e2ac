"""Whatever happens to the losses: a sensible schedule or a clear error, never a high LR on a ruined model."""

from __future__ import annotations

import math
import random

import pytest
import torch
from margins import assert_below
from torch import nn

from autowu_hf import DivergedError, get_autowu_schedule

CASES = 200
FAULTS = ("a NaN", "spikes", "NaN from a step on", "constant", "tiny", "starts at its minimum", "short")


def problem(seed, trained):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(128, 6, generator=generator)
    y = torch.tanh(x @ torch.randn(6, 1, generator=generator)) + 0.1 * torch.randn(128, 1, generator=generator)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    if trained:
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
    return model, x, y


@pytest.mark.once
@pytest.mark.parametrize("part", range(8))
def test_no_fault_ends_at_a_high_lr_on_a_ruined_model(part):
    for seed in range(part, CASES, 8):
        check(seed)


def check(seed):
    rng = random.Random(seed)
    fault = FAULTS[seed % len(FAULTS)]
    steps = rng.randint(20, 40) if fault == "short" else rng.choice([40, 80])
    at = rng.randint(0, steps - 1)
    rewind = rng.choice([None, None, False])
    model, x, y = problem(seed, trained=fault == "starts at its minimum")
    before = float((model(x) - y).square().mean().detach())
    optimizer = rng.choice([torch.optim.AdamW, torch.optim.Adam])(model.parameters())
    scheduler = get_autowu_schedule(optimizer, steps, rewind=rewind, seed=seed)
    spikes = set(rng.sample(range(steps), 3))
    highest = 0.0
    said = ""
    try:
        for step in range(steps):
            rows = torch.randint(0, 128, (32,))
            loss = (model(x[rows]) - y[rows]).square().mean()
            if fault == "constant":
                loss = loss * 0.0 + 1.0
            if fault == "tiny":
                loss = loss * 1e-8
            if fault == "spikes" and step in spikes:
                loss = loss * 1e6
            if (fault == "a NaN" and step == at) or (fault == "NaN from a step on" and step >= at):
                loss = loss * math.nan
            if scheduler.phase == "decay":
                highest = max(highest, scheduler.get_last_lr()[0])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as Trainer does
            optimizer.step()
            scheduler.step(loss)
            optimizer.zero_grad()
    except DivergedError as error:
        said = str(error)
    after = float((model(x) - y).square().mean().detach())
    what = f"seed {seed}, {fault} at {at} of {steps}, {scheduler.ended_by}, peak {scheduler.peak_lr}: {after}"
    if said:
        assert fault in ("a NaN", "NaN from a step on"), what
        return
    assert scheduler.get_last_lr() == [0.0], what
    assert scheduler.phase == "decay", what
    if fault in ("a NaN", "NaN from a step on") and at >= scheduler.switch_step - 1:
        return  # it hit the decay, where any schedule would be as lost
    assert highest <= scheduler.peak_lr, what
    if fault != "tiny":  # there Adam's epsilon makes the updates small, and the LR may be larger
        peak = math.log10(scheduler.peak_lr)
        assert_below(peak, math.log10(0.1 if rewind is None else 0.5), -peak)
    if fault != "constant":
        assert math.isfinite(after), what
        if rewind is None:  # without it the weights keep what the warm-up did to them
            assert_below(after, 1.5 * before + 0.05, 1.5 * before + 0.05)
