from __future__ import annotations

import numpy as np
import pytest

from autowu_hf.loss_curve.gp import GRID, FastGP
from autowu_hf.loss_curve.minimum_and_cliff import (
    cliff_place,
    cliff_probability,
    minimum_place,
    minimum_probability,
)


def posterior(curve, noise=0.02, n=300, seed=0):
    x = np.arange(n) / n
    y = curve(x) + noise * np.random.default_rng(seed).standard_normal(n)
    engine = FastGP()
    return engine.posteriors(engine.fit(x, y), [(x, y)])[0]


def valley(rise):
    """Falls from 1 to 0 at 0.6, then rises by ``rise`` until 1."""

    def curve(x):
        s = np.clip((x - 0.6) / 0.4, 0, 1)
        return np.where(x < 0.6, np.cos(np.pi * x / 0.6) / 2 + 0.5, rise * (1 - np.cos(np.pi * s)) / 2)

    return curve


@pytest.mark.parametrize(("rise", "low", "high"), [(0.0, 0.0, 0.01), (0.3, 0.0, 0.01), (0.9, 0.99, 1.0), (3, 0.99, 1)])
def test_the_cliff_is_passed_where_half_of_the_gain_is_lost(rise, low, high):
    assert low <= cliff_probability(posterior(valley(rise)), noise=0.02) <= high


def test_the_minimum_is_seen_long_before():
    assert minimum_probability(posterior(valley(0.3))) > 0.99


def test_where_nothing_was_gained_a_sure_rise_out_of_the_noise_is_a_cliff():
    flat_then_up = posterior(lambda x: np.where(x < 0.7, 0.0, 2.0 * (x - 0.7)))
    assert cliff_probability(flat_then_up, noise=0.02) > 0.99
    assert cliff_probability(flat_then_up, noise=0.5) > 0.9  # it ends at 0.6
    assert cliff_probability(flat_then_up, noise=0.7) < 0.1
    assert 0.65 < cliff_place(flat_then_up.mean, noise=0.02) < 0.75
    assert cliff_place(flat_then_up.mean, noise=0.2) == pytest.approx(0.8, abs=0.02)


def test_the_place_is_where_the_curve_last_rose_above_half_of_the_gain():
    mean = valley(2.0)(GRID)
    s = (cliff_place(mean, noise=0.02) - 0.6) / 0.4
    assert 2.0 * (1 - np.cos(np.pi * s)) / 2 == pytest.approx(0.5, abs=0.02)
    assert cliff_place(valley(0.3)(GRID), noise=0.02) == 1.0
    flat = np.where(GRID < 0.9, 0.01 * np.sin(40 * GRID), 5.0)
    assert cliff_place(flat, noise=0.0) == pytest.approx(0.9, abs=0.01)


def test_the_minimum_is_the_last_place_that_is_as_good():
    mean = (GRID - 0.5) ** 2  # gains 0.25
    assert minimum_place(mean, noise=0.0) == pytest.approx(0.5, abs=0.002)
    assert minimum_place(mean, noise=0.1) == pytest.approx(0.5 + (0.1**2 / 0.25) ** 0.5, abs=0.003)
    assert minimum_place(mean[GRID <= 0.6], noise=0.1) == pytest.approx(0.6, abs=0.003)
    flat_then_up = np.maximum(GRID - 0.5, 0.0)  # gains nothing
    assert minimum_place(flat_then_up, noise=0.1) == pytest.approx(0.6, abs=0.003)
    assert minimum_place(np.zeros(500), noise=0.0) == 0.0  # the first of equals, as in eq. (5)


def test_noise_is_no_cliff():
    curves = [posterior(lambda x: 0.0 * x, noise=1.0, seed=seed) for seed in range(60)]
    assert sum(cliff_probability(curve, noise=0.0) > 0.95 for curve in curves) <= 3
    assert not any(cliff_probability(curve, noise=1.0) > 0.95 for curve in curves)
