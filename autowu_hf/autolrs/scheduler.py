"""AutoLRS as a torch learning rate scheduler: stages of search and training (Jin et al. 2021, arXiv 2105.10762)."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..rewind import snapshot
from ..runtime import collective
from ..runtime.checks import check_state, check_steps
from ..runtime.loss_history import LossHistory
from ..runtime.param_groups import device_of, innermost, lr_ratios, set_lrs, weights_out_of_reach
from ..runtime.random_state import get_random_state, set_random_state
from .batch_replay import BatchReplay
from .forecast import forecast
from .stages import AutoLRSSettings, Stage, plan_stages

logger = logging.getLogger(__name__)

_STATE_VERSION = 1

_MISSING = (
    "AutoLRS saw no loss in this step, and finds no learning rate without losses. Call accelerator.backward(loss) "
    "instead of loss.backward(), or pass the loss: scheduler.step(loss)"
)


class AutoLRSScheduler(LRScheduler):
    """Finds the LR of each stage of training by trying some for a short time, and forecasting what they would reach.

    Use ``get_autolrs_schedule`` to build one. In a stage's search every candidate trains from the same state for tau'
    steps; then weights, optimizer state, buffers and torch's random numbers are what they were, and so is the place in
    the data, where it comes from a data loader that accelerate prepared; from any other the batches go on. The steps of
    the search are steps of the run. The run's first step, or a warm-up, comes before the first stage. As in
    ``AutoWUScheduler``, a *step* is a call of ``step()``. With several processes the losses are gathered at the end of
    each candidate, and the main process proposes the next one.

    Args:
        optimizer: its groups get the LR, times the ratio of the group's own LR to the optimizer's default ``lr``.
        num_training_steps: T, the steps of the whole run, search included.
        num_warmup_steps: steps of a linear warm-up to the optimizer's own LR.
        settings: every other option.
        validation_loss: returns the present validation loss, of this process's part of the data.
        model: whose buffers are restored; a model that an accelerator prepared is known without it.

    Attributes:
        stages: the plan.
        candidate_lrs: those that the search under way has tried, the present one included; empty without one.
        results: of every search that is over, a dict with "step", "lrs", "forecasts" and "lr", the one chosen.
        validation_loss: as given; may be set until it is needed.

    Raises:
        ValueError: an argument is outside its limits, or the optimizer's state cannot be restored.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_training_steps: int,
        num_warmup_steps: int = 0,
        *,
        settings: AutoLRSSettings | None = None,
        validation_loss: Callable[[], float] | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.settings = AutoLRSSettings() if settings is None else settings
        check_steps(num_training_steps, num_warmup_steps, None)
        self._ratios = lr_ratios(optimizer)
        self._own_lr = float(innermost(optimizer).defaults["lr"])
        self.num_training_steps = num_training_steps
        self.num_warmup_steps = num_warmup_steps
        self.validation_loss = validation_loss
        self.candidate_lrs: list[float] = []
        self.results: list[dict[str, Any]] = []
        self._forecasts: list[float] = []
        self._validations: list[float] = []
        self._start: snapshot.Snapshot | None = None
        self._random_states: list[Tensor] = []  # of every process
        self._replay = BatchReplay()
        self._model = model
        self._history = LossHistory(optimizer, missing=_MISSING)
        self._seeks_models = False
        self._lr = self.settings.min_lr
        self.prepared(1, [optimizer])
        self._history.open()
        super().__init__(optimizer)

    def prepared(self, ticks_per_step: int, optimizers: Sequence[Any]) -> None:
        """Tells how accelerate wraps this scheduler and its optimizer.

        Args:
            ticks_per_step: how often in a row the scheduler is stepped for one optimizer step.
            optimizers: the optimizer, with its wraps.

        Raises:
            ValueError: weights and state of such an optimizer cannot be restored.
        """
        for optimizer in optimizers:
            obstacle = weights_out_of_reach(optimizer)
            if obstacle is not None:
                raise ValueError(
                    f"AutoLRS cannot go back to the start of a search: {obstacle.reason}; {obstacle.remedy}"
                )
        self._ticks_per_step = ticks_per_step
        self._warm_up_steps = max(self.num_warmup_steps // ticks_per_step, 1)
        self.stages = plan_stages(self.num_training_steps // ticks_per_step, self.settings, self._warm_up_steps)

    @property
    def _steps_done(self) -> int:
        """Optimizer steps."""
        return self.last_epoch // self._ticks_per_step

    @property
    def _stage(self) -> Stage | None:
        """The stage under way, or the last one; None in the warm-up."""
        return next((stage for stage in reversed(self.stages) if stage.start <= self._steps_done), None)

    @property
    def phase(self) -> str:
        """The state: "warmup", "search" or "train"."""
        if self.candidate_lrs:
            return "search"
        return "warmup" if self._stage is None else "train"

    @property
    def takes_losses(self) -> bool:
        """Whether it listens to the losses of the steps to come: in a search, and before, to know the models."""
        return self.phase != "train"

    def step(self, loss: Any = None) -> None:
        """Moves on by one step: takes in a loss, ends a candidate, a search or a stage when it is time, sets the LRs.

        Args:
            loss: as in ``AutoWUScheduler.step``; wanted in a search only.

        Raises:
            ValueError: the loss is not a scalar; or without a loss, while another schedule hears the same accelerator.
        """
        if self._step_count > 0 and self.takes_losses and self.last_epoch % self._ticks_per_step == 0:
            self._history.observe(loss)
            if self.phase == "warmup":
                self._history.reset()
        elif self._seeks_models and self._models():
            self._seeks_models = False
            self._history.close()
        if self._step_count < 2:
            super().step()  # torch's own, which warns of a step before the optimizer's first
        else:
            self._step_count += 1
            self.last_epoch += 1
        if self.last_epoch > 0 and self.last_epoch % self._ticks_per_step == 0:
            self._advance()
            self._replay.end_step()
        self._last_lr = [*self.get_lr()]
        set_lrs(self.optimizer, self._last_lr)

    def _advance(self) -> None:
        """After a whole optimizer step."""
        stage = self._stage
        if stage is None:
            return
        if self.candidate_lrs:
            place = self._steps_done - stage.start - (len(self.candidate_lrs) - 1) * stage.candidate_steps
            self._validate(stage, place)
            if place == stage.candidate_steps:
                self._end_candidate(stage)
        elif self._steps_done == stage.start:
            self._begin_search()

    def _begin_search(self) -> None:
        self._start = snapshot.take(innermost(self.optimizer), self._models(), self._steps_done)
        self._random_states = collective.gather_bytes(get_random_state(device_of(self.optimizer)))
        self._replay.mark()
        self._forecasts = []
        self._history.open()
        self._next_candidate()

    def _next_candidate(self) -> None:
        s = self.settings
        proposed = math.nan
        if collective.is_main_process():
            from .proposal import propose  # imports GPyTorch, which takes seconds

            proposed = propose(self.candidate_lrs, self._forecasts, s.min_lr, s.max_lr, s.kappa)
        self._lr = collective.broadcast_number(proposed)
        self.candidate_lrs.append(self._lr)
        self._history.reset()
        self._validations = []

    def _validates(self, stage: Stage) -> bool:
        return stage.is_full and self.validation_loss is not None

    def _validate(self, stage: Stage, place: int) -> None:
        if self.validation_loss is not None and stage.is_full and place in stage.validation_places:
            loss = torch.tensor([float(self.validation_loss())], dtype=torch.float64)
            self._validations += collective.gather_mean(loss).tolist()

    def _end_candidate(self, stage: Stage) -> None:
        self._history.flush()
        losses = self._history.gathered
        places = np.arange(len(losses), dtype=np.float64)  # the first is of the weights before the first step
        validates = self._validates(stage)
        if validates:
            losses, places = np.array(self._validations), np.array(stage.validation_places, dtype=np.float64)
        self._forecasts.append(forecast(places, losses, stage.train_steps, validates))
        self._go_back()
        if len(self.candidate_lrs) < self.settings.num_candidates:
            self._next_candidate()
        else:
            self._end_search(stage)

    def _go_back(self) -> None:
        assert self._start is not None
        self._replay.go_back()  # before the random numbers, some of which it may draw
        snapshot.restore(self._start, innermost(self.optimizer), self._models())
        if len(self._random_states) == collective.num_processes():  # not after a resume with more or fewer
            set_random_state(self._random_states[collective.process_index()], device_of(self.optimizer))

    def _end_search(self, stage: Stage) -> None:
        from .proposal import best_of

        self._history.close()
        self._replay.unmark()
        self._lr = best_of(self.candidate_lrs, self._forecasts)
        self.results.append(
            {"step": stage.start, "lrs": self.candidate_lrs, "forecasts": self._forecasts, "lr": self._lr}
        )
        finite = [loss for loss in self._forecasts if math.isfinite(loss)]
        self._start, self._random_states, self.candidate_lrs, self._forecasts = None, [], [], []
        if not collective.is_main_process():
            return
        if finite:
            logger.info(
                "AutoLRS: learning rate %.1e for the next %d steps, forecast loss %.4g, after a search of %d steps",
                self._lr,
                stage.train_steps,
                min(finite),
                stage.search_steps,
            )
        else:
            logger.warning(
                "AutoLRS: no candidate's losses were finite to its end; the lowest learning rate, %.1e, is used for "
                "the next %d steps. A lower min_lr or max_lr may help",
                self._lr,
                stage.train_steps,
            )

    def _models(self) -> Sequence[nn.Module]:
        return [self._model] if self._model is not None else self._history.models()

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The LR of every parameter group for the next step."""
        lr = self._lr
        if self.num_warmup_steps and self._steps_done < self._warm_up_steps:
            lr = self._own_lr * self._steps_done / self._warm_up_steps
        return [lr * ratio for ratio in self._ratios]

    def restart(self, num_training_steps: int) -> None:
        """Starts anew with another length: for a run resumed without this schedule's state.

        Args:
            num_training_steps: the steps that are left.

        Raises:
            ValueError: they are too few for a stage.
        """
        check_steps(num_training_steps, self.num_warmup_steps, None)
        self.num_training_steps = num_training_steps
        self.stages = plan_stages(num_training_steps // self._ticks_per_step, self.settings, self._warm_up_steps)

    def flush(self) -> None:
        """Gathers the losses of the candidate so far; with several processes, one collective that all must join."""
        self._history.flush()

    def pending_losses(self) -> Tensor:
        """(k,), float64: the losses of this process that were not gathered yet."""
        return self._history.pending()

    def set_pending_losses(self, losses: Tensor) -> None:
        """Replaces the losses of this process that were not gathered yet.

        Args:
            losses: (k,), k the same on every process.
        """
        self._history.set_pending(losses)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit; loads with ``torch.load(weights_only=True)``. No collective.

        Inside a search that is also the state to go back to, except under FSDP, where it is every process's own.
        """
        is_whole = self._start is not None and not snapshot.is_sharded(innermost(self.optimizer), self._models())
        return {
            "version": _STATE_VERSION,
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "num_training_steps": self.num_training_steps,
            "ticks_per_step": self._ticks_per_step,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "lr": self._lr,
            "candidate_lrs": [*self.candidate_lrs],
            "forecasts": [*self._forecasts],
            "validations": [*self._validations],
            "results": [dict(result) for result in self.results],
            "losses": self._history.state_dict(),
            "start": self._start.state_dict() if self._start is not None and is_whole else None,
            "random_states": [*self._random_states],
            "batches": self._replay.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state. A run resumed with another ``num_training_steps`` ends the stage under way as planned,
        where there is room, and plans the rest anew.

        Args:
            state_dict: what ``state_dict`` returned.

        Raises:
            ValueError: it is the state of another scheduler, or of another number of steps of it per optimizer step.
        """
        check_state(state_dict, "AutoLRSScheduler", _STATE_VERSION, "candidate_lrs")
        if state_dict["ticks_per_step"] != self._ticks_per_step:
            raise ValueError(
                f"the state is of a run that stepped AutoLRS {state_dict['ticks_per_step']} times per optimizer step, "
                f"this one does it {self._ticks_per_step} times; resume with the same number of processes"
            )
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["step_count"]
        self.stages = [Stage(**stage) for stage in state_dict["stages"]]
        self._lr = state_dict["lr"]
        self.candidate_lrs = [*state_dict["candidate_lrs"]]
        self._forecasts = [*state_dict["forecasts"]]
        self._validations = [*state_dict["validations"]]
        self.results = [dict(result) for result in state_dict["results"]]
        self._history.load_state_dict(state_dict["losses"])
        self._start = None if state_dict["start"] is None else snapshot.Snapshot(**state_dict["start"])
        self._random_states = [state.cpu() for state in state_dict["random_states"]]
        if self.candidate_lrs and (self._start is None or not snapshot.fits(self._start, innermost(self.optimizer))):
            self._give_up_search()
        self._replay.load_state_dict(state_dict.get("batches"), is_searching=bool(self.candidate_lrs))
        if state_dict["num_training_steps"] != self.num_training_steps:
            self._plan_anew()
        # A resumed run has to hear a backward before its next search, to know the models whose buffers it restores.
        self._seeks_models = not self.takes_losses and not self._models()
        if self.takes_losses or self._seeks_models:
            self._history.open()
        else:
            self._history.close()
        self._last_lr = [*self.get_lr()]
        set_lrs(self.optimizer, self._last_lr)

    def _give_up_search(self) -> None:
        """There is no state to go back to: trains on, with the best LR so far."""
        tried = self.candidate_lrs[: len(self._forecasts)]
        if tried:
            from .proposal import best_of

            self._lr = best_of(tried, self._forecasts)
        elif self.results:
            self._lr = self.results[-1]["lr"]
        self._start, self._random_states, self.candidate_lrs, self._forecasts = None, [], [], []
        if collective.is_main_process():
            logger.warning(
                "the checkpoint is from inside a search and does not hold the state that AutoLRS would go back to, so "
                "the search is given up; training goes on with learning rate %.1e",
                self._lr,
            )

    def _plan_anew(self) -> None:
        """The stage under way stays; the others are those of the new number of steps."""
        stage, steps = self._stage, self.num_training_steps // self._ticks_per_step
        if stage is None:
            self.stages = plan_stages(steps, self.settings, self._warm_up_steps)
            return
        kept = self.stages[: self.stages.index(stage) + 1]
        try:
            self.stages = [*kept, *plan_stages(steps, self.settings, stage.end, after=stage)]
        except ValueError:  # no room for another
            self.stages = kept
