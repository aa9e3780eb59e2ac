"""What people do with a Trainer, each with lr_scheduler_type="autowu": resumes that do not fit, retries, searches."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path

import pytest
import torch
from digits_vit import CHANCE, DigitsViT, digits_trainer
from margins import assert_above, assert_below, assert_learned
from rank_programs import search_in_a_worker
from ranks import run_ranks
from tiny import TinyClassifier, batches, trainer_for
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from autowu_hf import AutoWUCallback, AutoWUScheduler


def trained(folder: Path, **options):
    """A run of 40 steps with a checkpoint at step 10, in the warm-up, unless told otherwise."""
    resume, callbacks = options.pop("resume", None), options.pop("callbacks", [])
    options = {"max_steps": 40, "save_strategy": "steps", "save_steps": 10, "save_total_limit": 9, **options}
    trainer = trainer_for(folder, callbacks=[AutoWUCallback(plot=False, report=False), *callbacks], **options)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


def lrs(trainer) -> dict[int, float]:
    return {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trained(folder)
    return folder / "checkpoint-10"


def test_the_state_loads_with_weights_only(checkpoint):
    state = torch.load(checkpoint / "scheduler.pt", weights_only=True)
    assert state["last_epoch"] == 10


def test_a_checkpoint_of_a_cosine_run_is_refused_with_the_remedy(tmp_path):
    trained(tmp_path, lr_scheduler_type="cosine")
    with pytest.raises(ValueError, match="not a state of AutoWUScheduler.*resume with the scheduler that wrote the"):
        trained(tmp_path, resume=tmp_path / "checkpoint-10")


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt", "both"])
def test_a_checkpoint_without_the_schedules_state_starts_a_warm_up_over_what_is_left(
    tmp_path, checkpoint, missing, caplog
):
    """Trainer loads neither state where one is missing; a checkpoint of save_only_model lacks both."""
    if missing == "both":
        trained(tmp_path, save_only_model=True, max_steps=10)
        checkpoint = tmp_path / "checkpoint-10"
    else:
        shutil.copytree(checkpoint, tmp_path / "checkpoint-10")
        checkpoint = tmp_path / "checkpoint-10"
        (checkpoint / missing).unlink()
    with caplog.at_level(logging.WARNING, "autowu_hf"):
        trainer = trained(tmp_path, resume=checkpoint)
    assert "AutoWU starts a new warm-up over the 30 steps that are left" in caplog.text
    scheduler = trainer.lr_scheduler
    assert scheduler.num_training_steps == scheduler.last_epoch == 30
    assert scheduler.warmup_cap == 15
    assert lrs(trainer)[11] == 1e-5
    assert lrs(trainer)[40] > 0.0
    assert set(scheduler.get_last_lr()) == {0.0}


@pytest.mark.parametrize("max_steps", [80, 25, 12])
@pytest.mark.parametrize("phase", ["warmup", "decay"])
def test_a_run_resumed_with_another_length_keeps_what_it_had_and_ends_at_the_new_one(
    tmp_path, checkpoint, max_steps, phase
):
    if phase == "decay":
        checkpoint = checkpoint.parent / "checkpoint-30"
        max_steps += 20
    before = torch.load(checkpoint / "scheduler.pt", weights_only=True)
    trainer = trained(tmp_path, max_steps=max_steps, resume=checkpoint)
    scheduler: AutoWUScheduler = trainer.lr_scheduler
    assert scheduler.last_epoch == max_steps
    assert set(scheduler.get_last_lr()) == {0.0}
    assert scheduler.phase == "decay"
    if phase == "warmup":
        assert [pace[2] for pace in scheduler.curve.paces] == [before["growth_steps"], max_steps // 2]
        assert 10 < scheduler.switch_step <= min(10 + max_steps // 4 + 1, max_steps)
    else:
        assert (scheduler.switch_step, scheduler.peak_lr) == (before["switch_step"], before["peak_lr"])
    resumed_at = max(scheduler.switch_step, before["last_epoch"])
    after = [lr for step, lr in sorted(lrs(trainer).items()) if step > resumed_at]
    assert all(a > b > 0.0 for a, b in zip(after, after[1:], strict=False))


def test_a_run_resumed_in_its_growth_as_one_of_half_its_length_still_learns(tmp_path):
    """12 epochs of 15 steps, cut at step 40 of a growth of 45, and resumed with 6 epochs, whose growth has 22 steps."""
    options = {
        "lr_scheduler_kwargs": {"scale": False, "max_warmup_fraction": None, "growth": None},
        "train_dataset": batches(480),
        "per_device_train_batch_size": 32,
        "max_steps": -1,
        "save_steps": 40,
        "logging_steps": 100,
    }

    class Cut(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 40

    cut = trained(tmp_path / "whole", num_train_epochs=12, callbacks=[Cut()], **options)
    assert cut.lr_scheduler.phase == "warmup"
    resumed = trained(tmp_path, num_train_epochs=6, resume=tmp_path / "whole" / "checkpoint-40", **options)
    assert resumed.lr_scheduler.last_epoch == 90
    held_out = torch.utils.data.default_collate(batches(400, seed=1))
    with torch.no_grad():
        right = resumed.model(held_out["x"])["logits"].argmax(1) == held_out["labels"]
    assert_above(right.float().mean().item(), 0.7, 1.0 - 1 / 3)


def test_a_run_resumed_with_fewer_steps_than_are_done_trains_no_more(tmp_path, checkpoint):
    trainer = trained(tmp_path, max_steps=5, resume=checkpoint)
    assert trainer.state.global_step == 10


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_out_of_memory_retry_starts_the_schedule_anew(tmp_path):
    class OutOfMemory(AutoWUCallback):
        failed = False

        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 3 and not self.failed:
                type(self).failed = True
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    trainer = trainer_for(
        tmp_path,
        auto_find_batch_size=True,
        num_train_epochs=4,
        train_dataset=batches(64),
        callbacks=[OutOfMemory(plot=False, report=False)],
    )
    trainer.train()
    assert OutOfMemory.failed
    assert trainer.lr_scheduler.num_training_steps == trainer.lr_scheduler.last_epoch == trainer.state.max_steps > 32
    assert len(trainer.lr_scheduler.losses) == trainer.lr_scheduler.switch_step
    assert trainer.lr_scheduler.steps_per_epoch == trainer.state.max_steps // 4


def test_evaluation_does_not_reach_the_schedule(tmp_path):
    """At the start, in between, and with the best model loaded at the end."""
    options = {"eval_dataset": batches(16, seed=3), "eval_strategy": "steps", "eval_steps": 5}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "save_steps": 5}
    plain = trained(tmp_path / "plain")
    evaluated = trained(tmp_path / "evaluated", eval_on_start=True, **options, **best)
    assert evaluated.lr_scheduler.losses == plain.lr_scheduler.losses
    assert lrs(evaluated) == lrs(plain)
    assert evaluated.state.best_model_checkpoint is not None


def test_a_search_trains_every_trial_with_its_own_schedule(tmp_path):
    if importlib.util.find_spec("optuna") is None:
        pytest.skip("optuna is not installed")
    seen = []

    class Keep(AutoWUCallback):
        def on_train_end(self, args, state, control, **kwargs):
            scheduler = kwargs["lr_scheduler"]
            seen.append((id(scheduler), scheduler.last_epoch, len(scheduler.losses), scheduler.switch_step))

    trainer = trainer_for(
        tmp_path,
        model=None,
        model_init=TinyClassifier,
        max_steps=30,
        eval_dataset=batches(16, seed=3),
        callbacks=[Keep(plot=False, report=False)],
    )
    best = trainer.hyperparameter_search(
        backend="optuna",
        n_trials=3,
        direction="minimize",
        hp_space=lambda trial: {"weight_decay": trial.suggest_float("weight_decay", 0.0, 0.1)},
    )
    assert best.objective > 0.0
    assert len(seen) == 3
    assert all(last == 30 and losses == switch for _, last, losses, switch in seen)


@pytest.mark.once
def test_a_trainer_sent_to_a_spawned_worker_trains_there(tmp_path):
    """As the backends do that run their trials in other processes."""
    pytest.importorskip("cloudpickle")
    (outcome,) = run_ranks(search_in_a_worker, str(tmp_path), processes=1)
    assert outcome == ("AutoWUScheduler", 30, True)


@pytest.mark.once
@pytest.mark.parametrize(("name", "options"), [("AdamP", {"delta": 0.1}), ("Lamb", {})])
def test_adamp_and_lamb_learn_the_digits_and_resume_exactly(tmp_path, name, options):
    optimizers = pytest.importorskip("pytorch_optimizer")
    recipe = {"optimizer_cls_and_kwargs": (getattr(optimizers, name), {"lr": 1e-3, **options}), "weight_decay": 0.1}
    saving = {"save_strategy": "steps", "save_steps": 160}
    recipe["callbacks"] = [AutoWUCallback(plot=False, report=False)]
    whole = digits_trainer(tmp_path / "whole", "autowu", 200, model=DigitsViT(0.1), **recipe, **saving)
    whole.train()
    assert {group["weight_decay"] for group in whole.optimizer.param_groups} == {0.1, 0.0}  # 0 for biases and norms
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert_learned(sum(losses[-10:]) / 10, CHANCE, 0.3)
    part = digits_trainer(tmp_path / "part", "autowu", 200, model=DigitsViT(0.1), **recipe)
    part.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-160"))
    assert part.lr_scheduler.peak_lr == whole.lr_scheduler.peak_lr
    for mine, other in zip(part.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("step", [2, 10])
def test_a_resume_with_accumulated_micro_batches_is_not_told_to_add_them_up(tmp_path, step):
    """Trainer does that; warnings are errors here."""
    options = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": step, "max_steps": 40}
    checkpoint, peaks = tmp_path / "whole" / f"checkpoint-{step}", []
    for folder, resume in ((tmp_path / "whole", None), (tmp_path / "part", str(checkpoint))):
        trainer = trainer_for(folder, callbacks=[AutoWUCallback(plot=False, report=False)], **options)
        trainer.args.lr_scheduler_kwargs = {}  # around the scale, which is measured later, too
        trainer.train(resume_from_checkpoint=resume)
        peaks.append(trainer.lr_scheduler.peak_lr)
    assert trainer.lr_scheduler.report()["approach"]["reaches"]
    assert peaks[0] == peaks[1]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # used by peft
def test_lora_by_peft_is_known_by_its_zeros_and_resumes_exactly(tmp_path):
    """Its checkpoints hold the adapter alone."""
    peft = pytest.importorskip("peft")
    tokens = torch.arange(20) * torch.arange(1, 65).unsqueeze(1) % 31  # (64, 20), each row with a step of its own
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

    class Save(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            control.should_save = state.global_step + 1 in (1, 8)

    def run(folder, resume=None):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=31, initializer_range=0.1, **shape))
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
        arguments = {"max_steps": 40, "logging_steps": 1, "save_strategy": "no"}
        arguments |= {"report_to": "none", "use_cpu": True, "per_device_train_batch_size": 16}
        trainer = Trainer(
            model=model,
            args=TrainingArguments(str(folder), lr_scheduler_type="autowu", **arguments),
            train_dataset=rows,
            callbacks=[AutoWUCallback(plot=False), Save()],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    report = whole.lr_scheduler.report()
    assert report["approach"]["scale"]["others_follow"]
    assert report["usual_decay"] == "growth"  # of the weights, which is why the LR falls from the switch on
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert_below(sum(losses[-5:]) / 5, losses[0], losses[0])
    for step in (1, 8):
        part = run(tmp_path / f"part {step}", str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert part.lr_scheduler.peak_lr == whole.lr_scheduler.peak_lr
        for mine, other in zip(part.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(mine, other)
