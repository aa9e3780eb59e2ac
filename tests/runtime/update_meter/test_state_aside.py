"""An optimizer's state set aside for one step."""

from __future__ import annotations

import copy
import gc

import pytest
import torch

from autowu_hf.runtime.update_meter import UpdateMeter, state_aside
from autowu_hf.runtime.update_meter.state_aside import StateAside


class CountsInItsGroups(torch.optim.SGD):
    """Makes the state of its weights at the first step that it counts, as those of pytorch_optimizer do."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if group["step"] == 1:
                    self.state[parameter]["mean"] = torch.zeros_like(parameter)
                self.state[parameter]["mean"].lerp_(parameter.grad, 0.5)
                parameter.data -= group["lr"] * self.state[parameter]["mean"]


def used(make, num_steps=5):
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = make([weights], lr=0.01)
    for _ in range(num_steps):
        weights.grad = torch.randn(4, 3)
        optimizer.step()
    return weights, optimizer


def momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


KINDS = [torch.optim.AdamW, momentum, CountsInItsGroups]


@pytest.mark.parametrize("make", KINDS)
def test_the_step_is_that_of_a_new_optimizer_and_the_state_is_as_it_was(make):
    weights, optimizer = used(make)
    before = copy.deepcopy(optimizer.state_dict())
    aside = StateAside(optimizer)
    assert not aside.put_back()
    other = torch.nn.Parameter(weights.detach().clone())
    new = make([other], lr=0.01)
    for _ in range(2):
        weights.grad = torch.randn(4, 3)
        other.grad = weights.grad.clone()
        aside.take()
        optimizer.step()
        new.step()
        assert torch.equal(weights, other)
        assert aside.put_back()
        assert not aside.put_back()
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert set(after["state"][0]) == set(before["state"][0])
    for name, value in before["state"][0].items():
        assert torch.equal(torch.as_tensor(after["state"][0][name]), torch.as_tensor(value))
    aside.take()
    aside.forget()
    aside.take()
    assert not optimizer.state
    aside.put_back()


@pytest.mark.parametrize("make", KINDS)
def test_a_meter_measures_a_used_optimizer_as_a_new_one_and_leaves_nothing_behind(make):
    weights, optimizer = used(make)
    before, state = weights.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"][0])
    other = torch.nn.Parameter(before.clone())
    x = torch.randn(4, 3)

    def measured(own, parameter):
        meter = UpdateMeter(own, [1.0], lambda: own is optimizer)
        meter.arm()
        own.zero_grad()
        (parameter * x).sum().backward()
        own.step()
        meter.disarm()
        return meter.updates[0], meter.as_new

    found, as_new = measured(optimizer, weights)
    of_new, is_not = measured(make([other], lr=0.01), other)
    assert as_new
    assert not is_not
    assert found.update_norm == pytest.approx(of_new.update_norm, rel=1e-4)
    assert found.slope == pytest.approx(of_new.slope, rel=1e-4)
    assert torch.equal(weights, before)
    assert not torch.equal(other, before)
    for name, value in state.items():
        assert torch.equal(torch.as_tensor(optimizer.state_dict()["state"][0][name]), torch.as_tensor(value))


@pytest.mark.parametrize("then", ["is saved", "is loaded", "makes a step", "is held by nobody"])
def test_a_step_that_ends_in_an_error_loses_nothing(then):
    weights, optimizer = used(torch.optim.AdamW)
    state, saved = optimizer.state, copy.deepcopy(optimizer.state_dict())
    aside = StateAside(optimizer)
    aside.take()
    assert not optimizer.state
    if then == "is saved":
        assert optimizer.state_dict()["state"].keys() == saved["state"].keys()
    elif then == "is loaded":
        optimizer.load_state_dict(saved)
        assert float(optimizer.state[weights]["step"]) == 5.0
        assert not aside.put_back()
        assert float(optimizer.state[weights]["step"]) == 5.0
    elif then == "makes a step":
        optimizer.state[weights]["half made"] = 1.0
        aside.take()
        assert not optimizer.state
        aside.put_back()
        assert optimizer.state is state
    else:
        del aside
        gc.collect()
        assert optimizer.state is state
    assert not optimizer._optimizer_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_pre_hooks


def test_what_else_the_groups_count_is_put_back_and_lrs_stay():
    _, optimizer = used(CountsInItsGroups)
    group = optimizer.param_groups[0]
    group["decayed"] = 0.5
    aside = StateAside(optimizer)
    aside.take()
    assert "step" not in group
    group |= {"decayed": 0.25, "made": 1, "lr": 0.02}
    aside.put_back()
    assert (group["step"], group["decayed"], group["lr"]) == (5, 0.5, 0.02)
    assert "made" not in group
    aside.take()
    assert (group["decayed"], group["made"], group["lr"]) == (0.25, 1, 0.02)
    aside.put_back()


def test_steps_that_stay_are_made_with_the_state():
    weights, optimizer = used(torch.optim.AdamW)
    meter = UpdateMeter(optimizer, [1.0], lambda: True)
    meter.arm(takes_back=False)
    before = weights.detach().clone()
    optimizer.step()
    meter.disarm()
    assert float(optimizer.state[weights]["step"]) == 6.0
    assert not torch.equal(weights, before)


def test_tensors_that_weights_share_are_moved_once():
    shared, own = torch.ones(3), torch.ones(3)
    states = [{"mean": shared}, {"mean": shared, "own": own}]
    meta = torch.device("meta")  # a device that every machine has
    state_aside._move([(states[0], "mean", meta), (states[1], "mean", meta), (states[1], "own", meta)])
    assert {value.device for state in states for value in state.values()} == {meta}
    assert states[0]["mean"] is states[1]["mean"] is not states[1]["own"]
