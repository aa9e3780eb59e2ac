from __future__ import annotations

import numpy as np

from autowu_hf.loss_curve.spikes import usable


def test_spikes_and_non_finite_losses_are_left_out_and_keep_their_place():
    losses = np.linspace(2.0, 1.0, 50)
    losses[[7, 20, 33]] = [1e6, np.nan, np.inf]
    expected = np.ones(50, dtype=bool)
    expected[[7, 20, 33]] = False
    assert (usable(losses, standardize=True) == expected).all()
    expected[7] = True
    assert (usable(losses, standardize=False) == expected).all()


def test_sustained_rises_are_no_spikes():
    losses = np.concatenate([np.linspace(2.0, 1.0, 50), np.exp(np.linspace(0.0, 6.0, 20))])
    assert usable(losses, standardize=True)[:-2].all()
