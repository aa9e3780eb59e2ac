"""The shapes of the schedule: how the LR grows in the warm-up (paper 2.1.1) and falls in the decay (2.2).

Pure functions of where the run is, so that the LR of any step is known in closed form and resuming cannot drift.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

DECAY_FRACTION = 0.2
"""The last share of all steps over which "constant_then_cosine" falls, where nothing else is asked for; also the
paper's (2.2).
"""
_QUICK = (0.1, 0.3)


def exponential_growth(progress: float, min_lr: float, max_lr: float) -> float:
    """eta_t = gamma^t eta_min with gamma = (eta_max / eta_min)^(1 / W), eq. (1).

    Args:
        progress: t / W, the share of the warm-up's cap that has passed.
        min_lr: eta_min, the LR at progress 0.
        max_lr: eta_max, the LR at progress 1.

    Returns:
        The LR.
    """
    return float(min_lr * (max_lr / min_lr) ** progress) if progress < 1.0 else max_lr


def quick_start_growth(progress: float, min_lr: float, max_lr: float) -> float:
    """Exponential at two rates: a tenth of the warm-up takes log(eta) through the first three tenths of its way. (Ours;
    few models learn anything there, and those that do are still tested as often as later.)

    Args:
        progress: t / W, the share of the warm-up's cap that has passed.
        min_lr: eta_min, the LR at progress 0.
        max_lr: eta_max, the LR at progress 1.

    Returns:
        The LR.
    """
    time, way = _QUICK
    if progress < time:
        return exponential_growth(progress * way / time, min_lr, max_lr)
    return exponential_growth(way + (progress - time) * (1.0 - way) / (1.0 - time), min_lr, max_lr)


def linear_growth(progress: float, min_lr: float, max_lr: float) -> float:
    """eta_t = eta_min + (eta_max - eta_min) t / W, the ablation of appendix C.2, eq. (6).

    Args:
        progress: t / W, the share of the warm-up's cap that has passed.
        min_lr: eta_min, the LR at progress 0.
        max_lr: eta_max, the LR at progress 1.

    Returns:
        The LR.
    """
    return min_lr + (max_lr - min_lr) * progress if progress < 1.0 else max_lr


def linear_decay(progress: float) -> float:
    """1 - s, for s from 0 to 1 over the decay."""
    return 1.0 - progress


def cosine_decay(progress: float) -> float:
    """(1 + cos(pi s)) / 2, for s from 0 to 1 over the decay (2.2).

    Computed as sin(pi (1 - s) / 2)^2, which is the same and does not round to zero before the last step.
    """
    return math.sin(0.5 * math.pi * (1.0 - progress)) ** 2


def rex_decay(progress: float) -> float:
    """(1 - s) / (1/2 + (1 - s) / 2), the profile of REX (arXiv 2107.04197), for s from 0 to 1 over the decay."""
    return (1.0 - progress) / (1.0 - 0.5 * progress)


def constant_then_cosine_decay(progress: float, constant_until: float) -> float:
    """1 until ``constant_until``, then a cosine to 0 at progress 1 (2.2).

    Args:
        progress: the share of the decay that has passed.
        constant_until: the share of the decay that is constant, less than 1.

    Returns:
        The factor on the peak LR.
    """
    if progress <= constant_until:
        return 1.0
    return cosine_decay((progress - constant_until) / (1.0 - constant_until))


GROWTHS: dict[str, Callable[[float, float, float], float]] = {
    "quick_start": quick_start_growth,
    "exponential": exponential_growth,
    "linear": linear_growth,
}
"""``growth`` -> f(progress, min_lr, max_lr)."""

DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": cosine_decay,
    "linear": linear_decay,
    "rex": rex_decay,
}
"""``decay_type`` -> f(progress); "constant_then_cosine" is one more, with its own argument."""

DECAY_TYPES = (*DECAYS, "constant_then_cosine")


def decay_factor(decay_type: str, progress: float, constant_until: float) -> float:
    """The factor on the peak LR.

    Args:
        decay_type: one of ``DECAY_TYPES``.
        progress: the share of the decay that has passed: 0 at the switch, 1 (or more) at the end of training.
        constant_until: for "constant_then_cosine", the share of the decay that is constant.

    Returns:
        1 at progress 0, exactly 0 from progress 1 on.
    """
    if progress >= 1.0:
        return 0.0
    if decay_type == "constant_then_cosine":
        return constant_then_cosine_decay(progress, constant_until)
    return DECAYS[decay_type](progress)


PACE = ("since", "shift", "growth_steps", "min_lr", "max_lr", "growth")
"""The fields of an ``LRCurve`` that may change on the way."""

_FINE = 2**40


@dataclass(frozen=True)
class LRCurve:
    """The LR of every step in closed form.

    Args:
        num_training_steps: T.
        growth_steps: W, the steps in which the warm-up would grow from ``min_lr`` to ``max_lr``.
        min_lr: eta_min.
        max_lr: eta_max.
        growth: a key of ``GROWTHS``.
        decay_type: one of ``DECAY_TYPES``.
        decay_fraction: for "constant_then_cosine", the last share of all T steps, over which the LR falls.
        since: the first step at this pace; 0 unless a growth was resumed in another run than it was planned for.
        shift: the step at which the growth would have begun at this pace.
        before: the paces before, oldest first; each has the fields of ``PACE``.
    """

    num_training_steps: int
    growth_steps: int
    min_lr: float
    max_lr: float
    growth: str
    decay_type: str
    decay_fraction: float
    since: int = 0
    shift: float = 0.0
    before: Sequence[Sequence[Any]] = ()

    def warmup(self, step: float) -> float:
        """eta_t of the warm-up.

        Args:
            step: t, the steps done.

        Returns:
            The LR, in optimizer units.
        """
        if step < self.since:
            return self.with_paces([pace for pace in self.paces if pace[0] <= max(step, 0)]).warmup(step)
        return GROWTHS[self.growth]((step - self.shift) / self.growth_steps, self.min_lr, self.max_lr)

    @property
    def paces(self) -> list[list[Any]]:
        """All paces of the growth, the present one last."""
        return [*map(list, self.before), [getattr(self, name) for name in PACE]]

    def with_paces(self, paces: Sequence[Sequence[Any]]) -> LRCurve:
        """The same decay after a growth at these paces."""
        return replace(self, before=tuple(map(tuple, paces[:-1])), **dict(zip(PACE, paces[-1], strict=True)))

    def going_on_as(self, other: LRCurve, step: int) -> LRCurve:
        """This growth as far as it has come, and from there on another: from the LR that was reached, at its own pace.

        Args:
            other: the growth and the decay that are to follow.
            step: the steps done.

        Returns:
            A curve with this one's growth where the other's is the same.
        """
        paces = [pace for pace in self.paces if pace[0] <= step]
        same = other.with_paces(paces)
        if same.paces[-1][2:] == other.paces[-1][2:]:
            return same
        reached, grow = same.warmup(step), GROWTHS[other.growth]
        share = bisect.bisect_left(range(_FINE), reached, key=lambda i: grow(i / _FINE, other.min_lr, other.max_lr))
        shift = step - share / _FINE * other.growth_steps
        return replace(other, since=step + 1, shift=shift, before=same.paces)

    def decay(self, step: int, switch_step: int, peak_lr: float) -> float:
        """The LR of the decay, which goes from the peak at the switch to 0 after step T.

        Args:
            step: the steps done.
            switch_step: the steps done when the warm-up ended.
            peak_lr: eta_{t*}.

        Returns:
            The LR, in optimizer units.
        """
        if step >= self.num_training_steps:
            return 0.0
        length = self.num_training_steps - switch_step
        constant_until = max(1.0 - self.decay_fraction * self.num_training_steps / length, 0.0)
        return peak_lr * decay_factor(self.decay_type, (step - switch_step) / length, constant_until)
