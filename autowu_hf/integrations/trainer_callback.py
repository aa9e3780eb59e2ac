"""The schedules under Trainer: the epoch's length, losses shared before a checkpoint, the logs, the report files."""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..rex import tell_steps_per_epoch
from ..runtime import collective
from ..runtime.methods import METHODS
from ..runtime.param_groups import refuse_layer_wise
from ..runtime.scheduler import AdaptiveScheduler

logger = logging.getLogger(__name__)


class AutoWUCallback(TrainerCallback):
    """Connects this package's schedules to their Trainer. Every Trainer has one.

    It refuses a DeepSpeed config that would put another schedule in the place of "autowu", "autolrs" or "salsa"; it
    tells "autowu" and "rex" how many optimizer steps an epoch has; it starts a schedule anew where a checkpoint holds
    no state of it; and it has the processes share their losses before a checkpoint. Beside a schedule of transformers
    it does nothing.

    For "autowu" it also adds ``autowu/phase`` (0 in the warm-up, 1 in the decay), ``autowu/p_cliff`` or
    ``autowu/p_min`` (what the last test goes by, the median over its subsets) and ``autowu/peak_lr`` (from the switch
    on) to the training logs, and writes ``autowu.json`` and ``autowu.png`` into ``output_dir`` at the switch and at the
    end of training. Pass one in ``Trainer(callbacks=[...])`` to choose its options; it takes the automatic one's place.

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
        if _is_adaptive(args) and "scheduler" in config:
            raise ValueError(
                f"the DeepSpeed config has a scheduler of its own, {config['scheduler'].get('type')!r}, which would be "
                f'used instead of lr_scheduler_type="{_name(args)}"; remove "scheduler" from the DeepSpeed config'
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        scheduler = _scheduler(kwargs)
        steps = _steps_per_epoch(args, kwargs.get("train_dataloader"))
        if scheduler is None:
            dummy = getattr(kwargs.get("lr_scheduler"), "optimizer", None)
            if _is_adaptive(args) and hasattr(dummy, "optimizer_dict"):
                refuse_layer_wise(dummy)  # get_scheduler made one schedule per layer of it
            tell_steps_per_epoch(kwargs.get("lr_scheduler"), steps)
            return
        if state.global_step and not scheduler.last_epoch:
            self._restart(state, scheduler)
        self._reported_phase = scheduler.phase
        if getattr(args.accelerator_config, "even_batches", True) is False:
            # then the processes may have unequal numbers of batches
            steps = collective.gather_max([steps or 0])[0] or None
        scheduler.set_steps_per_epoch(steps)

    def _restart(self, state: TrainerState, scheduler: AdaptiveScheduler) -> None:
        """Where Trainer goes on from a checkpoint that holds no state of the schedule."""
        left = state.max_steps - state.global_step
        if left < 2:
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
        scheduler = _scheduler(kwargs)
        if scheduler is None:
            return
        switched = scheduler.phase != self._reported_phase
        if control.should_save or (switched and scheduler.has_report):
            scheduler.flush()  # on all ranks, before rank 0 alone saves the state or writes the report
        if switched:
            self._reported_phase = scheduler.phase
            self._write(args, state, scheduler)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        scheduler = _scheduler(kwargs)
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
        scheduler = _scheduler(kwargs)
        if scheduler is None or logs is None or "loss" not in logs:
            return
        values = scheduler.log_values()
        logs.update(values)
        state.log_history[-1].update(values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        scheduler = _scheduler(kwargs)
        if scheduler is not None and scheduler.has_report:
            scheduler.flush()
            self._write(args, state, scheduler)

    def _write(self, args: TrainingArguments, state: TrainerState, scheduler: AdaptiveScheduler) -> None:
        if not state.is_world_process_zero:
            return
        logged = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
        try:
            scheduler.write_report(args.output_dir or ".", logged, self.report, self.plot)
        except Exception:  # a full disk or a broken font must not end a training run
            logger.warning(
                "the report of %s could not be written to %s", scheduler.name, args.output_dir, exc_info=True
            )


def _name(args: TrainingArguments) -> str:
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


def _is_adaptive(args: TrainingArguments) -> bool:
    """Whether the arguments ask for a schedule of this package that looks at the run."""
    method = METHODS.get(_name(args))
    return method is not None and method.is_adaptive


def _scheduler(kwargs: dict[str, Any]) -> AdaptiveScheduler | None:
    scheduler = kwargs.get("lr_scheduler")
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps prepared schedulers
    return scheduler if isinstance(scheduler, AdaptiveScheduler) else None


def _steps_per_epoch(args: TrainingArguments, dataloader: Any) -> int | None:
    try:
        batches = len(dataloader)
    except TypeError:
        return None
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)
