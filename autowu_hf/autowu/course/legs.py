"""The ways of the LR: legs of the approach, each of them straight, and the sweep that may follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

DECADE = 0.05
"""The share of the run in which the LR of a sweep grows tenfold."""

FEWEST_LOSSES = 10
"""That a growth needs, for the minimum tests to say anything."""


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
        return replace(self, num_steps=max(FEWEST_LOSSES, min(wanted, room)))
