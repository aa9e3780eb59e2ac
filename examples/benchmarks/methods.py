"""The methods of the comparison: what makes an optimizer and its schedule, with an LR of the user's or without."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule
from transformers.optimization import get_greedy_schedule, get_reduce_on_plateau_schedule

from autowu_hf import (
    CLARS,
    get_autolrs_schedule,
    get_autowu_schedule,
    get_rex_schedule_with_warmup,
    get_salsa_schedule,
)

WARM_UP = 0.05
"""Of a run, for the schedules that have a warm-up of fixed length."""

TUNED = ("cosine", "wsd", "rex")
AT_ONE_LR = "cosine at one LR"
"""The honest zero of a method that claims to need no tuning: the cosine at one LR, the same in all cells, chosen on the
seeds to tune on as the one that is the best over all cells together (``tuning.best_lr_over_all``).
"""
UNTUNED: dict[str, float | None] = {
    "autowu": None,
    "autowu paper": None,
    "autowu range": None,  # the LRs from 1e-5 to 1, without the scale of the first gradients
    "cosine at 5e-5": 5e-5,  # the default of TrainingArguments
    AT_ONE_LR: None,  # what the rows of the tuned cosine give
    "cosine at sqrt": None,  # 1e-3 sqrt(batch / 256), the rule of the paper's baseline
    "range test": None,
    "greedy": 1e-3,  # torch's default for AdamW
    "plateau": 1e-3,
    "schedule-free": 2.5e-3,  # its own default
    "prodigy": 1.0,  # its own default
    "autolrs": None,
    "salsa": None,
    "clars": 0.1,
}
"""Method -> the LR it is run with."""
GUESSING = ("autowu", "greedy", "plateau", "schedule-free")
"""Methods that are also run with LRs that a user might guess."""
OF_METRIC = ("greedy", "plateau")
"""Schedules that step on the metric of the part to tune on instead of every optimizer step."""


def make(
    method: str, lr: float | None, model: nn.Module, steps: int, per_epoch: int, batch: int
) -> tuple[torch.optim.Optimizer, Any]:
    """An optimizer and its schedule; None for the optimizers that need none.

    Args:
        method: one of ``TUNED`` or ``UNTUNED``.
        lr: the peak LR; None for the methods that find it.
        model: whose parameters are trained.
        steps: optimizer steps of the run.
        per_epoch: optimizer steps of an epoch.
        batch: examples in a batch.
    """
    warm_up = warm_up_steps(steps)
    if method == "schedule-free":
        from schedulefree import AdamWScheduleFree

        return AdamWScheduleFree(model.parameters(), lr=lr, warmup_steps=warm_up, weight_decay=0.01), None
    if method == "prodigy":
        from prodigyopt import Prodigy

        optimizer = Prodigy(model.parameters(), lr=lr, weight_decay=0.01)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, 0, steps)  # as Prodigy's README advises
    if method == "salsa":
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        return optimizer, get_salsa_schedule(optimizer, steps)
    if method == "clars":
        optimizer = CLARS(model.parameters(), lr=lr, eta=0.1)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, 0, steps)
    if method == "cosine at sqrt":
        lr = 1e-3 * math.sqrt(batch / 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr or 1e-3, weight_decay=0.01)
    if method.startswith("autowu"):
        _, _, preset = method.partition(" ")
        options: dict[str, Any] = {"scale": False} if preset == "range" else {"preset": preset or None}
        return optimizer, get_autowu_schedule(optimizer, steps, steps_per_epoch=per_epoch, **options)
    if method == "autolrs":
        return optimizer, get_autolrs_schedule(optimizer, steps, num_candidates=autolrs_candidates(steps))
    if method == "wsd":
        return optimizer, get_wsd_schedule(optimizer, warm_up, steps // 5, num_training_steps=steps)
    if method == "rex":
        return optimizer, get_rex_schedule_with_warmup(optimizer, warm_up, steps)
    if method == "greedy":
        return optimizer, get_greedy_schedule(optimizer)
    if method == "plateau":
        return optimizer, get_reduce_on_plateau_schedule(optimizer)
    return optimizer, cosine_schedule(optimizer, steps)


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """The schedule that is tuned everywhere: ``WARM_UP`` of the steps linearly to the optimizer's LR, a cosine to 0."""
    return get_cosine_schedule_with_warmup(optimizer, warm_up_steps(steps), steps)


def warm_up_steps(steps: int) -> int:
    """Steps of a warm-up of fixed length, one at least."""
    return max(1, int(WARM_UP * steps))


def autolrs_candidates(steps: int) -> int:
    """Ten, as in the paper, or as many as a run has steps for; AutoLRS takes two at least."""
    return min(10, (steps - 1) // 10)


def range_test(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batches: Callable[[int], tuple[Tensor, Tensor]]
) -> float:
    """torch-lr-finder's suggestion, on a fresh AdamW; the model is put back. Its steps are not counted.

    Args:
        model: to be trained afterwards.
        loss: of outputs and targets.
        batches: step -> inputs and targets.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from torch_lr_finder import LRFinder

    class Loader(torch.utils.data.DataLoader):
        def __iter__(self) -> Iterator[Any]:
            return (batches(i) for i in range(len(self)))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7, weight_decay=0.01)
    finder = LRFinder(model, optimizer, loss, device="cpu")
    finder.range_test(Loader(range(100), batch_size=1), end_lr=10, num_iter=100)  # type: ignore[arg-type]
    figure, axes = plt.subplots()
    _, lr = finder.plot(ax=axes, suggest_lr=True)
    plt.close(figure)
    finder.reset()
    return float(lr)
