"""The LR of the steps that are measured: small, and as large as rounding asks for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ....runtime import collective

logger = logging.getLogger(__name__)

FIRST_LR, FIRST_LR_HALF = 1e-5, 1e-3
"""Of the first measured step, for weights of the usual size, 0.1, in full and in half precision. It only has to be
small; where its update is lost in the weights' precision, the next step is measured at a larger one. Steps in half
precision are taken back, so that they can be larger.
"""

USUAL_SIZE = 0.1
"""The root mean square of weights for which these LRs are meant."""

_FINE, _FINE_HALF = 1e-5, 5e-3
"""The least share of the weights that a measured update must make, in full and in half precision."""

_COARSE, _COARSE_HALF = 3e-3, 0.1
"""The share from which it is too large: it is taken back, and the next step is measured at a hundredth of the LR, or,
where the LR had grown blindly, at one whose update will be a tenth of this.
"""

DEAF = "the optimizer does not follow its parameter groups' learning rates"
"""Why nothing can be done, as a part of a sentence."""

_SHRINK, _DEAF_SHARE, _SAME = 100.0, 0.3, 1.5
_GROWTH, _BLIND_GROWTH, _MOST_GROWTH = 1e3, 1e3, 1e9


class MeasuringLR:
    """The LR that the next measured step has to run at, in optimizer units, for a group of ratio 1.

    Args:
        is_half: whether weights are in half precision.
        size: their root mean square.

    Attributes:
        lr: the LR.
        is_deaf: whether two updates were as large at a hundredth of the LR, so that the optimizer cannot go by it. One
            may be: torch's ASGD follows its LR a step late.
    """

    def __init__(self, is_half: bool, size: float) -> None:
        self.lr = self._first = (FIRST_LR_HALF if is_half else FIRST_LR) * (size / USUAL_SIZE)
        self.is_deaf = False
        self._is_half = is_half
        self._left: list[float] | None = None  # two shares, as of suits, of an update after which the LR was changed
        self._is_late = False  # whether the next one is waited for, since the last was as large

    @property
    def is_far(self) -> bool:
        """Whether it has grown so far that its steps are taken back: after updates that were next to nothing, another
        batch may have a gradient that would break the weights.
        """
        return self.lr >= _BLIND_GROWTH * self._first

    @property
    def takes_back_from(self) -> float:
        """The share of the weights from which an update in full precision is taken back."""
        return 0.0 if self.is_far else _COARSE

    @property
    def is_lost(self) -> bool:
        """Whether it has grown so far that nothing can be measured."""
        return self.lr > _MOST_GROWTH * self._first

    def shows(self, share: float) -> bool:
        """Whether an update that makes this share of the weights can be told from rounding."""
        return share >= (_FINE_HALF if self._is_half else _FINE)

    def suits(self, share: float, seen_share: float) -> bool:
        """Whether an update says something; where it does not, the next one gets another LR.

        Args:
            share: of all weights, that the update at the present LR makes.
            seen_share: the same without the tensors that are zero.
        """
        fine, coarse = (_FINE_HALF, _COARSE_HALF) if self._is_half else (_FINE, _COARSE)
        left, self._left = self._left, None
        was_coarse = left is not None and left[1] >= coarse
        is_as_large = left is not None and _is_as_large(share, seen_share, left, was_coarse)
        self._is_late = is_as_large and not self._is_late
        self.is_deaf = is_as_large and was_coarse and not self._is_late
        if self._is_late:
            self._left = left
        if self._is_late or self.is_deaf:
            return False
        is_coarse = seen_share >= coarse
        if is_coarse or share < fine:
            self._left = [share, seen_share]
        if is_coarse:
            self.lr *= min(1.0 / _SHRINK, 0.1 * coarse / seen_share) if self.is_far else 1.0 / _SHRINK
        elif share == 0.0:  # of an optimizer that only looks on at first, perhaps
            self.lr = min(_GROWTH * self.lr, _MOST_GROWTH * self._first)
        elif share < fine:
            self.lr *= min(4.0 * fine / share, _GROWTH)
        return share >= fine and not is_coarse

    @property
    def is_highest(self) -> bool:
        """Whether it has grown as far as it does where the weights do not move at all."""
        return self.lr >= _MOST_GROWTH * self._first

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {"lr": self.lr, "first_lr": self._first, "left": self._left, "is_late": self._is_late}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned, or the state of an older release."""
        self.lr = state["lr"]
        self._first, self._is_late = state.get("first_lr", self.lr), state.get("is_late", False)
        too_large = state.get("too_large")
        self._left = state.get("left", None if too_large is None else [too_large, too_large])


def _is_as_large(share: float, seen_share: float, left: Sequence[float], was_coarse: bool) -> bool:
    """Whether an update is as large as the one that was ``left``, though the LR is another one."""
    if was_coarse:
        return seen_share > _DEAF_SHARE * left[1]
    return 0.0 < share < _SAME * left[0]


def say_deaf(lr: float) -> None:
    """Warns on the main process that an update at ``lr`` was as large as at another LR."""
    if collective.is_main_process():
        logger.warning(
            "AutoWU has no effect: %s. At %.1e an update is as large as it was at a far higher or lower one. If the "
            "optimizer wraps another one, let the two share their param_groups, which load_state_dict may have "
            "parted, or give the schedule the optimizer inside",
            DEAF,
            lr,
        )
