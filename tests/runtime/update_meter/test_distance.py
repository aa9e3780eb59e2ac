"""How far the weights get in how many steps of the optimizer."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from autowu_hf.runtime.update_meter import Distance, UpdateMeter


@pytest.fixture
def made():
    weights = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weights], lr=0.5)
    distance = Distance(UpdateMeter(optimizer, [1.0]))
    return weights, optimizer, distance


def move(weights, optimizer, times=1):
    for _ in range(times):
        weights.grad = torch.ones_like(weights)  # 1 along each of four axes, with an LR of 0.5
        optimizer.step()


def num_hooks(optimizer):
    return len(optimizer._optimizer_step_post_hooks)


def test_it_counts_the_optimizers_own_steps(made):
    weights, optimizer, distance = made
    move(weights, optimizer)
    distance.start()
    move(weights, optimizer, times=3)
    assert distance.measured(100) == (pytest.approx(3.0, rel=1e-5), 3)
    distance.start()
    assert distance.measured(100) is None  # no step yet
    move(weights, optimizer)
    assert distance.measured(100) == (pytest.approx(1.0, rel=1e-5), 1)


def test_after_a_stop_there_is_nothing_to_tell_and_no_hook(made):
    weights, optimizer, distance = made
    distance.start()
    distance.start()
    assert num_hooks(optimizer) == 1
    distance.stop()
    assert num_hooks(optimizer) == 0
    move(weights, optimizer)
    assert distance.measured(1) is None


def test_of_other_weights_it_tells_nothing(made):
    weights, optimizer, distance = made
    distance.start()
    move(weights, optimizer)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert distance.measured(1) is None


@pytest.mark.parametrize("way", ["state", "copy"])
def test_it_goes_on_in_another_process(made, way):
    weights, optimizer, distance = made
    distance.start()
    move(weights, optimizer, times=2)
    if way == "copy":
        weights, optimizer, other = copy.deepcopy((weights, optimizer, distance))
    else:
        other = Distance(UpdateMeter(optimizer, [1.0]))
        other.load_state_dict(distance.state_dict())
    move(weights, optimizer)
    assert other.measured(100) == (pytest.approx(3.0, rel=1e-5), 3)


def test_a_state_of_an_older_release_takes_the_schedules_count(made):
    weights, optimizer, distance = made
    distance.start()
    move(weights, optimizer)
    state = distance.state_dict()
    del state["num_taken"]
    distance.load_state_dict(state)
    assert distance.measured(7) == (pytest.approx(1.0, rel=1e-5), 7)


def test_the_optimizer_keeps_none_alive():
    weights = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weights], lr=0.5)
    distance = Distance(UpdateMeter(optimizer, [1.0]))
    distance.start()
    gone = weakref.ref(distance)
    del distance
    gc.collect()
    assert gone() is None
    move(weights, optimizer)  # its hook has nothing to do any more
