"""A run of one of the tasks of ``tasks.py``: what ``compare.py`` and ``optimizers.py`` train and measure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from data import Pair, shuffled
from tasks import TASKS, Task
from torch import Tensor, nn
from training import BatchPerStep, outputs, train


@functools.cache
def num_steps(task: str, batch: int, budget: int) -> int:
    """Optimizer steps of a run; the budget is in percent of the task's epochs."""
    examples, _ = TASKS[task].data()[0]
    return round(TASKS[task].epochs * (len(examples) // batch) * budget / 100)


@dataclass(frozen=True)
class TaskRun:
    """A run that is ready to train; whoever has it chooses the optimizer and the schedule.

    Args:
        task: what there is to learn.
        model: to train.
        batches: step, from 0 -> inputs and targets.
        steps: optimizer steps of the run; ``per_epoch`` of them are an epoch.
    """

    task: Task
    model: nn.Module
    batches: Callable[[int], Pair]
    steps: int
    per_epoch: int

    def train(self, optimizer: torch.optim.Optimizer, schedule: Any, **options: Any) -> float:
        """``training.train`` on the run's batches, with its other options.

        Args:
            optimizer: of the model's parameters.
            schedule: makes one step after every optimizer step; None for an optimizer that needs no schedule.
            options: of ``training.train``.

        Returns:
            The seconds spent in the schedule.
        """
        loader = torch.utils.data.DataLoader(BatchPerStep(self.steps, self.batches), batch_size=None)
        return train(self.model, optimizer, schedule, loader, self._loss_of, **options)

    def _loss_of(self, model: nn.Module, batch: Pair) -> Tensor:
        inputs, targets = batch
        return self.task.loss(model(inputs), targets)

    def loss_to_tune_on(self) -> float:
        """The loss of the part to tune on, now."""
        _, (inputs, targets), _ = self.task.data()
        return float(self.task.loss(outputs(self.model, inputs), targets))

    def metrics(self) -> dict[str, float]:
        """The metric now: "tune", of the part to tune on, and "test", of the part to report on."""
        _, tune, test = self.task.data()
        return {
            name: round(self.task.metric(outputs(self.model, inputs), targets), 5)
            for name, (inputs, targets) in (("tune", tune), ("test", test))
        }


def prepared_run(task_name: str, batch: int, budget: int, seed: int) -> TaskRun:
    """A run with a fresh model. The seed decides its weights, its batches and what is random in training.

    Args:
        task_name: one of ``TASKS``.
        batch: examples in a batch.
        budget: in percent of the task's epochs.
        seed: the global random numbers stand at it when this returns.
    """
    task = TASKS[task_name]
    (x, y), _, _ = task.data()
    torch.manual_seed(seed)
    model = task.model()
    torch.manual_seed(seed)
    draw = shuffled(len(x), batch, seed)

    def batches(step: int) -> Pair:
        chosen = draw(step)
        return x[chosen], y[chosen]

    return TaskRun(task, model, batches, num_steps(task_name, batch, budget), len(x) // batch)
