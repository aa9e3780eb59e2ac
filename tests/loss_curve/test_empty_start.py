from __future__ import annotations

import numpy as np

from autowu_hf.loss_curve.empty_start import num_empty, without_empty_start


def test_only_what_is_0_before_everything_else_is_empty():
    losses = np.array([0.0, 0.0, np.nan, 1.0, 0.0])
    assert num_empty(losses) == 2
    np.testing.assert_equal(without_empty_start(losses), [np.nan, np.nan, np.nan, 1.0, 0.0])
    assert num_empty(np.zeros(3)) == 3
    assert num_empty(np.ones(3)) == num_empty(np.empty(0)) == 0
