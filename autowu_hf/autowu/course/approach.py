"""The approach: how a run around the scale begins. It measures the scale, grows the LR to it, and sees what is next.

The LR stays tiny for the two steps that measure, and grows linearly to the scale's peak over 5 % of the run, or to more
where later batches say that the first gradients were mostly noise. Then, and by a fifth of the run, it measures how far
steps take the weights, and corrects the LR where that is far more or less than AdamW's would. The losses say the rest:

* they have risen far, what was learned is lost, or nothing is and it is no plateau: back, at a half to a tenth of it;
* they have fallen to half, or a model from scratch has begun: the LR grows on until they give way, or to P's of now;
* otherwise the scale's peak is the peak, and no step is spent on looking.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ...rewind import snapshot
from ...runtime.param_groups import shares_out_of_reach
from .breaks import BREAK_DIVISOR, Breaks, divisor_of
from .later.lasting import may_be_raised
from .later.later_measures import LaterMeasures
from .later.transient import Transient
from .legs import FEWEST_LOSSES, Sweep, Way
from .looks import Looks
from .measures.bounds import may_be_outgrown
from .measures.first_steps import lie_around_0
from .measures.scale import Scale
from .measures.scale_search import ScaleSearch
from .signs import FEWEST_TO_RISE, Array, have_risen
from .timetable import Timetable

_SEEN = ("stalled", "unmoved", "has_fallen", "waits", "is_over")


class Approach:
    """The steps of a run before its minimum tests; all steps here are optimizer steps.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.
        models: called for those of the run, which may be known only once training has begun.
        start: called for the weights from before the growth, this process's shares; none where they are gone.

    Attributes:
        search: the scale, or the search for it.
        later, transient: measure, once the scale is known, what later steps say, also of losses that have halved.
        looks: when losses are needed.
        way, breaks: the legs of the LR since the scale is known, and where the losses had risen too far.
        stalled, unmoved: the steps done when nothing had been learned and the run went back, or grew on; None before.
        has_fallen: whether the losses had fallen by a tenth at the last look; None where too few of them tell.
        wants_back: whether the run has to go back to where the way began, before its next step (``went_back``).
        sweep: the growth that follows; None before that is known, and where none does.
        waits, is_over: whether it is left to judge only whether the LR is too high; and whether nothing is left.
        is_late: whether the search for a scale was given up after steps that said nothing.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        ratios: Iterable[float],
        models: Callable[[], Sequence[nn.Module]],
        start: Callable[[], Sequence[Tensor]] = tuple,
    ) -> None:
        self.search = ScaleSearch(optimizer, ratios)
        self.later = LaterMeasures(self.search, start)
        self.transient = Transient(self.search, start)
        self.way, self.breaks = Way(), Breaks()
        self.looks = Looks(self.way, self.later, self.transient)
        self.stalled: int | None = None
        self.unmoved: int | None = None
        self.has_fallen: bool | None = None
        self.sweep: Sweep | None = None
        self.is_late = self.wants_back = self.waits = self.is_over = False
        if (obstacle := shares_out_of_reach(optimizer)) is not None:
            self.give_up(obstacle.reason)
        self.search.start(functools.partial(snapshot.num_shares, optimizer, models))
        self.is_over = self.search.is_over

    def plan(self, num_steps: int, longest: int | None, sweep_start: int = 0) -> None:
        """Fits the approach to a run, and the sweep after it.

        Args:
            num_steps: of the whole run.
            longest: the most steps until the peak has to be known; None: no limit.
            sweep_start: the steps done when the sweep began, where one has.
        """
        before, factor = self.times.num_steps, None
        if self.scale is not None and not self.is_over:  # the last leg may be of another run
            factor = 1.0 if self.transient.raised_at else self.scale.changed(before, num_steps)
            if factor != 1.0 and self.transient.since is None:
                self.later.start_anew()
        self.way.fit(Timetable.of(num_steps, longest), factor)
        self.later.fit(self.way)
        if self.sweep is not None:
            self.sweep = self.sweep.timed(num_steps, self.times.longest - sweep_start)

    def give_up(self, obstacle: str, step: int | None = None) -> None:
        """Measures no more, for a reason, as a part of a sentence; from ``step`` on, a held LR goes to the scale's."""
        if self.scale is None:
            self.search.give_up(obstacle)
            self.is_over = True
        elif step is not None and self.way.is_held:
            self.later.refuse(obstacle)
            self.way.let_go(step, self.later.asked.raised)

    @property
    def scale(self) -> Scale | None:
        """The scale, once it is known."""
        return self.search.scale

    @property
    def times(self) -> Timetable:
        """When its parts are over, in the run that was planned last."""
        return self.way.times

    @property
    def end(self) -> int:
        """The steps done when the approach is over at the latest."""
        return max(self.way.end(bool(self.later.reaches)), self.transient.end(self.way))

    def lr(self, step: float) -> float:
        """The LR after ``step`` steps, in optimizer units, for a group of ratio 1."""
        return self.way.legs[-1].lr(step) if self.way.legs else self.search.lr

    def wants_losses(self, step: int) -> bool:
        """Whether ``advance`` has something to say after ``step`` steps."""
        return self.waits or self.scale is None or self.looks.are_wanted(step, self.end)

    def next_look(self, step: int) -> int:
        """The first step after ``step`` after which it may have, if nothing changes before."""
        return self.looks.next_after(step, self.end) if self.way.legs else step + 1

    def advance(self, step: int, losses: Array, share: float = 1.0) -> None:
        """Takes in the run so far; sets ``wants_back``, ``sweep`` and ``is_over`` where it is time.

        Args:
            step: the steps done.
            losses: (n,), one of each of them that was not skipped; of the last one, ``share`` is that of the gradient.
        """
        if self.scale is None:
            if self.search.obstacle is None:
                self.search.take(share * float(losses[-1]) if len(losses) else math.nan)
            self.is_late = self.search.runs_out(step, self.times.num_steps, self.times.longest)
            self.is_over = self.search.obstacle is not None
            if (scale := self.search.scale) is not None:
                self.later.watch_from(step if may_be_raised(scale) else None, self.way)
                self.way.set_out(step, scale.peak_lr_for(self.times.num_steps), self.later.asked.held, scale.borne)
            return
        if self.later.overshoot.judge(step, self.way, self.breaks.counted(losses), self.way.signs.num_first, share):
            self._go_back(step, len(losses), self.way.peak_lr / BREAK_DIVISOR)
        elif self.looks.is_due(step, self.end, self.waits):
            self._look(step, losses, self.scale, share)
        if not (self.wants_back or self.is_over):
            self.looks.ask(step)
            self.is_over = self.waits and not self.looks.are_awaited(step)
            if self.is_over and self.sweep is None:
                lr = self.breaks.lr_at_end(losses, self.way, step, self.scale, self.transient.raised_at)
                if lr is not None:
                    self._go_back(step, len(losses), lr)
        if self.is_over:
            self.looks.stop()

    def _look(self, step: int, losses: Array, scale: Scale, share: float) -> None:
        if (losses < 0.0).any():  # 0 is no bound of theirs, so that P says nothing
            self.search.give_up("the losses are not positive throughout")
            self.search.is_blind = lie_around_0([*losses]) or self.times.longest - step < FEWEST_LOSSES
            self.wants_back = self.is_over = True
            return
        seen, num, self.way.is_too_short = self.way.signs, len(losses), False
        if divisor := self.breaks.find_change(losses, seen, step):
            self.way.go_on(step, divisor)
        if self.breaks.find(losses, self.way, step, self.transient.raised_at):
            self._go_back(step, num, self.way.peak_lr / self.breaks.divisor)
            return
        losses = self.breaks.counted(losses)
        self.later.watch_on(step, share * losses, self.way)
        have_halved = seen.have_halved(losses)
        factor = 1.0 if self.transient.goes_first(scale) else self.later.follow(step, self.way, have_halved)
        if factor < 1.0 and have_risen(losses, 3):
            self._go_back(step, num, factor * self.way.peak_lr)  # nothing is learned at this LR
        elif factor != 1.0:
            self.way.go_on(step, factor)
        if step < self.way.legs[-1].end or self.later.asked.is_open:
            return
        is_stalled = not self.breaks.steps and not self.later.overshoot.found and seen.are_stalled(losses, step)
        divisor = divisor_of(scale, is_stalled, self.looks.is_ruined(step, losses))
        if divisor > 1.0 and self.times.longest - step > 3:
            self.stalled = step
            self._go_back(step, num, self.way.peak_lr / divisor)
            return
        is_noisy = is_stalled and seen.num_steps >= FEWEST_TO_RISE and self.later.asked.leaves_doubts
        if not is_noisy and self.transient.may_be(have_halved, self.way):
            is_busy = self.later.is_busy(step, self.way)
            self.way.begin_anew(step, self.transient.look(step, self.way, losses, share, is_busy))
            if not self.transient.is_over:
                return
        is_done = self.way.raised > 1.0 or self.transient.raised_at is not None or bool(self.breaks.steps)
        may_grow = is_noisy or (have_halved and not self.later.is_awaited(step) and not is_done)
        if may_grow and may_be_outgrown(scale, self.way.peak_lr):
            self.sweep = self.way.sweep_to(scale.trust, step, not is_noisy, scale.momentum)
            self.unmoved = step if is_noisy and self.sweep is not None else None
        self.is_over, self.waits, self.has_fallen = self.sweep is not None, step >= self.end, seen.have_fallen(losses)

    def went_back(self, step: int | None) -> None:
        """The run is where the first leg began again, after ``step`` steps; None: it cannot go back."""
        self.wants_back = False
        if step is not None:
            self.breaks.went_back(step)
            self.way.went_back(step)

    def _go_back(self, step: int, num_losses: int, peak_lr: float) -> None:
        self.wants_back, self.waits, self.is_over = True, False, False
        self.breaks.go_back(num_losses)
        self.later.go_back()
        self.transient.stop()
        self.way.set_out(step, peak_lr)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        return {
            **{name: getattr(self, name) for name in _SEEN},
            **self.way.state_dict(),
            **self.breaks.state_dict(),
            "num_steps": self.times.num_steps,
            "sweep": None if self.sweep is None else [*dataclasses.astuple(self.sweep)],
            **{name: getattr(self, name).state_dict() for name in ("search", "later", "transient")},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned, or the state of an older release."""
        self.later.stop()
        self.way.load_state_dict(state)
        vars(self).update({name: state.get(name) for name in _SEEN})  # a state may be older than a name
        self.way.times = dataclasses.replace(self.times, num_steps=state.get("num_steps", self.times.num_steps))
        self.breaks.load_state_dict(state)
        self.sweep = None if state["sweep"] is None else Sweep(*state["sweep"])
        self.search.load_state_dict(state["search"])
        self.later.load_state_dict(state.get("later") or {**state, **state["search"]})
        self.transient.load_state_dict(state.get("transient"))

    def report(self) -> dict[str, Any]:
        """What the picture needs, and the scale."""
        return {
            "scale": self.search.report(self.times.num_steps),
            **{name: getattr(self.search, name) for name in ("obstacle", "is_blind")},
            "first_lr": self.search.lr,
            **{name: getattr(self, name) for name in _SEEN},
            **(self.later.report() | self.transient.report()),
            **{name: getattr(self.way, name) for name in ("raised", "num_lost", "is_too_short")},
            "legs": [dataclasses.asdict(leg) for leg in self.way.legs],
            **self.breaks.state_dict(),
            "looks": self.times.looks,
            "sweep": None if self.sweep is None else dataclasses.asdict(self.sweep),
        }
