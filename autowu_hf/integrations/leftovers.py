"""What is left in ``TrainingArguments`` of another schedule, or of another process."""

from __future__ import annotations

from transformers import SchedulerType, TrainingArguments

from ..runtime.methods import METHODS
from ..runtime.scheduler import AdaptiveScheduler


def schedule_name(args: TrainingArguments) -> str:
    """The name of the schedule that the arguments ask for."""
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


def restore_member(args: TrainingArguments) -> None:
    """Arguments that were loaded before this package was imported name its schedule by a plain string; by the enum's
    member afterwards.
    """
    if type(args.lr_scheduler_type) is str and args.lr_scheduler_type in METHODS:
        args.lr_scheduler_type = SchedulerType(args.lr_scheduler_type)


def say_what_a_warmup_means(args: TrainingArguments, scheduler: AdaptiveScheduler) -> None:
    """Says what was made of a warm-up that the arguments ask for, by the name of their option.

    Args:
        args: of the Trainer.
        scheduler: of the Trainer, before its first step.
    """
    values = {
        option: getattr(args, option, None) for option in ("warmup_steps", "warmup_ratio")
    }  # one is transformers 4's
    asked = [f"{option}={value:g}" for option, value in values.items() if value]
    scheduler.say_inherited(asked[0] if asked else None)
