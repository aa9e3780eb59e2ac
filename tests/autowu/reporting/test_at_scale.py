"""What is said where the scale's LR is the peak."""

from __future__ import annotations

import pytest
from scale_runs import made, quickly, run

from autowu_hf.autowu.reporting.at_scale import are_still_high, at_scale

LOW, HIGH = [2.0] * 6 + [1.0] * 12, [2.0] * 18


@pytest.mark.parametrize(
    ("losses", "approach", "said"),
    [
        (LOW, {}, "the losses ask for no more at step 18"),
        (LOW, {"is_too_short": True}, "the losses had halved by step 18, and there are too few steps to look for"),
        (HIGH, {"is_too_short": True}, "the losses have neither fallen nor risen far by step 18, and do not speak"),
        ([2.0] * 9 + [2.3] * 9, {}, "the losses have risen by step 18, and do not speak for this LR yet"),
        (HIGH, {"transient": 7}, "the losses have fallen to half by step 7 and come back by step 18, and do not speak"),
        (HIGH, {"changes": [9]}, "the losses have hardly fallen since by step 18, and do not speak"),
        (HIGH, {"breaks": [9]}, "the losses have hardly fallen since by step 18, and do not speak"),
        (LOW[:9], {}, "the losses ask for no more at step 18"),
        (LOW[:8], {}, "no more than 8 losses were seen by step 18, too few to say"),
        (LOW, {"looks": False}, "too few steps to look on from step 18"),
        (LOW, {"breaks_too_often": True}, "the losses are still far above their start at step 18; look for NaN"),
    ],
)
def test_each_ending_has_its_sentence(losses, approach, said):
    assert at_scale({"losses": losses}, {"looks": True, **approach}, 18).startswith(said)


@pytest.mark.parametrize("rise", [13, 14, 15])
def test_losses_that_have_risen_again_are_not_said_to_have_halved(rise):
    model, optimizer, schedule = made(60)
    losses = quickly(60)
    losses[rise:] = 3.0
    run(model, optimizer, schedule, losses)
    assert "had halved" not in schedule.report()["found"]


@pytest.mark.parametrize(
    ("approach", "expected"),
    [({}, True), ({"breaks": [12]}, False), ({"overshot": [[12, 0.1]]}, False), ({"stalled": 12}, False)],
)
def test_losses_that_were_taken_back_do_not_count_as_high(approach, expected):
    """The last third of all would reach back to the high ones."""
    assert are_still_high([2.0] * 6 + [3.0] * 6 + [1.8] * 3, approach, 18) is expected
    assert are_still_high([2.0] * 6 + [1.0] * 6 + [2.1] * 3, {"breaks": [12]}, 18)
    once = [2.0, 1.9, 1.7, 1.5, 1.3, 1.1]
    assert not are_still_high(once + [2.2] * 6 + once, {"breaks": [12]}, 18)  # they fall again as they did
