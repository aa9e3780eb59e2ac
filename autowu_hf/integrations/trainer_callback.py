"""The schedules under Trainer: the epoch's length, losses shared before a checkpoint, the logs, the report files."""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..rex import tell_steps_per_epoch
from ..runtime import collective, early_end
from ..runtime.methods import METHODS
from ..runtime.param_groups import refuse_layer_wise
from ..runtime.scheduler import AdaptiveScheduler
from . import leftovers
from .kept_steps import BestEvaluation, LossSum, LostSteps

logger = logging.getLogger(__name__)


class AutoWUCallback(TrainerCallback):
    """Connects this package's schedules to their Trainer. Every Trainer has one.

    It refuses a DeepSpeed config that would put another schedule in the place of "autowu", "autolrs" or "salsa"; it
    tells "autowu" and "rex" how many optimizer steps an epoch has; it starts a schedule anew where a checkpoint holds
    no state of it; and it has the processes share their losses before a checkpoint. Beside a schedule of transformers
    it does nothing.

    For "autowu" it also adds ``autowu/phase`` (0 in the warm-up, 1 in the decay), ``autowu/p_cliff`` or
    ``autowu/p_min`` (what the last test goes by, the median over its subsets), ``autowu/scale`` (once it is known) and
    ``autowu/peak_lr`` (from the switch on) to the training logs, and writes ``autowu.json`` and ``autowu.png``
    (``autowu-2.json`` and so on for further trainings of the process) into ``output_dir`` at the switch and at the end
    of training. Pass one in ``Trainer(callbacks=[...])`` to choose its options; it takes the automatic one's place.

    Args:
        plot: draw ``autowu.png``, where matplotlib is installed.
        report: write ``autowu.json``.
    """

    def __init__(self, plot: bool = True, report: bool = True) -> None:
        self.plot = plot
        self.report = report
        self._reported_phase: str | None = None
        self._said_it_looks = self._said_what_a_trial_means = False
        self._lost: LostSteps | None = None
        self._best: BestEvaluation | None = None
        self.loss_sum: LossSum | None = None  # of the training under way

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        leftovers.restore_member(args)
        leftovers.refuse_what_trainer_passes(args)
        plugin = getattr(args, "deepspeed_plugin", None)
        config = getattr(getattr(plugin, "hf_ds_config", None), "config", None) or {}
        if _is_adaptive(args) and "scheduler" in config:
            raise ValueError(
                f"the DeepSpeed config has a scheduler of its own, {config['scheduler'].get('type')!r}, which would be "
                f'used instead of lr_scheduler_type="{leftovers.schedule_name(args)}"; remove "scheduler" from the '
                "DeepSpeed config"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        leftovers.restore_member(args)  # here, too, for a Trainer that was sent to another process
        scheduler = adaptive(kwargs.get("lr_scheduler"))
        steps = _steps_per_epoch(args, kwargs.get("train_dataloader"))
        if scheduler is None:
            dummy = getattr(kwargs.get("lr_scheduler"), "optimizer", None)
            if _is_adaptive(args) and hasattr(dummy, "optimizer_dict"):
                refuse_layer_wise(dummy)  # get_scheduler made one schedule per layer of it
            if _is_adaptive(args) and kwargs.get("lr_scheduler") is not None and collective.is_main_process():
                logger.warning(
                    'lr_scheduler_type is "%s", but this Trainer has another schedule, %s, which is used instead: it '
                    "was passed in optimizers=, or a create_scheduler of its own has made it",
                    leftovers.schedule_name(args),
                    type(getattr(kwargs["lr_scheduler"], "scheduler", kwargs["lr_scheduler"])).__name__,
                )
            tell_steps_per_epoch(kwargs.get("lr_scheduler"), steps)
            return
        early_end.leave(scheduler)  # on_train_end says it
        if kwargs.get("optimizer") is not None:  # transformers 4 does not prepare the schedule under DeepSpeed
            scheduler.meet(kwargs["optimizer"])
        if state.global_step and not scheduler.last_epoch:
            self._restart(state, scheduler)
        elif not scheduler.last_epoch:
            leftovers.say_what_a_warmup_means(args, scheduler)
        if not self._said_what_a_trial_means:
            self._said_what_a_trial_means = leftovers.say_what_a_trial_means(args, state)
        self._reported_phase = scheduler.phase
        self._said_it_looks = False
        self._lost, self._best, self.loss_sum = LostSteps(scheduler), BestEvaluation(state), LossSum(scheduler, state)
        if getattr(args.accelerator_config, "even_batches", True) is False:
            # then the processes may have unequal numbers of batches
            steps = collective.gather_max([steps or 0])[0] or None
        scheduler.set_steps_per_epoch(steps)

    def _restart(self, state: TrainerState, scheduler: AdaptiveScheduler) -> None:
        """Where Trainer goes on from a checkpoint that holds no state of the schedule."""
        left = state.max_steps - state.global_step
        if left < 1:
            return
        does = scheduler.restart(left)
        logger.warning(
            "the checkpoint of step %d holds no optimizer.pt and scheduler.pt (was it saved with save_only_model?), so "
            "%s %s over the %d steps that are left",
            state.global_step,
            scheduler.name,
            does,
            left,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        scheduler = adaptive(kwargs.get("lr_scheduler"))
        if scheduler is None:
            return
        self._forget_what_is_lost(args, state, scheduler)
        if state.global_step == 1 and (self.plot or self.report):
            scheduler.claim_report(args.output_dir or ".")
        switched = scheduler.phase != self._reported_phase
        if control.should_save or (switched and scheduler.has_report):
            scheduler.flush()  # on all ranks, before rank 0 alone saves the state or writes the report
        if switched:
            self._reported_phase = scheduler.phase
            self._write(args, state, scheduler)

    def _forget_what_is_lost(self, args: TrainingArguments, state: TrainerState, scheduler: AdaptiveScheduler) -> None:
        """An evaluation of weights that were taken back is the best one no more."""
        if self._lost is None or self._best is None:
            return
        num_lost = self._lost.new(scheduler)
        if num_lost or scheduler.is_looking:
            self._best.note(state)
        if num_lost:
            self._best.take_back(args, state, num_lost)

    def say_it_looks(self, scheduler: AdaptiveScheduler, judge: str) -> None:
        """Says once per training that evaluations do not count yet.

        Args:
            scheduler: which is looking.
            judge: by whom they would be counted.
        """
        if not self._said_it_looks and collective.is_main_process():
            logger.info(
                "%s does not count the evaluations that are made while %s looks for the learning rate",
                judge,
                scheduler.name,
            )
        self._said_it_looks = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        scheduler = adaptive(kwargs.get("lr_scheduler"))
        if scheduler is not None and control.should_save:
            scheduler.flush()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        scheduler = adaptive(kwargs.get("lr_scheduler"))
        if scheduler is None or logs is None or "loss" not in logs:
            return
        values = scheduler.log_values()
        logs.update(values)
        state.log_history[-1].update(values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        scheduler = adaptive(kwargs.get("lr_scheduler"))
        if scheduler is None:
            return
        if scheduler.is_looking and 0 < state.global_step < state.max_steps and collective.is_main_process():
            logger.warning(
                "training was ended at step %d of %d, while %s was looking for the learning rate: the weights are "
                "those of that step, at learning rate %.1e, on which nothing had been decided yet. To train for fewer "
                "steps, set max_steps or num_train_epochs, so that the schedule is that of a shorter run",
                state.global_step,
                state.max_steps,
                scheduler.name,
                scheduler.get_last_lr()[0],
            )
        if scheduler.has_report:
            scheduler.flush()
            self._write(args, state, scheduler)

    def _write(self, args: TrainingArguments, state: TrainerState, scheduler: AdaptiveScheduler) -> None:
        if not state.is_world_process_zero or not (self.plot or self.report):
            return
        logged = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
        try:
            scheduler.write_report(args.output_dir or ".", logged, self.report, self.plot)
        except Exception:  # a full disk or a broken font must not end a training run
            logger.warning(
                "the report of %s could not be written to %s", scheduler.name, args.output_dir, exc_info=True
            )


def _is_adaptive(args: TrainingArguments) -> bool:
    """Whether the arguments ask for a schedule of this package that looks at the run."""
    method = METHODS.get(leftovers.schedule_name(args))
    return method is not None and method.is_adaptive


def adaptive(scheduler: Any) -> AdaptiveScheduler | None:
    """A schedule of this package that looks at the run, out of accelerate's wrap; None for any other."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    return scheduler if isinstance(scheduler, AdaptiveScheduler) else None


def _steps_per_epoch(args: TrainingArguments, dataloader: Any) -> int | None:
    try:
        batches = len(dataloader)
    except TypeError:
        return None
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)
