"""Which decay the log names, and why."""

from __future__ import annotations

import pytest
from scale_runs import made, run, surely

from autowu_hf.autowu.course.usual_decay import WHY
from autowu_hf.autowu.reporting.decays import decay_in_words, name_of_decay, why_this_decay
from autowu_hf.autowu.reporting.report import describe
from autowu_hf.shapes import DECAY_TYPES


def report(why, given=None, **changes):
    approach = {"scale": {"lr": 0.1}}
    return {"settings": given or {}, "approach": approach, "usual_decay": why, **changes}


@pytest.mark.parametrize("why", WHY)
def test_it_says_why_unless_it_was_asked_for(why):
    decay_type, words = WHY[why]
    assert decay_type in DECAY_TYPES
    assert why_this_decay(report(why)) == f" since {words}"
    for given in ({"decay_type": "rex"}, {"decay_fraction": 0.3}):
        assert why_this_decay(report(why, given)) == ""


def test_without_a_scale_or_in_an_older_report_there_is_no_reason():
    assert why_this_decay(report("polyak", approach=None)) == why_this_decay(report(None)) == ""
    assert why_this_decay(report("polyak", approach={"scale": None})) == ""
    assert why_this_decay({"settings": {}, "approach": {"scale": {"lr": 0.1}}}) == ""


def test_names():
    assert name_of_decay({"settings": {"decay_type": "rex"}}) == "REX"
    assert name_of_decay(report("trust", curve={"decay_type": "constant_then_cosine"})) == "constant then cosine"


@pytest.mark.parametrize(
    ("num_steps", "words"),
    [(0, "no step is left to decay in"), (1, "REX decay over 1 step"), (2, "REX decay over 2 steps")],
)
def test_steps_are_counted_in_words(num_steps, words):
    assert decay_in_words({"settings": {"decay_type": "rex"}}, num_steps) == words


def test_the_log_says_it():
    for factor, end in (
        (1.0, "REX decay over 280 steps since P held the LR at first"),
        (10.0, "since R held the LR at first"),
    ):
        model, optimizer, schedule = made(400)
        run(model, optimizer, schedule, [factor * loss for loss in surely(400)])
        assert describe(schedule.report()).endswith(end)
