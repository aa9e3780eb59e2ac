from __future__ import annotations

import logging
import math
import os

import pytest
import torch
from margins import assert_above, assert_close
from ranks import run_ranks
from salsa_models import QUICK, Point, logged, salsa_trainer
from tiny import trainer_for
from torch import nn
from transformers import Trainer, TrainerCallback

from autowu_hf import DivergedError
from autowu_hf.salsa.factory import get_salsa_schedule
from autowu_hf.salsa.trainer import SalsaTrainer


def rank_trainer(folder: str) -> dict:
    """A run of ``SalsaTrainer``: LRs and weights."""
    trainer = salsa_trainer(folder, per_device_train_batch_size=16 // int(os.environ["WORLD_SIZE"]), max_steps=60)
    trainer.train()
    return {
        "lrs": logged(trainer, "learning_rate"),
        "num_probes": trainer.lr_scheduler.num_probes,
        "weights": [p.tolist() for p in trainer.model.parameters()],
    }


@pytest.mark.once
def test_two_processes_of_trainer_search_as_one_does(tmp_path):
    first, second = run_ranks(rank_trainer, str(tmp_path))
    assert first["weights"] == second["weights"]
    assert first["num_probes"] == second["num_probes"]
    assert_above(first["num_probes"], 30, first["num_probes"])
    alone = salsa_trainer(tmp_path, max_steps=60)
    alone.train()
    assert_close(map(math.log, first["lrs"][:20]), map(math.log, logged(alone, "learning_rate")[:20]), 1e-4)


def test_the_search_of_trainer_is_on_the_loss_of_the_whole_step(tmp_path):
    """Accumulated micro-batches search as one batch does, and a search changes nothing but the LR."""
    at_once = salsa_trainer(tmp_path)
    at_once.train()
    for accept in (True, False):
        in_parts = salsa_trainer(
            tmp_path,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            **({"compute_loss_func": mean_over_items} if accept else {}),
        )
        in_parts.train()
        assert logged(in_parts, "learning_rate") == pytest.approx(logged(at_once, "learning_rate"), rel=1e-5)
        assert logged(in_parts, "loss") == pytest.approx(logged(at_once, "loss"), rel=1e-3)
    assert at_once.lr_scheduler._losses.values() == pytest.approx(logged(at_once, "loss")[-10:], rel=1e-3)


def mean_over_items(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def test_a_gradient_scaler_changes_nothing(tmp_path):
    runs = [salsa_trainer(tmp_path) for _ in range(2)]
    runs[1].accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for trainer in runs:
        trainer.train()
    assert logged(runs[1], "learning_rate") == pytest.approx(logged(runs[0], "learning_rate"), rel=1e-5)


def test_with_another_schedule_it_is_trainer(tmp_path):
    options = {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": None}
    runs = [salsa_trainer(tmp_path, kind=kind, **options) for kind in (SalsaTrainer, Trainer)]
    for trainer in runs:
        trainer.train()
    assert logged(runs[0], "loss") == logged(runs[1], "loss")


def test_sasa_alone_needs_no_search_and_takes_every_optimizer(tmp_path):
    kwargs = {**QUICK, "line_search": False}
    trainer = trainer_for(
        tmp_path, lr_scheduler_type="salsa", lr_scheduler_kwargs=kwargs, learning_rate=0.003, max_steps=40
    )
    trainer.train()
    scheduler = trainer.lr_scheduler
    assert type(scheduler._inner).__name__ == "AdamW"
    assert scheduler.phase == "sasa"
    assert len(scheduler._deltas) == 20
    assert logged(trainer, "learning_rate")[0] == 0.003


def test_a_run_that_diverges_is_ended(tmp_path):
    trainer = salsa_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.net[0].weight[0, 0] = math.nan
    with pytest.raises(DivergedError, match="parameters are infinite or NaN after step 0, at learning rate 1.0e-02"):
        trainer.train()


def test_a_step_without_a_search_is_refused_with_the_remedy(tmp_path):
    message = r"use autowu_hf.SalsaTrainer .* call scheduler.search\(model, closure\) .* or pass line_search=False"
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_salsa_schedule(optimizer, 100)
    loss = model()
    loss.backward()
    scheduler.search(model, model, loss)
    optimizer.step()
    scheduler.step()
    optimizer.step()
    with pytest.raises(RuntimeError, match=message):
        scheduler.step()
    with pytest.raises(RuntimeError, match=message):
        salsa_trainer(tmp_path, kind=Trainer).train()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("is_deepspeed_enabled", "does not work under DeepSpeed, .* use DDP, by torchrun or accelerate launch$"),
        ("is_fsdp_enabled", "does not work under FSDP, .* use DDP, .*'line_search': False}$"),
    ],
)
def test_trainer_under_a_launcher_that_shards_is_refused(tmp_path, name, message):
    trainer = salsa_trainer(tmp_path)
    setattr(trainer, name, True)
    trainer.lr_scheduler = get_salsa_schedule(torch.optim.SGD(trainer.model.parameters(), lr=0.1), 100)
    with pytest.raises(ValueError, match=message):
        trainer.training_step(trainer.model, {})


def test_several_devices_in_one_process_are_refused(tmp_path):
    trainer = salsa_trainer(tmp_path)
    trainer.args._n_gpu = 2
    trainer.lr_scheduler = get_salsa_schedule(torch.optim.SGD(trainer.model.parameters(), lr=0.1), 100)
    with pytest.raises(ValueError, match="on several devices in one process, .* use DDP, by torchrun"):
        trainer.training_step(trainer.model, {})


class Stop(TrainerCallback):
    """Ends training at a step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def resumed_without_a_state(folder, caplog, **options):
    """The schedule of a run of 1200 steps that goes on after 100 with the weights alone, and what it warns of."""
    options = {"max_steps": 1200, "save_only_model": True, **options}
    salsa_trainer(folder, callbacks=[Stop(100)], **options).train()
    part = salsa_trainer(folder, callbacks=[Stop(110)], **options)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="autowu_hf"):
        part.train(resume_from_checkpoint=str(folder / "checkpoint-100"))
    warned = [record.getMessage().partition(", so ")[2] for record in caplog.records]
    return part.lr_scheduler, [warning for warning in warned if warning]


def test_a_run_resumed_without_a_state_starts_a_new_line_search(tmp_path, caplog):
    scheduler, warnings = resumed_without_a_state(tmp_path, caplog, lr_scheduler_kwargs={})
    assert warnings == ["SALSA starts a new line search over the 1100 steps that are left"]
    assert (scheduler.num_training_steps, scheduler.last_epoch) == (1100, 10)
    assert (scheduler.min_samples, scheduler.test_every) == (19, 1)  # of 1200 steps they are 21 and 2
    assert scheduler.phase == "line_search"
    assert scheduler.lr > 0.01


@pytest.mark.parametrize(
    ("kwargs", "warning"),
    [
        ({}, "SALSA goes on with SASA+ alone at the optimizer's own LR, 1.0e-02, over the 1100 steps that are left"),
        ({"initial_lr": 0.02}, "SALSA goes on with SASA+ alone at initial_lr, 2.0e-02, over the 1100 steps that are"),
    ],
)
def test_sasa_resumed_without_a_state_goes_on_at_the_lr_given(tmp_path, caplog, kwargs, warning):
    kwargs = {"line_search": False, **kwargs}
    scheduler, warnings = resumed_without_a_state(tmp_path, caplog, lr_scheduler_kwargs=kwargs)
    assert len(warnings) == 1
    assert warnings[0].startswith(warning)
    assert (scheduler.min_samples, scheduler.test_every) == (19, 1)
    assert scheduler.lr == kwargs.get("initial_lr", 0.01)


@pytest.mark.parametrize("trained", ["bias", "weight"])
def test_trainer_trains_biases_or_weights_alone(tmp_path, trained):
    """As under BitFit and LoRA, one of Trainer's two parameter groups is empty."""
    trainer = salsa_trainer(tmp_path, weight_decay=0.1)
    for name, p in trainer.model.named_parameters():
        p.requires_grad_(name.endswith(trained))
    trainer.train()
    assert sorted(len(group["params"]) for group in trainer.optimizer.param_groups) == [0, 2]
    scheduler = trainer.lr_scheduler
    assert scheduler.num_probes >= 20
    assert scheduler.lr > 0.01
    assert len(scheduler._deltas) == 10
