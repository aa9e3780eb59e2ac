from __future__ import annotations

import pytest

from autowu_hf.autowu.cadence import Cadence
from autowu_hf.autowu.settings import AutoWUSettings


def due_steps(every, *, steps_per_epoch=None, ticks=1, cap=240, until=24, held=()) -> list[int]:
    """The scheduler steps at which a test is due."""
    cadence = Cadence(AutoWUSettings(test_every=every), steps_per_epoch)
    cadence.ticks_per_step = ticks
    cadence.plan(0, cap)
    due = []
    for step in range(1, until + 1):
        cadence.tick()
        cadence.held = step in held
        if cadence.is_due(step):
            due.append(step)
            cadence.plan(step, cap)
    return due


@pytest.mark.parametrize(
    ("every", "options", "expected"),
    [
        (10, {}, [10, 20]),
        ("epoch", {"steps_per_epoch": 9}, [9, 18]),
        ("auto", {}, [4, 8, 12, 16, 20, 24]),  # 1/60 of the cap
        ("auto", {"steps_per_epoch": 8}, [8, 16, 24]),  # the cap holds 30 epochs
        ("auto", {"steps_per_epoch": 9}, [4, 8, 12, 16, 20, 24]),
        (10, {"ticks": 4}, [12, 24]),  # whole optimizer steps
        ("auto", {"ticks": 4, "cap": 242}, [4, 8, 12, 16, 20, 24]),
        ("epoch", {"steps_per_epoch": 18, "ticks": 4}, [20]),
        (4, {"held": (4, 5)}, [6, 8, 12, 16, 20, 24]),  # a test that was held back is made up for
    ],
)
def test_when_tests_are_due(every, options, expected):
    assert due_steps(every, **options) == expected


@pytest.mark.parametrize("ticks", [1, 3])
def test_one_tick_of_every_optimizer_step_takes_in_the_loss(ticks):
    cadence = Cadence(AutoWUSettings(), None)
    cadence.ticks_per_step = ticks
    assert [cadence.tick() for _ in range(6)] == [i % ticks == 0 for i in range(6)]
    cadence.tick()
    cadence.restart()
    assert cadence.tick()


def test_a_test_that_told_nothing_is_repeated_after_the_next_optimizer_step():
    cadence = Cadence(AutoWUSettings(test_every=8), None)
    cadence.ticks_per_step = 2
    cadence.plan(8, 240, soon=True)
    due = []
    for step in range(9, 13):
        cadence.tick()
        due += [step] * cadence.is_due(step)
    assert due == [10, 12]


def test_an_epoch_of_unknown_length_is_refused():
    cadence = Cadence(AutoWUSettings(test_every="epoch"), None)
    assert cadence.interval(100) is None
    with pytest.raises(ValueError, match='test_every="epoch" needs the length of an epoch'):
        cadence.require_interval(100)


@pytest.mark.parametrize(
    ("cap", "every", "ticks", "expected"),
    [(10, "auto", 1, 0), (13, "auto", 1, 3), (13, "auto", 2, 0), (50, 10, 1, 4), (51, 10, 1, 5), (40, 100, 1, 0)],
)
def test_room_for_tests(cap, every, ticks, expected):
    """A test needs ten losses, and none is run at the cap itself."""
    cadence = Cadence(AutoWUSettings(test_every=every), None)
    cadence.ticks_per_step = ticks
    steps = [t for t in range(1, cap) if t % cadence.interval(cap) == 0 and t >= 10 * ticks]
    assert len(steps) == expected
    cadence.cap_option = "num_warmup_steps"
    said = cadence.shortage(cap, 10)
    assert (said is None) == (expected >= 3)
    assert said is None or f"leaves room for {expected} minimum tests" in said
    assert said is None or "a larger num_warmup_steps or a smaller test_every" in said
