"""AutoLRS as users run it: Trainer and accelerate loops, one process and two."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from digits_vit import CHANCE, DigitsViT, digits_loop, digits_trainer
from margins import assert_learned
from ranks import run_ranks
from torch import nn

from autowu_hf import AutoLRSScheduler, get_autolrs_schedule

OPTIONS = {"num_candidates": 4, "first_stage": 80, "min_lr": 3e-4, "max_lr": 1e-2}
STEPS = 201


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Trainer's run with checkpoints inside the first search and inside its training."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = digits_trainer(
        folder, "autolrs", STEPS, lr_scheduler_kwargs=OPTIONS, save_strategy="steps", save_steps=50
    )
    trainer.train()
    return folder, trainer


def test_trainer_learns_the_digits(whole):
    _, trainer = whole
    scheduler = trainer.lr_scheduler
    assert isinstance(scheduler, AutoLRSScheduler)
    assert trainer.state.global_step == scheduler.last_epoch == scheduler.stages[-1].end == STEPS
    assert len(scheduler.results) == len(scheduler.stages)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert_learned(sum(losses[-10:]) / 10, CHANCE, 0.15)


@pytest.mark.parametrize("step", [50, 100])
def test_trainer_resumes_exactly(whole, step, tmp_path):
    folder, trainer = whole
    stage = trainer.lr_scheduler.stages[0]
    assert (step < stage.start + stage.search_steps) == (step == 50)
    part = digits_trainer(tmp_path, "autolrs", STEPS, lr_scheduler_kwargs=OPTIONS)
    part.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert part.lr_scheduler.results == trainer.lr_scheduler.results
    for mine, other in zip(weights(part), weights(trainer), strict=True):
        assert torch.equal(mine, other)


def test_a_checkpoint_without_the_schedules_state_plans_new_stages_for_what_is_left(tmp_path, caplog):
    options = {"lr_scheduler_kwargs": {"num_candidates": 2}}
    digits_trainer(
        tmp_path, "autolrs", 40, save_only_model=True, save_strategy="steps", save_steps=10, **options
    ).train()
    part = digits_trainer(tmp_path, "autolrs", 40, **options)
    part.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert "AutoLRS plans new stages over the 30 steps that are left" in caplog.text
    assert part.lr_scheduler.stages[-1].end == part.lr_scheduler.last_epoch == 30
    assert len(part.lr_scheduler.results) == len(part.lr_scheduler.stages)
    part = digits_trainer(tmp_path, "autolrs", 40, logging_steps=1, **options)
    part.train(resume_from_checkpoint=str(tmp_path / "checkpoint-30"))
    lr = part.args.learning_rate
    assert f"AutoLRS trains at the optimizer's own learning rate, {lr:.1e}, and without a search" in caplog.text
    assert "which needs 21 optimizer steps, over the 10 steps that are left" in caplog.text
    logged = [entry["learning_rate"] for entry in part.state.log_history if "learning_rate" in entry]
    assert logged[-10:] == [lr] * 10
    assert part.lr_scheduler.results == []


@pytest.mark.once
def test_two_processes_agree_and_resume_exactly(tmp_path):
    folder = str(tmp_path / "state")
    first, second = run_ranks(digits_loop, "autolrs", folder, 261, save_at=30, **OPTIONS)
    assert first["lrs"] == second["lrs"]
    assert first["weights"] == second["weights"]
    assert first["losses"] != second["losses"]
    assert_learned(sum(first["losses"][-10:]) / 10, CHANCE, 0.1)
    for part, whole in zip(
        run_ranks(digits_loop, "autolrs", folder, 261, save_at=30, resume=True, **OPTIONS),
        (first, second),
        strict=True,
    ):
        assert part["lrs"] == whole["lrs"][30:]
        assert part["losses"] == whole["losses"][30:]
        assert part["weights"] == whole["weights"]


def test_buffers_are_restored():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_autolrs_schedule(optimizer, 101)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    means = []
    for _ in range(101):
        means.append(model[1].running_mean.clone())
        accelerator.backward(model(torch.randn(16, 4) + 1.0).square().mean())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    for i in range(11):
        assert torch.equal(means[1 + 5 * i], means[1])
    assert not torch.equal(means[-1], means[1])


@pytest.mark.parametrize("save_at", [31, 50, 58])
def test_buffers_are_restored_in_a_run_that_was_resumed_between_two_searches(save_at, tmp_path):
    def run(resume: bool) -> tuple[AutoLRSScheduler, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        accelerator = Accelerator(cpu=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        # Some candidates diverge, and take the running statistics with them.
        scheduler = get_autolrs_schedule(
            optimizer, 141, num_candidates=3, first_stage=30, longest_stage=30, min_lr=1e-3, max_lr=1e30
        )
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        if resume:
            accelerator.load_state(str(tmp_path))
        for step in range(save_at if resume else 0, 141):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step)) + 1.0
            accelerator.backward(model(x).square().mean())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step + 1 == save_at and not resume:
                assert scheduler.scheduler.phase == "train"
                accelerator.save_state(str(tmp_path))
        return scheduler.scheduler, model.state_dict()

    whole, expected = run(resume=False)
    assert len(whole.results) == 2
    assert not all(map(math.isfinite, whole.results[1]["forecasts"]))
    part, state = run(resume=True)
    assert repr(part.results) == repr(whole.results)  # with NaN
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
        assert bool(value.isfinite().all())


def test_uneven_inputs_are_refused():
    run_ranks(refused_in_join)


def refused_in_join() -> None:
    accelerator = Accelerator(cpu=True)
    model = DigitsViT()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, _ = accelerator.prepare(model, optimizer, get_autolrs_schedule(optimizer, 400))
    with pytest.raises(ValueError, match="leave join_uneven_inputs out"), accelerator.join_uneven_inputs([model]):
        pass


def test_a_deepspeed_config_with_its_own_schedule_is_refused(tmp_path):
    from types import SimpleNamespace

    from transformers import TrainerControl, TrainerState

    from autowu_hf import AutoWUCallback

    config = SimpleNamespace(hf_ds_config=SimpleNamespace(config={"scheduler": {"type": "WarmupLR"}}))
    args = SimpleNamespace(lr_scheduler_type="autolrs", deepspeed_plugin=config)
    with pytest.raises(ValueError, match='instead of lr_scheduler_type="autolrs"'):
        AutoWUCallback().on_init_end(args, TrainerState(), TrainerControl())
