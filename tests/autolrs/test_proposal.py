from __future__ import annotations

import math

import pytest

from autowu_hf.autolrs.proposal import best_of, propose


def search(landscape, kappa=1e6, n=10) -> tuple[list[float], list[float]]:
    tried, forecasts = [], []
    for _ in range(n):
        tried.append(propose(tried, forecasts, 1e-5, 0.1, kappa))
        forecasts.append(landscape(tried[-1]))
    return tried, forecasts


def bowl(best: float):
    """The loss against the LR: lowest at ``best``, and no number far above it."""
    return lambda lr: math.nan if lr > 30 * best else 1e-4 * math.log10(lr / best) ** 2 + 7.0


@pytest.mark.parametrize("best", [3e-5, 2e-4, 1e-3, 2e-2])
def test_the_search_finds_the_best_of_a_known_landscape(best):
    tried, forecasts = search(bowl(best))
    assert all(1e-5 * 0.999 <= lr <= 0.1 * 1.001 for lr in tried)
    assert abs(math.log10(best_of(tried, forecasts) / best)) < 0.26  # half of the distance of ten points
    tried, forecasts = search(bowl(best), kappa=2.0)
    assert abs(math.log10(best_of(tried, forecasts) / best)) < 0.26


def test_much_kappa_explores_and_little_looks_closer():
    wide, _ = search(bowl(1e-3))
    steps = [math.log10(b / a) for a, b in zip(sorted(wide), sorted(wide)[1:], strict=False)]
    assert max(steps) < 0.8
    assert min(steps) > 0.15
    close, _ = search(bowl(1e-3), kappa=2.0)
    assert sum(abs(math.log10(lr / 1e-3)) < 0.5 for lr in close) > sum(abs(math.log10(lr / 1e-3)) < 0.5 for lr in wide)


def test_the_first_is_the_middle_and_all_is_deterministic():
    assert propose([], [], 1e-5, 0.1, 1e6) == pytest.approx(1e-3)
    assert search(bowl(1e-3), n=4) == search(bowl(1e-3), n=4)


def test_without_a_finite_forecast_the_lowest_is_taken():
    tried, forecasts = search(lambda lr: math.nan, n=4)
    assert len(set(tried)) == 4
    assert best_of(tried, forecasts) == min(tried)
    assert best_of([1e-3, 1e-4, 1e-2], [math.nan, 2.0, math.inf]) == 1e-4
