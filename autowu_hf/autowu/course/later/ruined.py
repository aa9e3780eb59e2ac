"""Whether an LR at which nothing was learned has ruined the model: the size of its gradients tells. (Ours.)

A classifier that begins at chance has nothing to lose. Where the LR is too high for a pretrained encoder below a fresh
head, the outputs become the same for all inputs, and the loss stays where it was. So it does on a plateau. But there
the gradients stay about what they were, and here hardly any are left; or they are many times as large, which they are
elsewhere only once something has been learned.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from ....runtime.update_meter import Update
from ..legs import Way
from ..measures.scale_search import ScaleSearch
from ..signs import Array
from ..timetable import AGAIN, FEWEST_AFTER, PATIENCE

VANISHED, EXPLODED = 0.5, 4.0
"""How many times as large as the first ones the norms of the later gradients are: a quarter of them at most below the
one bound, or half of them above the other, while the losses since the growth are no less than the first ones in the
mean. In a ruined MiniLM a quarter is below 0.16 to 0.48, in one that will learn below 0.6 to 4.7, and half above 0.8 to
5.8.
"""


class Ruined:
    """Measures some steps where nothing has been learned: at first after a tenth of the run, last at the approach's
    end.

    Args:
        search: that has the scale by then, and whose meter measures.

    Attributes:
        is_open: whether steps are being measured; what they say stays in the meter until they are judged.
        found: the steps done when it was ruined, and how many times as large as the first gradients the later ones
            are; None elsewhere.
    """

    def __init__(self, search: ScaleSearch) -> None:
        self._search = search
        self._meter = search.meter
        self._since = self._num_asked = 0
        self.is_open = False
        self.found: tuple[int, float] | None = None

    def look(self, step: int, way: Way, losses: Array, is_busy: bool) -> bool:
        """Begins to measure, or judges, whichever is due.

        Args:
            step: the optimizer steps done.
            way: the LR's.
            losses: (n,), one of each of them that counts.
            is_busy: whether others are measuring, or will.

        Returns:
            Whether it is ruined.
        """
        num = way.times.num_judges
        if self.is_open and step >= self._since + num:
            norms = [_norm(update) for update in self._meter.updates if isinstance(update, Update)]
            if len(norms) < num and step < self._since + num + PATIENCE:
                return False
            self.is_open = False
            if 2 * len(norms) >= num and self._may_be(way, losses):
                first = statistics.fmean(map(_norm, self._search.updates))
                few, half = (float(np.quantile(norms, share)) / first for share in (0.25, 0.5))
                has_exploded = half > EXPLODED and not way.signs.are_lower(losses)
                if few < VANISHED or has_exploded:
                    self.found = (step, half if has_exploded else few)
                    return True
        start = self._next_start(way)
        if start is not None and step >= start and not is_busy:
            self._since, self._num_asked = step, self._num_asked + 1
            if self._may_be(way, losses):
                self.is_open = True
                self._meter.updates.clear()
                self._search.measure_later()
        return False

    def due_after(self, step: int, way: Way) -> int | None:
        """The first step after ``step`` after which ``look`` may have something to do; None: there is none, or it waits
        for others.
        """
        if self.is_open:
            return max(step + 1, self._since + way.times.num_judges)
        start = self._next_start(way)
        return start if start is not None and start > step else None

    def _next_start(self, way: Way) -> int | None:
        """The steps done from which it measures next, where nothing has been learned by then; None: no more."""
        scale, num, end = self._search.scale, way.times.num_judges, way.times.look_end(way.growth_end)
        is_held_by_polyak = scale is not None and scale.held_by_for(way.times.num_steps) == "polyak"
        if self.is_open or way.has_gone_back or not (way.times.looks and is_held_by_polyak):
            return None
        starts = (way.signs.stall_step, round(AGAIN * way.times.num_steps), end - num)
        start = max(starts[self._num_asked], self._since + num) if self._num_asked < len(starts) else end + 1
        return start if start <= end and start + num + FEWEST_AFTER <= way.times.longest else None

    def _may_be(self, way: Way, losses: Array) -> bool:
        """Whether nothing has been learned. SGD's updates are as large as its gradients; what it learns nothing at is
        another matter (``Signs.are_stalled``).
        """
        scale = self._search.scale
        is_other = scale is None or scale.is_aligned or scale.is_scale_invariant
        return not is_other and way.signs.have_hardly_fallen(losses, way.times.num_judges)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and names only; what was measured is kept with that of others."""
        return {
            "ruined": None if self.found is None else [*self.found],
            "ruining": [self.is_open, self._since, self._num_asked],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned, or the state of a release that did not ask."""
        self.found = None if state.get("ruined") is None else (state["ruined"][0], state["ruined"][1])
        self.is_open, self._since, self._num_asked = state.get("ruining", (False, 0, 0))
        if self.is_open:
            self._search.measure_later()


def _norm(update: Update) -> float:
    """That of the gradient before clipping."""
    return update.gradient_norm * (update.clipping if math.isfinite(update.clipping) else 1.0)
