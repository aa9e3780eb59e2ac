from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from autowu_hf import get_autowu_schedule
from autowu_hf.runtime.checks import check_steps, whole


@pytest.mark.parametrize("steps", [100, np.int64(100), 100.0, torch.tensor(100), np.array(100)])
def test_a_number_of_steps_may_be_of_any_kind(steps):
    assert type(whole(steps)) is int
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    schedule = get_autowu_schedule(optimizer, steps, whole(steps) // 5, steps_per_epoch=steps)
    assert (schedule.num_training_steps, schedule.num_warmup_steps, schedule.steps_per_epoch) == (100, 20, 100)


@pytest.mark.parametrize("steps", [99.5, "100", None, True, torch.ones(2), float("inf"), float("nan")])
def test_what_is_no_whole_number_stays_as_it_is(steps):
    assert whole(steps) is steps


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ((1, 0, None), "num_training_steps must be a whole number of at least 2, got 1; pass the number of optimizer"),
        ((None, 0, None), "num_training_steps must be a whole number of at least 2, got None"),
        ((10, 10, None), "num_warmup_steps must be a whole number from 0 to num_training_steps - 1 = 9, got 10"),
        ((10, 0, 0), "steps_per_epoch must be a whole number of at least 1, got 0"),
    ],
)
def test_lengths_outside_their_limits_are_refused(lengths, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_steps(*lengths)
