from __future__ import annotations

import pytest
import torch
from transformers import SchedulerType, get_scheduler

import autowu_hf
from autowu_hf.runtime.methods import METHODS, register_method


@pytest.fixture
def sixth():
    """A method that is registered as those of the package are."""

    def get_halving_schedule(optimizer, num_training_steps, num_warmup_steps=0, *, after: int = 2):
        return torch.optim.lr_scheduler.StepLR(optimizer, after, gamma=0.5)

    register_method("halving", get_halving_schedule, is_adaptive=False)
    autowu_hf.register()
    yield
    autowu_hf.unregister()
    del METHODS["halving"]


def test_each_folder_of_a_method_registers_it():
    assert sorted(METHODS) == ["autolrs", "autowu", "rex", "salsa"]
    assert [name for name, method in METHODS.items() if not method.is_adaptive] == ["rex"]


def test_another_method_needs_no_more_than_a_registration(sixth):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert SchedulerType("halving") is SchedulerType.HALVING
    schedule = get_scheduler("halving", optimizer, 0, 10, scheduler_specific_kwargs={"after": 1})
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.5]


def test_an_unknown_option_lists_the_known_ones(sixth):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="unknown option of lr_scheduler_type='halving' 'gamma'; pick one of after"):
        get_scheduler("halving", optimizer, 0, 10, scheduler_specific_kwargs={"gamma": 0.1})


def test_of_an_option_with_a_mistake_the_right_name_is_named(sixth):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"'halving' 'aftr' \(did you mean 'after'\?\); pick one of after"):
        get_scheduler("halving", optimizer, 0, 10, scheduler_specific_kwargs={"aftr": 1})
