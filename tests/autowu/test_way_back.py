"""Which snapshots the switch goes back to."""

from __future__ import annotations

import numpy as np
import pytest
from rewind_runs import assert_same, run, small, state_of, train_step, valley
from scale_runs import made, quickly
from scale_runs import run as run_on
from tiny import get_schedule


@pytest.mark.parametrize("place", [0.02, 0.1, 0.3])
def test_a_peak_below_all_that_was_thought_of_goes_back_to_the_start(place, caplog):
    """The records say at the end that the minimum was long before the snapshots that are still there for it."""
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model)
    states = {}
    for step, loss in enumerate(valley(150, 160), 1):
        train_step(model, optimizer, scheduler, float(loss))
        states[step] = state_of(model, optimizer)
    steps = [s.step for s in scheduler.rewind.snapshots]
    assert steps[0] == 1
    highest = scheduler.curve.warmup(place * steps[1])
    assert scheduler.rewind.restore(scheduler.curve.warmup, highest) == 1
    assert_same(state_of(model, optimizer), states[1])
    # The one after it, where that saw little more.
    assert scheduler.rewind.restore(scheduler.curve.warmup, scheduler.curve.warmup(steps[1]) / 1.4) == steps[1]


@pytest.mark.parametrize("rule", ["minimum", "cliff"])
@pytest.mark.parametrize(("every", "slope"), [("auto", 0.5), ("auto", 4.0), ("auto", 20.0), (20, 4.0)])
def test_weights_that_saw_an_lr_above_the_peak_are_never_gone_back_to(every, slope, rule):
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 800, model=model, test_every=every, peak_rule=rule)
    run(scheduler, model, optimizer, valley(200, 400, slope))
    assert scheduler.phase == "decay"
    assert scheduler.curve.warmup(scheduler.rewound_to) <= scheduler.peak_lr
    assert scheduler.curve.warmup(scheduler.rewound_to) > scheduler.peak_lr / scheduler.rewind.lr_factor**2


def test_the_step_of_the_earliest_snapshot_is_one_of_the_run_also_in_a_sweep(caplog):
    """Both lines of the console name it."""
    losses, options = quickly(400), {"rewind_in_checkpoint": False}
    losses[33:] += np.linspace(1.0, 20.0, 400 - 33)
    model, optimizer, first = made(400, **options)
    run_on(model, optimizer, first, losses[:31])
    assert first._course.sweep_start > 0
    _, _, schedule = resumed = made(400, **options)
    for new, old in zip(resumed, (model, optimizer, first), strict=True):
        new.load_state_dict(old.state_dict())
    run_on(*resumed, losses, since=31)
    assert f"the earliest snapshot that it has, of step {schedule.rewound_to} at" in caplog.text
    assert f"weights and optimizer state of step {schedule.rewound_to}" in schedule.report()["found"]
