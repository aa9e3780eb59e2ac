"""SALSA as users run it."""

from __future__ import annotations

import math

import pytest
import torch
from digits_vit import CHANCE, digits_loop
from margins import assert_above, assert_learned
from ranks import run_ranks
from salsa_models import logged, salsa_trainer, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with checkpoints in both phases."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = salsa_trainer(folder, vit=True, momentum=0.9, warmup_steps=120, save_strategy="steps", save_steps=30)
    trainer.train()
    return folder, trainer


def test_trainer_learns_the_digits(whole):
    _, trainer = whole
    scheduler, losses = trainer.lr_scheduler, logged(trainer, "loss")
    assert (scheduler.switch_step, scheduler.ended_by) == (120, "cap")
    growth = math.log(max(logged(trainer, "learning_rate")) / 0.001)
    assert_above(growth, math.log(5), growth)
    assert_learned(sum(losses[-10:]) / 10, CHANCE, 0.3)
    assert scheduler.num_probes <= 2 * scheduler.switch_step


@pytest.mark.parametrize("step", [30, 150])
def test_trainer_resumes_exactly(whole, step, tmp_path):
    folder, trainer = whole
    scheduler = trainer.lr_scheduler
    assert (step < scheduler.switch_step) == (step == 30)
    part = salsa_trainer(tmp_path, vit=True, momentum=0.9, warmup_steps=120)
    part.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert logged(part, "learning_rate") == logged(trainer, "learning_rate")
    for name in ("lr", "switch_step", "ended_by", "drops", "num_probes"):
        assert getattr(part.lr_scheduler, name) == getattr(scheduler, name)
    for mine, other in zip(weights(part), weights(trainer), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.once
def test_two_processes_train_the_digits_and_resume_exactly(tmp_path):
    options = {"save_at": 30, "optimizer_name": "SGD", "warm_up": 40, "min_samples": 100, "initializer_range": 0.1}
    whole = run_ranks(digits_loop, "salsa", str(tmp_path / "state"), 160, **options)
    assert whole[0]["weights"] == whole[1]["weights"]
    assert whole[0]["lrs"] == whole[1]["lrs"]
    assert_learned(sum(whole[0]["losses"][-10:]) / 10, CHANCE, 0.1)
    part = run_ranks(digits_loop, "salsa", str(tmp_path / "state"), 160, resume=True, **options)
    for mine, other in zip(part, whole, strict=True):
        assert mine["lrs"] == other["lrs"][30:]
        assert mine["losses"] == other["losses"][30:]
        assert mine["weights"] == other["weights"]
