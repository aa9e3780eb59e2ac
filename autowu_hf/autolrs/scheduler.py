"""AutoLRS as a torch learning rate scheduler: stages of search and training (Jin et al. 2021, arXiv 2105.10762)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.losses.history import LossHistory
from ..runtime.param_groups import weights_out_of_reach
from ..runtime.scheduler import AdaptiveScheduler
from .search import Search
from .stages import AutoLRSSettings, Stage, follow_up, plan_stages, shortest_stage

logger = logging.getLogger(__name__)

_MISSING = (
    "AutoLRS saw no loss in this step, and finds no learning rate without losses. Call accelerator.backward(loss) "
    "instead of loss.backward(), or pass the loss: scheduler.step(loss)"
)


class AutoLRSScheduler(AdaptiveScheduler):
    """Finds the LR of each stage of training by trying some for a short time, and forecasting what they would reach.

    Use ``get_autolrs_schedule`` to build one. In a stage's search every candidate LR trains from the same state for
    tau' optimizer steps. Then weights, optimizer state, buffers and torch's random numbers are restored, and so is the
    place in the data where the batches come from a data loader that accelerate prepared; batches from elsewhere go on.
    The steps of the search are steps of the run. The run's first step, or a ramp of the LR, comes before the first
    stage. With several processes the losses are gathered at the end of each candidate, and the main process proposes
    the next one.

    Args:
        optimizer: its groups get the LR, times the ratio of the group's own LR to the optimizer's default ``lr``.
        num_training_steps: T, the scheduler steps of the whole run, search included.
        num_warmup_steps: scheduler steps of a linear ramp to the optimizer's own LR.
        settings: every other option.
        validation_loss: returns the present validation loss, of this process's part of the data.
        model: whose buffers are restored; a model that an accelerator prepared is known without it.

    Attributes:
        stages: the plan, in optimizer steps; empty in a run that was resumed without its state and with too few steps
            left for a stage, which trains at the optimizer's own LR.
        candidate_lrs: those that the search under way has tried, the present one included; empty without one.
        results: of every search that is over, a dict with "step", "lrs", "forecasts" and "lr", the one chosen.
        validation_loss: as given; may be set until it is needed.

    Raises:
        ValueError: an argument is outside its limits, or the optimizer's state cannot be restored.
    """

    name = "AutoLRS"
    state_version = 1
    state_key = "candidate_lrs"

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
        super().__init__(optimizer, num_training_steps, num_warmup_steps)
        self.settings = AutoLRSSettings() if settings is None else settings
        self.validation_loss = validation_loss
        self.results: list[dict[str, Any]] = []
        self._lr = self.settings.min_lr
        self._history: LossHistory = LossHistory(optimizer, missing=_MISSING, model=model)
        self._search = Search(optimizer, self.settings, self._history)
        self._seeks_models = False
        self.meet(optimizer)
        self._plan()
        self._history.open()
        self._start(optimizer)

    def meet(self, optimizer: Any) -> None:
        obstacle = weights_out_of_reach(optimizer)
        if obstacle is not None:
            raise ValueError(f"AutoLRS cannot go back to the start of a search: {obstacle.reason}; {obstacle.remedy}")

    @property
    def _steps(self) -> int:
        """Optimizer steps of the run."""
        return self.num_training_steps // self.ticks_per_step

    @property
    def warmup_limits(self) -> tuple[int, int]:
        """As in the base class: a stage has to fit in after the ramp."""
        return 1, self._steps - shortest_stage(self.settings)

    @property
    def _ramp(self) -> int:
        """Optimizer steps before the first stage, as they were asked for."""
        return max(self.num_warmup_steps // self.ticks_per_step, 1)

    def _plan(self) -> None:
        self.stages = plan_stages(self._steps, self.settings, self._ramp)

    def _plan_rest(self) -> str:
        asked, shortest = self._ramp, shortest_stage(self.settings)
        ramp = min(asked, self._steps - shortest)
        if ramp < 1:
            self.stages = []
            self._history.close()
            return (
                f"trains at the optimizer's own learning rate, {self._own_lr:.1e}, and without a search, which needs "
                f"{shortest + 1} optimizer steps,"
            )
        self.stages = plan_stages(self._steps, self.settings, ramp)
        if ramp == asked:
            return "plans new stages"
        return f"shortens its ramp from {asked} to {ramp} optimizer steps, so that a stage fits, and plans new stages"

    def _stage_at(self, done: int) -> Stage | None:
        """The stage under way, or the last one, after ``done`` optimizer steps; None before the first."""
        return next((stage for stage in reversed(self.stages) if stage.start <= done), None)

    @property
    def phase(self) -> str:
        """The state: "warmup" in the ramp, "search" or "train"."""
        if self._search.is_on:
            return "search"
        return "warmup" if self.stages and self._stage_at(self.last_epoch // self.ticks_per_step) is None else "train"

    @property
    def candidate_lrs(self) -> list[float]:
        return self._search.candidate_lrs

    @property
    def is_looking(self) -> bool:
        return self._search.is_on

    @property
    def num_steps_lost(self) -> int:
        return self._search.num_lost * self.ticks_per_step

    @property
    def takes_losses(self) -> bool:
        """Whether it listens to the losses of the steps to come: in a search, and before, to know the models."""
        return self.phase != "train"

    def _advance(self, step: int, loss: Any) -> None:
        if self.takes_losses and (step - 1) % self.ticks_per_step == 0:
            self._history.observe(loss)
            if self.phase == "warmup":
                self._history.reset()
        elif self._seeks_models and self._history.models():
            self._seeks_models = False
            self._history.close()
        if step % self.ticks_per_step == 0:
            self._decide(step // self.ticks_per_step)
            self._search.end_step()

    def _decide(self, done: int) -> None:
        """After ``done`` optimizer steps: begins a search, ends a candidate or the search, where it is time."""
        stage = self._stage_at(done)
        if stage is None:
            return
        if not self._search.is_on:
            if done == stage.start:
                self._search.begin(done)
                self._lr = self._search.next_candidate()
            return
        place = self._search.place(stage, done)
        is_validated = stage.is_full and self.validation_loss is not None
        if self.validation_loss is not None and is_validated and place in stage.validation_places:
            self._search.validate(self.validation_loss)
        if place == stage.candidate_steps:
            self._search.end_candidate(stage, is_validated)
            if self._search.is_complete:
                self.results.append(self._search.end(stage))
                self._lr = self.results[-1]["lr"]
            else:
                self._lr = self._search.next_candidate()

    def _schedule(self, step: int) -> float:
        if not self.stages:
            return self._own_lr
        done, ramp = step // self.ticks_per_step, self.stages[0].start
        if done < ramp and (ramp > 1 or self.num_warmup_steps):  # the first stage tells: a resumed run has its own
            return self._own_lr * done / ramp
        return self._lr

    def _state(self) -> dict[str, Any]:
        return {
            "num_training_steps": self.num_training_steps,
            "ticks_per_step": self.ticks_per_step,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "lr": self._lr,
            "results": [dict(result) for result in self.results],
            "losses": self._history.state_dict(),
            **self._search.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in the base class. A run resumed with another ``num_training_steps`` ends the stage under way as planned,
        where there is room, and plans the rest anew.

        Args:
            state_dict: what ``state_dict`` returned.

        Raises:
            ValueError: it is the state of another scheduler, or of another number of steps of it per optimizer step.
        """
        ticks = state_dict.get("ticks_per_step", self.ticks_per_step)
        if self.state_key in state_dict and ticks != self.ticks_per_step:
            raise ValueError(
                f"the state is of a run that stepped AutoLRS {ticks} times per optimizer step, "
                f"this one does it {self.ticks_per_step} times; resume with the same number of processes"
            )
        super().load_state_dict(state_dict)

    def _load_state(self, state: dict[str, Any]) -> None:
        self.stages = [Stage(**stage) for stage in state["stages"]]
        self._lr = state["lr"]
        self.results = [dict(result) for result in state["results"]]
        self._history.load_state_dict(state["losses"])
        self._search.load_state_dict(state)
        if self._search.cannot_go_on:
            self._give_up_search()
        if state["num_training_steps"] != self.num_training_steps:
            self._plan_anew()
        # A resumed run has to hear a backward before its next search, to know the models whose buffers it restores.
        self._seeks_models = bool(self.stages) and not self.takes_losses and not self._history.models()
        if self.takes_losses or self._seeks_models:
            self._history.open()
        else:
            self._history.close()

    def _give_up_search(self) -> None:
        """There is no state to go back to: trains on, with the best LR so far."""
        best = self._search.give_up()
        if best is not None:
            self._lr = best
        elif self.results:
            self._lr = self.results[-1]["lr"]
        if collective.is_main_process():
            logger.warning(
                "the checkpoint is from inside a search and does not hold the state that AutoLRS would go back to, so "
                "the search is given up; training goes on with learning rate %.1e",
                self._lr,
            )

    def _plan_anew(self) -> None:
        """The stage under way stays; the others are those of the new number of steps."""
        if not self.stages:  # see _plan_rest; num_training_steps does not tell how many of its steps were done before
            return
        stage = self._stage_at(self.last_epoch // self.ticks_per_step)
        if stage is None:
            self._plan()
        else:
            self.stages = [*self.stages[: self.stages.index(stage)], *follow_up(stage, self._steps, self.settings)]
