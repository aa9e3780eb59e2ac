from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn

from autowu_hf import ForeignLRWarning, get_autolrs_schedule, get_autowu_schedule, get_salsa_schedule
from autowu_hf.runtime.param_groups import ForeignLR

STEPS = 200


def optimizer_of(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs], lr=0.1)


@pytest.mark.parametrize(
    ("present", "is_said"),
    [((0.1, 0.01), False), ((0.1 + 1e-7, 0.01), False), ((0.1, 0.02), True), ((0.0, 0.01), True)],
)
def test_another_lr_than_the_one_that_was_set_is_said_once(present, is_said, recwarn):
    watch, optimizer = ForeignLR("AutoWU"), optimizer_of(*present)
    for step in (6, 7, 8):
        watch.look(optimizer, [0.1, 0.01], step)
    assert len(recwarn) == is_said
    if is_said:
        told = str(recwarn[0].message)
        number, had = (1, 0.01) if present[0] == 0.1 else (0, 0.1)
        assert told.startswith(f"at scheduler step 7 the learning rate of parameter group {number} was ")
        assert f"but AutoWU had set it to {had}, and so it was at the step before: something else" in told


def test_another_lr_at_one_step_alone_is_none(recwarn):
    """That of a state which was loaded into the optimizer."""
    watch = ForeignLR("AutoWU")
    for step, lr in enumerate((0.1, 0.5, 0.1, 0.1, 0.5, 0.1)):
        watch.look(optimizer_of(lr), [0.1], step)
    assert len(recwarn) == 0


def test_lrs_that_are_tensors_are_not_read(recwarn):
    optimizer = optimizer_of(0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(5.0)
    ForeignLR("AutoWU").look(optimizer, [0.1], 1)
    assert len(recwarn) == 0


def nothing(optimizer, step):
    pass


def by_hand(optimizer, step):
    """As scripts have it that decay the LR in the loop."""
    for group in optimizer.param_groups:
        group["lr"] = 1e-4 * (1 - step / STEPS)


def beside(optimizer, step):
    """Another scheduler of the same optimizer."""
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5).step()


@pytest.mark.parametrize(
    "schedule", [get_autowu_schedule, get_autolrs_schedule, functools.partial(get_salsa_schedule, line_search=False)]
)
@pytest.mark.parametrize("intruder", [nothing, by_hand, beside])
def test_whoever_sets_the_lr_beside_a_schedule_is_said(schedule, intruder):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    x = torch.randn(64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scheduler = schedule(optimizer, STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # of a second one
        for step in range(20):
            loss = ((model(x)[:, 0] - x.sum(1)) ** 2).mean()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
            optimizer.zero_grad()
            intruder(optimizer, step)
    found = [one for one in caught if one.category is ForeignLRWarning]
    assert len(found) == (intruder is not nothing)
    assert all(one.filename == __file__ for one in found)
