"""The loss of every optimizer step, overheard where it is back-propagated: one wrap of ``Accelerator.backward``.

It sees what Trainer and every accelerate loop really optimise, whatever computed it. While no scheduler listens it is
one truth test. ``install`` and ``remove`` are called by registration.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class LossTap:
    """One scheduler's ear: adds up the micro-batch losses of an optimizer step.

    A new step starts at the first backward after one with ``sync_gradients`` True, so the losses of a step that the
    gradient scaler skipped are dropped, not merged into the next. The step's loss is the sum over its micro-batches,
    for Trainer divides each by their number; in an accelerate loop with ``gradient_accumulation_steps`` > 1, where
    the loop's losses are whole, it is their mean.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0
        self._mean = False
        self._complete = False

    def listen(self) -> None:
        """From now on every backward reaches this tap, as long as the tap is alive."""
        if not any(ref() is self for ref in _listening):
            _listening.append(weakref.ref(self, _listening.remove))

    def stop(self) -> None:
        """No backward reaches this tap any more."""
        _listening[:] = [ref for ref in _listening if ref() is not self]
        self._sum = None

    def hear(self, loss: Tensor, accelerator: Accelerator) -> None:
        """Takes in one micro-batch's loss.

        Args:
            loss: (), about to be back-propagated. Kept detached, copied, on its device; half precision as float32.
            accelerator: the one whose ``backward`` was called.

        Raises:
            ValueError: the loss is not a scalar.
        """
        loss = scalar(loss, "accelerator.backward")
        if self._complete or self._sum is None:
            self._sum, self._count = loss.clone(), 1
        else:
            self._sum, self._count = self._sum + loss, self._count + 1
        self._mean = accelerator.gradient_accumulation_steps > 1
        self._complete = accelerator.gradient_state.sync_gradients

    def take(self) -> Tensor | None:
        """The loss of the optimizer step just done, () on its device; None without a backward since the last."""
        loss, self._sum = self._sum, None
        if loss is not None and self._mean and self._count > 1:
            loss = loss / self._count
        return loss


_listening: list[weakref.ref[LossTap]] = []


def scalar(loss: Tensor, where: str) -> Tensor:
    """Detaches a loss and checks it.

    Args:
        loss: a tensor of one element.
        where: what it was passed to, for the error.

    Returns:
        (), detached, at least float32.

    Raises:
        ValueError: it has more elements than one.
    """
    if loss.dim() and loss.numel() != 1:
        raise ValueError(
            f"the loss passed to {where} must be a scalar, got shape {tuple(loss.shape)}; "
            "reduce it first, for example with loss.mean()"
        )
    loss = loss.detach()
    if loss.dim():
        loss = loss.reshape(())
    return loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss


def install() -> None:
    """Wraps ``Accelerator.backward``; does nothing when it is wrapped already."""
    original = Accelerator.backward
    if hasattr(original, "_autowu_original"):
        return

    @functools.wraps(original)
    def backward(self: Accelerator, loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Before the backward: DeepSpeed's engine steps the scheduler inside it.
        for ref in _listening:
            tap = ref()
            if tap is not None:
                tap.hear(loss, self)
        return original(self, loss, *args, **kwargs)

    backward._autowu_original = original  # type: ignore[attr-defined]
    Accelerator.backward = backward


def remove() -> None:
    """Puts the original ``Accelerator.backward`` back."""
    original = getattr(Accelerator.backward, "_autowu_original", None)
    if original is not None:
        Accelerator.backward = original
