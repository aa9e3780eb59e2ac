from __future__ import annotations

import re

import pytest

from autowu_hf.autowu.settings import AutoWUSettings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 0.1, "max_lr": 0.1}, "min_lr must be positive and less than max_lr, got min_lr=0.1 and max_lr=0.1"),
        ({"min_lr": 0.0}, "min_lr must be positive"),
        ({"max_lr": float("inf")}, "min_lr must be positive and less than max_lr"),
        ({"min_lr": "1e-5"}, "min_lr must be a number, got '1e-5'"),
        ({"max_warmup_fraction": 1.0}, "max_warmup_fraction must lie between 0 and 1, both excluded, got 1.0"),
        ({"decay_fraction": 0.0}, "decay_fraction must lie between 0 and 1"),
        (
            {"decay_fraction": 0.3, "decay_type": "rex"},
            'decay_fraction is the share of decay_type="constant_then_cosine", got 0.3',
        ),
        ({"confidence": 95}, "confidence must lie between 0 and 1, both excluded, got 95"),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"num_tests": 2.5}, "num_tests must be a whole number of at least 1, got 2.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"test_every": 0}, "test_every must be a whole number of at least 1, got 0"),
        ({"test_every": "step"}, 'test_every must be "auto", "epoch" or a number of steps, got \'step\''),
        ({"growth": "cubic"}, "unknown growth 'cubic'; pick one of quick_start, exponential, linear"),
        ({"decay_type": "step"}, "unknown decay_type 'step'; pick one of cosine, linear, rex, constant_then_cosine"),
        ({"gp_engine": "sklearn"}, "unknown gp_engine 'sklearn'; pick one of fast, gpytorch"),
        ({"standardize": "no"}, "standardize must be True or False, got 'no'"),
        ({"rewind_in_checkpoint": None}, "rewind_in_checkpoint must be True or False, got None"),
    ],
)
def test_options_outside_their_limits_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AutoWUSettings(**options)


def test_unknown_option_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown option .* 'peak_lr'; pick one of min_lr, .*, seed, .*, preset"):
        AutoWUSettings.from_options(None, {"peak_lr": 0.1})


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="unknown preset 'best'; pick one of default, paper"):
        AutoWUSettings.from_options("best", {})


def test_paper_preset_is_the_authors_recipe_and_explicit_options_win():
    paper = AutoWUSettings.from_options("paper", {})
    assert (paper.test_every, paper.gp_engine, paper.standardize) == ("epoch", "gpytorch", False)
    assert (paper.max_warmup_fraction, paper.decay_type, paper.min_lr, paper.max_lr) == (0.5, "cosine", 1e-5, 1.0)
    assert (paper.num_tests, paper.confidence, paper.patience) == (5, 0.95, 3)
    changed = AutoWUSettings.from_options("paper", {"test_every": 7, "decay_type": None})
    assert (changed.test_every, changed.gp_engine, changed.decay_type) == (7, "gpytorch", "cosine")


@pytest.mark.parametrize(
    ("test_every", "cap", "steps_per_epoch", "interval"),
    [
        (7, 500, 44, 7),
        ("epoch", 500, 44, 44),
        ("epoch", 500, None, None),
        ("auto", 30 * 44, 44, 44),
        ("auto", 30 * 44 - 1, 44, 21),
        ("auto", 500, None, 8),
        ("auto", 20, None, 1),
    ],
)
def test_interval(test_every, cap, steps_per_epoch, interval):
    assert AutoWUSettings(test_every=test_every).resolve_interval(cap, steps_per_epoch) == interval


def test_the_scale_is_used_where_no_range_is_given():
    assert AutoWUSettings.from_options(None, {}).uses_scale
    assert not AutoWUSettings.from_options("paper", {}).uses_scale
    assert not AutoWUSettings.from_options(None, {"scale": False}).uses_scale
    ranges = {"min_lr": 1e-5, "max_lr": 0.1, "growth": "linear", "max_warmup_fraction": 0.25}
    for name, value in ranges.items():  # two of them the defaults
        assert not AutoWUSettings.from_options(None, {name: value}).uses_scale
    assert AutoWUSettings.from_options(None, {"growth": "linear", "scale": True}).uses_scale
    assert not AutoWUSettings(max_lr=0.1).uses_scale


def test_the_decay_is_that_of_the_scale_or_of_the_range():
    settings = AutoWUSettings()
    assert settings.curve(100, 20).decay_type == "rex"
    for usual in (("constant_then_cosine", 0.4), ("rex", 0.2)):
        curve = settings.curve_by_scale(100, 20, 1e-3, 1e-2, usual)
        assert (curve.decay_type, curve.decay_fraction) == usual
        linear = AutoWUSettings(decay_type="linear")
        assert linear.curve(100, 20).decay_type == "linear"
        assert linear.curve_by_scale(100, 20, 1e-3, 1e-2, usual).decay_type == "linear"
        kept = AutoWUSettings(decay_type="constant_then_cosine").curve_by_scale(100, 20, 1e-3, 1e-2, usual)
        assert (kept.decay_type, kept.decay_fraction) == ("constant_then_cosine", usual[1])


def test_a_share_that_decays_asks_for_the_decay_that_has_one():
    settings = AutoWUSettings(decay_fraction=0.3)
    for curve in (settings.curve(100, 20), settings.curve_by_scale(100, 20, 1e-3, 1e-2, ("rex", 0.2))):
        assert (curve.decay_type, curve.decay_fraction) == ("constant_then_cosine", 0.3)
