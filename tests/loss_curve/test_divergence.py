from __future__ import annotations

import numpy as np
import pytest

from autowu_hf.loss_curve.divergence import (
    ceiling,
    gain,
    has_ended_high,
    has_fallen,
    has_gained,
    is_above,
    is_diverged,
    median,
    noise,
    num_lowest,
    num_sound,
)


def falling(n=200, noise=0.05, seed=0):
    s = np.arange(n) / n
    return 3.0 - 2.0 * s + noise * np.random.default_rng(seed).standard_normal(n)


def test_the_ceiling_is_as_far_above_the_start_as_the_best_is_below():
    assert ceiling(falling(noise=0.0)) == pytest.approx(3.0 + 2.0, abs=0.15)
    assert ceiling(falling()) == pytest.approx(5.0, abs=0.3)


@pytest.mark.parametrize(("scale", "shift"), [(1e-8, 0.0), (1e6, -3.0)])
def test_the_ceiling_knows_no_unit(scale, shift):
    losses = falling()
    assert ceiling(scale * losses + shift) == pytest.approx(scale * ceiling(losses) + shift, rel=1e-9)


def test_noise_around_a_flat_line_stays_below():
    for seed in range(50):
        losses = np.random.default_rng(seed).standard_normal(100)
        assert not is_above(losses, 5, ceiling(losses))
        assert (losses < ceiling(losses)).all()


def test_losses_that_drift_together_by_chance_stay_below():
    """The first losses of a small network with batch norm, at LRs up to 6e-4, at which nothing diverges."""
    losses = [2.3318, 2.3399, 2.4130, 2.4356, 2.3391, 2.4989, 2.5091, 2.5109, 2.4900, 2.3374, 2.3573]
    for n in range(10, len(losses) + 1):
        seen = np.array(losses[:n])
        assert not is_above(seen, 1, ceiling(seen))
        assert is_above(np.append(seen, [4.0] * 4), 1, ceiling(seen))


def fresh_head(seed, n=120):
    """Losses of two classes: ln 2 first, then more and more noise and a small gain, as the logits grow."""
    s = np.arange(n) / n
    logits = 2.0 * s**3
    return np.log(2.0) + logits * (0.7 * np.random.default_rng(seed).standard_normal(n) - 0.15)


def test_a_fresh_head_whose_noise_grows_with_its_logits_stays_below():
    for seed in range(50):
        losses = fresh_head(seed)
        above = [is_above(losses[:n], 1, ceiling(losses[:n])) for n in range(1, len(losses))]
        assert not any(now and before for now, before in zip(above[1:], above, strict=False)), seed
        after = np.concatenate([losses, np.log(2.0) + 1.5 ** np.arange(1, 13)])  # and a blow-up does not
        assert [is_above(after[:n], 1, ceiling(after[:n])) for n in range(130, 133)] == [True] * 3, seed


def test_one_spike_among_the_first_losses_does_not_raise_the_ceiling():
    losses = falling()
    before = ceiling(losses)
    losses[7] = 1e6
    assert ceiling(losses) == pytest.approx(before, rel=0.05)


def test_few_losses_have_no_ceiling():
    assert ceiling(np.array([1.0, 2.0, np.nan, 1e9])) == np.inf


def test_one_spike_is_not_above_and_a_run_of_them_is():
    losses = falling()
    losses[-1] = 1e6
    assert not is_above(losses, 1, ceiling(losses))
    losses[-4:] = 1e6
    assert is_above(losses, 5, ceiling(losses))
    assert is_above(losses, 1, ceiling(losses))
    losses[-4:] = np.nan
    assert not is_above(losses, 4, ceiling(losses))


def test_diverged_is_a_whole_interval_and_three_at_least():
    losses = falling()
    losses[-2:] = np.nan
    assert not is_diverged(losses, 1)
    assert not is_diverged(losses, 4)
    losses[-4:] = np.inf
    assert is_diverged(losses, 1)
    assert is_diverged(losses, 4)
    assert not is_diverged(losses, 5)
    assert not is_diverged(losses, 0)
    assert not is_diverged(np.full(2, np.nan), 2)  # two losses are too few to end a warm-up by
    assert is_diverged(np.full(3, np.nan), 1)


@pytest.mark.parametrize("deviation", [0.05, 3e-6])
def test_the_noise_is_that_around_the_curve(deviation):
    losses = falling(n=2000, noise=deviation)
    slope = 2.0 / 2000 / (0.6745 * 2**0.5)  # what a straight line without noise would be taken for
    assert noise(losses) == pytest.approx(max(deviation, slope), rel=0.1)
    losses[-200:] = 1e6 * np.arange(200)
    assert noise(losses) == pytest.approx(max(deviation, slope), rel=0.2)


def test_losses_are_sound_up_to_the_last_that_is_not_above_the_start():
    assert num_sound(falling(noise=0.0)) == 200
    rising = np.concatenate([falling(n=50, noise=0.0), np.linspace(2.1, 8.1, 25)])
    assert num_sound(rising) == 50 + 4  # 2.85 is below the start, 2.96, and 3.1 is not
    single = rising.copy()
    single[65] = 1.0  # one loss below the start, after the run has broken
    assert num_sound(single) == 50 + 4
    rising[52:] = np.nan
    assert num_sound(rising) == 52
    assert num_sound(np.full(20, np.inf)) == 0


def test_the_lowest_place_is_of_five_losses_not_of_one():
    valley = np.abs(np.arange(60) - 40.0)
    valley[[5, 59]] = -100.0
    assert 40 <= num_lowest(valley) <= 42
    valley[30:51] = np.nan
    assert num_lowest(valley) in (29, 30, 52)  # what is not finite keeps its place
    assert num_lowest(np.full(20, np.nan)) == num_lowest(valley[:0]) == 0


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-8, 0.0), (1e6, -3.0)])
def test_losses_that_only_scatter_have_gained_nothing(scale, shift):
    noise = np.random.default_rng(0).standard_normal((100, 60))
    assert sum(has_gained(scale * losses + shift) for losses in noise) <= 3
    assert has_gained(scale * fresh_head(0) + shift)
    assert has_gained(scale * np.append(falling(noise=0.3), [np.nan, 1e6, np.inf]) + shift)
    assert not has_gained(scale * falling()[::-1] + shift)
    assert not has_gained(np.array([3.0, 2.0, 1.0]))


def test_the_gain_is_how_far_they_fell_in_their_unit():
    losses = falling(noise=0.0)
    assert gain(losses) == pytest.approx(float(losses[:5].mean() - losses[-1]), rel=0.2)
    assert gain(7.0 * losses - 3.0) == pytest.approx(7.0 * gain(losses))
    assert gain(np.ones(40)) == gain(np.ones(3)) == 0.0


def drifting(steps: int, shared: float, generator: np.random.Generator) -> np.ndarray:
    """Noise of which each value has a share in common with the one before."""
    values = generator.standard_normal(steps + 50)
    for step in range(1, len(values)):
        values[step] += shared * values[step - 1]
    return values[50:]


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1000.0, -5.0)])
def test_losses_have_fallen_where_noise_and_drift_do_not_explain_it_and_nothing_rose(scale, shift):
    generator = np.random.default_rng(0)
    for shared, most in ((0.0, 2), (0.5, 10), (0.8, 30)):
        assert sum(has_fallen(scale * drifting(100, shared, generator) + shift) for _ in range(200)) <= most
    falling_on = np.r_[np.linspace(1.0, 0.2, 30), np.full(30, 0.2)] + 0.03 * generator.standard_normal(60)
    rises = np.r_[np.zeros(30), np.linspace(0.0, 0.3, 30)]
    assert has_fallen(scale * falling_on + shift)
    assert not has_fallen(scale * (falling_on + rises) + shift)
    assert not has_fallen(scale * falling_on[::-1] + shift)
    assert not has_fallen(np.array([3.0, 2.0, 1.0]))


@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 64, 65, 200])
def test_the_median_is_numpys_to_the_last_bit(n):
    generator = np.random.default_rng(n)
    for values in (generator.standard_normal(n), np.where(generator.random(n) < 0.4, np.inf, 1.0), np.ones(n) / 3.0):
        assert median(values) == np.median(values)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0.2, 0.3, 0.25, 0.2, 0.2, 0.2, 0.2, 0.5, 0.6, 0.7], True),
        ([0.2, 0.3, 0.25, 0.2, 0.2, 0.2, 0.2, 0.5, 0.6, 0.29], False),  # one of the last lies among the first
        ([0.2, 0.3, 0.25, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2], False),
        ([0.2, 0.3, 0.25, 0.5, 0.6], False),  # too few to say
        ([0.2, 0.3, np.nan, 0.25, 0.2, 0.5, 0.6, 0.7], True),
    ],
)
def test_losses_have_ended_high_where_the_last_lie_above_all_of_the_first(losses, expected):
    assert has_ended_high(np.array(losses)) == expected
