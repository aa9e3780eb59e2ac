from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from autowu_hf import get_autowu_schedule


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
