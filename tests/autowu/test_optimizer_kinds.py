from __future__ import annotations

import functools

import pytest
import torch
from accelerate import Accelerator

from autowu_hf import get_autowu_schedule
from autowu_hf.autowu.optimizer_kinds import (
    averages_noise,
    has_momentum,
    is_like_adam,
    is_used,
    momentum_of,
    num_unrectified,
    rectification,
    rectified_by,
    steps_of,
)


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam", "DAdaptSGD", "LDoG", "Rprop", "ProdigyPlusScheduleFree"])
def test_an_optimizer_that_finds_its_own_lr_is_refused(name):
    kind = type(name, (torch.optim.SGD,), {})
    for optimizer in (kind([torch.nn.Parameter(torch.ones(1))], lr=1.0), type("Mine", (kind,), {})):
        if isinstance(optimizer, type):
            optimizer = optimizer([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        with pytest.raises(ValueError, match=r'finds its learning rate by itself, .* use lr_scheduler_type="constant"'):
            get_autowu_schedule(optimizer, 100)
        with pytest.raises(ValueError, match="finds its learning rate by itself"):
            get_autowu_schedule(Accelerator(cpu=True).prepare(optimizer), 100)


def test_a_schedule_free_optimizer_is_warned_of(caplog):
    kind = type("AdamWScheduleFree", (torch.optim.AdamW,), {})
    get_autowu_schedule(kind([torch.nn.Parameter(torch.ones(1))]), 100)
    assert caplog.text.count("AdamWScheduleFree is made to go without a schedule") == 1


def one_weight(kind, **options):
    return kind([torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))], **options)


def test_what_rectifies_its_updates_is_known():
    for optimizer in (one_weight(torch.optim.RAdam), one_weight(type("Ranger", (torch.optim.Adam,), {}))):
        assert rectified_by(optimizer) == rectified_by(Accelerator(cpu=True).prepare(optimizer)) == 0.999
    assert rectified_by(one_weight(type("Ranger21", (torch.optim.Adam,), {}))) == 0.0
    other = one_weight(torch.optim.AdamW)
    assert rectified_by(other) == 0.0
    other.param_groups[0]["rectify"] = True
    assert rectified_by(other) == 0.999
    assert rectified_by(one_weight(torch.optim.RAdam, betas=(0.9, 0.5))) == 0.0  # it never does


@pytest.mark.parametrize("beta2", [0.99, 0.999])
def test_the_rectification_is_that_of_torch(beta2):
    """Of a constant gradient, Adam's update is 1."""
    optimizer = one_weight(torch.optim.RAdam, lr=1.0, betas=(0.9, beta2), eps=0.0)
    weight = optimizer.param_groups[0]["params"][0]
    for step in range(1, 200):
        before = float(weight.detach())
        weight.grad = torch.full_like(weight, 3.0)
        optimizer.step()
        assert steps_of(optimizer) == step
        update = before - float(weight.detach())
        share = rectification(beta2, step)
        assert update == pytest.approx(3.0 if share == 0.0 else share, rel=1e-9)
        assert (share == 0.0) is (step <= 5)


def test_the_first_steps_are_not_rectified():
    assert [num_unrectified(0.999, done) for done in (0.0, 1.0, 5.0, 6.0, 1000.0)] == [5, 5, 5, 0, 0]
    assert num_unrectified(0.0, 0.0) == 0


def test_an_optimizer_without_a_count_of_its_steps_has_made_none():
    assert steps_of(one_weight(torch.optim.SGD, lr=0.1)) == 0.0
    counting = one_weight(torch.optim.SGD, lr=0.1)
    counting.param_groups[0]["step"] = 7
    assert steps_of(counting) == 7.0
    schedule_free = one_weight(torch.optim.SGD, lr=0.1)
    schedule_free.param_groups[0]["k"] = 3  # as schedulefree's RAdam calls it, which rectifies by it
    assert steps_of(schedule_free) == 3.0


def test_the_momentum_is_that_by_which_updates_grow():
    assert momentum_of({"momentum": 0.9}) == pytest.approx(0.9)
    assert momentum_of({"momentum": 0.9, "dampening": 0.9}) == pytest.approx(0.0)
    assert momentum_of({"lr": 1.0}) == momentum_of({"momentum": 1.0}) == 0.0


@pytest.mark.parametrize(("options", "expected"), [({}, True), ({"betas": (0.0, 0.999)}, False)])
def test_the_first_of_the_betas_is_a_momentum(options, expected):
    assert has_momentum(one_weight(torch.optim.AdamW, lr=0.1, **options)) is expected


def test_who_has_a_momentum_is_known_by_its_groups():
    assert has_momentum(one_weight(torch.optim.SGD, lr=0.1, momentum=0.9))
    assert has_momentum(one_weight(torch.optim.RMSprop, lr=0.1, momentum=0.5))
    assert not has_momentum(one_weight(torch.optim.RMSprop, lr=0.1))
    assert not has_momentum(one_weight(torch.optim.Adagrad, lr=0.1))
    mixed = one_weight(torch.optim.SGD, lr=0.1)
    mixed.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "beta1": 0.9, "betas": None})
    assert has_momentum(mixed)
    assert has_momentum(Accelerator(cpu=True).prepare(one_weight(torch.optim.AdamW, lr=0.1)))


def _add_param_group(optimizer, group):
    super(type(optimizer), optimizer).add_param_group(group)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (functools.partial(torch.optim.AdamW, lr=0.1), True),
        (functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), True),
        (functools.partial(torch.optim.SGD, lr=0.1), False),  # has no state
        (functools.partial(torch.optim.Adagrad, lr=0.1), False),
        (functools.partial(torch.optim.RAdam, lr=0.1), False),
        (type("MineScheduleFree", (torch.optim.AdamW,), {}), False),
        (type("MakesStateWithGroups", (torch.optim.AdamW,), {"add_param_group": _add_param_group}), False),
    ],
)
def test_who_can_be_measured_as_a_new_one_after_its_steps(make, expected):
    weights = torch.nn.Parameter(torch.ones(1))
    optimizer = make([weights])
    assert not is_used(optimizer)
    weights.grad = torch.ones(1)
    optimizer.step()
    assert is_used(optimizer) is expected
    optimizer.state["of all weights"] = 1
    assert not is_used(optimizer)


@pytest.mark.parametrize(
    ("make", "is_it"),
    [
        (torch.optim.Adam, True),
        (torch.optim.AdamW, True),
        (torch.optim.NAdam, True),
        (type("Lion", (torch.optim.Adam,), {}), True),
        (type("FusedLAMB", (torch.optim.Adam,), {}), False),
        (torch.optim.RAdam, False),
        (functools.partial(torch.optim.SGD, momentum=0.9), False),
        (torch.optim.RMSprop, False),
        (torch.optim.Adagrad, False),
        (torch.optim.Adafactor, False),
    ],
)
def test_adam_and_its_like_move_every_weight_as_far(make, is_it):
    optimizer = one_weight(make)
    assert is_like_adam(optimizer) == is_like_adam(Accelerator(cpu=True).prepare(optimizer)) == is_it


@pytest.mark.parametrize(
    ("make", "does"),
    [
        (torch.optim.Adam, True),
        (torch.optim.AdamW, True),
        (functools.partial(torch.optim.AdamW, amsgrad=True), True),
        (torch.optim.NAdam, True),
        (type("FusedLAMB", (torch.optim.Adam,), {}), False),
        (functools.partial(torch.optim.SGD, momentum=0.9), False),
        (torch.optim.RMSprop, False),
        (torch.optim.Adagrad, False),
        (torch.optim.Adafactor, False),
    ],
)
def test_updates_of_adam_and_its_like_become_smaller_by_noise(make, does):
    optimizer = one_weight(make)
    assert not averages_noise(optimizer)  # before its first step, nobody knows
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert averages_noise(optimizer) == averages_noise(Accelerator(cpu=True).prepare(optimizer)) == does
