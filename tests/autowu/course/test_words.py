"""What a person is told of the course."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scale_runs import made, quickly, run, slowly

from autowu_hf.autowu.course.later.transient import MOST_RISEN
from autowu_hf.autowu.course.words import times


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (400, "grows to it by step 20, and watches the losses until step 120 or so."),
        (20, "grows to it by step 3, and may ask the batches until step 8 whether that was too far; where it was,"),
        (11, "first 2 of 11 steps, and grows to it"),
    ],
)
def test_the_first_step_says_what_will_be_done(steps, expected, caplog):
    model, optimizer, schedule = made(steps)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, slowly(steps)[:1])
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"AutoWU measures the scale of the learning rate in the first 2 of {steps} steps")
    assert expected in said
    lrs = run(model, optimizer, schedule, slowly(steps), since=1)
    if steps == 400:
        assert lrs[20] == max(lrs)
        assert lrs[18] < max(lrs)


def test_of_radam_it_is_said_when_it_is_measured_and_why_the_lr_is_larger(caplog):
    model, optimizer, schedule = made(200, make=torch.optim.RAdam)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, slowly(200))
    first, *_, last = caplog.messages
    assert first.startswith("AutoWU measures the scale of the learning rate in the first 7 of 200 steps")
    assert "over 0.22 since the optimizer's rectified updates are as much smaller in this run" in last
    assert schedule.report()["approach"]["scale"]["rectified"] == pytest.approx(0.2153, abs=1e-4)
    assert schedule.peak_lr > schedule.report()["approach"]["scale"]["lr"]


def test_the_line_in_the_log_says_how_the_lr_was_found(caplog):
    model, optimizer, schedule = made(200)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, slowly(200))
    (line,) = [r.getMessage() for r in caplog.records if "peak LR" in r.getMessage()]
    scale = schedule.report()["approach"]["scale"]["lr"]
    assert f"scale {scale:.1e}".replace("e-0", "e-") in line
    assert "from the first gradients; the losses ask for no more at step 60" in line
    assert schedule.log_values()["autowu/scale"] == scale


@pytest.mark.parametrize(("change", "is_said"), [(0.02, True), (0.0, True), (-0.005, True), (-0.05, False)])
def test_losses_that_have_not_fallen_are_not_said_to_ask_for_no_more(change, is_said, caplog):
    model, optimizer, schedule = made(60)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, 0.5 + change * (np.arange(60) > 5))
    assert schedule.ended_by == "scale"
    step = schedule.switch_step  # later than the 18th where gradients are asked at the end, too
    said = f"the losses have neither fallen nor risen far by step {step}, and do not speak for this LR yet; peak LR"
    assert (said in caplog.text) == is_said == (step > 18)
    assert (f"the losses ask for no more at step {step}; peak LR" in caplog.text) != is_said


@pytest.mark.parametrize(("steps", "is_short"), [(60, True), (80, False)])
def test_a_run_that_has_too_few_steps_to_look_for_a_higher_lr_says_so(steps, is_short):
    """No sweep takes more than its share of a run that has learned."""
    model, optimizer, schedule = made(steps)
    run(model, optimizer, schedule, quickly(steps))
    assert (schedule.ended_by == "scale") == is_short
    said = "the losses had halved by step 18, and there are too few steps to look for a higher LR; peak LR"
    assert (said in schedule.report()["found"]) == is_short


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_lr": 0.1}, "from 1e-05 to 0.1 without the scale, since max_lr was given, within 10 of 40 steps"),
        ({"min_lr": 1e-6}, "from 1e-06 to 1 without the scale, since min_lr was given, within 10 of 40 steps"),
        ({"scale": False}, "from 1e-05 to 1 within 10 of 40 steps"),
    ],
)
def test_that_a_range_leaves_the_scale_out_is_said_at_the_start(options, said, caplog):
    model, optimizer, schedule = made(40, **options)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, slowly(40)[:1])
    assert said in caplog.text


@pytest.mark.parametrize(("losses", "is_said"), [([-0.4, -0.5, -0.4], True), ([float("inf"), 1.0, 1.0], False)])
def test_where_losses_are_negative_it_is_said_that_a_policys_tell_nothing(losses, is_said, caplog):
    model, optimizer, schedule = made(100)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run(model, optimizer, schedule, np.array(losses))
    assert "cannot tell the scale" in caplog.text
    assert ("the loss of a policy gradient, which says nothing of progress" in caplog.text) == is_said


@pytest.mark.parametrize(("risen", "expected"), [(5.14, "1.2 times"), (MOST_RISEN, "1.2 or more times")])
def test_no_more_is_said_of_p_than_was_measured(risen, expected):
    assert times(1.21, risen) == expected
