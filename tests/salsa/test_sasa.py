from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from autowu_hf.salsa.sasa import LeakyBucket, slope_p_value, stationarity


@pytest.mark.parametrize("share", [0.125, 0.3, 1.0])
def test_a_leaky_bucket_keeps_the_latest_share(share):
    bucket = LeakyBucket(share)
    for n in range(1, 201):
        bucket.add(float(n))
        kept = bucket.values()
        assert len(bucket) == len(kept) == math.ceil(round(share * n, 6))
        assert list(kept) == list(range(n - len(kept) + 1, n + 1))
    other = LeakyBucket(share)
    other.load_state_dict(bucket.state_dict())
    for b in (bucket, other):
        b.add(0.5)
    assert list(bucket.values()) == list(other.values())
    bucket.empty()
    assert len(bucket) == 0


@pytest.mark.parametrize("slope", [-0.1, -0.02, 0.0, 0.05])
def test_the_slope_test_is_scipys_regression(slope):
    losses = slope * np.arange(50) + np.random.default_rng(0).normal(size=50)
    assert slope_p_value(losses) == pytest.approx(
        stats.linregress(np.arange(50), losses, alternative="less").pvalue, rel=1e-6
    )
    gap = losses.copy()
    gap[[3, 20]] = math.nan, math.inf
    x = np.delete(np.arange(50), [3, 20])
    expected = stats.linregress(x, gap[x], alternative="less").pvalue
    assert slope_p_value(gap) == pytest.approx(expected, rel=1e-6)


def test_slopes_without_noise():
    line = np.arange(10.0)
    assert slope_p_value(-line) == 0.0
    assert slope_p_value(line) == 1.0
    assert slope_p_value(np.ones(10)) == 0.5
    assert slope_p_value(np.full(10, math.nan)) == 1.0


def test_the_stationarity_test_by_hand():
    deltas = np.random.default_rng(0).normal(size=103)
    outcome = stationarity(deltas, 0.05, is_first=False)
    kept = deltas[3:]  # ten batches of ten
    means = [float(kept[i : i + 10].mean()) for i in range(0, 100, 10)]
    low, high = stats.t.interval(0.95, 9, loc=np.mean(means), scale=stats.sem(means))
    assert outcome.mean == pytest.approx(kept.mean())
    assert (outcome.mean - outcome.half_width, outcome.mean + outcome.half_width) == pytest.approx((low, high))
    assert outcome.halves == pytest.approx((kept[:50].mean(), kept[50:].mean()))


def test_batch_means_see_that_samples_are_correlated():
    rng = np.random.default_rng(0)

    def rejections(correlation: float) -> float:
        count = 0
        for _ in range(300):
            x = np.zeros(900)
            for k, e in enumerate(rng.normal(size=900)):
                x[k] = correlation * x[k - 1] + e
            outcome = stationarity(x, 0.05, is_first=False)
            count += abs(outcome.mean) >= outcome.half_width
        return count / 300

    assert rejections(0.0) == pytest.approx(0.05, abs=0.035)
    assert rejections(0.8) < 0.12  # 0.5, were the samples taken for independent


@pytest.mark.parametrize(
    ("halves", "first", "later"),
    [((1.0, 1.0), True, True), ((1.0, -1.0), False, False), ((100.0, 100.0), False, False), ((1.0, 6.0), False, True)],
)
def test_both_halves_count(halves, first, later):
    deltas = np.concatenate([np.full(50, m) + np.tile([30.0, -30.0], 25) for m in halves])
    deltas += np.repeat(np.tile([5.0, -5.0, 5.0, -5.0, 0.0], 2), 10)  # the batches differ
    assert stationarity(deltas, 0.05, is_first=True).holds == first
    assert stationarity(deltas, 0.05, is_first=False).holds == later


def test_what_does_not_move_or_is_broken_is_not_stationary():
    assert not stationarity(np.zeros(50), 0.05, is_first=False).holds
    assert not stationarity(np.full(50, math.nan), 0.05, is_first=False).holds
