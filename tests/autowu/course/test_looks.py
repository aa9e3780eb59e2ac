"""When the approach needs the losses, and which steps need not ask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scale_runs import flat, made, noisy, quickly, run, run_noisy, slowly

from autowu_hf.autowu.course.course import Course


@pytest.fixture
def steps_seen(monkeypatch):
    """The steps of the approach: those that did not ask, which nobody may have needed, and those that looked."""
    seen = {"skipped": [], "looked": []}
    inner = Course.come_closer

    def come_closer(course, step, held):
        approach, done = course.approach, step // course._ticks
        wanted = approach is None or course.is_blind or approach.wants_losses(done)
        if done < course._next_look:
            assert not wanted, f"step {done} was needed"
            seen["skipped"].append(done)
        elif wanted:
            seen["looked"].append(done)
        return inner(course, step, held)

    monkeypatch.setattr(Course, "come_closer", come_closer)
    return seen


LOSSES = {
    "slowly": slowly,
    "quickly": quickly,
    "flat": flat,
    "broken": lambda n: np.where(np.arange(n) < n // 8, 1.0, 4.0),
    "nan": lambda n: np.where(np.arange(n) == n // 6, np.nan, slowly(n)),
}


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
@pytest.mark.parametrize("losses", LOSSES)
def test_no_step_is_skipped_that_is_needed(steps_seen, losses, make):
    for steps in (40, 130, 600):
        seen = len(steps_seen["skipped"]), len(steps_seen["looked"])
        run(*made(steps, make=make), LOSSES[losses](steps)[: steps // 2])
        skipped, looked = len(steps_seen["skipped"]) - seen[0], len(steps_seen["looked"]) - seen[1]
        assert looked >= 3
    assert skipped > looked  # in the longest run


@pytest.mark.parametrize("signal", [0.0, 0.02, 1.0])
def test_nor_where_later_batches_are_asked_or_a_transient_is_measured(steps_seen, signal):
    weights, optimizer, schedule = noisy(400)
    run_noisy(weights, optimizer, schedule, signal, quickly(400)[:200])
    assert len(steps_seen["skipped"]) > 10


def test_a_resume_asks_anew(steps_seen):
    model, optimizer, schedule = made(600)
    run(model, optimizer, schedule, slowly(600)[:60])
    skipped, looked = [*steps_seen["skipped"]], [*steps_seen["looked"]]
    state = schedule.state_dict()
    schedule.load_state_dict(state)
    run(model, optimizer, schedule, slowly(600)[:100], since=60)
    assert skipped[-1] <= 60 <= looked[-1] + 10
    assert steps_seen["looked"][len(looked)] <= looked[-1] + 10


def test_a_look_comes_every_sixtieth_of_the_run_and_where_something_ends(steps_seen):
    run(*made(600), slowly(600)[:200])
    looked = steps_seen["looked"]
    assert [step for step in range(10, 180, 10) if step not in looked] == []
    assert {30, 40, 180} <= {*looked}  # the growth's end, the judges' first step, the last look
