from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from tiny import IS_TRANSFORMERS_5, trainer_for
from transformers import SchedulerType

from autowu_hf import AutoWUCallback
from autowu_hf.integrations import leftovers

SHARE = "warmup_steps" if IS_TRANSFORMERS_5 else "warmup_ratio"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"warmup_steps": 0, "warmup_ratio": None}, None),  # as in transformers 5.0
        ({"warmup_steps": 0}, None),
        ({"warmup_steps": 0.25}, "warmup_steps=0.25"),
        ({"warmup_steps": 0, "warmup_ratio": 0.1}, "warmup_ratio=0.1"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "warmup_steps=5"),
    ],
)
def test_a_warmup_is_called_by_the_option_that_asks_for_it(asked, said):
    told = []
    leftovers.say_what_a_warmup_means(SimpleNamespace(**asked), SimpleNamespace(say_inherited=told.append))
    assert told == [said]


@pytest.mark.parametrize(
    ("options", "used", "said"),
    [
        ({"warmup_steps": 500}, 0, "warmup_steps=500 is left out: in a run of 40 steps, AutoWU can use from 10 to 39 "),
        ({SHARE: 0.1}, 0, f"{SHARE}=0.1 is left out: in a run of 40 steps, AutoWU can use from 10 to 39 steps. Remove"),
        (
            {SHARE: 0.3},
            12,
            f"{SHARE}=0.3 limits the search of AutoWU for the peak learning rate to the first 12 of ",
        ),
        (
            {"warmup_steps": 500, "lr_scheduler_type": "salsa", "optim": "sgd"},
            0,
            "warmup_steps=500 is left out: in a run of 40 steps, ",
        ),
        ({}, 0, None),
        ({"warmup_steps": 5, "lr_scheduler_type": "cosine"}, None, None),
    ],
)
def test_a_warmup_that_was_meant_for_another_schedule_is_used_or_left_out_in_words(
    tmp_path, options, used, said, caplog
):
    trainer = trainer_for(tmp_path, max_steps=40, callbacks=[AutoWUCallback(plot=False, report=False)], **options)
    trainer.create_optimizer_and_scheduler(40)
    assert getattr(trainer.lr_scheduler, "num_warmup_steps", None) == used
    trainer.state.max_steps = 40
    trainer.callback_handler.lr_scheduler = trainer.lr_scheduler
    with caplog.at_level(logging.INFO, "autowu_hf"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    lines = [record.getMessage() for record in caplog.records if "inherited" in record.name]
    assert len(lines) == (said is not None)
    assert said is None or lines[0].startswith(said)


def test_a_name_that_was_loaded_as_a_string_is_the_member_again():
    args = SimpleNamespace(lr_scheduler_type="autowu")
    leftovers.restore_member(args)
    assert args.lr_scheduler_type is SchedulerType("autowu")
    args.lr_scheduler_type = "cosine"  # a name of transformers' own is left to it
    leftovers.restore_member(args)
    assert type(args.lr_scheduler_type) is str


@pytest.mark.parametrize(
    ("name", "tried", "is_said"),
    [
        ("autowu", {"learning_rate": 1e-4}, True),
        ("autolrs", {"learning_rate": 1e-4, "weight_decay": 0.1}, True),
        ("autowu", {"weight_decay": 0.1}, False),
        ("autowu", None, False),
        ("rex", {"learning_rate": 1e-4}, False),
        ("cosine", {"learning_rate": 1e-4}, False),
    ],
)
def test_a_search_for_an_lr_that_changes_nothing_is_said(name, tried, is_said, caplog):
    args, state = SimpleNamespace(lr_scheduler_type=name), SimpleNamespace(trial_params=tried)
    assert leftovers.say_what_a_trial_means(args, state) is is_said
    assert caplog.text.count(f'tries learning rates, but lr_scheduler_type="{name}" finds') == is_said


def test_it_is_said_once_in_a_search(tmp_path, caplog):
    trainer = trainer_for(tmp_path, max_steps=40, callbacks=[AutoWUCallback(plot=False, report=False)])
    trainer.create_optimizer_and_scheduler(40)
    trainer.state.max_steps = 40
    trainer.callback_handler.lr_scheduler = trainer.lr_scheduler
    for lr in (1e-5, 1e-4):
        trainer.state.trial_params = {"learning_rate": lr}
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert caplog.text.count("this search tries learning rates") == 1


@pytest.mark.parametrize("name", ["autowu", "autolrs", "salsa", "rex"])
def test_an_option_that_trainer_passes_by_itself_is_refused_before_training(tmp_path, name):
    said = "num_warmup_steps=7, which Trainer passes to the schedule by itself, from warmup_steps; remove"
    with pytest.raises(ValueError, match=said):
        trainer_for(tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs={"num_warmup_steps": 7})
    with pytest.raises(ValueError, match="num_training_steps=9, which .* and set max_steps or num_train_epochs"):
        trainer_for(tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs={"num_training_steps": 9})
    trainer_for(tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_warmup_steps": 7})
