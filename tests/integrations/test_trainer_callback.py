from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from margins import assert_above, assert_below
from tiny import IS_TRANSFORMERS_5, LOGGED_DIGITS, TinyClassifier, batches, trainer_for
from transformers import TrainerCallback

from autowu_hf import AutoWUCallback

OPTIONS = {"num_train_epochs": 20, "train_dataset": batches(48)}  # 6 steps an epoch, 120 in all


def history(trainer, since: int = 0) -> list[tuple[float, float]]:
    entries = [e for e in trainer.state.log_history if "loss" in e and e["step"] > since]
    return [(e["loss"], e["learning_rate"]) for e in entries]


def test_a_run_finds_its_lr_logs_it_and_writes_its_report(tmp_path: Path):
    pytest.importorskip("matplotlib")
    trainer = trainer_for(tmp_path, num_train_epochs=50, lr_scheduler_kwargs={"max_lr": 1e4})
    trainer.train()
    scheduler = trainer.lr_scheduler
    assert scheduler.phase == "decay"
    assert_below(scheduler.switch_step, scheduler.warmup_cap, scheduler.warmup_cap)
    assert scheduler.steps_per_epoch == 8
    logs = [e for e in trainer.state.log_history if "loss" in e]
    assert [e["autowu/phase"] for e in logs] == [float(e["step"] >= scheduler.switch_step) for e in logs]
    assert all(("autowu/peak_lr" in e) == (e["step"] >= scheduler.switch_step) for e in logs)
    assert logs[-1]["autowu/peak_lr"] == scheduler.peak_lr
    assert {key for e in logs for key in e if "/p_" in key} == {"autowu/p_cliff"}
    assert all("autowu/p_cliff" not in e for e in logs if e["step"] >= scheduler.switch_step)
    tests = {test.step: test.p_cliff for test in scheduler.tests}
    seen = {e["step"]: e["autowu/p_cliff"] for e in logs if e["step"] in tests and "autowu/p_cliff" in e}
    assert_above(len(seen), 2, len(tests))
    assert seen == {step: statistics.median(tests[step]) for step in seen}
    assert logs[scheduler.switch_step]["learning_rate"] == scheduler.peak_lr

    report = json.loads((tmp_path / "autowu.json").read_text())
    assert report["peak_lr"] == scheduler.peak_lr
    assert report["step"] == 400
    assert report["losses"] == pytest.approx([e["loss"] for e in logs[: scheduler.switch_step]], abs=LOGGED_DIGITS)
    assert report["logged_losses"][-1] == [400, logs[-1]["loss"]]
    assert (tmp_path / "autowu.png").stat().st_size > 10_000


def test_reports_are_optional(tmp_path: Path):
    trainer = trainer_for(tmp_path, num_train_epochs=2, callbacks=[AutoWUCallback(plot=False, report=False)])
    trainer.train()
    assert list(tmp_path.glob("autowu*")) == []


def test_logs_reach_the_reporting_callbacks(tmp_path: Path):
    class Recorder(TrainerCallback):
        seen: list[dict] = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs))

    trainer = trainer_for(tmp_path, num_train_epochs=2, callbacks=[Recorder(), AutoWUCallback(plot=False)])
    trainer.train()
    assert all("autowu/phase" in logs for logs in Recorder.seen if "loss" in logs)
    assert "autowu/phase" not in Recorder.seen[-1]  # the summary of the run


def test_epoch_length_counts_optimizer_steps(tmp_path: Path):
    trainer = trainer_for(
        tmp_path,
        num_train_epochs=2,
        gradient_accumulation_steps=3,
        lr_scheduler_kwargs={"test_every": "epoch"},
        callbacks=[AutoWUCallback(plot=False)],
    )
    trainer.train()
    assert trainer.lr_scheduler.steps_per_epoch == 3  # 8 batches in groups of 3, 3 and 2


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(batches(400))


def test_a_dataset_without_a_length_trains_with_auto_and_refuses_epoch(tmp_path: Path):
    trainer = trainer_for(tmp_path, train_dataset=Stream(), max_steps=40, callbacks=[AutoWUCallback(plot=False)])
    trainer.train()
    assert trainer.lr_scheduler.steps_per_epoch is None
    assert trainer.lr_scheduler.phase == "decay"

    trainer = trainer_for(tmp_path, train_dataset=Stream(), max_steps=40, lr_scheduler_kwargs={"preset": "paper"})
    with pytest.raises(ValueError, match='test_every="epoch" needs the length of an epoch'):
        trainer.train()
    assert trainer.state.global_step == 0
    with pytest.raises(ValueError, match="max_steps"):
        trainer_for(tmp_path, train_dataset=Stream()).train()


def test_a_run_of_one_step_keeps_to_the_lr_that_was_given(tmp_path: Path):
    """As scripts are tried."""
    options = {"lr_scheduler_kwargs": {"scale": True, "max_lr": None}, "learning_rate": 3e-4}
    trainer = trainer_for(tmp_path, max_steps=1, **options)
    trainer.train()
    assert trainer.lr_scheduler.peak_lr == 3e-4
    before, after = TinyClassifier().state_dict(), trainer.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_warmup_steps_are_the_cap(tmp_path: Path):
    trainer = trainer_for(tmp_path, max_steps=40, warmup_steps=12, callbacks=[AutoWUCallback(plot=False)])
    trainer.train()
    assert trainer.lr_scheduler.warmup_cap == 12


class InterruptedError(Exception):
    pass


class Interrupt(AutoWUCallback):
    """Ends the run the hard way after some step."""

    def __init__(self, step: int) -> None:
        super().__init__(plot=False)
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


@pytest.mark.parametrize(("preset", "saved_at"), [(None, 17), (None, 30), (None, 100), ("paper", 30)])
def test_a_run_resumed_from_its_checkpoint_is_identical(tmp_path: Path, saved_at: int, preset):
    """Saved in the warm-up between two tests, at an epoch's end (a test of the paper's), and in the decay."""
    options = {
        **OPTIONS,
        "lr_scheduler_kwargs": {"max_lr": 30.0, "preset": preset, "test_every": None if preset else 5},
        "save_strategy": "steps",
        "save_steps": saved_at,
        "save_total_limit": 10,
    }
    whole = trainer_for(tmp_path / "whole", callbacks=[AutoWUCallback(plot=False)], model=TinyClassifier(), **options)
    whole.train()
    assert_above(whole.lr_scheduler.switch_step, 30, whole.lr_scheduler.switch_step)
    assert whole.lr_scheduler.switch_step <= whole.lr_scheduler.warmup_cap

    first = trainer_for(tmp_path / "first", callbacks=[Interrupt(saved_at + 2)], model=TinyClassifier(), **options)
    with pytest.raises(InterruptedError):
        first.train()
    resumed = trainer_for(tmp_path / "first", callbacks=[AutoWUCallback(plot=False)], model=TinyClassifier(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "first" / f"checkpoint-{saved_at}"))
    assert history(resumed, since=saved_at) == history(whole, since=saved_at)
    assert resumed.lr_scheduler.losses == whole.lr_scheduler.losses
    assert resumed.lr_scheduler.peak_lr == whole.lr_scheduler.peak_lr
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_twice_with_one_trainer_starts_anew(tmp_path: Path):
    trainer = trainer_for(tmp_path, callbacks=[AutoWUCallback(plot=False)], **OPTIONS)
    trainer.train()
    first = trainer.lr_scheduler
    trainer.train()
    assert trainer.lr_scheduler is not first
    assert trainer.lr_scheduler.last_epoch == 120
    assert len(trainer.lr_scheduler.losses) == trainer.lr_scheduler.switch_step


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, monkeypatch, caplog):
    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr("autowu_hf.autowu.reporting.plotting.write_report", fail)
    trainer = trainer_for(tmp_path, num_train_epochs=2, callbacks=[AutoWUCallback(plot=False)])
    trainer.train()
    assert trainer.state.global_step == 16
    assert "the report of AutoWU could not be written" in caplog.text


def test_a_layer_wise_optimizer_is_refused_before_training(tmp_path: Path):
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    model = TinyClassifier()
    layers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    optimizer = LayerWiseDummyOptimizer(optimizer_dict=layers)
    trainer = trainer_for(tmp_path, model=model, optimizers=(optimizer, None))
    message = "LayerWiseDummyOptimizer steps every layer by itself inside the backward"
    if IS_TRANSFORMERS_5:
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert trainer.state.global_step == 0
    # Where get_scheduler has made one schedule per layer, the callback is the first to see them together.
    with pytest.raises(ValueError, match=message):
        AutoWUCallback().on_train_begin(
            trainer.args, trainer.state, trainer.control, lr_scheduler=SimpleNamespace(optimizer=optimizer)
        )


def test_another_schedule_than_the_one_that_was_asked_for_is_said(tmp_path: Path, caplog):
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters())
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer_for(tmp_path, model=model, num_train_epochs=1, optimizers=(optimizer, constant)).train()
    said = 'lr_scheduler_type is "autowu", but this Trainer has another schedule, ConstantLR, which is used instead'
    assert caplog.text.count(said) == 1
    caplog.clear()
    trainer_for(tmp_path, num_train_epochs=1).train()
    trainer_for(tmp_path, num_train_epochs=1, lr_scheduler_type="cosine").train()
    assert "another schedule" not in caplog.text


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize(
    ("name", "step", "is_said"), [("autowu", 5, True), ("autowu", 30, False), ("cosine", 5, False)]
)
def test_a_training_that_is_ended_while_it_looks_says_so(tmp_path: Path, caplog, name, step, is_said):
    callbacks = [Stop(step), AutoWUCallback(plot=False, report=False)]
    trainer = trainer_for(tmp_path, max_steps=40, lr_scheduler_type=name, callbacks=callbacks)
    trainer.train()
    assert trainer.state.global_step == step
    said = "training was ended at step 5 of 40, while AutoWU was looking for the learning rate"
    assert caplog.text.count(said) == caplog.text.count("training was ended") == is_said
