from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autowu_hf import collective
from autowu_hf.settings import AutoWUSettings
from autowu_hf.warm_up import WarmUp


def warm_up(**options) -> WarmUp:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return WarmUp(AutoWUSettings(**options), optimizer, None)


def valley(n: int) -> list[float]:
    s = np.arange(n) / n
    return list(2.0 - 1.5 * np.exp(-(((s - 0.5) / 0.2) ** 2)) + 0.02 * np.random.default_rng(0).standard_normal(n))


def first_answer(part: WarmUp, losses, cap: int, start: int = 1) -> tuple[int, int]:
    for step in range(start, cap + 1):
        minimum_step = part.advance(step, cap, losses[step - 1])
        if minimum_step is not None:
            return step, minimum_step
    raise AssertionError("the warm-up never ended")


def test_it_is_over_when_the_minimum_has_passed_and_at_the_cap_at_the_latest():
    losses = valley(300)
    part = warm_up(test_every=5)
    part.cadence.plan(0, 300)
    step, minimum_step = first_answer(part, losses, 300)
    assert 140 < minimum_step < 160 < step < 220
    assert [record["step"] for record in part.minimum_test.records] == list(range(5, step + 1, 5))
    assert first_answer(warm_up(test_every=5), losses, 100) == (100, 100)


def test_a_state_taken_between_two_tests_decides_the_same():
    losses = valley(300)
    whole = warm_up(test_every=5)
    whole.cadence.plan(0, 300)
    expected = first_answer(whole, losses, 300)
    first, resumed = warm_up(test_every=5), warm_up(test_every=5)
    first.cadence.plan(0, 300)
    for step in range(1, 123):
        assert first.advance(step, 300, losses[step - 1]) is None
    resumed.load_state_dict(first.state_dict(), is_over=False)
    resumed.cadence.plan(122, 300)
    assert first_answer(resumed, losses, 300, start=123) == expected
    assert resumed.minimum_test.records == whole.minimum_test.records


def test_the_main_process_alone_runs_the_test(monkeypatch):
    """Another process gathers, and takes over the record that is broadcast."""
    record = {"step": 4, "num_losses": 4, "positive": False, "spike_at_end": False, "minimum_step": math.nan}
    monkeypatch.setattr(collective, "num_processes", lambda: 2)
    monkeypatch.setattr(collective, "process_index", lambda: 1)
    monkeypatch.setattr(collective, "gather_mean", lambda losses: losses.to(torch.float64))
    monkeypatch.setattr(collective, "broadcast_record", lambda mine, num_tests: record if mine is None else None)
    part = warm_up(test_every=4)
    monkeypatch.setattr(part.minimum_test, "run", None)
    part.cadence.plan(0, 100)
    for step in range(1, 5):
        assert part.advance(step, 100, 1.0) is None
    assert part.minimum_test.records == [record]


def test_nothing_is_tested_while_no_loss_came_in():
    part = warm_up(test_every=2)
    part.cadence.plan(0, 100)
    with pytest.warns(UserWarning, match="AutoWU saw no loss"):
        for step in range(1, 5):
            assert part.advance(step, 100, None) is None
    assert part.minimum_test.records == []
