from __future__ import annotations

import warnings

import pytest
import torch

from autowu_hf.autowu.relapse.heard import Heard
from autowu_hf.runtime import collective


@pytest.fixture
def heard() -> Heard:
    heard = Heard(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), list)
    heard.begin(100)
    return heard


def test_gathers_the_last_losses(heard):
    for step in range(101, 161):
        heard.observe(float(step % 7))
        if step % 4 == 0:
            assert heard.gather(step, 250)
    assert heard.losses.tolist() == [float(step % 7) for step in range(141, 161)]  # two windows of ten


@pytest.mark.parametrize("no_loss", [None, 3, torch.zeros(2)])
def test_steps_without_a_loss_are_told_and_warned_of_nowhere(heard, no_loss):
    heard.observe(1.0)
    assert heard.gather(101, 250)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            heard.observe(no_loss)
    assert not heard.gather(105, 250)


def test_steps_that_were_skipped_are_borne(heard):
    """As a gradient scaler skips some."""
    heard.observe(1.0)
    heard.observe(2.0)
    assert heard.gather(104, 250)
    assert not heard.gather(105, 250)


def test_losses_that_not_all_processes_have_are_not_gathered(heard, monkeypatch):
    monkeypatch.setattr(collective, "gather_max", lambda numbers: [numbers[0] + 1, numbers[1]])  # another has one less
    for _ in range(4):
        heard.observe(1.0)
    assert not heard.gather(104, 250)


def test_begins_anew(heard):
    heard.observe(1.0)
    assert heard.gather(101, 250)
    heard.begin_anew(101)
    assert heard.since == 101
    assert len(heard.losses) == 0
    heard.observe(2.0)
    assert heard.gather(102, 250)
    assert heard.losses.tolist() == [2.0]


def test_goes_on_from_its_state(heard):
    for loss in (1.0, 2.0):
        heard.observe(loss)
    assert heard.gather(102, 250)
    heard.observe(3.0)
    other = Heard(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), list)
    other.load_state_dict(heard.state_dict())
    for each in (heard, other):
        each.observe(4.0)
        assert each.gather(104, 250)
        assert each.losses.tolist() == [1.0, 2.0, 3.0, 4.0]
        assert each.since == 100


def test_knows_the_models_of_the_run_or_those_that_it_has_heard():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert Heard(optimizer, lambda: [model]).models() == [model]
    assert [*Heard(optimizer, list).models()] == []
