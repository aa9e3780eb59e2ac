"""What is measured once the scale is known: how much of the first slope lasts, and how large a later update is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ...runtime.update_meter import START_IS_GONE, Update
from .measuring_lr import say_deaf
from .scale import ALIGNED, settled_factor
from .scale_search import ScaleSearch
from .timetable import MOST_WATCHED

_TELLING_GROWTH = 60.0  # of the LR; updates of the first steps that are measured are at most 30 times a later one


class LaterMeasures:
    """Measures optimizer steps after those of the search; all copies that it needs are dropped when it has its answer.

    Args:
        search: that has the scale by then, and the updates of the first steps.

    Attributes:
        is_watching: whether the steps are measured that tell how much of the slope lasts.
        is_settling: whether the step is measured that tells how large an update is by now.
        lastings: the shares of the first updates' slope, per unit of LR, that the batches after them saw, each time
            that they were asked.
        settled: the norm of a later update as a share of the first ones'; None before, and where it cannot be known.
        factor: by what the LR was multiplied for that.
    """

    def __init__(self, search: ScaleSearch) -> None:
        self._search = search
        self._meter = search.meter
        self.is_watching = self.is_settling = False
        self.lastings: list[float] = []
        self.settled: float | None = None
        self.factor = 1.0
        self._way = 0.0

    def watch(self) -> None:
        """Measures what later batches say of the way that the weights go from here on, or goes on with it."""
        if not self.is_watching:
            self.is_watching, self._way = True, 0.0
            self._arm()
            self._meter.hold_start()

    @property
    def can_watch(self) -> bool:
        """Whether it can be told: not in half precision, whose rounding changes the way of the weights."""
        return not self._meter.is_half

    def take_lasting(self) -> float | None:
        """Takes one more of the ``lastings``, and goes on watching. Each batch is asked for the whole way up to it, and
        counts by its length.

        Returns:
            The mean of them all; None where this one cannot be known.
        """
        found = self._lasting([*self._meter.updates])
        self._meter.updates.clear()
        if found is not None:
            self.lastings.append(found)
        return None if found is None else self.lasting

    @property
    def lasting(self) -> float | None:
        """The mean of the ``lastings``; None while there are none."""
        return sum(self.lastings) / len(self.lastings) if self.lastings else None

    def _lasting(self, updates: list[Update | str]) -> float | None:
        scale, has_gaps = self._search.scale, len(updates) > 1 + MOST_WATCHED  # the meter holds so many only
        if scale is None or has_gaps or any(isinstance(update, str) for update in updates):
            return None
        fallen = expected = 0.0
        for update in updates:
            assert isinstance(update, Update)
            fallen += update.fallen
            expected += self._way * scale.loss / scale.polyak
            self._way += update.lr
        return fallen / expected if expected > 0.0 and math.isfinite(fallen) else None

    def settle(self) -> None:
        """Measures one more step, now that the optimizer has settled."""
        self.is_settling = True
        self._arm()

    def take_settled(self, step: int, raised: float) -> float:
        """Sets ``settled``, which stays unknown where that step was skipped or lost in the weights' precision, and for
        SGD; and ``factor``, which it returns.

        Args:
            step: the optimizer steps done.
            raised: by what the LR was multiplied for how little lasts: less, too, where updates become smaller.
        """
        if self._meter.updates:
            self.settled = self._settled(self._meter.updates[-1])
            self.stop()
        if self.settled is not None:
            factor = settled_factor(self.settled, step)
            self.factor = max(factor / raised, 1.0) if factor > 1.0 else factor
        return self.factor

    def _settled(self, update: Update | str) -> float | None:
        search = self._search
        if isinstance(update, str) or not search.shows(update):
            return None
        if search.alignment > ALIGNED and (search.momentum > 0.0 or update.alignment > ALIGNED):
            return None  # SGD's, whose size is that of the gradient, from batch to batch
        first = math.sqrt(sum(u.update_norm**2 for u in search.updates) / len(search.updates))
        growth = update.lr / search.updates[0].lr
        if growth >= _TELLING_GROWTH and growth * update.update_norm < 1.5 * first:
            say_deaf(update.lr)
            return None
        return update.update_norm / first if first > 0.0 else None

    def stop(self) -> None:
        """Measures no more, and forgets what was not taken."""
        self.is_watching = self.is_settling = False
        self._meter.updates.clear()
        self._search.stop()

    def _arm(self) -> None:
        self._meter.expected_lr = math.inf
        self._meter.updates.clear()
        self._meter.arm(self._search.is_sharded, takes_back=False)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        seen = [asdict(update) if isinstance(update, Update) else update for update in self._meter.updates]
        return {
            **self.report(),
            "lastings": [*self.lastings],
            "way": self._way,
            "is_settling": self.is_settling,
            "is_watching": self.is_watching,
            "seen": seen if self.is_watching else [],
        }

    def report(self) -> dict[str, Any]:
        """What was found."""
        return {"lasting": self.lasting, "settled": self.settled, "factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned; ``find_start`` has to follow."""
        self.lastings, self.settled, self.factor = [*state.get("lastings", [])], state["settled"], state["factor"]
        if state["is_settling"]:
            self.settle()
        elif state.get("is_watching"):
            self.watch()
            self._way = state["way"]
            self._meter.updates += [Update(**own) if isinstance(own, dict) else own for own in state["seen"]]

    def find_start(self, weights: Sequence[Tensor]) -> None:
        """After a resume: where the way began.

        Args:
            weights: there, this process's shares; none where they are gone, so that how much lasts stays unknown.
        """
        if self.is_watching and weights:
            self._meter.hold_start(weights)
        elif self.is_watching and (self._meter.updates or self._way > 0.0):  # else the way begins here
            self._meter.updates.append(START_IS_GONE)
