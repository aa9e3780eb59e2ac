"""What is left in ``TrainingArguments`` of another schedule, or of another process."""

from __future__ import annotations

import logging

from transformers import SchedulerType, TrainingArguments

from ..runtime import collective
from ..runtime.methods import METHODS
from ..runtime.scheduler import AdaptiveScheduler

logger = logging.getLogger(__name__)


def schedule_name(args: TrainingArguments) -> str:
    """The name of the schedule that the arguments ask for."""
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


def restore_member(args: TrainingArguments) -> None:
    """Arguments that were loaded before this package was imported name its schedule by a plain string; by the enum's
    member afterwards.
    """
    if type(args.lr_scheduler_type) is str and args.lr_scheduler_type in METHODS:
        args.lr_scheduler_type = SchedulerType(args.lr_scheduler_type)


def usable(args: TrainingArguments, num_warmup_steps: int, num_training_steps: int) -> int:
    """The steps of a warm-up that the arguments ask for, or 0 where a schedule that looks at the run cannot do with
    them: as many as the run has, or too few to find an LR in.

    Args:
        args: of the Trainer.
        num_warmup_steps: that they ask for, in optimizer steps.
        num_training_steps: of the run, in optimizer steps.
    """
    method = METHODS.get(schedule_name(args))
    if method is None or not method.is_adaptive:
        return num_warmup_steps
    fewest = _fewest(args, num_training_steps) or 0
    return num_warmup_steps if fewest <= num_warmup_steps < num_training_steps else 0


def _fewest(args: TrainingArguments, num_training_steps: int) -> int | None:
    """The fewest steps that can be used; None: the schedule needs no warm-up."""
    method = METHODS[schedule_name(args)]
    if method.fewest_warmup_steps is None:
        return None
    options = getattr(args, "lr_scheduler_kwargs", None)
    return method.fewest_warmup_steps(num_training_steps, options if isinstance(options, dict) else {})


def say_what_a_warmup_means(args: TrainingArguments, num_training_steps: int, scheduler: AdaptiveScheduler) -> None:
    """Says on the main process what was made of a warm-up that the arguments ask for.

    Args:
        args: of the Trainer.
        num_training_steps: of the run, in optimizer steps.
        scheduler: of the Trainer, before its first step.
    """
    option = "warmup_steps" if args.warmup_steps else "warmup_ratio"  # which transformers 4 has as well
    asked, method = getattr(args, option, 0), METHODS.get(schedule_name(args))
    if not asked or method is None or not collective.is_main_process():
        return
    fewest, used = _fewest(args, num_training_steps), scheduler.num_warmup_steps // scheduler.ticks_per_step
    if not used:
        logger.warning(
            "%s=%g is left out: in a run of %d steps, %s can use from %d to %d steps. Remove %s; %s",
            option,
            asked,
            num_training_steps,
            scheduler.name,
            fewest or 1,
            num_training_steps - 1,
            option,
            "it needs none" if fewest is None else "the schedule finds the length of its warm-up by itself",
        )
    elif fewest is not None:
        logger.info(
            "%s=%g limits the search of %s for the peak learning rate to the first %d of %d steps. The schedule finds "
            "the length of its warm-up by itself; remove %s, unless you want that limit",
            option,
            asked,
            scheduler.name,
            used,
            num_training_steps,
            option,
        )
