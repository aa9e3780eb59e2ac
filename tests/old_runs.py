"""Short runs of every schedule, which ``data/checkpoints_0_1/make_checkpoints.py`` saved and a test goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny import TinyClassifier, batches
from transformers import Trainer, TrainerCallback, TrainingArguments

import autowu_hf

FOLDER = Path(__file__).parent / "data" / "checkpoints_0_1"

DECISIONS = {
    "autowu": ("switch_step", "minimum_step", "ended_by", "peak_lr", "rewound_to"),
    "autolrs": ("results",),
    "salsa": ("switch_step", "ended_by", "drops"),
    "rex": (),
}
"""What is recorded of a schedule at the end of its run, beside the LRs."""

_FACTORIES = {
    "autowu": autowu_hf.get_autowu_schedule,
    "autolrs": autowu_hf.get_autolrs_schedule,
    "salsa": autowu_hf.get_salsa_schedule,
}


def decisions(name: str, scheduler: Any) -> dict[str, Any]:
    """The decisions of a schedule so far."""
    return {key: getattr(scheduler, key) for key in DECISIONS[name]}


class PlainRun:
    """A loop in plain PyTorch whose losses are given, so that what a schedule decides depends on no training.

    Args:
        schedule: a key of ``DECISIONS``.
        num_training_steps: T.
        options: of the schedule.
        losses: (T,), the loss of every step. The weights follow them: each step's gradient is weight - loss.
        momentum: of the optimizer, SGD.
    """

    def __init__(
        self,
        schedule: str,
        num_training_steps: int,
        options: dict[str, Any],
        losses: Sequence[float],
        momentum: float = 0.0,
    ) -> None:
        self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=momentum)
        self.scheduler = _FACTORIES[schedule](self.optimizer, num_training_steps, **options)
        self.losses = losses

    def run(self, start: int, stop: int) -> list[float]:
        """Makes the steps from ``start`` to ``stop``; returns the LR after each of them, the next step's."""
        lrs = []
        for loss in self.losses[start:stop]:
            self.weight.grad = self.weight.detach() - loss
            self.optimizer.step()
            self.scheduler.step(loss)
            lrs.append(float(self.optimizer.param_groups[0]["lr"]))
        return lrs

    def state_dict(self) -> dict[str, Any]:
        """What a script would save."""
        return {
            "weight": self.weight.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state_dict`` returned."""
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


class KeepLRs(TrainerCallback):
    """Keeps the LR after every step of a Trainer, the next step's.

    Attributes:
        lrs: steps done -> LR.
    """

    def __init__(self) -> None:
        self.lrs: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.lrs[state.global_step] = float(kwargs["optimizer"].param_groups[0]["lr"])


def run_trainer(
    arguments: dict[str, Any], output_dir: str, resume: Path | None = None
) -> tuple[Trainer, dict[int, float]]:
    """A run of a ``TinyClassifier`` to its end.

    Args:
        arguments: of TrainingArguments.
        output_dir: where Trainer writes.
        resume: the checkpoint to go on from.

    Returns:
        The Trainer, and by the steps done the LR after each step.
    """
    keep = KeepLRs()
    kind = autowu_hf.SalsaTrainer if arguments["lr_scheduler_type"] == "salsa" else Trainer
    trainer = kind(
        model=TinyClassifier(),
        args=TrainingArguments(output_dir=output_dir, **arguments),
        train_dataset=batches(64),
        callbacks=[keep, autowu_hf.AutoWUCallback(plot=False, report=False)],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, keep.lrs
