from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autowu_hf import AutoWUScheduler, get_autowu_schedule
from autowu_hf.autowu.peak_rule import PeakRule, peak_lr
from autowu_hf.autowu.verdict import Ending
from autowu_hf.shapes import LRCurve


@pytest.mark.parametrize(
    ("rule", "minimum_lr", "cliff_lr", "expected"),
    [
        ("minimum", 0.02, 1.0, 0.02),
        ("cliff", 0.02, 0.1, 0.01),  # half of the LR at the minimum
        ("cliff", 0.08, 0.1, 0.02),  # a fifth of the LR at the cliff
        ("cliff", 0.5, 0.5, 0.1),
        ("cliff", 1e-5, 2e-5, 1e-5),  # never below where it started
    ],
)
def test_the_peak_is_the_lowest_of_what_the_rule_allows(rule, minimum_lr, cliff_lr, expected):
    assert peak_lr(rule, minimum_lr, cliff_lr, lowest_lr=1e-5) == pytest.approx(expected)


@pytest.mark.parametrize("own_lr", [1e-3, 1e-7, 5.0])
def test_nothing_found_leaves_the_lr_that_the_optimizer_was_given(own_lr):
    curve = LRCurve(100, 50, 1e-5, 0.1, "exponential", "rex", 0.2)
    rule = PeakRule("cliff", own_lr=own_lr)
    assert rule.peak_lr(Ending("nothing", 50, 50), curve, 1) == own_lr


@pytest.mark.parametrize("rule", ["minimum", "cliff"])
@pytest.mark.parametrize("own_lr", [1e-7, 5.0])
def test_a_divergence_before_anything_was_gained_leaves_a_fifth_of_the_last_sound_lr_or_the_given_one(rule, own_lr):
    curve = LRCurve(100, 50, 1e-5, 0.1, "exponential", "rex", 0.2)
    ending = Ending("divergence", 31, 31, has_minimum=False)
    rule = PeakRule(rule, own_lr=own_lr)
    assert rule.peak_lr(ending, curve, 1) == pytest.approx(min(0.2 * curve.warmup(31 - rule.lag(1)), own_lr))
    rule.base_lr = 1e-2  # the scale's peak, from before these losses
    assert rule.peak_lr(ending, curve, 1) == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("ending", "tells"),
    [
        (Ending("cap", 50, 50, has_minimum=False), False),
        (Ending("cap", 30, 50, has_minimum=True), True),
        (Ending("cap", 50, 50, has_minimum=False, has_moved=True), True),
        (Ending("cliff", 30, 40), True),
    ],
)
def test_a_growth_out_of_doubt_has_to_tell_something(ending, tells):
    curve = LRCurve(100, 50, 1e-4, 1.0, "exponential", "rex", 0.2)
    rule = PeakRule("cliff")
    rule.base_lr = 1e-4
    weighed = rule.peak_lr(ending, curve, 1)
    assert weighed > 1e-3
    rule.is_in_doubt = True
    assert rule.peak_lr(ending, curve, 1) == (weighed if tells else 1e-4)


@pytest.mark.parametrize(("has_scale", "is_in_doubt"), [(True, False), (True, True), (False, False)])
def test_a_growth_that_harmed_nothing_outgrows_a_scale_that_had_taught_something(has_scale, is_in_doubt):
    curve = LRCurve(100, 50, 1e-4, 1.0, "exponential", "rex", 0.2)
    rule = PeakRule("cliff")
    rule.base_lr, rule.is_in_doubt = 1e-4 if has_scale else None, is_in_doubt
    ending = Ending("cap", 50, 50, has_moved=True, is_harmless=True)
    of_the_losses = 0.2 * curve.warmup(49)
    assert rule.is_outgrown(ending) == (has_scale and not is_in_doubt)
    by_minimum = PeakRule("minimum")
    by_minimum.base_lr = rule.base_lr
    assert not by_minimum.is_outgrown(ending)
    assert rule.peak_lr(ending, curve, 1) == pytest.approx(
        (1e-4 * of_the_losses) ** 0.5 if is_in_doubt else of_the_losses
    )


def a_run_without_memory(steps: int, state: dict | None = None) -> AutoWUScheduler:
    """A run whose snapshots do not fit into memory, from the start or from a state, over losses that are given."""
    s = np.arange(400) / 200
    losses = 2.0 - 1.5 * np.exp(-(((s - 0.7) / 0.25) ** 2)) + 0.02 * np.random.default_rng(0).standard_normal(400)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    options = {"test_every": 5, "rewind_memory": 1e-15, "max_warmup_fraction": 0.5}
    scheduler = get_autowu_schedule(optimizer, 400, **options)
    if state is not None:
        scheduler.load_state_dict(state)
    while scheduler.last_epoch < steps:
        optimizer.step()
        scheduler.step(losses[scheduler.last_epoch])
    return scheduler


def test_a_run_that_had_too_little_memory_resumes_with_the_rule_that_was_in_force():
    whole = a_run_without_memory(400)
    assert (whole.peak_rule, whole.ended_by) == ("minimum", "minimum")
    assert whole.switch_step < whole.warmup_cap
    for saved_at in range(whole.switch_step - 6, whole.switch_step):  # one step before each of two tests, too
        resumed = a_run_without_memory(400, a_run_without_memory(saved_at).state_dict())
        assert resumed.peak_rule == "minimum"
        assert resumed.switch_step == whole.switch_step
        assert resumed.peak_lr == whole.peak_lr
        assert resumed.tests == whole.tests


def test_everybody_asks_the_one_rule():
    rewind = SimpleNamespace(is_on=True)
    rule = PeakRule("cliff", rewind)
    assert (rule.name, rule.is_cliff, rule.lag(3), rule.span(100)) == ("cliff", True, 3, 8.0)
    rewind.is_on = False
    assert (rule.name, rule.is_cliff, rule.lag(3), rule.span(100)) == ("minimum", False, 0, 0.0)
    assert PeakRule("minimum").name == "minimum"
