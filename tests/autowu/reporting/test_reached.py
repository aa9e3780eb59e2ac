"""The LRs that a warm-up has reached, over a range, at the scale alone, and in a sweep around it."""

from __future__ import annotations

import pytest
from scale_runs import flat, made, quickly, run, slowly

from autowu_hf.autowu.reporting.reached import highest_lr, last_lr


@pytest.mark.parametrize(
    ("losses", "options"),
    [(slowly(200), {}), (quickly(200), {}), (flat(200), {"max_lr": 0.1}), (slowly(200) - 2.0, {})],
    ids=["scale", "sweep", "given range", "no scale"],
)
def test_they_are_those_of_the_run(losses, options):
    model, optimizer, schedule = made(200, **options)
    lrs, course = [], schedule._course
    for step in range(200):
        if schedule.switch_step is not None:
            break
        assert highest_lr(course, schedule.switch_step, 1) is None
        lrs += run(model, optimizer, schedule, losses[: step + 1], since=step)
    since = course.sweep_start
    assert highest_lr(course, schedule.switch_step, 1) == pytest.approx(max(lrs[since:]))
    assert 0.999 * lrs[-1] < last_lr(course, step, 1) < 1.5 * lrs[-1]  # of a sweep, it is the next one
