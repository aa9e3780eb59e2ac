"""Which decay the log names, and why."""

from __future__ import annotations

import pytest
from scale_runs import made, run, surely

from autowu_hf.autowu.reporting.decays import name_of_decay, why_this_decay
from autowu_hf.autowu.reporting.report import describe


def report(held_by="polyak", decay_type="rex", given=None, transient=None, sweep=None, **changes):
    approach = {"scale": {"held_by": held_by}, "transient": transient, "sweep": sweep}
    return {"settings": given or {}, "approach": approach, "curve": {"decay_type": decay_type}, **changes}


@pytest.mark.parametrize(
    ("held_by", "decay_type", "why"),
    [
        ("polyak", "rex", "P held the LR"),
        ("invariance", "rex", "the LR was above P"),
        ("polyak", "constant_then_cosine", "the losses had hardly fallen"),
        ("trust", "constant_then_cosine", "R held the LR"),
        ("layers", "constant_then_cosine", "M held the LR"),
    ],
)
def test_it_says_what_held_the_lr(held_by, decay_type, why):
    assert why_this_decay(report(held_by, decay_type)) == f" since {why}"
    then = " before it grew on" if "held" in why else ""
    assert why_this_decay(report(held_by, decay_type, sweep={})) == f" since {why}{then}"
    assert why_this_decay(report(held_by, transient=12)) == " since the LR was raised after a transient"
    for given in ({"decay_type": "rex"}, {"decay_fraction": 0.3}):
        assert why_this_decay(report(held_by, decay_type, given)) == ""


def test_it_says_nothing_where_the_run_has_become_another_one():
    assert why_this_decay(report("trust", "rex")) == why_this_decay(report("layers", "rex")) == ""


def test_without_a_scale_there_is_no_reason():
    assert why_this_decay(report(approach=None)) == why_this_decay(report(approach={"scale": None})) == ""
    assert why_this_decay(report(None)) == ""  # of an older release


def test_names():
    assert name_of_decay({"settings": {"decay_type": "rex"}}) == "REX"
    assert name_of_decay(report(curve={"decay_type": "constant_then_cosine"})) == "constant then cosine"


def test_the_log_says_it():
    for factor, end in ((1.0, "REX decay over 280 steps since P held the LR"), (10.0, "since R held the LR")):
        model, optimizer, schedule = made(400)
        run(model, optimizer, schedule, [factor * loss for loss in surely(400)])
        assert describe(schedule.report()).endswith(end)
