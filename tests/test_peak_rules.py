from __future__ import annotations

import numpy as np
import pytest

from autowu_hf.loss_curve_gp import GRID, FastGP
from autowu_hf.peak_rules import cliff_place, cliff_probability, minimum_probability, peak_lr


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
    assert low <= cliff_probability(posterior(valley(rise))) <= high


def test_the_minimum_is_seen_long_before():
    assert minimum_probability(posterior(valley(0.3))) > 0.99


def test_where_nothing_was_gained_any_sure_rise_is_a_cliff():
    flat_then_up = posterior(lambda x: np.where(x < 0.7, 0.0, 2.0 * (x - 0.7)))
    assert cliff_probability(flat_then_up) > 0.99
    assert 0.6 < cliff_place(flat_then_up.mean) < 0.8


def test_the_place_is_where_the_curve_last_rose_above_half_of_the_gain():
    mean = valley(2.0)(GRID)
    s = (cliff_place(mean) - 0.6) / 0.4
    assert 2.0 * (1 - np.cos(np.pi * s)) / 2 == pytest.approx(0.5, abs=0.02)
    assert cliff_place(valley(0.3)(GRID)) == 1.0
    flat = np.where(GRID < 0.9, 0.01 * np.sin(40 * GRID), 5.0)
    assert cliff_place(flat) == pytest.approx(0.9, abs=0.01)


def test_noise_is_no_cliff():
    passed = [cliff_probability(posterior(lambda x: 0.0 * x, noise=1.0, seed=seed)) > 0.95 for seed in range(60)]
    assert sum(passed) <= 3


@pytest.mark.parametrize(
    ("rule", "at_cap", "minimum_lr", "cliff_lr", "expected"),
    [
        ("minimum", False, 0.02, 1.0, 0.02),
        ("minimum", True, 0.02, 1.0, 0.015),
        ("cliff", False, 0.02, 0.1, 0.01),  # half of the LR at the minimum
        ("cliff", False, 0.08, 0.1, 0.03),  # three tenths of the LR at the cliff
        ("cliff", False, 0.5, 0.5, 0.15),
        ("cliff", True, 0.5, 0.5, 0.015),  # three hundredths of the LR at the cap
        ("cliff", False, 1e-5, 2e-5, 1e-5),  # never below where it started
    ],
)
def test_the_peak_is_the_lowest_of_what_the_rule_allows(rule, at_cap, minimum_lr, cliff_lr, expected):
    assert peak_lr(rule, at_cap, minimum_lr, cliff_lr, last_lr=0.5, lowest_lr=1e-5) == pytest.approx(expected)
