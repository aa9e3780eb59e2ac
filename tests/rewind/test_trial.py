"""Optimizer steps that leave nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autowu_hf.rewind.trial import trial
from autowu_hf.runtime.param_groups import set_lrs


def stepped(model, optimizer):
    model(torch.rand(8, 4)).square().sum().backward()
    set_lrs(optimizer, [0.5])
    optimizer.step()


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back_whether_the_block_ends_or_fails(fails):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3))
    stepped(model, optimizer)
    model.eval()
    gradients = [parameter.grad for parameter in model.parameters()]
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    lr, numbers = optimizer.param_groups[0]["lr"].clone(), torch.get_rng_state()
    try:
        with trial(model, optimizer):
            assert model.training
            assert all(parameter.grad is None for parameter in model.parameters())
            stepped(model, optimizer)
            if fails:
                raise RuntimeError("out of memory")
    except RuntimeError:
        assert fails
    after = model.state_dict(), optimizer.state_dict()["state"]
    assert all(torch.equal(old, after[0][name]) for name, old in before[0].items())
    for old, new in zip(before[1].values(), after[1].values(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert torch.equal(optimizer.param_groups[0]["lr"], lr)
    assert all(p.grad is old for p, old in zip(model.parameters(), gradients, strict=True))
    assert not model.training
    assert torch.equal(torch.get_rng_state(), numbers)


def test_weights_that_are_out_of_reach_are_refused_before_anything_is_done():
    class Lomo(torch.optim.SGD):
        """Has the name of one that changes the weights in the backward."""

    model = nn.Linear(2, 2).eval()
    optimizer = Lomo(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the weights cannot be put back: LOMO changes"), trial(model, optimizer):
        pytest.fail("the block must not be entered")
    assert not model.training
