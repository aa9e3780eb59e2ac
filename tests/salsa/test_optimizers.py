from __future__ import annotations

import pytest
import torch
from salsa_models import Point

from autowu_hf.salsa.factory import get_salsa_schedule


def test_optimizers_that_do_not_follow_the_gradient_are_refused():
    model = Point()
    with pytest.raises(ValueError, match="those of AdamW are not; use torch.optim.SGD, or line_search=False and an LR"):
        get_salsa_schedule(torch.optim.AdamW(model.parameters()), 100)
    with pytest.raises(ValueError, match="the optimizer has maximize=True; negate the loss instead"):
        get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), 100)

    class DeepSpeedZeroOptimizer(torch.optim.SGD):
        pass

    with pytest.raises(ValueError, match="move them, here: DeepSpeed's DeepSpeedZeroOptimizer may keep weights"):
        get_salsa_schedule(DeepSpeedZeroOptimizer(model.parameters(), lr=0.1), 100)


def test_sharded_weights_are_refused():
    class FullyShardedDataParallel(Point):
        pass

    model = FullyShardedDataParallel()
    scheduler = get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1), 100)
    model().backward()
    with pytest.raises(
        ValueError, match="the weights are sharded over the processes, .* use DDP, or line_search=False"
    ):
        scheduler.search(model, model)
