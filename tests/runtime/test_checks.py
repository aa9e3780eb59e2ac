from __future__ import annotations

import re

import pytest

from autowu_hf.runtime.checks import check_steps


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
