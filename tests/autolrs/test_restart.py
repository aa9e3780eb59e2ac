"""A run that goes on without the schedule's state, with however few steps left; and warnings that find their caller."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from autowu_hf import AutoLRSScheduler, MissingLossWarning, get_autolrs_schedule

OWN_LR, MIN_LR = 0.05, 1e-4


def schedule(steps: int = 200, warmup: int = 0) -> tuple[torch.optim.Optimizer, AutoLRSScheduler]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=OWN_LR)
    return optimizer, get_autolrs_schedule(optimizer, steps, warmup, num_candidates=4, min_lr=MIN_LR, max_lr=1.0)


def lrs_of(optimizer: Any, scheduler: AutoLRSScheduler, steps: int) -> list[float]:
    """The LR of each step, in a run whose loss is 1."""
    lrs = []
    for _ in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(1.0)
    return lrs


@pytest.mark.parametrize(("left", "warmup"), [(200, 20), (60, 20), (41, 0)])
def test_new_stages_are_planned_for_what_is_left(left, warmup):
    optimizer, scheduler = schedule(300, warmup)
    assert scheduler.restart(left) == "plans new stages"
    assert scheduler.stages[0].start == max(warmup, 1)
    assert scheduler.stages[-1].end == left
    lrs = lrs_of(optimizer, scheduler, left)
    assert len(scheduler.results) == len(scheduler.stages)
    assert lrs[0] == (0.0 if warmup else MIN_LR)


@pytest.mark.parametrize("left", [41, 45, 59])
def test_a_ramp_is_shortened_until_a_stage_fits(left):
    optimizer, scheduler = schedule(200, 20)
    ramp = left - 40
    assert scheduler.restart(left) == (
        f"shortens its ramp from 20 to {ramp} optimizer steps, so that a stage fits, and plans new stages"
    )
    assert (scheduler.stages[0].start, scheduler.stages[-1].end) == (ramp, left)
    lrs = lrs_of(optimizer, scheduler, left)
    assert lrs[:ramp] == pytest.approx([OWN_LR * i / ramp for i in range(ramp)])
    assert len(scheduler.results) == 1
    assert scheduler.phase == "train"


@pytest.mark.parametrize("warmup", [0, 20])
@pytest.mark.parametrize("left", [2, 15, 40])
def test_without_room_for_a_stage_it_trains_at_the_optimizers_own_lr(left, warmup):
    optimizer, scheduler = schedule(200, warmup)
    assert scheduler.restart(left) == (
        "trains at the optimizer's own learning rate, 5.0e-02, and without a search, which needs 41 optimizer steps,"
    )
    assert scheduler.phase == "train"
    assert not scheduler.takes_losses
    assert lrs_of(optimizer, scheduler, left) == [OWN_LR] * left
    assert (scheduler.results, scheduler.candidate_lrs) == ([], [])


def test_steps_are_counted_in_optimizer_steps():
    optimizer, scheduler = schedule(400, 20)
    scheduler.prepared(2, [optimizer])
    assert scheduler.restart(86).startswith("shortens its ramp from 10 to 3 optimizer steps")
    scheduler = schedule(400, 20)[1]
    scheduler.prepared(2, [optimizer])
    assert scheduler.restart(81).startswith("trains at the optimizer's own learning rate")


@pytest.mark.parametrize("left", [15, 45])
def test_a_checkpoint_of_such_a_run_goes_on_as_it_did(left):
    optimizer, scheduler = schedule(200, 20)
    scheduler.restart(left)
    lrs_of(optimizer, scheduler, 3)
    part_optimizer, part = schedule(left if left == 45 else 200, 0)
    part.load_state_dict(scheduler.state_dict())
    assert part.phase == scheduler.phase
    rest = lrs_of(part_optimizer, part, left - 3)
    if left == 15:
        assert rest == [OWN_LR] * 12
    assert rest == lrs_of(optimizer, scheduler, left - 3)


def files_of(steps: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps()
    return [warning.filename for warning in caught if warning.category is MissingLossWarning]


def test_the_warning_of_a_missing_loss_names_the_file_that_steps_the_schedule():
    optimizer, scheduler = schedule()

    def steps() -> None:
        for _ in range(3):
            optimizer.step()
            scheduler.step()

    assert files_of(steps) == [__file__]


def test_the_warning_names_it_through_a_prepared_schedule_too():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared: Any = Accelerator(cpu=True).prepare(model, optimizer, get_autolrs_schedule(optimizer, 200))
    model, optimizer, scheduler = prepared

    def steps() -> None:
        for _ in range(3):
            model(torch.ones(1, 1)).sum().backward()
            optimizer.step()
            scheduler.step()

    assert files_of(steps) == [__file__]
