"""The ways of the LR: legs of the approach, each of them straight, and the sweep that may follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from .signs import Signs
from .timetable import Timetable

DECADE = 0.05
"""The share of the run in which the LR of a sweep grows tenfold."""

MOST_LOOKED = 0.15
"""The share of the run that a sweep may take: nothing of it is kept."""

FEWEST_LOSSES, FEWEST_BORNE = 10, 18
"""That a growth needs, for the minimum tests to say anything; and a sweep where losses may rise farther than elsewhere
(``Scale.borne``). Where that is more than ``MOST_LOOKED`` of the run, there is no sweep: in one of fewer than 67 steps,
or 120. Where nothing has been learned, there is nothing to lose, and that does not count.
"""

MEMORIES = 5.0
"""The shortest sweep with SGD's momentum, in units of the steps over which that sums up gradients."""


@dataclass(frozen=True)
class Leg:
    """A linear way to another LR, which stays once it is reached. All steps are optimizer steps.

    Args:
        since: the steps done when it began.
        end: the steps done when it is over.
        from_lr: the LR before it, in optimizer units.
        to_lr: the LR from ``end`` on.
    """

    since: int
    end: int
    from_lr: float
    to_lr: float

    def cut(self, end: int, factor: float) -> Leg:
        """The same way, over after ``end`` steps at the latest, to ``factor`` times its LR."""
        return replace(self, end=min(self.end, end), to_lr=factor * self.to_lr)

    def lr(self, step: float) -> float:
        """The LR after ``step`` steps."""
        share = (min(step, self.end) + 1 - self.since) / (self.end - self.since + 1)
        return self.from_lr + (self.to_lr - self.from_lr) * share


def lr_of_legs(legs: Sequence[Mapping[str, Any]], first_lr: float, step: float) -> float:
    """The LR after ``step`` steps of an approach.

    Args:
        legs: the fields of each, in their order.
        first_lr: the LR before the first one.
        step: the steps done.
    """
    begun = [leg for leg in legs if leg["since"] <= step]
    return Leg(**begun[-1]).lr(step) if begun else first_lr


class Way:
    """The legs of one approach.

    Attributes:
        times: of the run that was planned last.
        legs: in their order; the first one is the growth to the scale, and one more follows for each of
            ``raises``.
        began: the steps done when the last one began that starts at 0, or after a transient.
        num_lost: the steps that were thrown away by going back.
        watched_since: the steps done when later batches were last asked how much of the fall lasts; None before.
        held: the share of the scale's LR at which the run stays while they are asked; 1 where they are not.
        raises: by what that LR was multiplied once they had answered.
        borne: how many times as far the losses may rise as elsewhere, see ``Scale.borne``.
        is_too_short: whether a sweep over losses that have halved is left out, since too few steps are left for it, or
            it would take too much of the run.
    """

    def __init__(self) -> None:
        self.times = Timetable.of(2, None)
        self.legs: list[Leg] = []
        self.began = self.num_lost = 0
        self.watched_since: int | None = None
        self.held = self.borne = 1.0
        self.is_too_short = False
        self.raises: list[float] = []

    @property
    def since(self) -> int:
        """The steps done when the LR began to grow."""
        return self.legs[0].since

    @property
    def is_held(self) -> bool:
        """Whether the run stays at a share of the scale's LR, since later batches have yet to answer."""
        return self.held != 1.0 and not self.raises

    @property
    def peak_lr(self) -> float:
        """The LR that the last leg leads to, or would but for the batches that are asked."""
        return self.legs[-1].to_lr / (self.held if self.is_held else 1.0)

    @property
    def raised(self) -> float:
        """By what the scale's LR was multiplied for the answers of later batches."""
        return math.prod(self.raises, start=self.held) if self.raises else 1.0

    @property
    def ramp_end(self) -> int:
        """The steps done when the LR had first grown to the scale's, or to more."""
        return self.legs[len(self.raises)].end

    @property
    def signs(self) -> Signs:
        """What the losses of the run say."""
        return Signs(self.times.num_steps, self.ramp_end, self.borne)

    @property
    def growth_end(self) -> int:
        """The same, and later batches have been asked."""
        return max(self.ramp_end, self.watch_end)

    @property
    def watch_end(self) -> int:
        """The steps done when the batches have been asked that are asked last; 0 where none are."""
        return 0 if self.watched_since is None else self.times.watch_end(self.watched_since)

    @property
    def has_gone_back(self) -> bool:
        """Whether the LR has begun anew at 0, since it was too high or nothing was learned."""
        return sum(leg.from_lr == 0.0 for leg in self.legs) > 1

    @property
    def is_first_growth(self) -> bool:
        """Whether neither the losses nor how far steps get have changed the LR yet."""
        return len(self.legs) == 1 + len(self.raises)

    @property
    def judges(self) -> range | None:
        """The steps done before each of those whose batches are asked whether the LR has grown too far: those after
        the last leg. None where too few are left.
        """
        if not self.legs:
            return None
        since = 1 + (self.growth_end if self.is_first_growth else self.legs[-1].end)
        end = self.times.judge_end(since)
        return None if end is None else range(since, end)

    def end(self, has_reach: bool) -> int:
        """Where the approach is over at the latest; ``has_reach``: it is known how far later updates get."""
        leg_end = max(self.legs[-1].end, self.growth_end)
        return self.times.end(leg_end, has_reach or not self.is_first_growth)

    def highest_lr(self, num_steps: int) -> float:
        """The highest LR of the first ``num_steps`` steps that a leg began before."""
        ends = [leg.since for leg in self.legs[1:]] + [num_steps]
        begun = [pair for pair in zip(self.legs, ends, strict=True) if pair[0].since < num_steps]
        return max((leg.lr(min(end, num_steps) - 1) for leg, end in begun), default=0.0)

    def lr_before(self, step: int) -> float:
        """The LR that the leg led to which was the last one before that of ``step``."""
        return [leg for leg in self.legs if leg.since < step][-1].to_lr

    def fit(self, times: Timetable, factor: float | None) -> None:
        """Fits the last leg, which may be of another run, to a run; its LR changes by a factor. None: it stays."""
        self.times = times
        if factor is not None and self.legs:
            self.legs[-1] = self.legs[-1].cut(times.ramp_end(self.legs[-1].since), factor)

    def set_out(self, since: int, peak_lr: float, held: float = 1.0, borne: float | None = None) -> None:
        """After ``since`` steps the LR grows from 0 to ``peak_lr``, or to the share of it at which it is ``held``; what
        is ``borne`` stays, where it is not given.
        """
        self.borne, self.is_too_short = self.borne if borne is None else borne, False
        if not self.legs:
            self.began = since
        if not self.raises:
            self.held = held
        self.legs.append(Leg(since, self.times.ramp_end(since), 0.0, held * peak_lr))

    def go_on(self, since: int, factor: float) -> None:
        """After ``since`` steps the LR goes from where it is to ``factor`` times the one that it was to reach."""
        last = self.legs[-1]
        self.legs.append(Leg(since, self.times.ramp_end(since), last.lr(since - 1), factor * last.to_lr))

    def let_go(self, since: int, raised: float) -> None:
        """The LR goes on to ``raised`` times the scale's, since later batches have answered, or cannot."""
        self.raises.append(raised / (self.raised if self.raises else self.held))
        self.go_on(since, self.raises[-1])

    def sweep_to(self, max_lr: float, since: int, has_learned: bool = True, momentum: float = 0.0) -> Sweep | None:
        """The sweep from the LR that was reached, after ``since`` steps; None where it takes too much of the run, or
        is so short that ``momentum`` hides from the losses which of its LRs was too high.
        """
        fewest = max(FEWEST_LOSSES if self.borne == 1.0 else FEWEST_BORNE, round(MEMORIES / (1.0 - momentum)))
        takes_much = has_learned and int(MOST_LOOKED * self.times.num_steps) < fewest
        room = 0 if takes_much else self.times.longest - since
        sweep = Sweep.between(self.peak_lr, max_lr, self.times.num_steps, room)
        self.is_too_short = sweep is None and has_learned
        return sweep

    def begin_anew(self, step: int, factor: float) -> None:
        """Goes on, and whoever goes back will go back to after ``step`` steps; nothing, where the factor is 1."""
        if factor != 1.0:
            self.go_on(step, factor)
            self.began = step

    def went_back(self, step: int) -> None:
        """The run is where the way began, after ``step`` steps."""
        self.num_lost += step - self.began
        self.began = step

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists only."""
        names = ("began", "num_lost", "watched_since", "held", "raises", "borne", "is_too_short")
        return {"legs": [[*astuple(leg)] for leg in self.legs], **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned, or the state of a release that raised nothing."""
        self.legs = [Leg(*leg) for leg in state["legs"]]
        self.began, self.num_lost = state["began"], state["num_lost"]
        self.watched_since, self.held = state.get("watched_since"), state.get("held", 1.0)
        self.raises, self.borne = [*state.get("raises", [])], state.get("borne", 1.0)
        self.is_too_short = state.get("is_too_short", False)


@dataclass(frozen=True)
class Sweep:
    """A growth of the LR under the eyes of the minimum tests.

    Args:
        min_lr: where it begins.
        max_lr: where it would end.
        num_steps: in how many optimizer steps.
    """

    min_lr: float
    max_lr: float
    num_steps: int

    @classmethod
    def between(cls, min_lr: float, max_lr: float, num_steps: int, room: int) -> Sweep | None:
        """The growth in a run of ``num_steps`` that may take ``room`` steps; None where there is too little room."""
        if room < FEWEST_LOSSES:
            return None
        return cls(min_lr, max_lr, room).timed(num_steps, room)

    def timed(self, num_steps: int, room: int) -> Sweep:
        """The same growth in a run of ``num_steps`` that may take ``room`` steps; at least ``FEWEST_LOSSES``."""
        wanted = round(DECADE * math.log10(self.max_lr / self.min_lr) * num_steps)
        most = min(int(MOST_LOOKED * num_steps), room)
        return replace(self, num_steps=max(FEWEST_LOSSES, min(wanted, most)))
