"""A stand-in for DeepSpeed's optimizer of half precision without ZeRO; ``test_launchers`` runs the real one."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from autowu_hf.runtime.param_groups import parameters_of, shares_out_of_reach, trained_ids
from autowu_hf.runtime.param_groups.masters import half_copies, has_masters


class FP16_UnfusedOptimizer:  # noqa: N801, DeepSpeed's name
    """Puts masters in single precision in the place of the parameters."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.fused_lamb_legacy = False
        self.fp16_groups = [[*group["params"]] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["params"] = [parameter.detach().float().requires_grad_() for parameter in group["params"]]
        self.fp32_groups = [group["params"] for group in optimizer.param_groups]

    @property
    def param_groups(self):
        return self.optimizer.param_groups


FP16_UnfusedOptimizer.__module__ = "deepspeed.runtime.fp16.unfused_optimizer"


def made():
    weights = [nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16)), nn.Parameter(torch.ones(3, dtype=torch.bfloat16))]
    groups = [{"params": [weight]} for weight in weights]
    return FP16_UnfusedOptimizer(torch.optim.SGD(groups, lr=0.1)), weights


def test_training_changes_the_masters_and_the_copies():
    optimizer, weights = made()
    masters = [*optimizer.fp32_groups[0], *optimizer.fp32_groups[1]]
    assert [*map(id, parameters_of(optimizer))] == [*map(id, [*masters, *weights])]
    assert trained_ids(optimizer) == {*map(id, [*masters, *weights])}
    assert shares_out_of_reach(optimizer) is None


def test_a_schedule_that_was_made_for_the_optimizer_inside_knows_the_copies_too():
    optimizer, weights = made()
    inner = optimizer.optimizer
    assert not has_masters(inner)
    assert has_masters(optimizer)
    assert has_masters(inner)
    assert [*map(id, half_copies(inner))] == [*map(id, weights)]


def test_nobody_keeps_the_wrap_alive():
    optimizer, _ = made()
    assert has_masters(optimizer)
    inner, alive = optimizer.optimizer, weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None
    assert not has_masters(inner)
    assert half_copies(inner) == []


def test_a_step_that_cannot_be_heard_is_out_of_reach():
    optimizer, _ = made()
    optimizer.fused_lamb_legacy = True
    assert half_copies(optimizer) == []
    assert "an optimizer of its own, FP16_UnfusedOptimizer" in shares_out_of_reach(optimizer).reason


def test_any_other_optimizer_has_none():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    assert not has_masters(optimizer)
    assert len(parameters_of(optimizer)) == 1
