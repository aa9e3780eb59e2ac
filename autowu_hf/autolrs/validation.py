"""The validation loss of a Trainer, for AutoLRS: ``AutoLRSValidationCallback``."""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .scheduler import AutoLRSScheduler

if TYPE_CHECKING:
    from transformers import Trainer


class AutoLRSValidationCallback(TrainerCallback):
    """Gives an AutoLRS schedule the validation loss of its Trainer, for the stages that look at it.

    The mean of the Trainer's loss over the batches of its ``eval_dataset``, in evaluation mode and without gradients.

        trainer.add_callback(AutoLRSValidationCallback(trainer))

    Args:
        trainer: the one that trains.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        prepared = kwargs.get("lr_scheduler")
        scheduler = getattr(prepared, "scheduler", prepared)  # accelerate wraps prepared schedulers
        if isinstance(scheduler, AutoLRSScheduler):
            scheduler.validation_loss = functools.partial(_validation_loss, self.trainer)


@torch.no_grad()
def _validation_loss(trainer: Trainer) -> float:
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    was_training = model.training
    model.eval()
    losses = [
        float(trainer.compute_loss(model, trainer._prepare_inputs(inputs)))  # type: ignore[arg-type]
        for inputs in trainer.get_eval_dataloader()
    ]
    model.train(was_training)
    return statistics.fmean(losses)
