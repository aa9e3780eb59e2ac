"""What is measured once the scale is known: how much of the promised fall lasts, how far later updates get, and whether
the LR has grown too far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ....runtime.update_meter import Distance, Update
from ...optimizer_kinds import averages_noise, has_momentum
from ..legs import Way
from ..measures.scale_search import ScaleSearch
from ..signs import Array
from ..timetable import PATIENCE
from .lasting import LaterBatches
from .overshoot import Overshoot
from .reach import reach_factor, reach_of
from .ruined import Ruined
from .small_weights import grown_factor


class LaterMeasures:
    """Measures optimizer steps after those of the search; all copies that it needs are dropped when it has its answer.

    Args:
        search: that has the scale by then, and the updates of the first steps.
        start: called for the weights from before the growth, this process's shares; none where they are gone.

    Attributes:
        asked: asks later batches how much lasts of the fall that the first updates promised.
        since: the steps done when the window began in which it is measured how far steps get; None outside of one.
        reaches: one for each window, see ``reach_factor``; None where it could not be measured.
        factors: what the LR was multiplied by for them, where it was; ``factor`` is their product.
        overshoot: asks later batches whether the growth has gone too far.
        ruined: measures whether the LR has ruined the model, where nothing was learned.
    """

    def __init__(self, search: ScaleSearch, start: Callable[[], Sequence[Tensor]] = tuple) -> None:
        self._search, self._meter = search, search.meter
        self.asked = LaterBatches(search)
        self.since: int | None = None
        self.reaches: list[float | None] = []
        self.factors: list[float] = []
        self.overshoot, self.ruined = Overshoot(search, start), Ruined(search)
        self._askers = (self.asked, self.overshoot, self.ruined)
        self._has_momentum = has_momentum(search.meter.optimizer)
        self._distance = Distance(search.meter)  # from the weights at ``since``
        self._num_before = 0  # the updates that the meter had when the last step of a window was to be measured
        self._last: int | None = None  # the steps done before the last one of these

    def watch(self) -> None:
        """Asks later batches about the way that the weights go from here on, or goes on with it."""
        if not self.asked.is_open:
            self._arm()
            self.asked.begin()

    def watch_from(self, since: int | None, way: Way) -> None:
        """Asks the batches after so many steps, where they can tell; None: no more."""
        if since is None:
            self.stop()
        elif way.times.watch_end(since) + 2 > way.times.longest:
            self.refuse("there are too few steps")
        elif not self.asked.can_tell:
            self.refuse("half precision would hide it")
        else:
            way.watched_since = since
            self.watch()

    def fit(self, way: Way) -> None:
        """Goes on to ask in another run, where that is long enough."""
        if self.asked.is_open:
            self.watch_from(way.watched_since, way)

    def watch_on(self, step: int, losses: Array, way: Way) -> None:
        """Takes what the batches up to ``step`` say, if it is time, and asks more of them where that leaves doubts, or
        has the LR go on.

        Args:
            step: the optimizer steps done.
            losses: (n,), one of each of them, as far as the gradients are of it.
            way: the LR's.
        """
        was_open = self.asked.is_open
        if was_open and step >= way.watch_end:
            if self.asked.take([*map(float, losses)]):
                self.watch_from(step if self.asked.needs_more(way.times.num_watched) else None, way)
            else:
                self.refuse("their steps, or their losses, could not be measured")
        is_told = was_open and not self.asked.is_open and self.asked.raised != way.raised
        if is_told or (way.is_held and not self.asked.is_open):
            way.let_go(step, self.asked.raised)

    def refuse(self, why: str) -> None:
        """Asks no later batches, for a reason, as a part of a sentence."""
        self.stop()
        self.asked.refuse(why)

    def follow(self, step: int, way: Way, is_urgent: bool) -> float:
        """Begins a window, has its last step measured, or takes what came of it, whichever is due.

        Args:
            step: the optimizer steps done.
            way: the LR's.
            is_urgent: whether the LR waits for it, to grow on.

        Returns:
            By what the LR has to be multiplied now. Only the first time that may be less than 1.
        """
        factor = 1.0
        if self._last is not None and len(self._meter.updates) > self._num_before:
            reach, wanted = self._reach(step, way.raised)
            factor = max(wanted, 1.0) if self.reaches else wanted
            self.reaches.append(reach)
            self.start_anew()
            self.factors += [factor] if factor != 1.0 else []
        starts = self.next_start(way)
        is_worth_it = factor == 1.0 and not (self.reaches and is_urgent)  # else another leg or the sweep is next
        is_time = starts is not None and starts <= step <= way.times.longest - 2  # two more: to measure, and to change
        if self.since is None and is_worth_it and is_time:
            self.since, self._last = step, None
            self._distance.start()
        if self.since is not None and self._last is None and (is_urgent or step + 1 >= way.times.reach_end(self.since)):
            self._last = step  # the next step is the last one that tells how far updates get
            self._arm()
        return factor

    @property
    def factor(self) -> float:
        """By what the LR was multiplied for how far later updates get."""
        return math.prod(self.factors)

    def start_anew(self) -> None:
        """Gives up what is being measured of how far the weights go, since the LR is another one."""
        self.since = self._last = None
        self._distance.stop()
        self._rest()

    def due_after(self, step: int, way: Way) -> int | None:
        """The first step after ``step`` after which ``follow`` has something to do; None: there is none in sight."""
        if self.since is None:
            start = self.next_start(way)
            return start if start is not None and start > step else None
        is_next = self._last is not None or step <= self.since
        return step + 1 if is_next else max(step + 1, way.times.reach_end(self.since) - 1)

    def is_awaited(self, step: int) -> bool:
        """Whether the last step is under way that tells how far updates get, after so many steps."""
        return self._last is not None and step < PATIENCE + self._last

    def is_busy(self, step: int, way: Way) -> bool:
        """Whether something is being measured after so many steps, or will be."""
        is_open = self.since is not None and (self._last is None or self.is_awaited(step))
        return is_open or self.overshoot.is_pending(step, way)

    def next_start(self, way: Way) -> int | None:
        """The steps done when the next window begins; None where there is no more of them."""
        if not self.reaches:
            return way.growth_end if way.is_first_growth else None
        is_once_more = len(self.reaches) == 1 and not way.has_gone_back
        return way.times.starts_again(way.legs[-1].end) if is_once_more else None

    def _reach(self, step: int, raised: float) -> tuple[float | None, float]:
        """The reach, and by what the LR has to be multiplied for it; None and 1 where that is not known, or more than
        one update was measured, for the schedule is not stepped at each.
        """
        update, since, scale = self._meter.updates[-1], self.since, self._search.scale
        if isinstance(update, str) or len(self._meter.updates) > 1 + self._num_before or since is None or scale is None:
            return None, 1.0
        if (found := reach_of(self._search, update, step, since, self._distance)) is None:
            return None, 1.0
        wanted = reach_factor(scale, *found, raised=raised, done=self.factor, has_momentum=self._has_momentum)
        if averages_noise(self._meter.optimizer):  # where its updates go one way, there is much to learn that way
            wanted = max(wanted, 1.0)
        if self._has_momentum and (self.reaches or self._meter.as_new):
            wanted = min(wanted, 1.0)  # updates become smaller where nothing is learned, too, and are in a used one
        grown = grown_factor(scale, self._search.updates, update)
        return found[0], wanted if grown is None else max(grown / self.factor, wanted, 1.0)

    def ask(self, step: int, way: Way) -> None:
        """See ``Overshoot.ask``; after ``follow``, which may take what it would forget."""
        self.overshoot.ask(step, way)
        self._rest()

    def _rest(self) -> None:
        """Measures no more, unless somebody still has to."""
        if not (self._last is not None or any(own.is_open for own in self._askers)):
            self._meter.updates.clear()
            self._search.stop()

    def stop(self) -> None:
        """Measures no more, and forgets what was not taken."""
        self.asked.is_open = self.overshoot.is_open = self.ruined.is_open = False
        self.start_anew()

    def go_back(self) -> None:
        """The same, since the run goes back; so far, later batches can tell nothing of it."""
        if self.asked.is_open:
            self.asked.refuse("the run has gone back before they had answered")
        self.stop()

    def _arm(self) -> None:
        if not (self.overshoot.is_open or self.ruined.is_open):
            self._meter.updates.clear()
        self._num_before = len(self._meter.updates)
        self._search.measure_later()

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        seen = [asdict(update) if isinstance(update, Update) else update for update in self._meter.updates]
        return {
            **self.report(),
            **self.asked.state_dict(),
            "factors": [*self.factors],
            "since": self.since,
            "last": self._last,
            **self._distance.state_dict(),
            "is_judging": self.overshoot.is_open,
            **self.ruined.state_dict(),
            "seen": seen if any(own.is_open for own in self._askers) else [],
        }

    def report(self) -> dict[str, Any]:
        """What was found."""
        found = {"reaches": [*self.reaches], "factor": self.factor, "ruined": self.ruined.found}
        overshot = [[*pair] for pair in self.overshoot.found]
        return {"lasting": self.asked.lasting, "unasked": self.asked.unasked, "overshot": overshot, **found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned, or the state of an older release; ``find_start`` has to follow."""
        self.asked.load_state_dict(state)
        self.factors = [*state.get("factors", [state["factor"]] if state["factor"] != 1.0 else [])]
        self.reaches = [*state.get("reaches", [] if state.get("settled") is None else [None])]
        self.overshoot.is_open = state.get("is_judging", False)
        self.overshoot.found = [(step, rise) for step, rise in state.get("overshot", [])]
        self.ruined.load_state_dict(state)
        if state.get("is_watching"):
            self._arm()
            self.asked.begin(state["way"])
        self._meter.updates[:] = [Update(**own) if isinstance(own, dict) else own for own in state.get("seen", [])]
        if state.get("since") is not None:
            self.since, self._last = state["since"], state["last"]
            self._distance.load_state_dict(state)
            if self._last is not None:
                self._arm()

    def find_start(self, weights: Sequence[Tensor]) -> None:
        """After a resume: where the way began.

        Args:
            weights: there, this process's shares; none where they are gone, so that how much lasts stays unknown.
        """
        if self.overshoot.is_open:
            self.overshoot.find_start(weights)
        if self.asked.is_open:
            self.asked.find_start(weights)
