from __future__ import annotations

import math

import numpy as np
import pytest

from autowu_hf.autolrs.forecast import drop_outliers, fit_exponential, forecast

SERIES = [(2.0, -0.05, 0.5, 100), (1.0, -0.005, 1.0, 100), (3.0, -0.3, 0.1, 20), (-1.0, -0.02, 3.0, 50)]


@pytest.mark.parametrize(("a", "b", "c", "n"), SERIES)
def test_the_forecast_is_that_of_a_known_exponential(a, b, c, n):
    x = np.arange(n, dtype=np.float64)
    losses = a * np.exp(b * x) + c
    assert fit_exponential(x, losses, slowest=3.0 * n) == pytest.approx((a, b, c), rel=1e-4)
    assert forecast(x, losses, 10.0 * n) == pytest.approx(a * math.exp(10 * b * n) + c, abs=1e-5)


@pytest.mark.parametrize(("a", "b", "c", "n"), SERIES)
def test_outliers_hardly_move_it(a, b, c, n):
    rng = np.random.default_rng(0)
    x = np.arange(n, dtype=np.float64)
    losses = a * np.exp(b * x) + c + 0.005 * rng.standard_normal(n)
    clean = forecast(x, losses, 10.0 * n)
    losses[rng.choice(n // 2, n // 10, replace=False)] += 5.0
    assert forecast(x, losses, 10.0 * n) == pytest.approx(clean, abs=0.1)
    assert clean == pytest.approx(a * math.exp(10 * b * n) + c, abs=0.1)


def test_the_unit_of_the_loss_does_not_matter():
    x = np.arange(60, dtype=np.float64)
    losses = np.exp(-0.03 * x) + 0.1 * np.random.default_rng(1).standard_normal(60)
    assert forecast(x, 1e-4 * losses - 3e-4, 600.0) == pytest.approx(1e-4 * forecast(x, losses, 600.0) - 3e-4, rel=1e-6)


def test_a_line_is_not_extended_for_ever():
    x = np.arange(30, dtype=np.float64)
    assert forecast(x, 3.0 - 0.01 * x, 300.0) > 3.0 - 0.01 * 120


def test_losses_that_rise_are_forecast_above_those_that_fall():
    x = np.arange(40, dtype=np.float64)
    assert forecast(x, 2.0 + 0.02 * x, 400.0) > 2.8 > 1.2 > forecast(x, 2.0 - 0.02 * x, 400.0)


def test_a_diverged_candidate_has_no_forecast():
    x = np.arange(20, dtype=np.float64)
    losses = np.ones(20)
    losses[-1] = np.nan
    assert math.isnan(forecast(x, losses, 200.0))
    assert math.isnan(forecast(x[:3], np.ones(3), 200.0))
    assert math.isnan(forecast(np.empty(0), np.empty(0), 200.0))
    losses[-1], losses[5] = 1.0, np.inf
    assert forecast(x, losses, 200.0) == pytest.approx(1.0)


def test_ten_passes_drop_three_percent_each_from_the_first_half():
    x = np.arange(200, dtype=np.float64)
    losses = np.exp(-x / 50)
    losses[[7, 30, 31, 60]] += 4.0
    losses[[150, 180]] += 4.0
    kept, _ = drop_outliers(x, losses, is_validation=False)
    assert len(kept) == 200 - 10 * 6
    assert not np.isin([7, 30, 31, 60], kept).any()
    assert np.isin([150, 180], kept).all()
    assert len(drop_outliers(x[:20], losses[:20], is_validation=False)[0]) == 14


def test_validation_losses_lose_their_worst_only():
    x = np.arange(1, 17, dtype=np.float64)
    losses = np.exp(-x / 8)
    losses[12] += 1.0
    kept, _ = drop_outliers(x, losses, is_validation=True)
    assert np.setdiff1d(x, kept).tolist() == [13.0]
    assert forecast(x, losses, 160.0, is_validation=True) == pytest.approx(0.0, abs=1e-4)
