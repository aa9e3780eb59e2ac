"""One search: its candidate LRs, what they reached, and the state that each of them starts from."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..rewind import snapshot
from ..rewind.untrained import Untrained, find_untrained
from ..runtime import collective
from ..runtime.losses.history import LossHistory
from ..runtime.param_groups import device_of
from ..runtime.random_state import get_random_state, set_random_state
from .batch_replay import BatchReplay
from .forecast import forecast
from .stages import AutoLRSSettings, Stage

logger = logging.getLogger(__name__)


class Search:
    """Tries one LR after another from the same state of training.

    ``begin`` keeps that state: parameters, optimizer state, buffers, torch's random numbers and the place in the data.
    ``end_candidate`` restores it. With several processes both are collective, and so are ``next_candidate`` and
    ``validate``. One object serves all searches of a run, one at a time.

    Args:
        optimizer: whose parameters and state are restored.
        settings: the options.
        history: the losses of the candidate under way; it also knows the models whose buffers are restored.

    Attributes:
        candidate_lrs: (n,), the LRs tried so far, the present one included; empty where no search is under way.
        forecasts: (n - 1,) while a candidate trains, (n,) when it has ended: their forecast losses.
        num_lost: the optimizer steps of all candidates so far that have ended, in all searches.
    """

    def __init__(self, optimizer: Optimizer, settings: AutoLRSSettings, history: LossHistory) -> None:
        self.candidate_lrs: list[float] = []
        self.forecasts: list[float] = []
        self.num_lost = 0
        self._optimizer = optimizer
        self._settings = settings
        self._history = history
        self._validations: list[float] = []
        self._start: snapshot.Snapshot | None = None
        self._untrained = Untrained()
        self._random_states: list[Tensor] = []  # of every process
        self._replay = BatchReplay()

    @property
    def is_on(self) -> bool:
        """Whether a search is under way."""
        return bool(self.candidate_lrs)

    @property
    def is_complete(self) -> bool:
        """Whether every candidate has been tried."""
        return len(self.forecasts) == self._settings.num_candidates

    def begin(self, step: int) -> None:
        """Keeps the present state of training, after ``step`` optimizer steps; ``next_candidate`` must follow."""
        self._start = snapshot.take(self._optimizer, self._history.models(), step, untrained=self._untrained)
        self._random_states = collective.gather_bytes(get_random_state(device_of(self._optimizer)))
        self._replay.mark()
        self.forecasts = []
        self._history.open()

    def next_candidate(self) -> float:
        """Proposes, and returns, the LR of the next candidate."""
        s = self._settings
        proposed = math.nan
        if collective.is_main_process():
            from .proposal import propose  # imports GPyTorch, which takes seconds

            proposed = propose(self.candidate_lrs, self.forecasts, s.min_lr, s.max_lr, s.kappa)
        lr = collective.broadcast_number(proposed)
        self.candidate_lrs.append(lr)
        self._history.reset()
        self._validations = []
        return lr

    def place(self, stage: Stage, step: int) -> int:
        """How many steps the present candidate has been tried for, after ``step`` optimizer steps of the run."""
        return step - stage.start - (len(self.candidate_lrs) - 1) * stage.candidate_steps

    def validate(self, loss: Callable[[], float]) -> None:
        """Takes the present candidate's validation loss, the mean over processes."""
        local = torch.tensor([float(loss())], dtype=torch.float64)
        self._validations += collective.gather_mean(local).tolist()

    def end_candidate(self, stage: Stage, is_validated: bool) -> None:
        """Forecasts the loss of the present candidate at the end of the stage, and goes back to the search's start.

        Args:
            stage: the one that is searched for.
            is_validated: whether the forecast is made from validation losses, not from training losses.
        """
        self._history.flush()
        losses = self._history.gathered
        places = np.arange(len(losses), dtype=np.float64)  # the first is of the weights before the first step
        if is_validated:
            losses, places = np.array(self._validations), np.array(stage.validation_places, dtype=np.float64)
        self.forecasts.append(forecast(places, losses, stage.train_steps, is_validated))
        self._go_back()
        self.num_lost += stage.candidate_steps

    def _go_back(self) -> None:
        assert self._start is not None
        self._replay.go_back()  # before the random numbers, some of which it may draw
        snapshot.restore(self._start, self._optimizer, self._history.models(), self._untrained)
        if len(self._random_states) == collective.num_processes():  # not after a resume with more or fewer
            set_random_state(self._random_states[collective.process_index()], device_of(self._optimizer))

    def end(self, stage: Stage) -> dict[str, Any]:
        """Ends a search whose candidates have all been tried; the main process logs what was found.

        Returns:
            "step", where the search began, "lrs", "forecasts" and "lr", the LR whose forecast is the lowest.
        """
        self._history.close()
        self._replay.unmark()
        lr, forecasts = self._best(), self.forecasts
        result = {"step": stage.start, "lrs": self.candidate_lrs, "forecasts": forecasts, "lr": lr}
        self._clear()
        if collective.is_main_process():
            _log(stage, lr, [loss for loss in forecasts if math.isfinite(loss)])
        return result

    def give_up(self) -> float | None:
        """Ends a search that cannot go back to its start; returns the best LR so far, None where there is none."""
        best = self._best() if self.forecasts else None
        self._clear()
        return best

    def _best(self) -> float:
        from .proposal import best_of

        return best_of(self.candidate_lrs[: len(self.forecasts)], self.forecasts)

    def _clear(self) -> None:
        self._start, self._random_states, self.candidate_lrs, self.forecasts = None, [], [], []
        self._untrained.drop_copies()

    def end_step(self) -> None:
        """To be called after every optimizer step of the run, in a search or not."""
        self._replay.end_step()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, without the losses; under FSDP without "start", of which every process has a
        share of its own.
        """
        models, start = self._history.models(), None
        if self._start is not None and not snapshot.is_sharded(self._optimizer, models):
            self._untrained.look(find_untrained(self._optimizer, models))
            start = self._start.state_dict()
        return {
            "candidate_lrs": [*self.candidate_lrs],
            "forecasts": [*self.forecasts],
            "num_lost": self.num_lost,
            "validations": [*self._validations],
            "start": start,
            "changed": sorted(self._untrained.changed),
            "random_states": [*self._random_states],
            "batches": self._replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned; where it then ``cannot_go_on``, ``give_up`` must follow."""
        self.candidate_lrs = [*state["candidate_lrs"]]
        self.forecasts = [*state["forecasts"]]
        self.num_lost = state.get("num_lost", 0)
        self._validations = [*state["validations"]]
        self._start = None if state["start"] is None else snapshot.Snapshot(**state["start"])
        in_start = () if self._start is None else self._start.buffers
        self._untrained = Untrained(changed=state.get("changed", in_start))  # older states lack it
        self._random_states = [state.cpu() for state in state["random_states"]]
        self._replay.load_state_dict(state.get("batches"), is_searching=self.is_on and not self.cannot_go_on)

    @property
    def cannot_go_on(self) -> bool:
        """Whether a search is under way whose start is not known, or is that of another model."""
        return self.is_on and (self._start is None or not snapshot.fits(self._start, self._optimizer))


def _log(stage: Stage, lr: float, finite: list[float]) -> None:
    """Logs the end of a search with the finite ones of its forecasts."""
    if finite:
        logger.info(
            "AutoLRS: learning rate %.1e for the next %d steps, forecast loss %.4g, after a search of %d steps",
            lr,
            stage.train_steps,
            min(finite),
            stage.search_steps,
        )
    else:
        logger.warning(
            "AutoLRS: no candidate's losses were finite to its end; the lowest learning rate, %.1e, is used for "
            "the next %d steps. A lower min_lr or max_lr may help",
            lr,
            stage.train_steps,
        )
