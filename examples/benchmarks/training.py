"""The training loop of one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env, send_to_device
from torch import Tensor, nn

ON_CPU = parse_flag_from_env("ACCELERATE_USE_CPU", default=True)
"""Whether models are trained on the CPU. The environment variable is accelerate's; false takes a GPU."""


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    batches: Iterable[Any],
    loss_of: Callable[[nn.Module, Any], Tensor],
    max_norm: float | None = 1.0,
    line_search: Callable[[nn.Module, Callable[[], Tensor]], Any] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> float:
    """Trains a model in place, in an accelerate loop, on the CPU or where ``ON_CPU`` says.

    Args:
        model: trained in place.
        optimizer: of its parameters.
        schedule: makes one step after every optimizer step; None for an optimizer that needs no schedule.
        batches: one for each optimizer step. accelerate prepares it where it is a DataLoader, which AutoLRS needs.
        loss_of: model and batch -> the loss.
        max_norm: to which the gradients are clipped, by default as in Trainer; None leaves them as they are.
        line_search: SALSA's ``search``: called after every backward with the model and the loss of its batch.
        after_step: called with the number of the step, from 0, after the schedule's.

    Returns:
        The seconds spent in the schedule's steps and in ``after_step``.
    """
    accelerator = Accelerator(cpu=ON_CPU)
    model, optimizer, batches, schedule = accelerator.prepare(model, optimizer, batches, schedule)
    model.train()
    seconds = 0.0
    for step, batch in enumerate(batches):
        batch = send_to_device(batch, accelerator.device)
        accelerator.backward(loss_of(model, batch))
        if line_search is not None:
            line_search(model, lambda batch=batch: loss_of(model, batch))
        if max_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        start = time.perf_counter()
        if schedule is not None:
            schedule.step()
        if after_step is not None:
            after_step(step)
        seconds += time.perf_counter() - start
        optimizer.zero_grad()
    accelerator.free_memory()
    return seconds


class BatchPerStep(torch.utils.data.Dataset[Any]):
    """The batches of a run, one an item, for a DataLoader with ``batch_size=None``.

    Args:
        steps: how many there are.
        batches: step, from 0 -> its batch.
    """

    def __init__(self, steps: int, batches: Callable[[int], Any]) -> None:
        self.steps, self.batches = steps, batches

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Any:
        return self.batches(step)


def beside(model: nn.Module, batch: Any) -> Any:
    """The batch's tensors on the device of the model."""
    return send_to_device(batch, next(model.parameters()).device)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """The model's outputs on ``x`` (n, ...) in evaluation mode, 500 rows at a time, on the CPU; training mode is put
    back.
    """
    model.eval()
    result = torch.cat([model(beside(model, part)).cpu() for part in x.split(500)])
    model.train()
    return result
