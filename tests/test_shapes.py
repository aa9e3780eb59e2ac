from __future__ import annotations

import math

import pytest

from autowu_hf.shapes import DECAY_TYPES, GROWTHS, LRCurve, decay_factor, linear_growth


def curve(**changes) -> LRCurve:
    options = {"growth": "exponential", "decay_type": "cosine", "decay_fraction": 0.2, "min_lr": 1e-5, "max_lr": 1.0}
    return LRCurve(num_training_steps=100, growth_steps=50, **{**options, **changes})


def test_exponential_growth_multiplies_by_gamma():
    gamma = (1.0 / 1e-5) ** (1 / 50)
    lr = 1e-5
    for step in range(51):
        assert curve().warmup(step) == pytest.approx(lr, rel=1e-12)
        lr *= gamma


def test_quick_start_takes_a_tenth_of_the_time_for_three_tenths_of_the_way():
    quick = curve(growth="quick_start")
    ratios = [quick.warmup(step + 1) / quick.warmup(step) for step in range(50)]
    assert ratios[:5] == pytest.approx([10 ** (1.5 / 5)] * 5)
    assert ratios[5:] == pytest.approx([10 ** (3.5 / 45)] * 45)
    assert quick.warmup(5) == pytest.approx(10**-3.5)


@pytest.mark.parametrize("growth", GROWTHS)
def test_growth_goes_from_min_lr_to_max_lr_exactly(growth):
    assert GROWTHS[growth](0.0, 1e-5, 0.3) == 1e-5
    assert GROWTHS[growth](1.0, 1e-5, 0.3) == 0.3
    assert GROWTHS[growth](1.5, 1e-5, 0.3) == 0.3


def test_linear_growth_is_linear():
    assert linear_growth(0.25, 0.1, 0.5) == pytest.approx(0.2)


@pytest.mark.parametrize("decay_type", DECAY_TYPES)
def test_decay_goes_from_peak_to_zero_at_the_last_step_and_not_before(decay_type):
    lrs = [curve(decay_type=decay_type).decay(step, 40, 0.3) for step in range(40, 103)]
    assert lrs[0] == 0.3
    assert all(a >= b for a, b in zip(lrs, lrs[1:], strict=False))
    assert all(lr > 0 for lr in lrs[:60])
    assert lrs[60:] == [0.0, 0.0, 0.0]


def test_decays_equal_their_formulas():
    for s in (0.0, 0.2, 0.5, 0.9, 0.999):
        assert decay_factor("cosine", s, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi * s)), abs=1e-12)
        assert decay_factor("linear", s, 0.0) == pytest.approx(1 - s, abs=1e-12)
        assert decay_factor("rex", s, 0.0) == pytest.approx((1 - s) / (0.5 + 0.5 * (1 - s)), abs=1e-12)


def test_constant_then_cosine_falls_over_the_last_share_of_all_steps():
    shape = curve(decay_type="constant_then_cosine", decay_fraction=0.2)
    assert all(shape.decay(step, 40, 0.3) == 0.3 for step in range(40, 81))
    assert shape.decay(81, 40, 0.3) < 0.3
    assert shape.decay(90, 40, 0.3) == pytest.approx(0.15)


def test_constant_then_cosine_with_a_switch_inside_the_last_share_is_a_cosine():
    shape = curve(decay_type="constant_then_cosine", decay_fraction=0.8)
    assert shape.decay(70, 40, 1.0) == pytest.approx(curve().decay(70, 40, 1.0), rel=1e-12)


def test_cosine_does_not_underflow_before_the_end_of_a_long_run():
    assert decay_factor("cosine", 1.0 - 1e-9, 0.0) > 0.0
