"""What the backward calls between two optimizer steps leave in the parameters."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..finite import numbers_of
from .update import total

_LOSS_SCALE = 256.0
"""A gradient that is so many times smaller at the step was not only clipped: torch's scaler has undone its scale."""


@dataclass(frozen=True)
class _Heard:
    """Of one parameter: the gradient that it has after its last backward call, and the square of that one's norm, None
    where it cannot be reckoned with; how many calls it adds up, and how often it began anew.
    """

    gradient: Callable[[], Tensor | None]
    square: Tensor | None
    added: int
    anew: int


class BackwardCalls:
    """The backward calls since the last optimizer step, told by hooks of the parameters; falsy where there are none."""

    def __init__(self) -> None:
        self._heard: dict[int, _Heard] = {}
        self._told: float | None = None

    def __bool__(self) -> bool:
        return bool(self._heard)

    def hear(self, parameter: Tensor) -> None:
        """A backward call has added to the gradient of a parameter."""
        gradient = parameter.grad
        if gradient is None:
            return
        before = self._heard.get(id(parameter))
        added = anew = 0
        if before is not None:  # zero_grad lets go of a gradient, and the next one is another tensor
            added, anew = before.added if before.gradient() is gradient else 0, before.anew
        numbers = numbers_of(gradient)
        square = None if numbers is None else numbers.float().square().sum()
        self._heard[id(parameter)] = _Heard(weakref.ref(gradient), square, added + 1, anew + (added == 0))

    def tell_clipping(self, clipping: float) -> None:
        """By what the gradient was divided, where that is known."""
        self._told = clipping

    def clear(self) -> None:
        """The optimizer was stepped."""
        self._heard, self._told = {}, None

    @property
    def num_added(self) -> int:
        """How many calls the gradient of every parameter adds up at least; 0 where that cannot be told."""
        return min((heard.added for heard in self._heard.values()), default=0)

    @property
    def began_anew(self) -> bool:
        """Whether there was a gradient, was set to None, and was there again."""
        return any(heard.anew > 1 for heard in self._heard.values())

    def clipping(self, norm: float) -> float | None:
        """By what the gradient was divided between its backward and the step; None where that cannot be told.

        Args:
            norm: ||g|| at the step.
        """
        if self._told is not None:
            return self._told
        if not self._heard or norm <= 0.0:
            return 1.0
        squares = total(heard.square.reshape(1) for heard in self._heard.values() if heard.square is not None)
        ratio = math.sqrt(float(squares.sum())) / norm
        exponent = math.log2(ratio) if ratio > 0.0 and math.isfinite(ratio) else 0.0
        if abs(exponent - round(exponent)) < 1e-4:
            return 1.0  # nothing, or the scale of a gradient scaler, which is a power of two
        if ratio < _LOSS_SCALE:
            return max(ratio, 1.0)
        return None
