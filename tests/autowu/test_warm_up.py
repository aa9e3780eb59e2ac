from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from margins import assert_above

from autowu_hf import get_autowu_schedule
from autowu_hf.autowu.settings import AutoWUSettings
from autowu_hf.autowu.verdict import Ending, MinimumTestRecord
from autowu_hf.autowu.warm_up import WarmUp
from autowu_hf.runtime import collective
from autowu_hf.runtime.losses.history import LossHistory


def warm_up(**options) -> WarmUp:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return WarmUp(AutoWUSettings(**{"peak_rule": "minimum", **options}), LossHistory(optimizer), None)


def valley(n: int) -> list[float]:
    s = np.arange(n) / n
    return list(2.0 - 1.5 * np.exp(-(((s - 0.5) / 0.2) ** 2)) + 0.02 * np.random.default_rng(0).standard_normal(n))


def first_answer(part: WarmUp, losses, cap: int, start: int = 1) -> tuple[int, Ending]:
    for step in range(start, cap + 1):
        ending = part.advance(step, cap, losses[step - 1])
        if ending is not None:
            return step, ending
    raise AssertionError("the warm-up never ended")


def test_it_is_over_when_the_minimum_has_passed_and_at_the_cap_at_the_latest():
    losses = valley(300)
    part = warm_up(test_every=5)
    part.cadence.plan(0, 300)
    step, ending = first_answer(part, losses, 300)
    assert ending.reason == "minimum"
    assert 140 < ending.minimum_step < 160 < step < 220
    assert [record.step for record in part.minimum_test.records] == list(range(5, step + 1, 5))
    assert first_answer(warm_up(test_every=5, guard=False), losses, 100) == (
        100,
        Ending("cap", 100, 100, has_minimum=False),
    )
    step, ending = first_answer(warm_up(test_every=5, guard=True), losses, 100)
    assert (step, ending.reason) == (100, "nothing")  # the losses still fall


def test_the_cliff_is_seen_later_than_the_minimum():
    part = warm_up(test_every=5, peak_rule="cliff")
    part.cadence.plan(0, 300)
    step, ending = first_answer(part, valley(300), 300)
    assert ending.reason == "cliff"
    # Half of the gain is lost where the bell has fallen to a half.
    assert 140 < ending.minimum_step < 160
    assert ending.cliff_step == pytest.approx(300 * (0.5 + 0.2 * math.log(2) ** 0.5), abs=12)
    assert ending.cliff_step < step < 250


def test_the_cap_looks_once_more():
    losses = valley(300)
    step, ending = first_answer(warm_up(test_every=1000), losses, 170)
    assert (step, ending.reason) == (170, "cap")
    assert 130 < ending.minimum_step < 170
    assert first_answer(warm_up(test_every=1000), losses, 100)[1].minimum_step == 100
    assert first_answer(warm_up(test_every=1000), [3.0, 2.0, 1.0, 2.0, 3.0], 5)[1].minimum_step in (2, 3)


@pytest.mark.parametrize(
    ("losses", "is_harmless"),
    [
        (np.linspace(1.0, 0.2, 60), True),
        (np.r_[np.linspace(1.0, 0.2, 30), np.full(30, 0.2)], True),
        (np.linspace(1.0, 1.05, 60), False),
        (np.r_[np.linspace(1.0, 0.2, 27), np.linspace(0.2, 0.45, 33)], False),  # less than half, but it rises
        (np.r_[np.linspace(1.0, 0.2, 40), np.linspace(0.2, 0.7, 20)], False),  # half of it was lost again
    ],
)
def test_the_highest_lr_was_harmless_where_the_losses_fell_and_stayed_low(losses, is_harmless):
    part = warm_up(test_every=1000, peak_rule="cliff")
    part.minimum_test.rule.base_lr = 1e-4  # around a scale
    ending = first_answer(part, losses + 0.01 * np.random.default_rng(0).standard_normal(60), 60)[1]
    assert ending.is_harmless == is_harmless


def test_a_run_that_diverges_ends_at_once():
    losses = [*valley(300)[:150], *[math.inf] * 10]
    part = warm_up(test_every=5)
    part.cadence.plan(0, 300)
    step, ending = first_answer(part, losses, 300)
    assert (step, ending.reason) == (155, "divergence")
    assert 130 < ending.minimum_step <= ending.cliff_step <= 151
    above = [*valley(300)[:150], *[1e6] * 20]
    part = warm_up(test_every=5)
    part.cadence.plan(0, 300)
    step, ending = first_answer(part, above, 300)
    assert (step, ending.reason) == (160, "divergence")
    assert 110 < ending.minimum_step <= 155
    assert ending.cliff_step == 150  # the last one that was not above the start


@pytest.mark.parametrize("broken", [math.inf, 1e3])
def test_a_run_that_diverges_before_it_has_gained_anything_has_no_minimum(broken):
    losses = [*2.0 + 0.02 * np.random.default_rng(0).standard_normal(40), *[broken] * 20]
    part = warm_up(test_every=1, peak_rule="cliff")
    part.cadence.plan(0, 300)
    step, ending = first_answer(part, losses, 300)
    assert ending.reason == "divergence"
    assert step <= 45
    assert not ending.has_minimum
    assert ending.minimum_step == ending.cliff_step <= 40


@pytest.mark.parametrize("rule", ["minimum", "cliff"])
def test_the_minimum_of_a_run_that_diverges_lies_among_its_sound_losses(rule):
    """The Gaussian process on few losses takes the break for noise, and is sure of nothing."""
    losses = [*np.linspace(2.0, 1.0, 14), *[1e3] * 20]
    part = warm_up(test_every=1, peak_rule=rule)
    part.cadence.plan(0, 60)
    _, ending = first_answer(part, losses, 60)
    assert ending.reason == "divergence"
    assert ending.has_minimum
    assert 5 <= ending.minimum_step <= ending.cliff_step <= 14


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
    numbers = [0.5] * MinimumTestRecord.count_numbers(num_tests=5)
    record = dataclasses.replace(MinimumTestRecord.from_numbers(numbers), step=4, num_losses=4, positive=False)
    record = dataclasses.replace(record, diverged=False, spike_at_end=False)
    monkeypatch.setattr(collective, "num_processes", lambda: 2)
    monkeypatch.setattr(collective, "process_index", lambda: 1)
    monkeypatch.setattr(collective, "gather_mean", lambda losses: losses.to(torch.float64))
    monkeypatch.setattr(
        collective, "broadcast_numbers", lambda mine, count: record.to_numbers() if mine is None else []
    )
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


class FreshHead(torch.nn.Module):
    """A small transformer whose new head says next to nothing at first, of two classes."""

    def __init__(self):
        super().__init__()
        self.tokens = torch.nn.Embedding(100, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.head = torch.nn.Linear(16, 2)
        torch.nn.init.normal_(self.tokens.weight, std=0.02)
        torch.nn.init.normal_(self.head.weight, std=0.002)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.layer(self.tokens(x)).mean(1))


@pytest.mark.once
def test_losses_that_begin_at_ln_2_with_hardly_any_noise_are_not_taken_for_diverging():
    """Steps of eight examples; every tenth label is wrong."""
    torch.manual_seed(0)
    x = torch.randint(0, 100, (1600, 7))
    labels = ((x < 50).sum(1) > 3).long()
    labels = torch.where(torch.rand(1600) < 0.1, 1 - labels, labels)
    model = FreshHead()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = get_autowu_schedule(optimizer, 300, scale=False)
    losses = []
    for _ in range(300):
        rows = torch.randint(0, 1200, (8,))
        loss = torch.nn.functional.cross_entropy(model(x[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step(loss)
        losses.append(loss.item())
    assert losses[:3] == pytest.approx([math.log(2.0)] * 3, abs=0.01)
    assert schedule.ended_by != "divergence"
    with torch.no_grad():
        right = model(x[1200:]).argmax(1) == labels[1200:]
    assert_above(right.float().mean().item(), 0.65, 0.3)
