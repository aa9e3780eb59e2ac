"""What is left in ``TrainingArguments`` of another schedule, of another process, or of a search for an LR."""

from __future__ import annotations

import logging

from transformers import SchedulerType, TrainerState, TrainingArguments

from ..runtime import collective
from ..runtime.methods import METHODS
from ..runtime.scheduler import AdaptiveScheduler

logger = logging.getLogger(__name__)

_FIND_LR = ("autowu", "autolrs")
_TRAINER_PASSES = {"num_warmup_steps": "warmup_steps", "num_training_steps": "max_steps or num_train_epochs"}


def schedule_name(args: TrainingArguments) -> str:
    """The name of the schedule that the arguments ask for."""
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


def restore_member(args: TrainingArguments) -> None:
    """Arguments that were loaded before this package was imported name its schedule by a plain string; by the enum's
    member afterwards.
    """
    if type(args.lr_scheduler_type) is str and args.lr_scheduler_type in METHODS:
        args.lr_scheduler_type = SchedulerType(args.lr_scheduler_type)


def refuse_what_trainer_passes(args: TrainingArguments) -> None:
    """Options in ``lr_scheduler_kwargs`` that Trainer passes to the schedule by itself.

    Raises:
        ValueError: there is one, for a schedule of this package.
    """
    given = getattr(args, "lr_scheduler_kwargs", None)
    given = given if isinstance(given, dict) else {}
    for option, instead in _TRAINER_PASSES.items():
        if schedule_name(args) in METHODS and option in given:
            raise ValueError(
                f"lr_scheduler_kwargs has {option}={given[option]!r}, which Trainer passes to the schedule by itself, "
                f"from {instead}; remove it there, and set {instead}"
            )


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


def say_what_a_trial_means(args: TrainingArguments, state: TrainerState) -> bool:
    """Warns where a ``hyperparameter_search`` tries LRs, although the schedule finds the LR by itself.

    Args:
        args: of the Trainer.
        state: of the training that begins, a trial or not.

    Returns:
        Whether it is so.
    """
    name = schedule_name(args)
    if name not in _FIND_LR or "learning_rate" not in (state.trial_params or {}):
        return False
    if collective.is_main_process():
        logger.warning(
            'this search tries learning rates, but lr_scheduler_type="%s" finds the learning rate by itself, and takes '
            "the one that is given only where nothing else tells one: trials that differ in nothing else are the same "
            "run. Leave learning_rate out of hp_space, or search with another lr_scheduler_type",
            name,
        )
    return True
