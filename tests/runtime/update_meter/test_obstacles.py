from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from autowu_hf.runtime.update_meter.obstacles import obstacle_in, obstacle_of, seem_clipped
from autowu_hf.runtime.update_meter.update import NUM_SUMS, Update

SEEN = Update(
    slope=1.0, update_norm=1.0, weight_norm=1.0, alignment=1.0, resolution=1.0, clipping=1.0, gradient_norm=2.0
)


def with_norms(*norms):
    return [dataclasses.replace(SEEN, gradient_norm=norm) for norm in norms]


def test_gradients_of_one_norm_seem_clipped():
    assert seem_clipped(with_norms(2.0, 2.0), is_half=False)
    assert not seem_clipped(with_norms(2.0, 2.01), is_half=False)
    assert seem_clipped(with_norms(2.0, 2.005), is_half=True)
    assert not seem_clipped([dataclasses.replace(SEEN, clipping=3.0)] * 2, is_half=False)


def test_gradients_that_are_no_numbers_to_reckon_with():
    parameter = nn.Parameter(torch.ones(2))
    assert obstacle_in([parameter]) is None
    parameter.grad = torch.ones(2)
    assert obstacle_in([parameter]) is None
    parameter.grad = torch.ones(2).to_sparse()
    assert obstacle_in([parameter]) == "the gradients are sparse"


@pytest.mark.parametrize(
    ("sums", "clipping", "flags", "said"),
    [
        (1.0, 1.0, (False, False, False), None),
        (1.0, 1.0, (True, False, False), "closure"),
        (1.0, 1.0, (False, True, False), "by another optimizer"),
        (1.0, 1.0, (False, False, True), "taken back under ZeRO"),
        (0.0, 1.0, (False, False, False), "no gradients"),
        (float("nan"), 1.0, (False, False, False), "not finite"),
        (1.0, None, (False, False, False), "clipped"),
    ],
)
def test_a_step_that_cannot_be_measured(sums, clipping, flags, said):
    obstacle = obstacle_of(torch.full((NUM_SUMS,), sums), clipping, *flags)
    assert obstacle is None if said is None else said in obstacle
