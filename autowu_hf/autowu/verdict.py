"""What the minimum tests so far say together: the vote, patience, and which of them found the minimum (2.1.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .settings import AutoWUSettings


@dataclass(frozen=True)
class MinimumTestRecord:
    """What one minimum test saw and decided.

    Args:
        step: t, the scheduler steps done since the growth under tests began; so are the other steps here.
        num_losses: losses seen.
        p_min: P_min of every subset, eq. (4).
        minimum_step: the estimate of t*, eq. (5), in scheduler steps; under the cliff rule, of the last place where the
            curve was as good as at that minimum, its noise considered.
        p_cliff: the probability that the cliff has been passed, of every subset.
        cliff_step: the estimate of the cliff's step, in scheduler steps; ``step`` where there is none.
        gain: how far the curve fell from its start to its minimum, in loss units; NaN where there were too few losses
            for a GP.
        positive: the vote, more than half of ``p_min`` (of ``p_cliff`` under that rule) above the confidence.
        diverged: whether the warm-up must end at once.
        above: whether the newest losses lie above ``divergence.ceiling``.
        spike_at_end: whether the newest loss was left out as a spike.
        outputscale: sigma_f^2 of the fitted GP, in squared loss units; NaN where there were too few losses for a GP.
        noise: sigma_n^2, in squared loss units.
        mean: theta, in loss units.
    """

    step: int
    num_losses: int
    p_min: list[float]
    minimum_step: float
    p_cliff: list[float]
    cliff_step: float
    gain: float
    positive: bool
    diverged: bool
    above: bool
    spike_at_end: bool
    outputscale: float
    noise: float
    mean: float

    def to_numbers(self) -> list[float]:
        """All fields in a row: the single ones, then ``p_min``, then ``p_cliff``; what one process sends another."""
        return [*(float(getattr(self, name)) for name in _SINGLE), *self.p_min, *self.p_cliff]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> MinimumTestRecord:
        """The record that ``to_numbers`` was called on."""
        values: dict[str, Any] = {name: kind(n) for (name, kind), n in zip(_SINGLE.items(), numbers, strict=False)}
        lists = numbers[len(_SINGLE) :]
        half = len(lists) // 2
        return cls(**values, p_min=[*lists[:half]], p_cliff=[*lists[half:]])

    @staticmethod
    def count_numbers(num_tests: int) -> int:
        """The length of ``to_numbers`` where so many subsets vote."""
        return len(_SINGLE) + 2 * num_tests


_KINDS = {"int": int, "float": float, "bool": bool}
_SINGLE = {f.name: _KINDS[f.type] for f in dataclasses.fields(MinimumTestRecord) if f.type in _KINDS}
"""The fields that are one number, with their types."""


DIVERGENCE = "divergence"
"""The reason of an ending where the losses have blown up."""

NOTHING = "nothing"
"""The reason of an ending at the cap where the losses have told no LR on the way."""


MAX_LR = "max_lr"
"""The reason of an ending at the cap where the losses have fallen all the way up to a ``max_lr`` that was given."""


@dataclass(frozen=True)
class Ending:
    """How a warm-up ended.

    Args:
        reason: "minimum", "cliff", ``DIVERGENCE``; or, at the longest warm-up, "cap", or ``MAX_LR`` or ``NOTHING``
            where neither cliff nor minimum had been seen.
        minimum_step: of the minimum, as in ``MinimumTestRecord``, in scheduler steps; where none was seen, the step
            that stands in for it.
        cliff_step: the step at which the cliff was passed, or that of the end, where no cliff was seen. At a divergence
            it is no later than the last losses that were not above their start.
        has_minimum: whether the losses have shown the minimum; at a divergence, whether they had gained anything.
        has_moved: whether the losses have gained anything, or the last one lies above the ``ceiling`` of all.
        is_harmless: at the cap, whether the losses have certainly fallen on the way, and no cliff is to be seen: the
            highest LR has harmed nothing.
        gained: how far the lowest running median of the losses lies below their start, in their unit; 0 where that may
            be noise.
    """

    reason: str
    minimum_step: int
    cliff_step: int
    has_minimum: bool = True
    has_moved: bool = False
    is_harmless: bool = False
    gained: float = 0.0


def is_positive(probabilities: Sequence[float], settings: AutoWUSettings) -> bool:
    """The vote: whether more than half of the subsets are confident (2.1.2)."""
    return sum(p > settings.confidence for p in probabilities) > settings.num_tests / 2


def may_be_cliff(record: MinimumTestRecord) -> bool:
    """Whether half of the subsets or more take it for at least as likely as not that the cliff has been passed."""
    return 2 * sum(p >= 0.5 for p in record.p_cliff) >= len(record.p_cliff)


def is_inconclusive(record: MinimumTestRecord) -> bool:
    """Whether a test was negative for lack of its newest loss, a spike, perhaps."""
    return record.spike_at_end and not record.positive


def has_passed(records: Sequence[MinimumTestRecord], settings: AutoWUSettings, span: float) -> bool:
    """Whether the warm-up is over: the last ``patience`` conclusive tests were all positive (2.1.2), the positive ones
    in a row span long enough, or the last test saw the losses diverge.

    Args:
        records: of all tests so far.
        settings: of these ``patience`` is used here.
        span: from the first positive test in a row to the last, in scheduler steps.
    """
    if records and records[-1].diverged:
        return True
    first = last = in_a_row = 0
    for record in records:
        if is_inconclusive(record):
            continue
        in_a_row = in_a_row + 1 if record.positive else 0
        last = record.step
        if in_a_row == 1:
            first = last
    return in_a_row >= settings.patience and last - first >= span


def minimum_passed(records: Sequence[MinimumTestRecord], settings: AutoWUSettings) -> MinimumTestRecord | None:
    """The first test by which the minimum had passed, as ``peak_rule="minimum"`` would have it, and since which the
    loss has not come back to its minimum; None where there is none.

    The loss has come back where P_min, most subsets say, is less than a half: the newest loss is the lowest then.
    """
    found, in_a_row = None, 0
    for record in records:
        if is_inconclusive(record):
            continue
        in_a_row = in_a_row + 1 if is_positive(record.p_min, settings) else 0
        if found is None and in_a_row >= settings.patience:
            found = record
        elif sum(p < 0.5 for p in record.p_min) > settings.num_tests / 2:
            found = None
    return found
