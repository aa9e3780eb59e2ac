from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import pytest
from margins import assert_below
from tiny import TinyClassifier, batches, trainer_for
from transformers import EarlyStoppingCallback, TrainerCallback

import autowu_hf
from autowu_hf import AutoWUCallback

RUN = {
    "num_train_epochs": 20,  # of 6 steps
    "train_dataset": batches(48),
    "eval_dataset": batches(8),
    "eval_strategy": "epoch",
    "metric_for_best_model": "eval_loss",
}


class StopsAtOnce(EarlyStoppingCallback):
    """Stops at the first evaluation that it hears of."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[int] = []

    def check_metric_value(self, args, state, control, metric_value):
        self.heard.append(state.global_step)
        self.early_stopping_patience_counter = self.early_stopping_patience


class Asks(TrainerCallback):
    """As a callback that judges evaluations may ask."""

    def __init__(self) -> None:
        self.looking: dict[int, bool] = {}

    def on_evaluate(self, args, state, control, lr_scheduler=None, **kwargs):
        self.looking[state.global_step] = getattr(lr_scheduler, "is_looking", False)


def test_early_stopping_begins_at_the_switch(tmp_path, caplog):
    options = {"max_lr": 30.0, "test_every": 5}
    stops, asks = StopsAtOnce(), Asks()
    callbacks = [stops, asks, AutoWUCallback(plot=False, report=False)]
    trainer = trainer_for(tmp_path, callbacks=callbacks, lr_scheduler_kwargs=options, **RUN)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        trainer.train()
    switch = trainer.lr_scheduler.switch_step
    assert switch > 12  # there were evaluations before
    assert stops.heard == [trainer.state.global_step] == [-(-switch // 6) * 6]
    assert asks.looking == {step: step < switch for step in range(6, trainer.state.global_step + 1, 6)}
    assert caplog.text.count("StopsAtOnce does not count the evaluations that are made while AutoWU looks") == 1
    assert stops in trainer.callback_handler.callbacks


@pytest.mark.once
def test_a_run_around_the_scale_that_is_stopped_early_is_as_good_as_a_whole_one(tmp_path):
    """480 rows whose labels are noisy, 40 epochs of 15 steps, and a patience of 3 epochs."""
    run = {
        "train_dataset": batches(480, noise=1.0),
        "eval_dataset": batches(200, seed=1, noise=1.0),
        "num_train_epochs": 40,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 200,
        "eval_strategy": "epoch",
        "logging_steps": 100,
        "lr_scheduler_kwargs": dict.fromkeys(["max_warmup_fraction", "growth"]),
    }
    keeps = {"save_strategy": "epoch", "save_total_limit": 2, "save_only_model": True, "load_best_model_at_end": True}
    quiet = AutoWUCallback(plot=False, report=False)
    whole = trainer_for(tmp_path / "whole", callbacks=[quiet], model=TinyClassifier(), **run)
    whole.train()
    losses = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    callbacks = [quiet, EarlyStoppingCallback(3)]
    stopped = trainer_for(tmp_path / "stopped", callbacks=callbacks, model=TinyClassifier(), **keeps, **run)
    stopped.train()
    assert stopped.lr_scheduler.switch_step + 3 * 15 <= stopped.state.global_step < 600
    assert stopped.state.best_global_step > stopped.lr_scheduler.switch_step
    assert_below(stopped.state.best_metric, min(losses) + 0.3 * (losses[0] - min(losses)), losses[0] - min(losses))


def test_early_stopping_of_another_schedule_counts_from_the_start(tmp_path):
    stops = StopsAtOnce()
    trainer = trainer_for(tmp_path, callbacks=[stops], lr_scheduler_type="cosine", **RUN)
    trainer.train()
    assert stops.heard == [6]


def test_the_pruner_of_a_search_hears_of_no_evaluation_before_the_switch(tmp_path):
    pytest.importorskip("optuna")
    trainer = trainer_for(tmp_path)
    trainer.create_optimizer_and_scheduler(40)
    trainer.hp_search_backend, trainer.compute_objective = "optuna", lambda metrics: metrics["eval_loss"]
    reported = []
    trial = SimpleNamespace(
        study=SimpleNamespace(_is_multi_objective=lambda: False),
        report=lambda objective, step: reported.append((step, objective)),
        should_prune=lambda: False,
    )
    trainer._report_to_hp_search(trial, 5, {"eval_loss": 0.5})
    assert reported == []
    assert getattr(trainer, "objective", None) is None
    trainer.lr_scheduler.switch_step = 8
    trainer._report_to_hp_search(trial, 10, {"eval_loss": 0.4})
    assert reported == [(10, 0.4)]
    trainer.lr_scheduler.switch_step = None
    autowu_hf.unregister()
    trainer._report_to_hp_search(trial, 15, {"eval_loss": 0.3})
    assert reported == [(10, 0.4), (15, 0.3)]


@pytest.mark.parametrize("name", ["autowu", "autolrs", "cosine"])
def test_the_model_card_names_the_lr_that_was_found(tmp_path, name):
    trainer = trainer_for(
        tmp_path, lr_scheduler_type=name, model=TinyClassifier(), callbacks=[AutoWUCallback(plot=False, report=False)]
    )
    trainer.create_optimizer_and_scheduler(200)
    expected = {"autowu": "chosen by AutoWU", "autolrs": "chosen by AutoLRS", "cosine": "5e-05"}[name]
    assert card_lr(trainer, tmp_path) == expected
    if name == "autowu":
        schedule = trainer.lr_scheduler
        schedule.switch_step, schedule.peak_lr, schedule.ended_by = 7, 0.0123456, "scale"
        assert card_lr(trainer, tmp_path) == "0.0123, found by AutoWU"
        schedule.peak_lr, schedule.ended_by = 5e-5, "nothing"
        assert card_lr(trainer, tmp_path) == "5e-05, which the optimizer was given; AutoWU found none"


def card_lr(trainer, folder) -> str:
    trainer.create_model_card(model_name="tiny")
    return re.search(r"^- learning_rate: (.*)$", (folder / "README.md").read_text(), flags=re.MULTILINE)[1]


class SavesLate(TrainerCallback):
    """Asks for a checkpoint when AutoWU's own callback has had its turn."""

    def __init__(self, when: str) -> None:
        self.when, self.pending = when, {}

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= self.when == "step" and state.global_step == 7

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_save |= self.when == "evaluation" and state.global_step == 6

    def on_save(self, args, state, control, lr_scheduler=None, **kwargs):
        self.pending[state.global_step] = len(lr_scheduler.pending_losses())


@pytest.mark.parametrize(("when", "step"), [("step", 7), ("evaluation", 6)])
def test_a_checkpoint_that_somebody_else_asks_for_has_the_losses_of_all_ranks(tmp_path, when, step):
    saves = SavesLate(when)
    options = {"callbacks": [saves], "save_strategy": "no", "lr_scheduler_kwargs": {"max_lr": 30.0, "test_every": 5}}
    trainer = trainer_for(tmp_path, **options, **{**RUN, "num_train_epochs": 4})
    trainer.train()
    assert saves.pending[step] == 0
    assert (tmp_path / f"checkpoint-{step}").is_dir()


@pytest.mark.parametrize(
    ("options", "stops", "decay"),
    [
        ({}, False, "constant_then_cosine"),
        ({}, True, "rex"),
        ({"decay_type": "constant_then_cosine"}, True, "constant_then_cosine"),  # it was asked for
    ],
)
def test_under_early_stopping_the_lr_falls_from_the_switch_on(options, stops, decay, tmp_path, caplog):
    kwargs = {**dict.fromkeys(["max_warmup_fraction", "growth", "decay_type"]), **options}
    callbacks = [*[EarlyStoppingCallback(100)] * stops, AutoWUCallback(plot=False, report=False)]
    trainer = trainer_for(tmp_path, callbacks=callbacks, lr_scheduler_kwargs=kwargs, **RUN)
    for parameter in trainer.model.parameters():
        parameter.data.mul_(0.1)  # so that R and M hold the LR
    with caplog.at_level(logging.INFO, "autowu_hf"):
        trainer.train()
    assert trainer.lr_scheduler.report()["curve"]["decay_type"] == decay
    assert ("since evaluations may stop the run early" in caplog.text) is (decay == "rex")
