"""A stream as Trainer reads it: batches and random numbers; how it goes back is in test_batch_replay.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn


class Recorder(nn.Module):
    """Records its batches and a random number at each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.seen: list[list[float]] = []
        self.drawn: list[float] = []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen.append(x.flatten().tolist())
            self.drawn.append(float(torch.rand(())))
        return {"loss": self.linear(x).square().mean()}


def recording_trainer(folder: Any, **options: Any) -> Any:
    """A Trainer of a ``Recorder``, of 14 batches an epoch and an evaluation in their middle, under AutoLRS."""
    from tiny import trainer_for

    data = [{"x": torch.tensor([float(i)])} for i in range(56)]
    return trainer_for(
        folder,
        model=Recorder(),
        train_dataset=data,
        eval_dataset=data,
        eval_strategy="steps",
        eval_steps=7,
        lr_scheduler_type="autolrs",
        lr_scheduler_kwargs={"num_candidates": 3, "first_stage": 24},
        per_device_train_batch_size=4,
        **options,
    )


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (2, 0), (1, 2)])
def test_every_candidate_of_a_trainer_sees_the_same_batches_and_random_numbers(accumulate, workers, tmp_path):
    trainer = recording_trainer(
        tmp_path,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=9 * accumulate,
        dataloader_num_workers=workers,
    )
    trainer.train()
    (stage,) = trainer.lr_scheduler.stages[:1]
    assert stage.candidate_steps == 8
    n = stage.candidate_steps * accumulate
    begin = stage.start * accumulate
    seen, drawn = (
        [values[begin + i * n :][:n] for i in range(4)] for values in (trainer.model.seen, trainer.model.drawn)
    )
    assert seen[0] == seen[1] == seen[2] == seen[3]  # the last are those of training
    assert drawn[0] == drawn[1] == drawn[2]
    # Training goes on after the search: there epochs and evaluations draw as they always do.
    assert drawn[3][:2] == drawn[0][:2]
    assert len({tuple(sorted(batch)) for batch in seen[0]}) == n
    assert len(trainer.model.seen) == 9 * accumulate * 14


def test_random_numbers_of_a_resumed_trainer_are_those_of_the_whole_run(tmp_path):
    options = {"warmup_steps": 4, "num_train_epochs": 5}  # so that the search ends with an epoch
    whole = recording_trainer(tmp_path / "whole", save_strategy="steps", save_steps=7, **options)
    whole.train()
    stage = whole.lr_scheduler.stages[0]
    assert (stage.start, stage.start + stage.search_steps, stage.end) == (4, 28, 70)
    for step in (7, 14, 21, 28, 35, 42):
        part = recording_trainer(tmp_path / "part", **options)
        part.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert part.model.seen == whole.model.seen[step:]
        assert part.model.drawn == whole.model.drawn[step:]
        assert torch.equal(part.model.linear.weight, whole.model.linear.weight)
