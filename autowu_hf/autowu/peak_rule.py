"""The peak rule: what ends the warm-up, and the LR that the decay starts from."""

from __future__ import annotations

import math

from ..rewind import Rewind
from ..shapes import LRCurve
from .verdict import DIVERGENCE, MAX_LR, NOTHING, Ending

CLIFF_SHARE = 0.2
"""The highest peak LR under ``peak_rule="cliff"``, as a share of the LR at the cliff."""

MINIMUM_SHARE = 0.5
"""The highest peak LR under ``peak_rule="cliff"``, as a share of the LR at the minimum. It matters where the cliff lies
far beyond the minimum: a language model first degrades to predicting token frequencies, and stays on that plateau while
the LR grows a hundredfold.
"""

CLIFF_SPAN = 0.08
"""The share of the longest warm-up over which the cliff's tests must be positive: Adam's momentum overshoots now and
then, and the loss comes back. By default the LR doubles in it.
"""


class PeakRule:
    """Which rule is in force, and what follows from it. Everybody who needs to know asks here, each time.

    Args:
        wanted: the rule by the options, "minimum" or "cliff".
        rewind: the cliff rule needs it to be on: the losses may then rise before the switch takes the weights back.
            None: it is.
        own_lr: the LR that the optimizer was given, but none above a ``max_lr`` that was given; what remains where the
            losses say nothing, and the highest peak where they have only diverged.

    Attributes:
        own_lr: as given.
        base_lr: the scale's peak LR, where the warm-up is laid around one; or, where losses that fell in it have told
            no LR, the one of ``course/fall.py``.
        is_in_doubt: whether nothing was learned at that: a growth to its cap counts only where the losses have
            moved in it.
    """

    def __init__(self, wanted: str, rewind: Rewind | None = None, own_lr: float = 1e-3) -> None:
        self.wanted = wanted
        self._rewind = rewind
        self.own_lr = own_lr
        self.base_lr: float | None = None
        self.is_in_doubt = False

    def weigh(self, lr: float) -> float:
        """What the losses say, weighed against the scale where there is one: the mean of the two in log, or the
        scale's peak LR if that is higher.
        """
        return lr if self.base_lr is None else max(self.base_lr, math.sqrt(self.base_lr * lr))

    def is_outgrown(self, ending: Ending) -> bool:
        """Whether the scale was far too low: after its LR had brought the losses down to half, they fell on up to R and
        gave way nowhere. The scale has no say then, and no weights have to be given up. Only the cliff rule has the
        share of R that is safe.
        """
        is_around_scale = self.base_lr is not None and ending.reason != NOTHING
        return is_around_scale and self.is_cliff and not self.is_in_doubt and ending.is_harmless

    @property
    def name(self) -> str:
        """The rule in force; "minimum" in the place of "cliff" from where rewind was found not to work."""
        return self.wanted if self._rewind is None or self._rewind.is_on else "minimum"

    @property
    def is_cliff(self) -> bool:
        """Whether it is the cliff that ends the warm-up."""
        return self.name == "cliff"

    def span(self, cap: int) -> float:
        """The scheduler steps from the first positive test in a row to the last that end a warm-up.

        Args:
            cap: the longest warm-up, in scheduler steps.
        """
        return CLIFF_SPAN * cap if self.is_cliff else 0.0

    def lag(self, ticks_per_step: int) -> int:
        """Scheduler steps from the LR to which a loss is attributed to the LR of its own optimizer step.

        Each loss is computed before its own step's update, so the previous step's LR is the last one that could have
        affected it. The paper's eq. (5) takes the LR of its own step.
        """
        return ticks_per_step if self.is_cliff else 0

    def peak_lr(self, ending: Ending, curve: LRCurve, ticks_per_step: int) -> float:
        """The LR that the decay starts from.

        Args:
            ending: how the warm-up ended.
            curve: its LRs.
            ticks_per_step: scheduler steps per optimizer step.
        """
        if ending.reason == NOTHING:
            return self.own_lr if self.base_lr is None else self.base_lr
        if ending.reason == MAX_LR:
            return curve.max_lr
        tells = ending.has_minimum or ending.has_moved or ending.reason != "cap"
        if self.is_in_doubt and self.base_lr is not None and not tells:
            return self.base_lr
        lag = self.lag(ticks_per_step)
        cliff_lr, lowest_lr = curve.warmup(max(ending.cliff_step - lag, 0)), curve.warmup(0)
        if ending.reason == DIVERGENCE and not ending.has_minimum:  # the losses only say which LR is too high
            return self.weigh(min(max(CLIFF_SHARE * cliff_lr, lowest_lr), self.own_lr))
        minimum_lr = curve.warmup(max(ending.minimum_step - lag, 0))
        found = peak_lr(self.name, minimum_lr, cliff_lr, lowest_lr)
        return found if self.is_outgrown(ending) else self.weigh(found)


def peak_lr(rule: str, minimum_lr: float, cliff_lr: float, lowest_lr: float) -> float:
    """The LR that the decay starts from.

    Args:
        rule: the peak rule, "minimum" or "cliff".
        minimum_lr: the LR at the minimum, t* of eq. (5).
        cliff_lr: the LR at the cliff.
        lowest_lr: the LR that the warm-up started from.

    Returns:
        The LR, in the unit of the others.
    """
    if rule == "cliff":
        return max(min(CLIFF_SHARE * cliff_lr, MINIMUM_SHARE * minimum_lr), lowest_lr)
    return max(minimum_lr, lowest_lr)
