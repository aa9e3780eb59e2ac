from __future__ import annotations

import dataclasses
import math

from autowu_hf.autowu.relapse.attempt import Attempt
from autowu_hf.autowu.relapse.words import in_short, line

BEGUN = Attempt(since=100, back_to=60, best=1.0, level=2.0, factor=1.0)


def test_each_outcome_has_its_line():
    assert "from 1 to 2; for 10 steps it tries the weights of step 60" in line(BEGUN, 10)
    harder = dataclasses.replace(BEGUN, tried=1.9, end=110)
    assert "at 1.9 with these, too" in line(harder, 0)
    stretch = dataclasses.replace(BEGUN, tried=1.1, again=1.2, end=115)
    assert "at 1.2 with the later weights, too" in line(stretch, 0)
    lost = dataclasses.replace(BEGUN, tried=1.1, again=2.1, end=115, was_lost=True)
    assert "at 1.1 with the earlier weights, and are at 2.1 with the later ones again" in line(lost, 0)
    broken = dataclasses.replace(BEGUN, level=math.inf, end=100, was_lost=True)
    assert "by step 100 the losses are not finite; it goes on from the weights of step 60" in line(broken, 0)


def test_only_what_was_lost_is_in_the_sentence_of_the_report():
    lost = dataclasses.asdict(dataclasses.replace(BEGUN, end=115, was_lost=True))
    report = {"relapses": {"attempts": [dataclasses.asdict(BEGUN), lost, {**lost, "back_to": 115, "end": 170}]}}
    assert in_short(report) == (
        "; the losses rose again: back to step 60 at step 115, at a third of the LR and back to step 115 at step 170, "
        "at a third of the LR"
    )
    assert in_short({"relapses": {"attempts": [dataclasses.asdict(BEGUN)]}}) == ""
    assert in_short({}) == ""  # of an earlier release
