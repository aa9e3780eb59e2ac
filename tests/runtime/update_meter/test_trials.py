"""Steps that will be taken back, and who takes no notice of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autowu_hf.runtime.update_meter import Distance, UpdateMeter, taken_back
from autowu_hf.runtime.update_meter.trials import trial_of


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(4, 2)


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()


def test_a_meter_that_was_there_before_rests_and_one_of_the_trial_measures(model, optimizer):
    before, other = UpdateMeter(optimizer, [1.0]), UpdateMeter(torch.optim.SGD(model.parameters(), lr=0.1), [1.0])
    before.arm(takes_back=False)
    with taken_back(optimizer):
        within = UpdateMeter(optimizer, [1.0])
        within.arm(takes_back=False)
        step(model, optimizer)
        assert (len(before.updates), len(within.updates), before.has_gradients()) == (0, 1, True)
        assert (before.rests, within.rests, other.rests) == (True, False, False)
        within.disarm()
    step(model, optimizer)
    assert len(before.updates) == 1
    assert before.num_backwards == 1  # those of the trial do not count


def test_a_distance_counts_no_steps_of_a_trial(model, optimizer):
    distance = Distance(UpdateMeter(optimizer, [1.0]))
    distance.start()
    step(model, optimizer)
    with taken_back(optimizer):
        step(model, optimizer)
    assert distance.measured(9)[1] == 1


def test_a_trial_in_a_trial_gives_way_to_the_outer_one_again(optimizer):
    with taken_back(optimizer):
        outer = trial_of(optimizer)
        with taken_back(optimizer):
            assert trial_of(optimizer) not in (None, outer)
        assert trial_of(optimizer) is outer
    assert trial_of(optimizer) is None


def test_a_copy_of_a_meter_measures_its_own_optimizer(model, optimizer):
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm(takes_back=False)
    with taken_back(optimizer):
        copied, own = copy.deepcopy((meter, model))
        step(own, copied.optimizer)
        assert len(copied.updates) == 1
        assert not copied.rests
