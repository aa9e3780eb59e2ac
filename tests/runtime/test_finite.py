from __future__ import annotations

import pytest
import torch

from autowu_hf.runtime.finite import has_finite_parameters, is_finite


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_one_broken_parameter_in_any_group_is_seen(broken):
    whole, last = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([{"params": [whole]}, {"params": []}, {"params": [last]}], lr=0.1)
    assert has_finite_parameters(optimizer)
    with torch.no_grad():
        last[1, 1] = broken
    assert not has_finite_parameters(optimizer)


def test_whole_numbers_are_finite():
    assert is_finite(torch.tensor([1, 2]))
    assert not is_finite(torch.tensor([1.0, float("nan")]))
