"""AutoWU and AutoLRS under Trainer: the epoch's length, the logs, the report files, the validation loss."""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
import statistics
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from . import collective
from .autolrs_scheduler import AutoLRSScheduler
from .param_groups import refuse_layer_wise
from .plotting import plot_autowu
from .report import write_report
from .rex import tell_steps_per_epoch
from .scheduler import AutoWUScheduler

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)


class AutoWUCallback(TrainerCallback):
    """Connects an AutoWU schedule to its Trainer. Every Trainer has one; it does nothing beside other schedules.

    It tells the scheduler how many optimizer steps an epoch has, adds ``autowu/phase`` (0 in the warm-up, 1 in the
    decay), ``autowu/p_min`` (the median over the last test's subsets) and ``autowu/peak_lr`` (from the switch on) to
    the training logs, and writes ``autowu.json`` and ``autowu.png`` into ``output_dir`` at the switch and at the end
    of training. Pass one in ``Trainer(callbacks=[...])`` to choose its options; it takes the automatic one's place.

    Args:
        plot: draw ``autowu.png``, where matplotlib is installed.
        report: write ``autowu.json``.
    """

    def __init__(self, plot: bool = True, report: bool = True) -> None:
        self.plot = plot
        self.report = report
        self._reported_phase: str | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        plugin = getattr(args, "deepspeed_plugin", None)
        config = getattr(getattr(plugin, "hf_ds_config", None), "config", None) or {}
        name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
        if name in ("autowu", "autolrs", "salsa") and "scheduler" in config:
            raise ValueError(
                f"the DeepSpeed config has a scheduler of its own, {config['scheduler'].get('type')!r}, which would be "
                f'used instead of lr_scheduler_type="{name}"; remove "scheduler" from the DeepSpeed config'
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            self._restart(state, _scheduler(kwargs))
        scheduler = _autowu_scheduler(kwargs)
        if scheduler is None:
            dummy = getattr(kwargs.get("lr_scheduler"), "optimizer", None)
            if args.lr_scheduler_type in ("autowu", "autolrs") and hasattr(dummy, "optimizer_dict"):
                refuse_layer_wise(dummy)  # get_scheduler made one schedule per layer of it
            tell_steps_per_epoch(kwargs.get("lr_scheduler"), _steps_per_epoch(args, kwargs.get("train_dataloader")))
            return
        self._reported_phase = scheduler.phase
        steps = _steps_per_epoch(args, kwargs.get("train_dataloader"))
        if (
            getattr(args.accelerator_config, "even_batches", True) is False
        ):  # then the processes may have unequal numbers of batches
            steps = collective.gather_max([steps or 0])[0] or None
        scheduler.set_steps_per_epoch(steps)

    def _restart(self, state: TrainerState, scheduler: Any) -> None:
        """Where Trainer goes on from a checkpoint that holds no state of the schedule."""
        left = state.max_steps - state.global_step
        if not isinstance(scheduler, (AutoWUScheduler, AutoLRSScheduler)) or scheduler.last_epoch or left < 2:
            return
        logger.warning(
            "the checkpoint of step %d holds no optimizer.pt and scheduler.pt (was it saved with save_only_model?), so "
            "%s over the %d steps that are left",
            state.global_step,
            "AutoWU starts a new warm-up" if isinstance(scheduler, AutoWUScheduler) else "AutoLRS plans new stages",
            left,
        )
        scheduler.restart(left)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._share_losses_of_autolrs(control, kwargs)
        scheduler = _autowu_scheduler(kwargs)
        if scheduler is None:
            return
        switched = scheduler.phase != self._reported_phase
        if control.should_save or switched:
            scheduler.flush()  # on all ranks, before rank 0 alone saves the state or writes the report
        if switched:
            self._reported_phase = scheduler.phase
            self._write(args, state, scheduler)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._share_losses_of_autolrs(control, kwargs)
        scheduler = _autowu_scheduler(kwargs)
        if scheduler is not None and control.should_save:
            scheduler.flush()

    def _share_losses_of_autolrs(self, control: TrainerControl, kwargs: dict[str, Any]) -> None:
        scheduler = _scheduler(kwargs)
        if isinstance(scheduler, AutoLRSScheduler) and control.should_save:
            scheduler.flush()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        scheduler = _autowu_scheduler(kwargs)
        if scheduler is None or logs is None or "loss" not in logs:
            return
        extra: dict[str, float] = {"autowu/phase": float(scheduler.phase == "decay")}
        if scheduler.tests:
            extra["autowu/p_min"] = statistics.median(scheduler.tests[-1]["p_min"])
        if scheduler.peak_lr is not None:
            extra["autowu/peak_lr"] = scheduler.peak_lr
        logs.update(extra)
        state.log_history[-1].update(extra)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        scheduler = _autowu_scheduler(kwargs)
        if scheduler is not None:
            scheduler.flush()
            self._write(args, state, scheduler)

    def _write(self, args: TrainingArguments, state: TrainerState, scheduler: AutoWUScheduler) -> None:
        if not state.is_world_process_zero:
            return
        try:
            self._write_files(args.output_dir or ".", state, scheduler)
        except Exception:  # a full disk or a broken font must not end a training run
            logger.warning("the report of AutoWU could not be written to %s", args.output_dir, exc_info=True)

    def _write_files(self, folder: str, state: TrainerState, scheduler: AutoWUScheduler) -> None:
        report = scheduler.report()
        report["logged_losses"] = [[entry["step"], entry["loss"]] for entry in state.log_history if "loss" in entry]
        if self.report:
            write_report(report, os.path.join(folder, "autowu.json"))
        if self.plot and importlib.util.find_spec("matplotlib") is not None:
            plot_autowu(report, os.path.join(folder, "autowu.png"))


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
        scheduler = _scheduler(kwargs)
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


def _scheduler(kwargs: dict[str, Any]) -> Any:
    scheduler = kwargs.get("lr_scheduler")
    return getattr(scheduler, "scheduler", scheduler)  # accelerate wraps prepared schedulers


def _autowu_scheduler(kwargs: dict[str, Any]) -> AutoWUScheduler | None:
    scheduler = _scheduler(kwargs)
    return scheduler if isinstance(scheduler, AutoWUScheduler) else None


def _steps_per_epoch(args: TrainingArguments, dataloader: Any) -> int | None:
    try:
        batches = len(dataloader)
    except TypeError:
        return None
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)
