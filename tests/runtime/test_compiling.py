"""torch.compile beside the schedules; backend="eager" needs no compiler of C++."""

from __future__ import annotations

import pytest
import torch
from scale_runs import made
from torch import nn

from autowu_hf import get_salsa_schedule
from autowu_hf.runtime.compiling import untraced
from autowu_hf.runtime.losses.history import LossHistory, MissingLossWarning


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def lrs_of(optimizer, model, step, num_steps=6):
    """The LR of each step of a run; ``step`` is called with the loss after each backward."""
    lrs = []
    for i in range(num_steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        loss.backward()
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        step(loss.detach())
        optimizer.zero_grad()
    return lrs


def run(which):
    """A run with a part of its step compiled, and the number of pieces that it was compiled into."""
    model, optimizer, schedule = made(40, make=lambda weights, lr: torch.optim.SGD(weights, lr=torch.tensor(lr)))
    optimizer_step, pieces = optimizer.step, []

    def compiled(function):
        return torch.compile(function, backend=lambda module, inputs: pieces.append(module) or module.forward)

    def both(loss):
        optimizer_step()
        schedule.step(loss)

    if which == "optimizer":
        optimizer_step = compiled(lambda: optimizer.step())
    lrs = lrs_of(optimizer, model, compiled(both) if which == "both" else both)
    assert schedule.report()["approach"]["scale"] is not None
    return lrs, len(pieces)


@pytest.mark.parametrize("which", ["optimizer", "both"])
def test_a_compiled_step_is_one_that_is_not_compiled(which):
    """Without a warning, and compiled anew neither at each step nor piece by piece of what the schedule does."""
    lrs, num_pieces = run(which)
    assert lrs == pytest.approx(run(None)[0], rel=1e-4)
    assert 1 <= num_pieces <= 6


def test_salsas_look_at_the_weights_is_not_compiled():
    def found(compiled):
        model = nn.Linear(6, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))
        schedule = get_salsa_schedule(optimizer, 40, line_search=False)
        optimizer_step = torch.compile(lambda: optimizer.step(), backend="eager") if compiled else optimizer.step

        def step(loss):
            optimizer_step()
            schedule.step(loss)

        torch.manual_seed(0)
        nn.init.normal_(model.weight)
        nn.init.zeros_(model.bias)
        return [*lrs_of(optimizer, model, step, 4), *schedule._tap.pending().tolist()]

    assert found(True) == pytest.approx(found(False), rel=1e-4)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_warning_points_at_the_line_that_calls_it(is_compiled):
    numbers, observe = torch.ones(2), untraced(LossHistory().observe)

    def own():
        numbers.add_(1.0)
        observe(None)
        numbers.add_(1.0)

    with pytest.warns(MissingLossWarning) as caught:
        (torch.compile(own, backend="eager") if is_compiled else own)()
    assert (caught[0].filename, caught[0].lineno) == (__file__, own.__code__.co_firstlineno + 2)
    assert numbers.tolist() == [3.0, 3.0]
