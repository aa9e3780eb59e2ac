"""The decay around the scale: as REX where P holds the LR, else kept until the last steps."""

from __future__ import annotations

import dataclasses

import pytest
from scale_runs import made, run, slowly

from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.autowu.course.usual_decay import usual_decay

BY_P = Scale(polyak=0.01, trust=0.1, alignment=0.3, loss=2.3, num_steps=2, layer_trust=0.1)
"""0.3 P is 0.003, 0.3 M 0.03 and 0.2 R 0.02."""


@pytest.mark.parametrize(
    ("changes", "decay_type"),
    [
        ({}, "rex"),
        ({"trust": 0.014}, "constant_then_cosine"),
        ({"layer_trust": 0.009}, "constant_then_cosine"),
        ({"layer_trust": 0.011}, "rex"),
        ({"scale_invariant": 0.9, "polyak": 1e-4}, "rex"),  # the LR is above P
        ({"scale_invariant": 0.9, "trust": 0.014}, "constant_then_cosine"),
    ],
)
def test_it_goes_by_what_holds_the_lr(changes, decay_type):
    assert usual_decay(dataclasses.replace(BY_P, **changes), 60, False)[0] == decay_type


def test_p_holds_the_lr_of_longer_runs_sooner():
    held = dataclasses.replace(BY_P, trust=0.014)  # 0.2 R is 0.0028
    assert usual_decay(held, 100, False)[0] == "constant_then_cosine"
    assert usual_decay(held, 200, False)[0] == "rex"


def test_after_a_transient_p_holds_nothing():
    assert usual_decay(BY_P, 60, True)[0] == "constant_then_cosine"


@pytest.mark.parametrize(("scale_invariant", "fraction"), [(0.0, 0.2), (0.9, 0.4)])
def test_the_share_is_longer_with_batch_norm(scale_invariant, fraction):
    assert usual_decay(dataclasses.replace(BY_P, scale_invariant=scale_invariant), 60, False)[1] == fraction


def kept_until(schedule, lrs):
    """The last step at the peak LR."""
    return max(step for step, lr in enumerate(lrs) if lr == pytest.approx(schedule.peak_lr))


def test_a_run_falls_from_its_switch_on_where_p_holds_the_lr():
    model, optimizer, schedule = made(400)
    lrs = run(model, optimizer, schedule, slowly(400))
    report = schedule.report()
    assert report["approach"]["scale"]["held_by"] == "polyak"
    assert report["curve"]["decay_type"] == "rex"
    assert kept_until(schedule, lrs) == schedule.switch_step
    for step in (120, 200, 300, 399):
        left = 1.0 - (step - schedule.switch_step) / (400 - schedule.switch_step)
        assert lrs[step] == pytest.approx(schedule.peak_lr * left / (0.5 + 0.5 * left))


def test_a_run_keeps_the_lr_where_r_holds_it():
    model, optimizer, schedule = made(400)
    lrs = run(model, optimizer, schedule, [10.0 * loss for loss in slowly(400)])  # P is ten times as high
    report = schedule.report()
    assert report["approach"]["scale"]["held_by"] == "trust"
    assert report["curve"]["decay_type"] == "constant_then_cosine"
    assert kept_until(schedule, lrs) == 320


def test_a_given_decay_wins():
    for options, decay_type, until in (
        ({"decay_type": "constant_then_cosine"}, "constant_then_cosine", 320),
        ({"decay_fraction": 0.5}, "constant_then_cosine", 200),
        ({"decay_type": "linear"}, "linear", 120),
    ):
        model, optimizer, schedule = made(400, **options)
        lrs = run(model, optimizer, schedule, slowly(400))
        assert schedule.report()["curve"]["decay_type"] == decay_type
        assert kept_until(schedule, lrs) == until
