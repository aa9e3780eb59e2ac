from __future__ import annotations

import re

import pytest
import torch
from accelerate import Accelerator

from autowu_hf import get_autowu_schedule
from autowu_hf.runtime.param_groups import lr_ratios, set_lrs


def groups_of(*lrs: float, default: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return torch.optim.AdamW(groups, lr=default)


def test_ratios_are_to_the_default_and_survive_a_schedule_and_a_wrap():
    optimizer = groups_of(1e-3, 5e-4, default=1e-3)
    assert lr_ratios(optimizer) == [1.0, 0.5]
    get_autowu_schedule(optimizer, 10)
    assert lr_ratios(optimizer) == [1.0, 0.5]
    assert lr_ratios(Accelerator(cpu=True).prepare(optimizer)) == [1.0, 0.5]


def test_set_lrs_sets_every_group():
    optimizer = groups_of(1e-3, 5e-4, default=1e-3)
    set_lrs(optimizer, [0.1, 0.2])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_a_tensor_lr_is_filled_in_place():
    lr = torch.tensor(1e-3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr, capturable=False, foreach=False)
    scheduler = get_autowu_schedule(optimizer, 100)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(1e-5)
    optimizer.step()
    scheduler.step(1.0)
    assert lr.item() == pytest.approx(1e-5 * 1e5 ** (0.3 * 10 / 25))


def test_a_layer_wise_optimizer_is_refused():
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    optimizer = LayerWiseDummyOptimizer(optimizer_dict={})
    with pytest.raises(
        ValueError, match="LayerWiseDummyOptimizer steps every layer by itself .* use an optimizer without"
    ):
        get_autowu_schedule(optimizer, 100)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.0),
            "the optimizer's default lr must be positive, got 0.0; pass any positive lr",
        ),
        (None, "optimizer must be a torch.optim.Optimizer, got NoneType"),
    ],
)
def test_an_optimizer_without_a_unit_is_refused(optimizer, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        get_autowu_schedule(optimizer, 100)
