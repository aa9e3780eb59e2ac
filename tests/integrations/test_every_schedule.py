from __future__ import annotations

import importlib
import inspect
import logging
import sys

import pytest
import torch
import transformers
import transformers.trainer
from stand_ins import diffusers_stands_in
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR
from transformers import TrainingArguments, optimization

from autowu_hf import AutoWUScheduler
from autowu_hf.integrations.every_schedule import FACTORIES, EverySchedule


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.fixture
def every():
    replaced = EverySchedule("autowu")
    replaced.install()
    yield replaced
    replaced.remove()


def arguments_of(function) -> dict:
    """Some value for each argument that a function needs."""
    known = {"optimizer": optimizer(), "num_warmup_steps": 5, "num_training_steps": 100, "num_decay_steps": 20}
    taken = inspect.signature(function).parameters
    return {name: value for name, value in known.items() if name in taken}


def test_every_function_of_transformers_gives_it_or_says_why_not(every, caplog):
    names = {name for name in dir(optimization) if FACTORIES.fullmatch(name)}
    assert {"get_scheduler", "get_wsd_schedule", "get_linear_schedule_with_warmup", "get_constant_schedule"} <= names
    assert names == {name for name in dir(optimization) if name.startswith("get_")} - {"get_adafactor_schedule"}
    caplog.set_level(logging.INFO)
    for name in names - {"get_scheduler"}:
        function = getattr(transformers, name, None) or getattr(optimization, name)
        asked = arguments_of(function)
        if "num_training_steps" in asked:
            schedule = function(**asked)
            assert isinstance(schedule, AutoWUScheduler), name
            assert (schedule.num_training_steps, schedule.num_warmup_steps) == (100, 0)
            assert f"autowu takes the place of {name}(); its num_warmup_steps of 5 are left out" in caplog.text
        else:
            with pytest.raises(ValueError, match=rf"{name}\(\), which was not told num_training_steps; pass it to"):
                function(**asked)
    assert every.is_used


def test_it_is_there_wherever_the_functions_are_and_gone_afterwards(every):
    every.remove()

    def state():
        return (
            [dict(vars(module)) for module in (transformers.trainer, optimization)],
            dict(optimization.TYPE_TO_SCHEDULER_FUNCTION),
            (transformers.get_scheduler, transformers.get_cosine_schedule_with_warmup),
            (TrainingArguments.__post_init__, LRScheduler.__init__, [*sys.meta_path]),
        )

    before = state()
    every.install()
    table = optimization.TYPE_TO_SCHEDULER_FUNCTION
    made = [
        transformers.get_scheduler("cosine", optimizer(), 10, num_training_steps=100),
        transformers.trainer.get_scheduler(name="constant", optimizer=optimizer(), num_training_steps=100),
        transformers.get_cosine_schedule_with_warmup(optimizer(), 10, 100),
        table[transformers.SchedulerType.LINEAR](optimizer(), num_warmup_steps=10, num_training_steps=100),
    ]
    assert [type(schedule) for schedule in made] == [AutoWUScheduler] * 4
    assert [schedule.num_warmup_steps for schedule in made] == [0] * 4
    every.remove()
    assert state() == before
    assert type(transformers.get_scheduler("cosine", optimizer(), 10, 100)) is LambdaLR


def test_a_script_that_names_it_keeps_its_options(every):
    own = transformers.get_scheduler("autowu", optimizer(), 20, 100, scheduler_specific_kwargs={"max_lr": 0.5})
    assert own.num_warmup_steps == 20
    assert own.settings.max_lr == 0.5
    args = TrainingArguments("out", use_cpu=True, lr_scheduler_type="autowu", warmup_steps=7)
    assert args.warmup_steps == 7


def test_training_arguments_name_it(every, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        args = TrainingArguments(
            "out", use_cpu=True, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-6}
        )
        assert args.lr_scheduler_type is transformers.SchedulerType("autowu")
        assert not args.lr_scheduler_kwargs
    assert len(caplog.records) == 1
    assert "lr_scheduler_kwargs of {'min_lr': 1e-06} are left out" in caplog.text
    assert not every.is_used


def test_a_closed_form_keeps_the_warm_up_and_is_no_schedule_of_the_script():
    every = EverySchedule("rex")
    every.install()
    try:
        schedule = transformers.get_linear_schedule_with_warmup(optimizer(), 10, 100)
        assert isinstance(schedule, LambdaLR)
        assert [schedule.lr_lambdas[0](step) for step in (5, 10, 100)] == [0.5, 1.0, 0.0]
        assert TrainingArguments("out", use_cpu=True, warmup_steps=7).warmup_steps == 7
    finally:
        every.remove()


def test_what_stays_is_said(every, caplog):
    StepLR(optimizer(), 10)
    torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer())
    every.say_where_unused()
    levels = {record.levelname for record in caplog.records}
    assert levels == {"WARNING"}
    messages = [record.getMessage() for record in caplog.records]
    assert ["StepLR" in messages[0], "ReduceLROnPlateau" in messages[1], "replaced nothing" in messages[2]] == [
        True
    ] * 3
    transformers.get_scheduler("cosine", optimizer(), 10, 100)
    every.say_where_unused()
    assert [r for r in caplog.records if r.levelname == "WARNING"] == caplog.records[:3]


def test_diffusers_is_replaced_when_it_comes(every):
    with diffusers_stands_in():
        diffusers = importlib.import_module("diffusers.optimization")
        made = [
            diffusers.get_scheduler("constant", optimizer(), num_warmup_steps=500, num_training_steps=100),
            diffusers.get_linear_schedule_with_warmup(optimizer(), 500, 100),
            diffusers.TYPE_TO_SCHEDULER_FUNCTION[diffusers.SchedulerType.LINEAR](
                optimizer(), num_warmup_steps=500, num_training_steps=100, last_epoch=-1
            ),
        ]
        assert [type(schedule) for schedule in made] == [AutoWUScheduler] * 3
        assert [schedule.num_warmup_steps for schedule in made] == [0] * 3
        every.remove()
        assert type(diffusers.get_linear_schedule_with_warmup(optimizer(), 5, 100)) is LambdaLR
