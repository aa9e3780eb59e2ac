from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from margins import assert_above
from tiny import LOGGED_DIGITS, TinyClassifier, batches, trainer_for
from transformers import TrainerState

from autowu_hf import AutoWUCallback
from autowu_hf.autowu.relapse import relapse
from autowu_hf.autowu.relapse.attempt import Attempt
from autowu_hf.integrations.kept_steps import BestEvaluation, LossSum

RUN = {
    "num_train_epochs": 20,
    "train_dataset": batches(48),
    "lr_scheduler_kwargs": {"max_lr": 30.0, "test_every": 5},
}
"""120 steps, up to 60 of them for the warm-up over a range, at whose end the weights go back."""
JUDGED = {
    "eval_dataset": batches(8),
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_strategy": "steps",
    "save_steps": 5,
    "save_only_model": True,
    "load_best_model_at_end": True,
}
"""Every fifth step is evaluated and saved, and the best one loaded in the end."""


def trained(folder, **options):
    trainer = trainer_for(
        folder, callbacks=[AutoWUCallback(plot=False, report=False)], model=TinyClassifier(), **RUN, **options
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def every_step(tmp_path_factory):
    """A run that logged every loss."""
    return trained(tmp_path_factory.mktemp("run"))


def losses(trainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


@pytest.mark.parametrize("every", [1, 7, 100])
def test_the_logged_losses_are_those_of_the_weights_that_training_kept(tmp_path, every_step, every):
    """7: some of the lost steps were logged before the switch, others not; 100: none were."""
    schedule, loss = every_step.lr_scheduler, losses(every_step)
    back, switch = schedule.rewound_to, schedule.switch_step
    assert_above(switch - back, 7, switch)
    assert sorted(loss) == list(range(1, 121))  # also of the steps that were looked at
    trainer = every_step if every == 1 else trained(tmp_path, logging_steps=every)
    kept = [step for step in loss if not back < step <= switch]
    mean = sum(loss[step] for step in kept) / len(kept)
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(mean, abs=LOGGED_DIGITS)
    logged = losses(trainer)
    first = min(step for step in logged if step > switch)
    before = max([step for step in logged if step <= switch], default=0)
    since = [step for step in kept if (before if before <= back else switch) < step <= first]
    mean = sum(loss[step] for step in since) / len(since)
    assert logged[first] == pytest.approx(mean, abs=2 * LOGGED_DIGITS)


def test_the_sum_of_a_resumed_run_goes_back_to_where_that_began_at_most():
    schedule = SimpleNamespace(num_steps_looked=6, ticks_per_step=2, is_looking=True)
    state = TrainerState(global_step=10, max_steps=300)
    trainer = SimpleNamespace(
        state=state,
        control=SimpleNamespace(should_training_stop=False),
        _total_loss_scalar=0.0,
        _globalstep_last_logged=10,
    )
    loss_sum, open_sum = LossSum(schedule, state), torch.tensor(0.0)
    for step in range(11, 295):  # more than there is room for at first
        state.global_step = step
        open_sum += 1.0
        loss_sum.follow(trainer, open_sum, schedule)
        loss_sum.follow(trainer, open_sum, schedule)  # an epoch's end
    schedule.num_steps_looked += 2 * 4
    loss_sum.follow(trainer, open_sum, schedule)
    assert (open_sum.item(), trainer._globalstep_last_logged) == (280.0, 14)  # the mean is still over 280 steps
    trainer._total_loss_scalar, trainer._globalstep_last_logged = open_sum.item(), 294  # it is logged
    open_sum.zero_()
    schedule.num_steps_looked += 2 * 290  # to step 4, before the run was resumed
    loss_sum.follow(trainer, open_sum, schedule)
    assert (open_sum.item(), trainer._total_loss_scalar, trainer._globalstep_last_logged) == (0.0, 0.0, 294)


@pytest.mark.parametrize("limit", [None, 1])
def test_an_evaluation_of_weights_that_were_taken_back_is_not_the_best(tmp_path, every_step, limit, caplog):
    """Evaluations improve until the switch, and are worse from there on."""
    trainer = trainer_for(
        tmp_path,
        callbacks=[AutoWUCallback(plot=False, report=False)],
        model=TinyClassifier(),
        save_total_limit=limit,
        **JUDGED,
        **RUN,
    )

    def evaluate(**_):
        return {"eval_loss": (0.5 if trainer.lr_scheduler.is_looking else 1.0) - trainer.state.global_step / 1000}

    trainer.evaluate = evaluate
    with caplog.at_level("INFO", "autowu_hf"):
        trainer.train()
    assert trainer.lr_scheduler.switch_step == every_step.lr_scheduler.switch_step
    kept = trainer.lr_scheduler.rewound_to // 5 * 5
    assert kept > 0
    best = 120 if limit else kept  # the kept one was deleted: a lost one had taken the only room
    assert trainer.state.best_global_step == best
    assert trainer.state.best_metric == (1.0 - 0.12 if limit else 0.5 - kept / 1000)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert caplog.text.count("is forgotten") == 1


def test_what_was_the_best_before_each_way_back():
    state = TrainerState(global_step=20, best_metric=0.9, best_global_step=10)
    args = SimpleNamespace(metric_for_best_model="eval_loss")
    best = BestEvaluation(state)
    for step, metric in [(21, 0.8), (25, 0.7), (30, 0.6)]:
        state.best_metric, state.best_global_step = metric, step
        state.global_step = step + 1  # which sees it first
        best.note(state)
    best.take_back(args, state, 1)  # to step 30
    assert state.best_metric == 0.6
    best.take_back(args, state, 2)  # to step 29
    assert (state.best_metric, state.best_global_step) == (0.7, 25)
    state.global_step = 40
    best.take_back(args, state, 25)  # to step 15, before the run was resumed
    assert (state.best_metric, state.best_global_step) == (0.9, 10)
    best.take_back(args, state, 31)
    assert (state.best_metric, state.best_global_step) == (None, None)
    best.take_back(args, state, 39)  # nothing is left to forget
    state.best_metric = math.inf  # an evaluation that was no number
    best.note(state)
    best.take_back(args, state, 1)
    assert state.best_metric == math.inf


def test_what_was_the_best_before_a_relapse_stays_the_best(tmp_path, monkeypatch):
    """Its checkpoint is there, and is of weights that were good."""
    monkeypatch.setattr(relapse, "MOST", 1)
    monkeypatch.setattr(relapse, "FEWEST_TO_TRY", 0)
    monkeypatch.setattr(relapse, "is_lost", lambda *seen: True)
    take = Attempt.take
    monkeypatch.setattr(Attempt, "take", lambda self, *seen: take(self, *seen) or True)
    trainer = trainer_for(
        tmp_path,
        callbacks=[AutoWUCallback(plot=False, report=False)],
        save_total_limit=1,
        **JUDGED,
        **{**RUN, "lr_scheduler_kwargs": {"scale": True, "max_lr": None}},
    )

    def evaluate(**_):
        step, attempts = trainer.state.global_step, trainer.lr_scheduler.report()["relapses"]["attempts"]
        return {"eval_loss": 1.0 - step / 1000 + (len(attempts) > 0)}

    trainer.evaluate = evaluate
    trainer.train()
    (attempt,) = trainer.lr_scheduler.report()["relapses"]["attempts"]
    assert attempt["was_lost"]
    assert attempt["back_to"] + 5 < attempt["since"]
    assert trainer.state.best_global_step == (attempt["since"] - 1) // 5 * 5
