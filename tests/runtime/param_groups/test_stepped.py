from __future__ import annotations

import torch
from torch import nn

from autowu_hf.runtime.param_groups import Stepped


def made(ratios=(0.0, 0.5)):
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))
    groups = [{"params": [first], "lr": 0.0}, {"params": [second], "lr": 0.2, "weight_decay": 0.1}]
    return Stepped(torch.optim.AdamW(groups, lr=1.0), ratios), first, second


def test_the_common_lr_is_that_of_a_group_of_ratio_1():
    stepped, *_ = made()
    assert stepped.lr() == 0.4
    assert Stepped(stepped.optimizer, [0.0, 0.0]).lr() == 0.0


def test_every_parameter_has_the_lr_and_the_decay_of_its_group():
    stepped, first, second = made()
    assert stepped.rates() == {id(first): (0.0, 0.01), id(second): (0.2, 0.1)}


def test_without_zero_a_call_is_a_step_of_all_parameters():
    stepped, first, second = made()
    assert stepped.begins()
    assert stepped.ends()
    assert all(a is b for a, b in zip(stepped.parameters(), [first, second], strict=True))
    assert all(a is b for a, b in zip(stepped.with_gradients(), [first, second], strict=True))
    weights = [torch.zeros(1)]
    assert stepped.in_order(weights) is weights
    first.grad = torch.ones(1)
    stepped.hide_gradients()
    assert first.grad is not None
