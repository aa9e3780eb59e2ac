from __future__ import annotations

import dataclasses
import math

import numpy as np

from autowu_hf.autowu.relapse.attempt import Attempt
from autowu_hf.autowu.relapse.words import in_short, line, unlearned_line

BEGUN = Attempt(since=100, back_to=60, best=1.0, level=2.0, factor=1.0)


def test_each_outcome_has_its_line():
    assert "from 1 to 2; for 10 steps it tries the weights of step 60" in line(BEGUN, 10)
    harder = dataclasses.replace(BEGUN, tried=1.9, end=110)
    assert "at 1.9 with these, too" in line(harder, 0)
    stretch = dataclasses.replace(BEGUN, tried=1.1, again=1.2, end=115)
    assert "at 1.2 with the later weights, too" in line(stretch, 0)
    to_and_fro = dataclasses.replace(stretch, again=2.1, last=1.9)
    assert "at 1.9 with the earlier weights as well by now" in line(to_and_fro, 0)
    for refuted in (harder, stretch, to_and_fro):
        assert "had changed" not in line(refuted, 0)  # nobody knows
        assert line(refuted, 0).endswith("it goes on from the weights of step 100, at the learning rate as it was")
    lost = dataclasses.replace(to_and_fro, last=1.0, was_lost=True)
    assert "at 1.1 with the earlier weights, at 2.1 with the later ones again, and are at 1 with the" in line(lost, 0)
    assert line(lost, 0).endswith("it goes on from the weights of step 60, at a third of the learning rate")
    broken = dataclasses.replace(BEGUN, level=math.inf, end=100, was_lost=True)
    assert "by step 100 the losses are not finite; it goes on from the weights of step 60" in line(broken, 0)
    cut = dataclasses.replace(BEGUN, end=105, was_cut=True)
    assert line(cut, 0).endswith("at step 105; it goes on from the weights of step 100, at the learning rate as it was")
    assert line(dataclasses.replace(cut, was_lost=True), 0).endswith("step 60, at a third of the learning rate")
    worse = dataclasses.replace(cut, tried=1.1)
    assert line(worse, 0).endswith("step 100, at a third of the learning rate")


def test_only_what_was_lost_is_in_the_sentence_of_the_report():
    lost = dataclasses.asdict(dataclasses.replace(BEGUN, taken_at=115, end=125, was_lost=True))
    attempts = [dataclasses.asdict(BEGUN), lost, {**lost, "back_to": 115, "taken_at": 170}]
    assert in_short({"relapses": {"attempts": attempts}}) == (
        "; what was learned was lost again: back to step 60 at step 115, at a third of the LR and back to step 115 at "
        "step 170, at a third of the LR"
    )
    assert in_short({"relapses": {"attempts": attempts[:1]}}) == ""
    assert in_short({}) == ""  # of an earlier release
    unlearned = in_short({"relapses": {"attempts": attempts[:2], "unlearned": 161}})
    assert unlearned.endswith("at a third of the LR; by step 161 the losses had not been seen to fall by a twentieth")


def test_losses_that_have_hardly_fallen_are_said_with_a_remedy():
    said = unlearned_line(161, 200, 2.30459, np.full(10, 2.3), 0.02)
    start = "AutoWU: by step 161 of 200 the losses show hardly any progress: they began at 2.305, and are at 2.3. If"
    assert said.startswith(start)
    assert "a tenth of the peak LR, 2.0e-03, or ten times it, 2.0e-01, as the optimizer's learning rate" in said
    flat = unlearned_line(161, 200, 0.6875, np.full(10, 0.6962), 0.02)
    assert " 200 the losses show no progress: they began at 0.6875" in flat


def test_of_noisy_losses_no_more_is_said_than_can_be_seen():
    said = unlearned_line(99, 120, 0.75, np.array([0.98, 0.53, 1.16, 0.69, 0.95, 0.54, 1.56, 0.66, 1.33, 0.7]), 0.02)
    words = "the losses show no progress that could be seen through their noise: they began at 0.75, and are at 0.825."
    assert words in said
