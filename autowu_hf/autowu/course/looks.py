"""When the approach needs the losses: at each 60th of the run (at every third step of a short one), and where a part
of it ends or begins.
"""

from __future__ import annotations

from collections.abc import Iterator

from .legs import Way
from .measures.later_measures import LaterMeasures
from .measures.transient import Transient


class Looks:
    """The looks of one approach, in optimizer steps done.

    Args:
        way: the LR's.
        later: measures on that way.
        transient: measures once the losses have halved.
    """

    def __init__(self, way: Way, later: LaterMeasures, transient: Transient) -> None:
        self._way, self._later, self._transient = way, later, transient

    def is_due(self, step: int, end: int) -> bool:
        """Whether there is one after ``step`` steps; ``end``: where the approach is over at the latest, which a resume
        as a shorter run may find passed.
        """
        way = self._way
        is_measured = self._later.is_due(step, way) or self._transient.is_due(step, way)
        return is_measured or step % way.times.look_interval == 0 or step >= end or step in self._ends(end)

    def are_wanted(self, step: int, end: int) -> bool:
        """Whether losses are needed after ``step`` steps: there is a look, or batches are asked about the growth."""
        return self.is_due(step, end) or self._later.overshoot.is_due(step, self._way)

    def next_after(self, step: int, end: int) -> int:
        """The first step after ``step`` for which ``are_wanted`` may hold, if nothing changes before: those up to it
        need not ask.
        """
        is_measured = self._later.since is not None or self._transient.since is not None
        if is_measured or self._later.overshoot.is_open or step >= end:
            return step + 1
        interval, way = self._way.times.look_interval, self._way
        starts = (self._later.next_start(way), None if way.judges is None else way.judges.start)
        return min(
            (step // interval + 1) * interval,
            *(due for due in (*self._ends(end), *starts) if due is not None and due > step),
        )

    def _ends(self, end: int) -> Iterator[int]:
        way = self._way
        yield from (way.legs[-1].end, way.growth_end, way.watch_end, way.signs.stall_step, end)
