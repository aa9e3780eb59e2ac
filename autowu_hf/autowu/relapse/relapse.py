"""The guard after the switch: goes back where the losses lose again what had been learned, for the LR is too high.

Losses rise, too, because the data become harder, or the loss another one. So nothing is taken for granted: the run goes
back to earlier weights and a lower LR, and then to the later weights once more. It goes on from the earlier ones only
if the losses were low with these and are high again with those. (Ours.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from ...rewind.kept import Kept
from ...runtime import collective
from ...runtime.losses.history import LossHistory
from ..course.words import say
from .attempt import FEWEST_LOSSES, Attempt, error, interval, is_lost, level, window
from .words import line

FEWEST_STEPS = 60
"""In a run of fewer optimizer steps there is no time for it."""

UNTIL = 0.8
"""The share of the run after which the losses are not watched: the LR falls then."""

RENEW = 0.1
"""The share of the run after which newer weights take the place of those to go back to."""

DIVISOR = 3.0
"""By what the LR is divided with the earlier weights."""

MOST = 2
"""So many attempts in a run."""


class Relapse:
    """Watches the losses after the switch. All steps are optimizer steps.

    Args:
        optimizer: of the run.
        models: called for those whose buffers go back, too.
        options: of ``Rewind``, from its mode on.

    Attributes:
        is_watching: whether it is at work.
        history: the last of the losses since the switch.
        attempts: those so far.
        factors: what the decay's LR is multiplied by: the steps done at which that began, and the factor.
        num_lost: the steps whose weights were given up.
    """

    def __init__(self, optimizer: Optimizer, models: Callable[[], Sequence[nn.Module]], options: Sequence[Any]) -> None:
        self.history = LossHistory(optimizer, is_quiet=True)
        self.is_watching = False
        self.attempts: list[Attempt] = []
        self.factors: list[tuple[int, float]] = []
        self.num_lost = 0
        self._first = self._best = math.inf
        self._since = 0
        self._kept: Kept | None = None
        self._of_kept = (optimizer, functools.partial(_first_of, models, self.history.models), *options)

    @property
    def factor(self) -> float:
        """By which the decay's LR is multiplied now."""
        return self.factors[-1][1] if self.factors else 1.0

    @property
    def attempt(self) -> Attempt | None:
        """The one that is under way."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].end is None else None

    def begin(self, step: int, num_steps: int, ticks: int, losses: Sequence[float]) -> None:
        """Watches from the switch on, where there is time and something to compare with; all processes must join.

        Args:
            step: the scheduler steps done.
            num_steps: the scheduler steps of the whole run.
            ticks: scheduler steps per optimizer step.
            losses: one per optimizer step so far.
        """
        step, num_steps = step // ticks, num_steps // ticks
        first = np.array(losses[: max(3, min(window(num_steps), len(losses) // 8))])
        first = first[np.isfinite(first)]
        has_time = num_steps >= FEWEST_STEPS and step + 3 * window(num_steps) < UNTIL * num_steps
        if has_time and len(first) > 1:
            self._first, self._since, self.is_watching = level(first), step, True
            self._keep(step)
        if self.is_watching:
            self.history.open()

    def _keep(self, step: int) -> None:
        """Takes a snapshot; watches no more where that does not fit."""
        if self._kept is None:
            self._kept = Kept(*self._of_kept)
            self._kept.look()
        self._kept.keep_one(step)
        self.is_watching = self._kept.is_on

    def stop(self) -> None:
        """Watches no more; an attempt that is under way is over, and its weights stay."""
        if self.attempt is not None:
            self.attempt.end = self.attempt.since
        self.is_watching = False
        self.history.close()
        self.history.reset()
        if self._kept is not None:
            self._kept.drop()

    def follow(self, step: int, loss: Any, num_steps: int, ticks: int, is_held: bool) -> None:
        """Takes in the loss of one more scheduler step, and looks at all where it is time; all processes must join.

        Args:
            step: the scheduler steps done.
            loss: as handed to the schedule.
            num_steps: the scheduler steps of the whole run.
            ticks: scheduler steps per optimizer step.
            is_held: whether processes may be at different steps.
        """
        if (step - 1) % ticks == 0:
            try:
                self.history.observe(loss)
            except ValueError:  # what is no loss has done no harm since the switch, and does none now
                self.history.reset()
        if step % ticks != 0:
            return
        step, num_steps = step // ticks, num_steps // ticks
        if is_held:
            self.stop()
        elif step % interval(num_steps) == 0 and self._take_in(step, num_steps):
            self._look(step, num_steps, window(num_steps))

    def _take_in(self, step: int, num_steps: int) -> bool:
        """Gathers the new losses; False where there are none, or not everywhere: a loop may hand them over only until
        the switch.
        """
        num_new = len(self.history.pending())
        fewest, most = collective.gather_max([-num_new, num_new])
        expected = min(step - self._since, interval(num_steps))
        if most != -fewest or 2 * most < expected:
            self.stop()
            return False
        self.history.flush()
        self.history.gathered = self.history.gathered[-2 * window(num_steps) :]
        return True

    def _look(self, step: int, num_steps: int, num: int) -> None:
        attempt, losses = self.attempt, self.history.gathered
        if attempt is None:
            self._watch(step, num_steps, num)
        elif attempt.tried is None and len(losses) >= num:
            attempt.tried = level(losses[-num:])
            if attempt.is_better(error(losses, num)):
                self._go(step, attempt.since, attempt.factor)
            else:
                self._end(step, attempt, was_lost=False)
        elif attempt.tried is not None and len(losses) >= max(FEWEST_LOSSES, num // 2):
            attempt.again = level(losses)
            self._end(step, attempt, attempt.is_still_lost)

    def _watch(self, step: int, num_steps: int, num: int) -> None:
        if step + 2 * num > UNTIL * num_steps or len(self.attempts) == MOST:
            self.stop()
            return
        if self._kept is None or self._kept.step is None:  # after a resume
            self._keep(step)
        losses = self.history.gathered
        if not self.is_watching or self._kept is None or self._kept.step is None or len(losses) < num:
            return
        now = level(losses[-num:])
        if is_lost(self._first, self._best, now, losses, num):
            self._try(step, Attempt(step, self._kept.step, self._best, now, self.factor), num)
        elif now < self._best:
            self._best = now
            if step - self._kept.step >= RENEW * num_steps:
                self._kept.renew(step)

    def _try(self, step: int, attempt: Attempt, num: int) -> None:
        can_compare = math.isfinite(attempt.level)
        if can_compare:
            self._keep(step)
        if self.is_watching and self._go(step, attempt.back_to, attempt.factor / DIVISOR):
            self.attempts.append(attempt)
            if can_compare:
                say(line(attempt, num))
            else:
                self._end(step, attempt, was_lost=True)

    def _end(self, step: int, attempt: Attempt, was_lost: bool) -> None:
        """Goes on from the earlier weights, or from the later ones as if nothing had been."""
        to_step = attempt.back_to if was_lost else attempt.since
        if not self._go(step, to_step, attempt.factor / DIVISOR if was_lost else attempt.factor):
            return
        assert self._kept is not None
        self._kept.keep_only(to_step)
        attempt.end, attempt.was_lost = step, was_lost
        self.num_lost += step - to_step
        self._best = self._best if was_lost else attempt.level
        say(line(attempt, 0))

    def _go(self, step: int, to_step: int, factor: float) -> bool:
        """To the weights of another step, and to another LR; where these are not finite, it watches no more."""
        if self._kept is None or not self._kept.go_to(to_step):
            self.stop()
            return False
        self.factors.append((step, factor))
        self.history.reset()
        self._since = step
        return True

    def report(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        attempts = [asdict(attempt) for attempt in self.attempts]
        return {"relapses": {"attempts": attempts, "lr_factors": [[*pair] for pair in self.factors]}}

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists, and during an attempt the weights."""
        return {
            "is_watching": self.is_watching,
            "attempts": [[*astuple(attempt)] for attempt in self.attempts],
            "factors": [[*pair] for pair in self.factors],
            "num_lost": self.num_lost,
            "seen": [self._first, self._best, self._since],
            "losses": self.history.state_dict(),
            "kept": None if self._kept is None or self.attempt is None else self._kept.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restores what ``state_dict`` returned; None is the state of a release without this."""
        self.stop()
        if state is None:
            return
        self.attempts = [Attempt(*values) for values in state["attempts"]]
        self.factors = [(step, factor) for step, factor in state["factors"]]
        self.num_lost, self.is_watching = state["num_lost"], state["is_watching"]
        self._first, self._best, self._since = state["seen"]
        if not self.is_watching:
            return
        self.history.load_state_dict(state["losses"])
        self.history.open()
        if state["kept"] is not None:
            self._kept = Kept(*self._of_kept)
            self._kept.load_state_dict(state["kept"], warming_up=True)
            if self._kept.step is None:  # the checkpoint could not hold them
                self.stop()


def _first_of(*sources: Callable[[], Sequence[nn.Module]]) -> Sequence[nn.Module]:
    """What the first of them has that has any."""
    return next((found for source in sources if (found := source())), [])
