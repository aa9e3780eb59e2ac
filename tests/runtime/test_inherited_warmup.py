from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from transformers import get_scheduler

from autowu_hf import get_autowu_schedule
from autowu_hf.runtime.methods import METHODS


def optimizer_of() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)


def run(schedule, steps: int) -> None:
    """A loss that halves once."""
    for step in range(steps):
        schedule.optimizer.zero_grad()
        loss = schedule.optimizer.param_groups[0]["params"][0].square().sum() + 1.0
        loss.backward()
        schedule.optimizer.step()
        schedule.step(loss.detach() - 1e-3 * step)


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "inherited_warmup" in record.name]


RANGE = {"min_lr": 1e-4, "max_lr": 0.1}
EPOCHS = {"preset": "paper", "steps_per_epoch": 20}


@pytest.mark.parametrize(
    ("name", "options", "asked", "steps", "used"),
    [
        ("autowu", {}, 500, 120, 0),  # more than the run, as diffusers' scripts ask for
        ("autowu", {}, 120, 120, 0),
        ("autowu", {}, 119, 120, 119),
        ("autowu", {}, 5, 1000, 0),
        ("autowu", {}, 12, 120, 0),  # the growth takes 6 steps, and there are 2 before it and 10 losses after it
        ("autowu", {}, 18, 120, 18),
        ("autowu", {}, 9, 40, 0),  # as short a run takes 10 by itself
        ("autowu", {}, 10, 40, 10),
        ("autowu", {}, 0, 120, 0),
        ("autowu", {}, 400, 9000, 0),
        ("autowu", RANGE, 400, 9000, 400),  # a range needs no steps for the scale
        ("autowu", RANGE, 10, 9000, 10),
        ("autowu", RANGE, 9, 9000, 0),
        ("autowu", {"scale": False}, 500, 120, 0),
        ("autowu", EPOCHS, 10, 9000, 10),
        ("autowu", EPOCHS, 9, 9000, 0),
        ("salsa", {}, 500, 120, 0),
        ("salsa", {}, 1, 120, 1),
        ("autolrs", {}, 500, 120, 0),
        ("autolrs", {}, 20, 120, 20),
        ("autolrs", {}, 21, 120, 0),  # a stage takes 100 steps
    ],
)
def test_which_warmup_a_schedule_can_use(name, options, asked, steps, used):
    for kind in (int, float, torch.tensor):
        given = {"num_warmup_steps": kind(asked), "num_training_steps": steps}
        schedule = get_scheduler(name, optimizer_of(), **given, scheduler_specific_kwargs=options)
        assert schedule.num_warmup_steps == used
    if not used:  # as if none had been asked for
        without = get_scheduler(name, optimizer_of(), 0, steps, options)
        assert str(without.state_dict()) == str(schedule.state_dict())
        assert without.get_last_lr() == schedule.get_last_lr()


def test_closed_forms_mean_theirs():
    with pytest.raises(ValueError, match="num_warmup_steps is 500, but must be from 0 to less than"):
        get_scheduler("rex", optimizer_of(), 500, 120)


@pytest.mark.parametrize("asked", [-1, 2.5, "5"])
def test_what_is_no_number_of_steps_is_an_error(asked):
    with pytest.raises(ValueError, match="num_warmup_steps must be a whole number of at least 0, got"):
        get_scheduler("autowu", optimizer_of(), asked, 120)


@pytest.mark.parametrize("options", [{}, {"scale": False}])
@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (
            500,
            "num_warmup_steps=500 is left out: in a run of 60 steps, AutoWU can use from {} to 59 steps. Pass 0;",
        ),
        (5, "num_warmup_steps=5 is left out: in a run of 60 steps, AutoWU can use from {} to 59 steps. Pass 0;"),
        (
            20,
            "num_warmup_steps=20 limits the search of AutoWU for the peak learning rate to the first 20 of 60 steps",
        ),
        (0, None),
    ],
)
def test_what_was_made_of_it_is_said_once(options, asked, text, caplog):
    caplog.set_level(logging.INFO)
    schedule = get_scheduler("autowu", optimizer_of(), asked, 60, options)
    pickle.dumps(copy.deepcopy(schedule))
    assert not said(caplog)  # how often it is stepped for an optimizer step is not known yet
    run(schedule, 60)
    assert "ask for no more at step 5;" not in caplog.text
    assert len(said(caplog)) == (text is not None)
    assert text is None or said(caplog)[0].startswith(text.format(10 if options else 15))
    assert schedule.switch_step != 5


def test_in_several_processes_the_steps_are_optimizer_steps(caplog):
    caplog.set_level(logging.INFO)
    for asked, used in ((2 * 14, 0), (2 * 15, 30), (2 * 500, 0)):
        schedule = get_scheduler("autowu", optimizer_of(), asked, 2 * 60)
        schedule.prepared(2, [schedule.optimizer])
        assert schedule.num_warmup_steps == used
        schedule.optimizer.step()
        schedule.step(1.0)
        assert said(caplog)[-1].startswith(f"num_warmup_steps={asked // 2} ")
    schedule.restart(2 * 40)
    assert schedule.num_warmup_steps == 0


def test_the_functions_of_the_table_take_it_by_its_place():
    table = METHODS["autowu"].schedule
    assert table(optimizer_of(), 120, 500).num_warmup_steps == 0
    assert table(optimizer_of(), 120, num_warmup_steps=20, max_lr=0.1).num_warmup_steps == 20


def test_who_gives_it_to_the_schedule_itself_means_it(caplog):
    with pytest.raises(ValueError, match="num_warmup_steps must be a whole number from 0 to num_training_steps - 1"):
        get_autowu_schedule(optimizer_of(), 120, 500)
    caplog.set_level(logging.INFO)
    schedule = get_autowu_schedule(optimizer_of(), 120, 5)
    run(schedule, 20)
    assert (schedule.switch_step, schedule.ended_by) == (5, "scale")
    assert "too few steps to look on from step 5" in caplog.text
    assert not said(caplog)
