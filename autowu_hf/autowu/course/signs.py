"""What the losses of the approach say: whether they have fallen, and whether the LR has broken the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...loss_curve import divergence
from ...loss_curve.lost import LEAST_LOST, error, is_lost, level

Array = npt.NDArray[np.float64]

FEWEST_STEPS = 30
"""In a run of fewer optimizer steps there is no time to look on."""

FEWEST_TO_RISE = 60
"""In a run of fewer optimizer steps the LR does not grow on where nothing was learned, and no raise is taken back."""

STALL = 0.12
"""The share of the run by which something must have been learned, by SGD or where the gradients may be noise."""

LEARNED = 0.98
"""Of the first losses: what the later ones must be below before something counts as learned."""

SLIGHT = 0.94
"""Of the first losses: what the later ones must certainly not be below before nothing counts as learned."""

FALLEN = 0.9
"""Of the first losses: what the later ones must be below before P counts as fallen with them."""

LIFT = 0.25
"""The share of the first losses by which later ones must lie above them before the run counts as broken. Where a
momentum of the optimizer swings in, losses rise a little and come back.
"""

FEWEST_BACK = 3
"""The losses after a way back that say whether the loss has changed."""

LOWER, COMPARED = 0.05, 0.08
"""How far below those at which the LR was raised the losses must lie once it was tried, as a share of them;
and the share of the run whose losses are compared.
"""

FEWEST_IN_LEVEL, LEVEL = 4, 1.0 / 6.0
"""The losses that make a level where they are looked at once, at the end: the fewest, and the share of all."""

_NOISES = 4.0
_SURE = 2.0
_ERRORS = 3.0  # standard errors, where it is looked at once: of flat losses the lowest level lies two below the others


@dataclass(frozen=True)
class Signs:
    """What the losses of one run's approach say; nothing in a run of fewer than ``FEWEST_STEPS``.

    Args:
        num_steps: optimizer steps of the run.
        ramp_end: the steps done when the LR had first grown to the scale's peak, or to what later batches made of it.
        borne: how many times ``LIFT`` the losses may rise.
    """

    num_steps: int
    ramp_end: int
    borne: float = 1.0

    @property
    def num_first(self) -> int:
        """How many losses count as the first ones."""
        return max(3, min(window(self.num_steps), self.ramp_end // 4))

    def have_halved(self, losses: Array) -> bool:
        """Whether the losses (n,) have fallen to half."""
        return self._are_below(losses, 0.5)

    def have_fallen(self, losses: Array) -> bool | None:
        """Whether they have fallen by a tenth; None where too few tell."""
        share = _share(losses, self.num_first, window(self.num_steps))
        return None if self.num_steps < FEWEST_STEPS or math.isnan(share) else share < FALLEN

    def have_hardly_fallen(self, losses: Array, num: int) -> bool:
        """Whether the last ``num`` of the losses (n,) lie 2 % below the first at most; False where too few tell."""
        return _share(losses, self.num_first, num) >= LEARNED

    def are_lower(self, losses: Array) -> bool:
        """Whether the losses (n,) since the growth are less than the first ones, in the mean of the finite ones."""
        later = losses[self.ramp_end :]
        return float(np.mean(later[np.isfinite(later)])) < level(losses[: self.num_first])

    @property
    def stall_step(self) -> int:
        """The steps done when something should have been learned, and enough of them at the scale's peak."""
        return max(math.ceil(STALL * self.num_steps), self.ramp_end + 2 * window(self.num_steps) + 2)

    def are_stalled(self, losses: Array, step: int) -> bool:
        """Whether nothing has been learned by ``step``, if that is ``stall_step``. The newer half of the losses since
        the growth is compared with the first ones.
        """
        if self.num_steps < FEWEST_STEPS or step != self.stall_step:
            return False
        num_last = (step - self.ramp_end) // 2
        return len(losses) >= self.num_first + num_last and _share(losses, self.num_first, num_last) >= LEARNED

    def are_unlearned(self, losses: Array, since: int) -> bool:
        """Whether the newer half of the losses (n,) from the place ``since`` on lies no more than 2 % below the first
        ones, and by two standard errors no more than 6 %. Losses that are the same to the last digit say nothing.
        """
        later = losses[since:]
        last = later[len(later) // 2 :]
        if self.num_steps < FEWEST_STEPS or len(last) < FEWEST_IN_LEVEL or not np.isfinite(last).all():
            return False
        first, share = losses[: self.num_first], _share(losses, self.num_first, len(last))
        noise = math.hypot(error(last, len(last)), error(first, len(first))) / math.sqrt(2.0)
        return noise > 0.0 and share >= LEARNED and (share - SLIGHT) * abs(level(first)) >= _SURE * noise

    def are_broken(self, losses: Array, since: int) -> bool:
        """Whether the losses have risen too far; those before the place ``since`` do not count as the last ones."""
        last = window(self.num_steps)
        return self.num_steps >= FEWEST_STEPS and self._are_broken(losses, last, since)

    def lost(self, losses: Array, since: int) -> tuple[float, bool] | None:
        """How much of what had been learned the last losses have given back, where it is half or more, or, where
        nothing had been learned, how far they lie above the first ones.

        Args:
            losses: (n,), one per optimizer step.
            since: the place of the first one that counts as a low or a last one.

        Returns:
            That, in the unit of the losses, and whether anything had been learned; None where little is lost, or where
            the weights bear an LR that is too high. It is for one look, at the end.
        """
        later = losses[since:]
        num = max(FEWEST_IN_LEVEL, int(LEVEL * len(later)))
        if self.num_steps < FEWEST_STEPS or self.borne > 1.0 or len(later) < 4 * num:
            return None
        first, now = level(losses[: self.num_first]), level(later[-num:])
        best = min(first, *(level(later[start : start + num]) for start in range(len(later) - 2 * num + 1)))
        if not math.isfinite(now):  # which the looks before have judged
            return None
        has_learned = first - best > LEAST_LOST * abs(first)
        return (now - best, has_learned) if is_lost(first, best, now, later, num, _ERRORS) else None

    def lost_since(self, losses: Array, since: int) -> float | None:
        """How much the last losses have given back of what had been learned when the LR was raised, where it is half or
        more, for looks again and again.

        Args:
            losses: (n,), one per optimizer step.
            since: the place of the first one of that LR.

        Returns:
            That, in the unit of the losses; None where it is less, or too few losses tell.
        """
        num = window(self.num_steps)
        if since < num or len(losses) < since + num:
            return None
        first, best = level(losses[: self.num_first]), level(losses[since - num : since])
        now = level(losses[-num:])
        is_told = math.isfinite(now) and is_lost(first, best, now, losses[-num:], num)
        return now - best if is_told else None

    def are_no_lower(self, losses: Array, since: int) -> bool:
        """Whether the last losses (n,) lie no more than ``LOWER`` below those at which the LR was raised, which are
        those before the place ``since``; False where too few tell.
        """
        if self.num_steps < FEWEST_TO_RISE:
            return False
        num = max(window(self.num_steps), round(COMPARED * self.num_steps))
        before, last = losses[max(since - num, 0) : max(since, 0)], losses[since:][-num:]
        return len(before) == len(last) == num and level(last) >= (1.0 - LOWER) * level(before)

    def have_changed(self, losses: Array, since: int, lost: float | None = None) -> bool:
        """Whether the first losses after a way back, which is before the place ``since``, are too high already: these
        are of weights that were good, so that the loss is another one. Where the run went back since so much was
        ``lost``, half of that above the first losses is too high.
        """
        losses = losses[: since + FEWEST_BACK]
        if not np.isfinite(losses[since:]).all():
            return False
        if lost is None:
            return self._are_broken(losses, FEWEST_BACK, since)
        return level(losses[since:]) - level(losses[: self.num_first]) > lost / 2.0

    def _are_broken(self, losses: Array, num_last: int, since: int) -> bool:
        return are_broken(losses, self.num_first, num_last, since, self.borne * LIFT)

    def _are_below(self, losses: Array, share: float) -> bool:
        last = window(self.num_steps)
        return self.num_steps >= FEWEST_STEPS and have_fallen(losses, self.num_first, last, share)


def window(num_steps: int) -> int:
    """The losses that are looked at together, of a run of so many optimizer steps."""
    return max(3, min(10, num_steps // 40))


def have_fallen(losses: Array, num_first: int, num_last: int, share: float) -> bool:
    """Whether the last losses are less than a share of the first ones; medians of those that are finite.

    Args:
        losses: (n,), one per optimizer step.
        num_first: how many of them count as the first.
        num_last: how many count as the last.
        share: of the first ones.
    """
    return _share(losses, num_first, num_last) < share


def have_risen(losses: Array, num: int) -> bool:
    """Whether the last ``num`` of the losses (n,) are no less than the first ones; False where too few tell."""
    return _share(losses, num, num) >= 1.0


def have_hardly_fallen(losses: Array, num: int) -> bool:
    """Whether the last ``num`` of the losses (n,) lie 2 % below the first ones at most; False where too few tell."""
    return _share(losses, num, num) >= LEARNED


def _share(losses: Array, num_first: int, num_last: int) -> float:
    """The median of the last losses over that of the first; NaN where too few are there, or finite."""
    if len(losses) <= num_last + 1:
        return math.nan
    first, last = (part[np.isfinite(part)] for part in (losses[:num_first], losses[-num_last:]))
    if 2 * len(first) < num_first or 2 * len(last) < num_last or divergence.median(first) <= 0.0:
        return math.nan
    return divergence.median(last) / divergence.median(first)


def are_broken(losses: Array, num_first: int, num_last: int, since: int, lift: float = LIFT) -> bool:
    """Whether the last losses lie far above the first ones, or are not finite: their median. Either all of them do, or
    by more than they scatter themselves, as ratios: the few losses before them may show too little of the noise.

    Args:
        losses: (n,), one per optimizer step.
        num_first: how many of them count as the first.
        num_last: how many count as the last.
        since: the place of the first loss that may count as one of the last.
        lift: the share of the first ones by which they must lie above them.
    """
    last = losses[max(len(losses) - num_last, since) :]
    first = losses[:num_first][np.isfinite(losses[:num_first])]
    if len(last) < num_last or len(first) < 2:
        return False
    start, before = divergence.median(first), losses[: len(losses) - len(last)]
    before = before[np.isfinite(before)]
    noise = max(divergence.noise(part) for part in (first, before) if len(part) > 1)  # three first ones may be alike
    level = start + max(lift * abs(start), _NOISES * noise)
    now = divergence.median(np.where(np.isfinite(last), last, np.inf))
    if now <= level or last.min() > level or start <= 0.0 or not (np.isfinite(last) & (last > 0.0)).all():
        return now > level
    return math.log(now / start) > _NOISES * divergence.noise(np.log(last))
