"""The decay around the scale: as REX where P holds the LR, else kept until the last steps."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
from scale_runs import made, run, surely

from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.autowu.course.usual_decay import UsualDecay
from autowu_hf.autowu.reporting.report import describe
from autowu_hf.runtime.checks import closed, opened

BY_P = Scale(polyak=0.01, trust=0.1, alignment=0.3, loss=2.3, num_steps=2, layer_trust=0.1)
"""0.3 P is 0.003, 0.3 M 0.03 and 0.2 R 0.02."""
BY_R = dataclasses.replace(BY_P, trust=0.014)
"""0.2 R is 0.0028."""


def approach(scale, has_fallen=True, raised_at=None, has_gone_back=False, sweep=None, unmoved=None):
    return SimpleNamespace(
        scale=scale,
        has_fallen=has_fallen,
        transient=SimpleNamespace(raised_at=raised_at),
        way=SimpleNamespace(has_gone_back=has_gone_back),
        sweep=sweep,
        unmoved=unmoved,
    )


def usual_decay(scale, num_steps=60, **seen):
    return UsualDecay().of(approach(scale, **seen), num_steps, is_over=False)


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
    assert usual_decay(dataclasses.replace(BY_P, **changes))[0] == decay_type


def test_p_holds_the_lr_of_longer_runs_sooner():
    assert usual_decay(BY_R, 100)[0] == "constant_then_cosine"
    assert usual_decay(BY_R, 200)[0] == "rex"


def test_p_has_not_fallen_where_the_losses_have_not():
    assert usual_decay(BY_P, has_fallen=False)[0] == "constant_then_cosine"
    assert usual_decay(BY_P, has_fallen=False, sweep=object())[0] == "rex"  # it began since they had halved
    assert usual_decay(BY_P, has_fallen=False, sweep=object(), unmoved=12)[0] == "constant_then_cosine"
    assert usual_decay(BY_P, has_fallen=None)[0] == "constant_then_cosine"
    above = dataclasses.replace(BY_P, scale_invariant=0.9, polyak=1e-4)
    assert usual_decay(above, has_fallen=False)[0] == "rex"  # it is too high as it is


@pytest.mark.parametrize("seen", [{}, {"has_fallen": False}, {"has_fallen": None}])
def test_products_that_begin_at_zero_need_less_and_less(seen):
    """Whatever holds the LR, and whether or not the losses have fallen."""
    for scale in (BY_P, BY_R):
        assert usual_decay(dataclasses.replace(scale, others_follow=True), **seen)[0] == "rex"
    raised = usual_decay(dataclasses.replace(BY_P, others_follow=True), raised_at=20)
    assert raised[0] == "constant_then_cosine"


def test_after_a_transient_p_holds_nothing():
    assert usual_decay(BY_P, raised_at=20)[0] == "constant_then_cosine"
    assert usual_decay(BY_P, raised_at=20, has_gone_back=True)[0] == "rex"  # what was raised was taken back


@pytest.mark.parametrize(("scale_invariant", "fraction"), [(0.0, 0.2), (0.9, 0.4)])
def test_the_share_is_longer_with_batch_norm(scale_invariant, fraction):
    assert usual_decay(dataclasses.replace(BY_P, scale_invariant=scale_invariant))[1] == fraction


def test_what_has_begun_stays():
    for num_steps, decay_type in ((100, "constant_then_cosine"), (200, "rex")):
        decay, seen = UsualDecay(), approach(BY_R)
        decay.of(seen, num_steps, is_over=False)
        assert [decay.of(seen, of_other, is_over=True)[0] for of_other in (100, 200)] == [decay_type] * 2
        again = UsualDecay()
        again.load_state_dict(decay.state_dict())
        assert again.of(seen, 100, is_over=True)[0] == decay_type
    assert decay.of(approach(dataclasses.replace(BY_R, scale_invariant=0.9)), 0, is_over=True) == ("rex", 0.4)


@pytest.mark.parametrize(
    ("num_steps", "share", "decay_type"),
    [(400, 0.85, "rex"), (400, 0.95, "constant_then_cosine"), (28, 0.5, "constant_then_cosine")],
)
def test_the_losses_of_the_run_tell(num_steps, share, decay_type):
    """Nobody looks at those of a run of fewer than 30 steps."""
    model, optimizer, schedule = made(num_steps)
    first = 1.0 if num_steps > 100 else 0.5  # P allows more in a run of fewer steps
    losses = [first if step < num_steps // 10 else share * first for step in range(num_steps)]
    run(model, optimizer, schedule, losses)
    report = schedule.report()
    assert report["approach"]["scale"]["held_by"] == "polyak"
    assert report["approach"]["has_fallen"] == (decay_type == "rex" if num_steps > 30 else None)
    assert report["curve"]["decay_type"] == decay_type
    why = {
        "polyak": "P held the LR at first",
        "losses": "the losses had not fallen by a tenth",
        "steps": "so few steps",
    }
    assert f"since {why[report['usual_decay']]}" in describe(report)


@pytest.mark.parametrize(("num_warmup_steps", "why"), [(11, "steps"), (30, "polyak")])
def test_a_short_warm_up_does_not_tell(num_warmup_steps, why):
    model, optimizer, schedule = made(400, num_warmup_steps=num_warmup_steps)
    run(model, optimizer, schedule, [0.2 * max(1.0 - 0.9 * step / 30, 0.1) for step in range(400)])
    assert schedule.report()["usual_decay"] == why


@pytest.mark.parametrize("at", [121, 250])
def test_a_resumed_run_has_the_decay_that_it_began_with(at):
    """Whatever the holder is in a run of the new length, and also where an older release wrote the state."""
    model, optimizer, schedule = made(400)
    losses = surely(400)
    run(model, optimizer, schedule, losses[:at])
    scale = schedule.report()["approach"]["scale"]
    assert scale["held_by"] == "polyak"
    assert 0.3 * scale["polyak"] > 0.2 * scale["trust"]  # so that R holds the LR of a run of 100 steps
    state, weights = schedule.state_dict(), optimizer.state_dict()
    inner = copy.deepcopy(opened(state))
    assert inner["course"].pop("usual_decay") == {"why": "polyak"}
    older = {key: state[key] for key in ("version", "last_epoch", "step_count")} | closed(inner)
    for saved, steps, after_switch in ((state, 130, "rex"), (state, 500, "rex"), (older, 400, "constant_then_cosine")):
        other_model, other_optimizer, other = made(steps)
        other_model.load_state_dict(model.state_dict())
        other_optimizer.load_state_dict(weights)
        other.load_state_dict(copy.deepcopy(saved))
        report = other.report()
        assert report["curve"]["decay_type"] == after_switch
        assert report["found"].endswith("since P held the LR at first" if after_switch == "rex" else "steps")


def kept_until(schedule, lrs):
    """The last step at the peak LR."""
    return max(step for step, lr in enumerate(lrs) if lr == pytest.approx(schedule.peak_lr))


def test_a_run_falls_from_its_switch_on_where_p_holds_the_lr():
    model, optimizer, schedule = made(400)
    lrs = run(model, optimizer, schedule, surely(400))
    report = schedule.report()
    assert report["approach"]["scale"]["held_by"] == "polyak"
    assert report["curve"]["decay_type"] == "rex"
    assert kept_until(schedule, lrs) == schedule.switch_step
    for step in (120, 200, 300, 399):
        left = 1.0 - (step - schedule.switch_step) / (400 - schedule.switch_step)
        assert lrs[step] == pytest.approx(schedule.peak_lr * left / (0.5 + 0.5 * left))


def test_a_run_keeps_the_lr_where_r_holds_it():
    model, optimizer, schedule = made(400)
    lrs = run(model, optimizer, schedule, [10.0 * loss for loss in surely(400)])  # P is ten times as high
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
        lrs = run(model, optimizer, schedule, surely(400))
        assert schedule.report()["curve"]["decay_type"] == decay_type
        assert kept_until(schedule, lrs) == until


def test_where_evaluations_may_stop_the_run_the_lr_falls_from_the_switch_on():
    for scale, why in ((BY_R, "early stopping"), (BY_P, "polyak")):
        decay = UsualDecay()
        decay.stops_early = True
        assert decay.of(approach(scale), 60, is_over=False)[0] == "rex"
        assert decay.why == why
    decay = UsualDecay()
    decay.of(approach(BY_R), 60, is_over=False)
    decay.stops_early = True  # later on, nothing changes
    assert decay.of(approach(BY_R), 60, is_over=True)[0] == "constant_then_cosine"
