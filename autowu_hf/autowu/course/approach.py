"""The approach: how a run around the scale begins. It measures the scale, grows the LR to it, and sees what is next.

The LR stays tiny for the two steps that measure, grows linearly to the scale's peak over 5 % of the run, and stays
there. One more step is measured then, and where the optimizer's updates have become far larger or smaller than the
first ones led to expect, the LR is corrected. From there on the losses say what remains to be done:

* they have risen far above their start: the run goes back to before the growth, at a tenth of the LR;
* they have not fallen where the updates are the gradients themselves (SGD's), and the scale is less sure: the same, at
  a third of the LR;
* they have fallen to half already, after a transient or by quick learning: the LR grows on until they give way;
* they have not fallen where P lies far below R, for noise in the gradients makes P too low: it grows on, too;
* otherwise the scale's peak is the peak, and no step is spent on looking.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...rewind import snapshot
from ...runtime.param_groups import weights_out_of_reach
from .breaks import BREAK_DIVISOR, STALL_DIVISOR, Breaks
from .legs import FEWEST_LOSSES, Leg, Sweep
from .scale import Scale, settled_factor
from .scale_search import ScaleSearch
from .signs import FEWEST_TO_RISE, Array, Signs, have_fallen
from .timetable import Timetable

_SEEN = ("settled", "factor", "stalled", "unmoved", "num_lost", "is_over")


class Approach:
    """The steps of a run before its minimum tests; all steps here are optimizer steps.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.
        models: called for those of the run, which may be known only once training has begun.

    Attributes:
        search: the scale, or the search for it.
        times: when its parts are over, in the run that was planned last.
        legs: the ways of the LR since the scale is known.
        settled: the norm of a later update as a share of the first ones'; None before, and where it cannot be known.
        factor: by what the LR was multiplied for that.
        breaks: where the losses had risen too far.
        stalled: the steps done when nothing had been learned and the run went back; None before.
        unmoved: the steps done when nothing had been learned and the LR grew on; None before.
        num_lost: the steps that were thrown away by going back.
        wants_back: whether the run has to go back to where the first leg began, before its next step; see
            ``went_back``.
        sweep: the growth that follows; None before that is known, and where none does.
        is_over: whether nothing is left to do here.
        is_late: whether the search for a scale was given up after steps that said nothing.
    """

    def __init__(
        self, optimizer: Optimizer, ratios: Iterable[float], models: Callable[[], Sequence[nn.Module]]
    ) -> None:
        self.search = ScaleSearch(optimizer, ratios)
        self.legs: list[Leg] = []
        self.settled: float | None = None
        self.factor = 1.0
        self.num_lost = 0
        self.breaks = Breaks()
        self.stalled: int | None = None
        self.unmoved: int | None = None
        self.sweep: Sweep | None = None
        self.is_late = self.wants_back = self.is_over = False
        self._began = 0
        self.times = Timetable.of(2, None)
        obstacle = weights_out_of_reach(optimizer)
        if obstacle is not None:
            self.give_up(obstacle.reason)
        self.search.start(functools.partial(_is_sharded, optimizer, models))
        self.is_over = self.search.is_over

    def plan(self, num_steps: int, longest: int | None, sweep_start: int = 0) -> None:
        """Fits the approach to a run, and the sweep after it.

        Args:
            num_steps: of the whole run.
            longest: the most steps until the peak has to be known; None: no limit.
            sweep_start: the steps done when the sweep began, where one has.
        """
        before, self.times = self.times.num_steps, Timetable.of(num_steps, longest)
        if self.scale is not None and self.legs and not self.is_over:  # the last leg may be of another run
            factor = self.scale.peak_lr_for(num_steps) / self.scale.peak_lr_for(before)
            self.legs[-1] = self.legs[-1].cut(self.times.ramp_end(self.legs[-1].since), factor)
        if self.sweep is not None:
            self.sweep = self.sweep.timed(num_steps, self.times.longest - sweep_start)

    def give_up(self, obstacle: str) -> None:
        """Measures no more; a scale that is known stays.

        Args:
            obstacle: why, as a part of a sentence.
        """
        if self.scale is None:
            self.search.give_up(obstacle)
            self.is_over = True

    @property
    def scale(self) -> Scale | None:
        """The scale, once it is known."""
        return self.search.scale

    @property
    def peak_lr(self) -> float:
        """The LR that the approach leads to, once the scale is known."""
        return self.legs[-1].to_lr

    @property
    def end(self) -> int:
        """The steps done when the approach is over at the latest."""
        return self.times.end(self.legs[-1].end, self.settled is not None or len(self.legs) > 1)

    def lr(self, step: float) -> float:
        """The LR after ``step`` steps, in optimizer units, for a group of ratio 1."""
        return self.legs[-1].lr(step) if self.legs else self.search.lr

    def wants_losses(self, step: int) -> bool:
        """Whether ``advance`` has something to say after ``step`` steps."""
        if self.scale is None or self.search.is_settling or step % self.times.look_interval == 0:
            return True
        return step in (self.legs[-1].end, self.end, Signs(self.times.num_steps, self.legs[0].end).stall_step)

    def advance(self, step: int, losses: Array) -> None:
        """Takes in the run so far; sets ``wants_back``, ``sweep`` and ``is_over`` where it is time.

        Args:
            step: the steps done.
            losses: (n,), one of each of them that was not skipped.
        """
        if self.scale is None:
            if self.search.obstacle is None:
                self.search.take(float(losses[-1]) if len(losses) else math.nan)
            self.is_late = self.search.runs_out(step, self.times.num_steps, self.times.longest)
            self.is_over = self.search.obstacle is not None
            if self.search.scale is not None:
                self._set_out(step, self.search.scale.peak_lr_for(self.times.num_steps))
            return
        if (losses < 0.0).any():  # 0 is no bound of theirs, so that P says nothing
            self.search.give_up("the losses are not positive throughout")
            self.search.is_blind = self.times.longest - step < FEWEST_LOSSES
            self.wants_back = self.is_over = True
            return
        seen, num = Signs(self.times.num_steps, self.legs[0].end), len(losses)
        if self.breaks.find_change(losses, seen, step):
            self._go_on(step, BREAK_DIVISOR * self.peak_lr)
        if self.breaks.find(losses, seen, step, self.legs[0].since):
            self._go_back(step, num, self.peak_lr / BREAK_DIVISOR)
            return
        losses = self.breaks.counted(losses)
        if self.search.is_settling:
            self._settle(step, losses, num)
        elif self.settled is None and len(self.legs) == 1 and step == self.legs[0].end:
            self.search.settle()
        is_measuring = self.search.is_settling and step < self.times.measure_end(self.legs[-1].end)
        if step < self.legs[-1].end or is_measuring:
            return
        is_stalled = not self.breaks.steps and seen.are_stalled(losses, step)
        if is_stalled and self.scale.is_aligned and self.times.longest - step > 3:
            self.stalled = step
            self._go_back(step, num, self.peak_lr / STALL_DIVISOR)
            return
        is_noisy = is_stalled and seen.num_steps >= FEWEST_TO_RISE and self.scale.may_be_noise
        if (is_noisy or seen.have_halved(losses)) and 2.0 * self.peak_lr < self.scale.trust < math.inf:
            self.sweep = Sweep.between(self.peak_lr, self.scale.trust, seen.num_steps, self.times.longest - step)
            self.unmoved = step if is_noisy and self.sweep is not None else None
        self.is_over = self.sweep is not None or step >= self.end
        if self.is_over:
            self.search.stop()

    def went_back(self, step: int | None) -> None:
        """The run is where the first leg began again, after ``step`` steps; None: it cannot go back."""
        self.wants_back = False
        if step is not None:
            self.breaks.went_back(step)
            self.num_lost += step - self._began
            self._began = step

    def _set_out(self, step: int, peak_lr: float) -> None:
        """The LR grows from 0 to ``peak_lr``."""
        if not self.legs:
            self._began = step
        self.legs.append(Leg(step, self.times.ramp_end(step), 0.0, peak_lr))

    def _go_on(self, step: int, peak_lr: float) -> None:
        """The LR goes from where it is to ``peak_lr``."""
        self.legs.append(Leg(step, self.times.ramp_end(step), self.legs[-1].lr(step - 1), peak_lr))

    def _go_back(self, step: int, num_losses: int, peak_lr: float) -> None:
        self.wants_back = True
        self.breaks.go_back(num_losses)
        self.search.stop()
        self._set_out(step, peak_lr)

    def _settle(self, step: int, losses: Array, num_losses: int) -> None:
        """Looks at how large an update is by now, and corrects the LR."""
        self.settled = self.search.take_settled()
        if self.settled is None:
            return
        self.factor = settled_factor(self.settled, step)
        peak_lr = self.factor * self.peak_lr
        if self.factor == 1.0:
            return
        if self.factor < 1.0 and not have_fallen(losses, 3, 3, 1.0):
            self._go_back(step, num_losses, peak_lr)  # nothing is learned at this LR
        else:
            self._go_on(step, peak_lr)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        return {
            **{name: getattr(self, name) for name in _SEEN},
            "legs": [[*dataclasses.astuple(leg)] for leg in self.legs],
            **self.breaks.state_dict(),
            "began": self._began,
            "num_steps": self.times.num_steps,
            "sweep": None if self.sweep is None else [*dataclasses.astuple(self.sweep)],
            "search": self.search.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.legs = [Leg(*leg) for leg in state["legs"]]
        for name in _SEEN:
            setattr(self, name, state.get(name))  # a state may be older than a name
        self._began = state["began"]
        self.times = dataclasses.replace(self.times, num_steps=state.get("num_steps", self.times.num_steps))
        self.breaks.load_state_dict(state)
        self.sweep = None if state["sweep"] is None else Sweep(*state["sweep"])
        self.search.load_state_dict(state["search"])

    def report(self) -> dict[str, Any]:
        """What the picture needs, and the scale."""
        return {
            "scale": self.search.report(),
            "obstacle": self.search.obstacle,
            "is_blind": self.search.is_blind,
            "first_lr": self.search.lr,
            **{name: getattr(self, name) for name in _SEEN},
            "legs": [dataclasses.asdict(leg) for leg in self.legs],
            **self.breaks.state_dict(),
            "looks": self.times.looks,
            "sweep": None if self.sweep is None else dataclasses.asdict(self.sweep),
        }


def _is_sharded(optimizer: Optimizer, models: Callable[[], Sequence[nn.Module]]) -> bool:
    return snapshot.is_sharded(optimizer, models())
