"""The guard after the switch: goes back where the losses lose again what had been learned, for the LR is too high.

Losses rise, too, because the data become harder, or the loss another one. So nothing is taken for granted: the run goes
back to earlier weights and a lower LR, then to the later weights, and to the earlier ones once more. It stays with
these only if the losses are low with them both times, and high with the others in between. (Ours.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...loss_curve.lost import has_hardly_fallen, is_lost, level
from ...rewind.kept import Kept
from ...rewind.rewind import Rewind
from ...runtime.losses.history import Array
from ..course.timetable import interval
from ..course.words import say
from .attempt import FEWEST_LOSSES, Attempt, has_just_broken, start_levels, window
from .heard import Heard
from .words import line, unlearned_line

FEWEST_STEPS, FEWEST_TO_TRY = 60, 200
"""In a run of fewer optimizer steps nothing is watched; or only losses that are not finite send it back."""

UNTIL, RENEW = 0.8, 0.1
"""The shares of the run after which nobody watches, for the LR is falling by then; and newer weights are kept."""

DIVISOR, TRIAL_DIVISOR = 3.0, 10.0
"""By what the LR is divided where it was too high; and while earlier weights are tried, lest these are lost, too."""

MOST = 2
"""So many attempts in a run."""


class Relapse:
    """Watches the losses after the switch. All steps are optimizer steps.

    Args:
        optimizer: of the run.
        models: called for those whose buffers go back, too.
        rewind: of the warm-up.

    Attributes:
        is_watching: whether it is at work.
        heard: the last of the losses since the switch.
        attempts: those so far.
        factors: what the decay's LR is multiplied by: the steps done at which that began, and the factor.
        num_lost: the steps whose weights were given up.
        unlearned: the steps done when it stopped to watch losses that were not seen to fall by a twentieth; or None.
    """

    def __init__(self, optimizer: Optimizer, models: Callable[[], Sequence[nn.Module]], rewind: Rewind) -> None:
        self.heard = Heard(optimizer, models)
        self.is_watching = False
        self.attempts: list[Attempt] = []
        self.factors: list[tuple[int, float]] = []
        self.num_lost = 0
        self.unlearned: int | None = None
        self._best = math.inf
        self._kept: Kept | None = None
        self._rewind = rewind

    @property
    def factor(self) -> float:
        """By which the decay's LR is multiplied now."""
        return self.factors[-1][1] if self.factors else 1.0

    @property
    def attempt(self) -> Attempt | None:
        """The one that is under way."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].end is None else None

    def begin(self, step: int, num_steps: int, ticks: int, first: Array, last: Array) -> None:
        """Watches from the switch on, where there is time and something to compare with; all processes must join.

        Args:
            step: the scheduler steps done.
            num_steps: the scheduler steps of the whole run.
            ticks: scheduler steps per optimizer step.
            first: (n,), one loss per optimizer step, from the start on.
            last: (m,), those up to the weights that the run goes on from.
        """
        step, num_steps, num = step // ticks, num_steps // ticks, window(num_steps // ticks)
        starts = start_levels(first, num)
        if num_steps < FEWEST_STEPS or step + 2 * num > UNTIL * num_steps or not starts:
            return
        self._best = level(last[-num:]) if len(last) >= FEWEST_LOSSES else math.inf
        self.is_watching = True
        self.heard.begin(step, starts)
        self._keep(step)

    def _keep(self, step: int) -> None:
        """Takes a snapshot; watches no more where that does not fit."""
        if self._kept is None:
            self._kept = Kept.after(self._rewind, self.heard.models)
        self._kept.keep_one(step)
        if not self._kept.is_on:
            self.stop(step)

    def stop(self, step: int, is_alone: bool = False) -> None:
        """Watches no more after ``step`` steps. An attempt that is under way ends with the later weights, or if the
        earlier ones have already been better, with these; and where it cannot go there, at the lower LR.

        Args:
            step: the steps done.
            is_alone: whether other processes may be at other steps, so that the weights have to stay.
        """
        attempt, kept = self.attempt, self._kept
        if attempt is not None:
            attempt.cut(step, self.heard.since)
            to_step = attempt.back_to if (is_better := attempt.tried is not None) else attempt.since
            if is_better != attempt.was_lost and not is_alone and kept is not None and kept.go_to(to_step):
                attempt.was_lost, attempt.taken_at = is_better, step
            self.num_lost += attempt.num_lost
            self.factors.append((step, attempt.factor / (DIVISOR if attempt.is_lowered else 1.0)))
            say(line(attempt, 0))
        self.is_watching = False
        self.heard.end()
        if kept is not None:
            kept.drop()

    def follow(self, step: int, loss: Any, num_steps: int, ticks: int, peak_lr: float, is_held: bool) -> None:
        """Takes in the loss of one more scheduler step, and looks at all where it is time; all processes must join.

        Args:
            step: the scheduler steps done.
            loss: as handed to the schedule.
            num_steps: the scheduler steps of the whole run.
            ticks: scheduler steps per optimizer step.
            peak_lr: of the decay.
            is_held: whether processes may be at different steps.
        """
        if (step - 1) % ticks == 0:
            self.heard.observe(loss)
        if step % ticks != 0:
            return
        step, num_steps = step // ticks, num_steps // ticks
        attempt = self.attempt
        is_tried = attempt is not None and step - self.heard.since >= attempt.num_losses(window(num_steps))
        if is_held:
            self.stop(step, is_alone=True)
        elif step % interval(num_steps) == 0 or is_tried:
            if self.heard.gather(step, num_steps):
                self._look(step, num_steps, window(num_steps), peak_lr)
            else:
                self.stop(step)

    def _look(self, step: int, num_steps: int, num: int, peak_lr: float) -> None:
        attempt, losses = self.attempt, self.heard.losses
        if attempt is None:
            self._watch(step, num_steps, num, peak_lr)
        elif len(losses) >= attempt.num_losses(num):
            if not attempt.hear(losses, num, self.heard.first):
                if self._go(step, attempt.since, attempt.factor):
                    self._end(step, attempt, was_lost=False)
            elif attempt.last is not None:
                self._end(step, attempt, was_lost=True)
            elif attempt.again is None:
                self._go(step, attempt.since, attempt.factor)
            else:
                self._go(step, attempt.back_to, attempt.factor / TRIAL_DIVISOR)

    def _watch(self, step: int, num_steps: int, num: int, peak_lr: float) -> None:
        losses, kept = self.heard.losses, self._kept
        if step > UNTIL * num_steps or len(self.attempts) == MOST:
            is_over = step > UNTIL * num_steps and len(losses) >= num
            is_same = all(attempt.was_lost for attempt in self.attempts)  # else the loss may have changed since
            if is_over and is_same and has_hardly_fallen(self.heard.starts, losses, num):
                self.unlearned = step
                say(unlearned_line(step, num_steps, self.heard.first, losses[-num:], peak_lr))
            self.stop(step)
            return
        if kept is None or kept.step is None:  # after a resume from a checkpoint without it
            self._keep(step)
            return
        if len(losses) < num:
            return
        now = level(losses[-num:])
        attempt = Attempt(step, kept.step, self._best, now, self.factor)
        has_time = num_steps >= FEWEST_TO_TRY and step + 2 * num <= UNTIL * num_steps
        if math.isinf(now):
            if self._go(step, attempt.back_to, attempt.factor):
                self.attempts.append(attempt)
                self._end(step, attempt, was_lost=True)
        elif has_time and is_lost(self.heard.first, self._best, now, losses, num):
            self._keep(step)
            if self.is_watching and self._go(step, attempt.back_to, attempt.factor / TRIAL_DIVISOR):
                self.attempts.append(attempt)
                say(line(attempt, num))
        elif now < self._best:
            self._best = now
            if step - kept.step >= RENEW * num_steps and not has_just_broken(self.heard.first, now, losses):
                kept.renew(step)

    def _end(self, step: int, attempt: Attempt, was_lost: bool) -> None:
        """Goes on from the weights that the run is at: the earlier ones, or the later ones as if nothing had been."""
        assert self._kept is not None
        attempt.end, attempt.taken_at, attempt.was_lost = step, self.heard.since, was_lost
        self.num_lost += attempt.num_lost
        self._kept.keep_only(attempt.kept_step)
        self.factors.append((step, attempt.factor / (DIVISOR if attempt.is_lowered else 1.0)))
        if attempt.last is not None or not was_lost:  # to compare with what the losses are now
            self._best = attempt.last if was_lost and attempt.last is not None else math.inf
        say(line(attempt, 0))

    def _go(self, step: int, to_step: int, factor: float) -> bool:
        """To the weights of another step, and to another LR; where these are not finite, it watches no more."""
        if self._kept is None or not self._kept.go_to(to_step):
            say(f"AutoWU cannot go back to the weights of step {to_step}, which are not finite, or gone")
            self.stop(step)
            return False
        self.factors.append((step, factor))
        self.heard.begin_anew(step)
        return True

    def report(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        attempts, factors = [asdict(attempt) for attempt in self.attempts], [[*pair] for pair in self.factors]
        return {"relapses": {"attempts": attempts, "lr_factors": factors, "unlearned": self.unlearned}}

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists, the last losses, and the weights to go back to where those of one process are all."""
        return {
            "is_watching": self.is_watching,
            "attempts": [[*astuple(attempt)] for attempt in self.attempts],
            "factors": [[*pair] for pair in self.factors],
            "num_lost": self.num_lost,
            "unlearned": self.unlearned,
            "best": self._best,
            "heard": self.heard.state_dict(),
            "kept": None if self._kept is None else self._kept.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any] | None, step: int) -> None:
        """Restores what ``state_dict`` returned, after ``step`` steps; None is the state of an older release."""
        self.heard.end()
        if self._kept is not None:
            self._kept.drop()
        self._kept = None  # that of a later step knows what the warm-up's has loaded
        state = {"is_watching": False, "attempts": [], "factors": []} if state is None else state
        self.is_watching = state["is_watching"]
        self.attempts = [Attempt(*values) for values in state["attempts"]]
        self.factors = [(step, factor) for step, factor in state["factors"]]
        self.num_lost, self.unlearned = state.get("num_lost", 0), state.get("unlearned")
        first, self._best = state.get("levels", [math.inf, state.get("best", math.inf)])  # the former in an older state
        if self.is_watching:
            self.heard.load_state_dict({"starts": [[first, 3]], **state["heard"]})
            if state["kept"] is not None and state["kept"]["kept"]:  # a checkpoint may lack them
                self._kept = Kept.after(self._rewind, self.heard.models)
                self._kept.load_state_dict(state["kept"], warming_up=True)
            if self.attempt is not None and (self._kept is None or len(self._kept.snapshots) < 2):
                self.stop(step)
