"""When the approach needs the losses: at each 60th of the run (at every third step of a short one), and where a part
of it ends or begins.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .later.later_measures import LaterMeasures
from .later.transient import Transient
from .legs import Way
from .signs import Array


class Looks:
    """The looks of one approach, in optimizer steps done.

    Args:
        way: the LR's.
        later: measures on that way.
        transient: measures once the losses have halved.
    """

    def __init__(self, way: Way, later: LaterMeasures, transient: Transient) -> None:
        self._way, self._later, self._transient = way, later, transient

    def is_due(self, step: int, end: int, waits: bool) -> bool:
        """Whether there is one after ``step`` steps.

        Args:
            step: the steps done.
            end: where the approach is over at the latest.
            waits: whether it is over but for what is being measured.
        """
        return (not waits or self._later.ruined.is_open) and self._first_after(step - 1, end) == step

    def are_awaited(self, step: int) -> bool:
        """Whether something that says whether the LR is too high is being measured after ``step`` steps, or will be."""
        return self._later.ruined.is_open or self._later.overshoot.is_pending(step, self._way)

    def are_wanted(self, step: int, end: int) -> bool:
        """Whether losses are needed after ``step`` steps: there is a look, or batches are asked about the growth."""
        return self.next_after(step - 1, end) == step

    def next_after(self, step: int, end: int) -> int:
        """The first step after ``step`` for which ``are_wanted`` holds, if nothing changes before: those up to it need
        not ask.
        """
        judged = self._later.overshoot.due_after(step, self._way)
        first = self._first_after(step, end)
        return first if judged is None else min(first, judged)

    def _first_after(self, step: int, end: int) -> int:
        way = self._way
        interval = way.times.look_interval
        dues = [(step // interval + 1) * interval, max(end, step + 1)]  # a resume as a shorter run may be past the end
        measures = (self._later, self._transient, self._later.ruined)
        dues += [due for measure in measures if (due := measure.due_after(step, way)) is not None]
        ends = (way.legs[-1].end, way.growth_end, way.watch_end, way.signs.stall_step)
        return min(*dues, *(due for due in ends if due > step))

    def ask(self, step: int) -> None:
        """Has the batches asked, after ``step`` steps, whether the LR has grown too far; not while a transient is
        measured.
        """
        if self._transient.since is None:
            self._later.ask(step, self._way)

    def is_ruined(self, step: int, losses: Array) -> bool:
        """Whether an LR at which nothing was learned has ruined the model, see ``Ruined.look``; that waits until nobody
        else measures.

        Args:
            step: the steps done.
            losses: (n,), one of each of them that counts.
        """
        others = (self._later.is_awaited(step), self._later.overshoot.is_pending(step, self._way))
        is_busy = any(others) or self._transient.since is not None
        return self._later.ruined.look(step, self._way, losses, is_busy)

    def find_start(self, start: Sequence[Tensor]) -> None:
        """After a resume: the weights from before the way, this process's shares; none where they are gone."""
        self._later.find_start(start)
        self._transient.find_start(start)

    def stop(self) -> None:
        """Measures nothing any more, and forgets what was not taken."""
        self._later.stop()
        self._transient.stop()
