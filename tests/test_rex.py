from __future__ import annotations

import warnings
from fractions import Fraction

import pytest
import torch
from digits_vit import CHANCE, digits_loop, digits_trainer
from margins import assert_learned
from rank_programs import rex_loop
from ranks import run_ranks
from tiny import trainer_for
from transformers import get_scheduler

from autowu_hf import get_rex_schedule_with_warmup


def optimizer_of(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs or (1.0,)], lr=1.0)


def lrs_of(*lengths, lrs=(1.0,), **options) -> list[float]:
    """The LR of every step, and the one after the last."""
    optimizer = optimizer_of(*lrs)
    scheduler = get_rex_schedule_with_warmup(optimizer, *lengths, **options)
    seen = []
    for _ in range(lengths[1] + 1):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def profile(s: Fraction) -> Fraction:
    """The paper's, in exact arithmetic."""
    return (1 - s) / (Fraction(1, 2) + Fraction(1, 2) * (1 - s))


@pytest.mark.parametrize(("warm_up", "steps"), [(0, 1), (0, 7), (5, 100), (99, 100), (250, 5000)])
def test_every_step_is_the_papers_formula(warm_up, steps):
    seen = lrs_of(warm_up, steps)
    for t, lr in enumerate(seen):
        expected = Fraction(t, warm_up) if t < warm_up else profile(Fraction(min(t, steps) - warm_up, steps - warm_up))
        assert lr == pytest.approx(float(expected), rel=1e-12, abs=1e-12)
    assert seen[-1] == 0.0
    assert max(seen) == 1.0


def test_it_is_above_the_cosine_and_the_line_until_late():
    seen = lrs_of(0, 100)
    assert all(lr >= 1 - t / 100 for t, lr in enumerate(seen))
    assert seen[75] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("sampling", "steps_per_epoch", "changes"),
    [
        ("epoch", 10, [10, 20, 30]),
        ([0.5, 0.75], None, [20, 30]),
        ([0.1, 0.2], 10, [4, 8]),
        ("step", 10, list(range(1, 40))),
    ],
)
def test_sampling_takes_the_profile_at_its_steps_and_stays_in_between(sampling, steps_per_epoch, changes):
    seen = lrs_of(0, 40, sampling=sampling, steps_per_epoch=steps_per_epoch)
    assert [t for t in range(1, 40) if seen[t] != seen[t - 1]] == changes
    assert [seen[t] for t in changes] == pytest.approx([float(profile(Fraction(t, 40))) for t in changes], rel=1e-12)
    assert seen[40] == 0.0


def test_a_warm_up_is_followed_by_the_peak_until_the_next_milestone():
    seen = lrs_of(10, 40, sampling=[0.2, 0.5], lrs=(1.0, 0.5))
    assert seen[:11] == [t / 10 for t in range(11)]
    assert set(seen[10:20]) == {1.0}
    assert seen[20] == pytest.approx(float(profile(Fraction(10, 30))))


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ((0, 0), {}, "num_training_steps is 0, but REX needs 1 at least; pass the run's steps"),
        ((10, 10), {}, "num_warmup_steps is 10, but must be from 0 to less than num_training_steps, 10; pass fewer"),
        ((-1, 10), {}, "num_warmup_steps is -1"),
        ((0, 10), {"sampling": "batch"}, "sampling is 'batch', but must be one of step, epoch, or milestones"),
        ((0, 10), {"sampling": [0.5, 0.5]}, r"sampling is \[0.5, 0.5\], but must be one of step, epoch, or milestones"),
        ((0, 10), {"sampling": [0.5, 1.0]}, r"that ascend and lie inside \(0, 1\), such as \[0.5, 0.75\]"),
        ((0, 10), {"sampling": []}, r"sampling is \[\], but must be"),
        ((0, 10), {"sampling": 5}, "sampling is 5, but must be"),
        ((0, 10), {"sampling": None}, "sampling is None, but must be"),
        ((0, 10), {"steps_per_epoch": 0}, "steps_per_epoch is 0, but must be 1 at least; pass None"),
    ],
)
def test_bad_input_is_refused_with_the_limit_and_the_remedy(lengths, options, message):
    with pytest.raises(ValueError, match=message):
        get_rex_schedule_with_warmup(optimizer_of(), *lengths, **options)


def test_sampling_by_epoch_needs_the_epochs_length():
    with pytest.raises(ValueError, match="the epoch's length is unknown; pass steps_per_epoch"):
        lrs_of(0, 10, sampling="epoch")


def test_get_scheduler_knows_it():
    optimizer = optimizer_of(0.5)
    scheduler = get_scheduler("rex", optimizer, 0, 10, scheduler_specific_kwargs={"sampling": [0.5]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            optimizer.step()
            scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(0.5 / 1.5)]


@pytest.mark.parametrize("sampling", ["step", "epoch"])
def test_trainer_runs_it_and_resumes_it_exactly(tmp_path, sampling):
    options = {
        "lr_scheduler_type": "rex",
        "lr_scheduler_kwargs": {"sampling": sampling},
        "warmup_steps": 4,
        "learning_rate": 0.01,
        "max_steps": 24,
        "save_strategy": "steps",
        "save_steps": 10,
    }
    whole = trainer_for(tmp_path / "whole", **options)
    whole.train()
    part = trainer_for(tmp_path / "part", **options)
    part.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))

    def lrs(trainer):
        return {e["step"]: e["learning_rate"] for e in trainer.state.log_history if "loss" in e}

    assert lrs(part) == lrs(whole)
    for a, b in zip(whole.model.parameters(), part.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert max(lrs(whole).values()) == 0.01
    per_epoch = len(whole.get_train_dataloader())
    logged = {step: lr for step, lr in lrs(whole).items() if step > 5}
    changes = [step for step in logged if step - 1 in logged and logged[step] != logged[step - 1]]
    if sampling == "epoch":
        assert changes
        assert all((step - 1) % per_epoch == 0 for step in changes)
    else:
        assert len(changes) == len(logged) - 1


@pytest.mark.once
def test_two_processes_of_an_accelerate_loop_share_the_lrs_and_resume_exactly(tmp_path):
    results = run_ranks(rex_loop, str(tmp_path))
    for whole, part in results:
        assert whole == part
    assert results[0] == results[1]
    lrs, _ = results[0][1]
    # After step n the LR of the next is that of its epoch's first step; epochs have 6 steps, the warm-up 4.
    expected = [float(profile(Fraction(max(n - n % 6 - 4, 0), 20))) for n in range(11, 24)]
    assert lrs == pytest.approx([0.01 * factor for factor in [*expected, 0.0]])


@pytest.mark.once
def test_it_trains_the_digits_under_trainer_and_on_two_processes(tmp_path):
    trainer = digits_trainer(tmp_path, "rex", 120, learning_rate=3e-3, warmup_steps=6)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert_learned(sum(losses[-10:]) / 10, CHANCE, 0.2)
    whole = run_ranks(digits_loop, "rex", str(tmp_path / "state"), 40, save_at=20)
    assert whole[0]["weights"] == whole[1]["weights"]
    part = run_ranks(digits_loop, "rex", str(tmp_path / "state"), 40, save_at=20, resume=True)
    for mine, other in zip(part, whole, strict=True):
        assert mine["lrs"] == other["lrs"][20:]
        assert mine["weights"] == other["weights"]
