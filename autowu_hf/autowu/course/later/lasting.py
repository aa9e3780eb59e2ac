"""How much lasts of the fall that the first updates promised: what later batches say of the way that the weights have
gone, and what the LR makes of it. (Ours.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ....runtime.update_meter import START_IS_GONE, Update
from ..measures.scale import FAR, POLYAK_SHARE, TRUST_SHARE, Scale
from ..measures.scale_search import ScaleSearch
from ..timetable import MOST_WATCHED

LASTING = 0.2
"""The share of the promised fall from which P is believed, once later batches have told how much of it lasts."""

NOISE_BELOW = 0.04
"""Where less than this share lasts, the first gradients were noise. For a language model, more does: P takes all of the
loss for what can be learned, and that is a fifth of it.
"""

UNSURE_BELOW = 0.05
"""Where more than this share lasts, and certainly more than ``NOISE_BELOW``, few batches are enough to tell."""

HELD = 0.25
"""The share of the scale's LR at which the run stays while batches are asked. At a higher one the loss falls by less
than its slope says, since it is curved, and that looks like noise.
"""

LEAST_ROOM, MOST_RAISED = 7.0, 10.0
"""Nobody is asked where the LR could not be raised by as much; and the most that it is raised for each time that they
are asked.
"""

LEAST_LASTING = 0.01
"""Ten batches hardly tell a smaller share from nothing."""

CLEAR, FEWEST_CLEAR, MOST_ASKED = 2.0, 5, 3
"""The standard errors that a share must lie above 0, where so many batches tell it: where nothing lasts for sure there
may be nothing to learn, as for a trained model that goes on. Till then they are asked so many times at most.
"""

_LITTLE = 1e-9  # of what was promised: an answer of which only the share is known counts while it is alone


class LaterBatches:
    """Asks later batches by how much they see their losses fallen since the way began, and holds that against P.

    Args:
        search: that has the scale by then, and whose meter measures.

    Attributes:
        is_open: whether batches are being asked; what they say stays in the meter until it is taken.
        answers: of those that were asked together, by how much each saw its loss fallen, and by how much that would
            have if what P says held for it; see ``falls_of``.
        unasked: why nobody could tell where it mattered, as a part of a sentence; None elsewhere.
    """

    def __init__(self, search: ScaleSearch) -> None:
        self._search = search
        self._meter = search.meter
        self.is_open = False
        self.answers: list[list[tuple[float, float]]] = []
        self.unasked: str | None = None
        self._way = 0.0

    def begin(self, way: float = 0.0) -> None:
        """Asks from the next step on; ``way``: the LRs of the steps before it, added up."""
        self.is_open, self._way = True, way
        self._meter.hold_start()

    def refuse(self, why: str) -> None:
        """Notes why nobody could be asked, as a part of a sentence, unless somebody was."""
        if not self.answers:
            self.unasked = why

    @property
    def can_tell(self) -> bool:
        """Whether it can be told: not in half precision, whose rounding changes the way of the weights."""
        return not self._meter.is_half

    @property
    def held(self) -> float:
        """The share of the scale's LR at which the run stays meanwhile; 1 where nobody is asked."""
        return HELD if self.is_open else 1.0

    @property
    def leaves_doubts(self) -> bool:
        """Whether noise may have made P so low that later batches should have said how much, and none has."""
        scale = self._search.scale
        return scale is not None and may_be_raised(scale) and self.lasting is None

    def take(self, losses: Sequence[float]) -> bool:
        """Takes one more of the ``answers``; False where it cannot be known.

        Args:
            losses: (n,), of the batches that were asked, as far as their gradients are of them, and maybe of others
                before.
        """
        updates, first = [*self._meter.updates], self._search.updates[-1]
        if any(isinstance(update, Update) and not update.is_of_weights_of(first) for update in updates):
            updates = []  # some weights were frozen, or joined, so that P is not of these
        answer, self._way = falls_of(self._search.scale, updates, losses, self._way)
        self._meter.updates.clear()
        self.answers += [answer] if answer else []
        return bool(answer)

    def needs_more(self, num: int) -> bool:
        """Whether ``num`` more batches, as many as before, have to be asked to be sure, or to raise the LR by more."""
        scale, lasting, asked = self._search.scale, self.lasting, len(self.answers)
        if scale is None or lasting is None or asked >= MOST_ASKED:
            return False
        may_be_below = lasting < UNSURE_BELOW or lasting - self._error < NOISE_BELOW
        is_unsure = asked == 1 and num < MOST_WATCHED and may_be_below
        is_unclear = lasting < NOISE_BELOW and not self.is_clear
        return is_unsure or is_unclear or MOST_RAISED**asked == raised_factor(scale, lasting, asked) < _room(scale)

    @property
    def raised(self) -> float:
        """By what the answers raise the scale's LR."""
        scale = self._search.scale
        return raised_factor(scale, self.lasting, len(self.answers)) if scale is not None and self.is_clear else 1.0

    @property
    def is_clear(self) -> bool:
        """Whether the batches are sure that anything lasts, or too few to be."""
        return self.lasting is None or len(self._falls) < FEWEST_CLEAR or self.lasting > CLEAR * self._error

    @property
    def lasting(self) -> float | None:
        """The share of the promised fall that lasts, by all ``answers``; None while there are none."""
        falls = self._falls
        return sum(fallen for fallen, _ in falls) / sum(promised for _, promised in falls) if falls else None

    @property
    def _error(self) -> float:
        """The standard error of ``lasting``; 0 while there are too few answers to tell."""
        falls, share = self._falls, self.lasting
        if share is None or len(falls) < FEWEST_CLEAR:
            return 0.0
        return math.hypot(*(fallen - share * of for fallen, of in falls)) / sum(promised for _, promised in falls)

    @property
    def _falls(self) -> list[tuple[float, float]]:
        return [fall for answer in self.answers for fall in answer]

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists only; ``unasked`` is in the report."""
        answers = [[[*fall] for fall in answer] for answer in self.answers]
        return {"answers": answers, "way": self._way, "is_watching": self.is_open}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what was told, also by a release whose answers were shares; ``begin`` has to follow."""
        of_older = [[(_LITTLE * share, _LITTLE)] for share in state.get("lastings", [])]
        self.answers = [[(fall, of) for fall, of in answer] for answer in state.get("answers", of_older)]
        self.unasked = state.get("unasked")

    def find_start(self, weights: Sequence[Tensor]) -> None:
        """After a resume: where the way began; ``weights``: there, none where they are gone."""
        if weights:
            self._meter.hold_start(weights)
        elif self._meter.updates or self._way > 0.0:  # else the way begins here
            self._meter.updates.append(START_IS_GONE)


def falls_of(
    scale: Scale | None, updates: Sequence[Update | str], losses: Sequence[float], way: float
) -> tuple[list[tuple[float, float]], float]:
    """By how much the batches of some steps see their losses fallen, and by how much these would have if what P says
    held for them. Each is asked for the whole way up to it.

    Args:
        scale: of the first updates.
        updates: of these steps, or why one could not be measured.
        losses: theirs, and maybe those of steps before them.
        way: the LRs of the steps before them, added up.

    Returns:
        Both, of each batch that has a way behind it and a finite loss; nothing where they cannot be known. And the way
        after these steps.
    """
    has_gaps = len(updates) > 1 + MOST_WATCHED or len(losses) < len(updates)  # the meter holds so many only
    if scale is None or has_gaps or any(isinstance(update, str) for update in updates):
        return [], way
    falls = []
    for update, loss in zip(updates, losses[len(losses) - len(updates) :], strict=True):
        assert isinstance(update, Update)
        if 0.0 < way * loss < math.inf:
            falls.append((update.fallen, way * loss / scale.polyak))
        way += update.lr
    return (falls if all(math.isfinite(fallen) for fallen, _ in falls) else []), way


def raised_factor(scale: Scale, lasting: float | None, num_answers: int = 1) -> float:
    """By what the LR has to be multiplied, once later batches have told how much of the slope was noise.

    An update goes down the gradient of its own batch, noise included, and P takes all of that slope for real. Where
    little of it lasts on other batches, the loss falls by as much less, and P is too low. R knows no noise: the LR is
    raised at most to where P would not be far below it.

    Args:
        scale: of the first updates.
        lasting: the share of the promised fall that later batches see; None: unknown.
        num_answers: how often they were asked.

    Returns:
        The factor, at least 1; ``MOST_RAISED`` to the power of ``num_answers`` at most, and ``LASTING`` over
        ``LEAST_LASTING``.
    """
    if lasting is None or lasting >= NOISE_BELOW or not may_be_raised(scale):
        return 1.0
    return min(LASTING / max(lasting, LEAST_LASTING), _room(scale), MOST_RAISED**num_answers)


def may_be_raised(scale: Scale) -> bool:
    """Whether noise may have made P so low that later batches are asked."""
    return scale.may_be_noise and math.isfinite(scale.trust) and _room(scale) >= LEAST_ROOM


def _room(scale: Scale) -> float:
    """By what the LR may be raised at most."""
    return min(TRUST_SHARE * scale.trust / FAR, scale.trusted_lr) / (POLYAK_SHARE * scale.polyak)
