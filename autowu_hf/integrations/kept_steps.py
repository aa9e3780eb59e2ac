"""What Trainer remembers of steps that a schedule has taken back: the best evaluation, and the sum of the losses.

Going back gives up the weights of the last steps. An evaluation of those weights is not the best one of the run any
more, and their losses are no part of the training that is left.
"""

from __future__ import annotations

import logging
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerState, TrainingArguments

from ..runtime import collective
from ..runtime.scheduler import AdaptiveScheduler

logger = logging.getLogger(__name__)


class LostSteps:
    """Counts the optimizer steps that a schedule takes back.

    Args:
        scheduler: as it is when the counting begins.
    """

    def __init__(self, scheduler: AdaptiveScheduler) -> None:
        self._known = scheduler.num_steps_looked

    def new(self, scheduler: AdaptiveScheduler) -> int:
        """How many of the last optimizer steps were taken back since this was asked last."""
        lost = scheduler.num_steps_looked
        new, self._known = lost - self._known, lost
        return new // scheduler.ticks_per_step


class _Best(NamedTuple):
    """Of ``TrainerState``."""

    best_metric: float | None
    best_global_step: int | None
    best_model_checkpoint: str | None

    @classmethod
    def of(cls, state: TrainerState) -> _Best:
        return cls(*(getattr(state, name, None) for name in cls._fields))


_NONE = _Best(None, None, None)


class BestEvaluation:
    """What was the best evaluation of the run after each step, as far as the schedule may go back to that step.

    Args:
        state: of the Trainer, before its first step.
    """

    def __init__(self, state: TrainerState) -> None:
        best = _Best.of(state)
        since = state.global_step if best.best_global_step is None else best.best_global_step
        self._known = [(since, best)]

    def note(self, state: TrainerState) -> None:
        """To be called after each step while the schedule may go back, before the step's own evaluation."""
        best = _Best.of(state)
        if best != self._known[-1][1]:
            self._known.append((state.global_step - 1, best))

    def take_back(self, args: TrainingArguments, state: TrainerState, num_lost: int) -> None:
        """Forgets what was evaluated in the last steps; all processes must join.

        Args:
            args: of the Trainer.
            state: of the Trainer, after the last of these steps and before its evaluation.
            num_lost: the steps.
        """
        lost = _Best.of(state)
        self._known = [known for known in self._known if known[0] <= state.global_step - num_lost] or [(0, _NONE)]
        best = self._known[-1][1]
        if best[:2] == lost[:2]:
            return
        # Only the main process is sure to see the folders of checkpoints.
        folder = best.best_model_checkpoint
        if not collective.broadcast_number(float(folder is None or os.path.isdir(folder))):
            best = _NONE  # save_total_limit has made room for the ones that are forgotten now
            self._known = [(0, best)]
        for name, value in best._asdict().items():
            setattr(state, name, value)
        if collective.is_main_process():
            logger.info(
                "the best %s so far, %.4g, is forgotten, for the weights that had it were taken back with the last %d "
                "steps",
                args.metric_for_best_model,
                lost.best_metric,
                num_lost,
            )


class LossSum:
    """Takes back, with the weights, the sum from which Trainer computes ``loss`` and ``train_loss``.

    Trainer adds each step's loss to a tensor, its *open* sum. When it logs, it adds that to a number, the *drained*
    sum, and sets the tensor to 0. Both are kept here for each step while the schedule may go back.

    Args:
        scheduler: as it is when training begins or goes on.
        state: of the Trainer, before its first step.
    """

    def __init__(self, scheduler: AdaptiveScheduler, state: TrainerState) -> None:
        self._lost = LostSteps(scheduler)
        self._start = self._first = state.global_step
        self._drained = [0.0]
        self._open: Tensor | None = None  # (n,), n at least as many as there are numbers in _drained
        self._num_lost = 0
        self._filled_in = 0.0

    def follow(self, trainer: Any, open_sum: Tensor, scheduler: AdaptiveScheduler) -> None:
        """To be called after each step, when it has been logged, and again at the end of each epoch.

        Args:
            trainer: whose sums they are.
            open_sum: (), on the Trainer's device; changed in place.
            scheduler: of the Trainer.
        """
        step = trainer.state.global_step
        num_lost = self._lost.new(scheduler)
        if num_lost:
            self._take_back(trainer, open_sum, max(step - num_lost, self._start))
        if scheduler.is_looking:
            self._keep(step, trainer._total_loss_scalar, open_sum)
        if self._num_lost and (trainer.control.should_training_stop or step >= trainer.state.max_steps):
            self._fill_in(trainer, open_sum)

    def _keep(self, step: int, drained: float, open_sum: Tensor) -> None:
        if self._open is None:
            self._open = open_sum.new_zeros(256)
        place = step - self._first
        if place > len(self._drained):  # it has not looked for a while
            self._first, place, self._drained = step, 0, []
        self._drained[place:] = [drained]
        if place == len(self._open):
            self._open = torch.cat([self._open, torch.zeros_like(self._open)])
        self._open[place] = open_sum

    def _take_back(self, trainer: Any, open_sum: Tensor, to_step: int) -> None:
        """The sums are again what they were after ``to_step``; the log entries stay."""
        step, place = trainer.state.global_step, to_step - self._first
        if self._open is None or not 0 <= place < len(self._drained):
            return
        if trainer._globalstep_last_logged <= to_step:
            open_sum.copy_(self._open[place])
            trainer._globalstep_last_logged += step - to_step  # the number of steps that the next mean is over
        else:  # what was open then has been logged together with steps that are taken back now
            kept = collective.gather_mean(self._open[place : place + 1])
            trainer._total_loss_scalar = self._drained[place] + kept.item()
            open_sum.zero_()
            trainer._globalstep_last_logged = step
        self._num_lost += step - to_step

    def _fill_in(self, trainer: Any, open_sum: Tensor) -> None:
        """At the end: Trainer divides by all steps, so those that were taken back count as much as the mean of the
        others.
        """
        num_steps = trainer.state.global_step - self._start
        total = trainer._total_loss_scalar - self._filled_in + open_sum.item()
        if num_steps > self._num_lost:
            filled_in = total * self._num_lost / (num_steps - self._num_lost)
            trainer._total_loss_scalar += filled_in - self._filled_in
            self._filled_in = filled_in
