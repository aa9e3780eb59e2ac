"""What the backward calls between two optimizer steps leave in the parameters."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from ..finite import numbers_of
from .update import rows_of, square_of

_LOSS_SCALE = 256.0
"""A gradient that is so many times smaller at the step was not only clipped, where a scaler of torch's may have undone
its scale.
"""

_SAME = 1e-4
"""By how much two numbers may differ that are the same, in the exponent of 2."""

_COUNTS, _ALIKE = 1e-3, 0.03
"""The share of ||g||^2 from which a parameter counts, and by how much the divisors of squares may differ that are the
same but for the rounding of half precision.
"""


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
        self._told: dict[int, float] = {}
        self._scalers: list[weakref.ref[GradScaler]] | None = None

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
        square = None if numbers is None else square_of(numbers)
        self._heard[id(parameter)] = _Heard(weakref.ref(gradient), square, added + 1, anew + (added == 0))

    def listen(self, does: bool) -> None:
        """Whether it takes in what ``tell_clipping`` tells."""
        (_listening.add if does else _listening.discard)(self)
        self._scalers = None

    def told_clipping(self, parameters: Iterable[Tensor]) -> list[float]:
        """By what the gradient of each parameter was divided; none where nobody told of any of them."""
        told = [self._told.get(id(parameter)) for parameter in parameters]
        return [] if all(own is None for own in told) else [1.0 if own is None else own for own in told]

    def clear(self) -> None:
        """The optimizer was stepped."""
        self._heard, self._told = {}, {}

    @property
    def num_added(self) -> int:
        """How many calls the gradient of every parameter adds up at least; 0 where that cannot be told."""
        return min((heard.added for heard in self._heard.values()), default=0)

    @property
    def began_anew(self) -> bool:
        """Whether there was a gradient, was set to None, and was there again."""
        return any(heard.anew > 1 for heard in self._heard.values())

    def clipping(
        self, norm: float, alike: Mapping[int, float] | None = None, optimizers: Iterable[Any] = ()
    ) -> float | None:
        """By what the gradient was divided between its backward and the step; None where that cannot be told.

        Args:
            norm: ||g|| at the step.
            alike: ||g||^2 of each parameter at the step, by its id, where only a divisor of all alike counts: a loop
                may have averaged gradients over processes by itself, which makes them smaller, too.
            optimizers: the one that is stepped, and its wraps, of which a gradient scaler may know.
        """
        if not self._heard or norm <= 0.0 or (alike is not None and not self._are_divided_alike(alike)):
            return 1.0
        squares = rows_of([own.square.reshape(1) for own in self._heard.values() if own.square is not None], 1)
        ratio = math.sqrt(float(squares.sum())) / norm
        exponent = math.log2(ratio) if ratio > 0.0 and math.isfinite(ratio) else 0.0
        if exponent < _SAME:
            return 1.0
        scalers, scale = self._scalers_and_scale([*map(id, optimizers)])
        if scale is not None:
            left = exponent - math.log2(scale)
            return 1.0 if left < _SAME else 2.0**left
        is_power = abs(exponent - round(exponent)) < _SAME  # as the scale of a scaler is, usually
        if scalers and (is_power or ratio >= _LOSS_SCALE):
            return 1.0 if is_power else None
        return ratio

    def clipping_and_divisor(
        self, squares: Mapping[int, float], optimizers: Iterable[Any], is_averaged: bool
    ) -> tuple[float | None, float]:
        """The clipping, and the same once more where all gradients were divided alike, else 1.

        Args:
            squares: ||g||^2 of each parameter at the step, by its id.
            optimizers: see ``clipping``.
            is_averaged: whether gradients may have been averaged over processes.
        """
        norm = math.sqrt(sum(squares.values()))
        clipping = self.clipping(norm, squares if is_averaged else None, optimizers)
        is_divisor = clipping is not None and clipping > 1.0 and self._are_divided_alike(squares)
        return clipping, clipping if is_divisor and clipping is not None else 1.0

    def _scalers_and_scale(self, optimizers: Sequence[int]) -> tuple[list[GradScaler], float | None]:
        """The gradient scalers of torch's that are in use, and the scale of the one which steps an optimizer of such an
        id; None where that cannot be told. A scaler changes its scale after the step only. The first look
        takes some 0.1 s.
        """
        if self._scalers is None:
            kinds = _kinds_of(GradScaler)
            found = [each for each in gc.get_referrers(*kinds) if type(each) in kinds]  # an instance refers to its type
            self._scalers = [weakref.ref(scaler) for scaler in found]
        in_use = [scaler for own in self._scalers if (scaler := own()) is not None and scaler.is_enabled()]
        known = [own for own in in_use if any(key in getattr(own, "_per_optimizer_states", ()) for key in optimizers)]
        return in_use, known[0].get_scale() if len(known) == 1 else None

    def _are_divided_alike(self, squares: Mapping[int, float]) -> bool:
        """Whether all gradients that count are the same multiple of what they were; ``squares`` as above."""
        total = sum(squares.values())
        heard = {key: own.square for key, own in self._heard.items() if own.square is not None}
        counted = [key for key in heard if squares.get(key, 0.0) > _COUNTS * total]
        ratios = [float(heard[key]) / squares[key] for key in counted]
        return bool(ratios) and max(ratios) - min(ratios) <= _ALIKE * max(ratios)


def _kinds_of(kind: type) -> set[type]:
    """A class, and all that are made from it."""
    return {kind}.union(*map(_kinds_of, kind.__subclasses__()))


_listening: weakref.WeakSet[BackwardCalls] = weakref.WeakSet()


def tell_clipping(parameters: Iterable[Tensor], norm: Any, max_norm: float) -> None:
    """Gradients were clipped through accelerate.

    Args:
        parameters: whose.
        norm: that they had together; None: accelerate does not know.
        max_norm: that they have now at most.
    """
    if norm is None or not _listening:
        return
    divisor = max((float(norm) + 1e-6) / float(max_norm), 1.0)
    clipped = [id(parameter) for parameter in parameters]
    for calls in list(_listening):
        for key in clipped:  # one that is clipped twice was divided by both
            calls._told[key] = divisor * calls._told.get(key, 1.0)
