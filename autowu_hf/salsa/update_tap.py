"""What SASA+ tests: Delta of every optimizer step, from the norms of the weights before and after it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..runtime.compiling import untraced


class UpdateTap:
    """Looks at an optimizer's weights after each of its steps, steps that a gradient scaler skips left out.

    With the update x' = x - alpha d, Delta = <x', d> + alpha / 2 ||d||^2 has mean 0 where x is stationary. Put
    d = (x - x') / alpha in, and it is (||x||^2 - ||x'||^2) / (2 alpha): it takes one norm of the weights per step, in
    double precision, and no copy of them, whatever the optimizer makes of the gradient (momentum, weight decay,
    clipping). A group whose LR is ratio alpha counts with ratio alpha in the place of alpha. Under FSDP it is Delta of
    this process's share of the weights, and the mean over processes has the mean 0 as well.

    Args:
        optimizer: the innermost one.
        ratios: of each group's LR to alpha.

    Attributes:
        lr: alpha, of the step to come.
    """

    def __init__(self, optimizer: Optimizer, ratios: Sequence[float]) -> None:
        self.lr = 1.0
        self._optimizer = optimizer
        self._ratios = ratios
        self._squares: list[Tensor | None] | None = None  # ||x||^2 of every group, None of an empty one
        self._early = torch.empty(0, dtype=torch.float64)
        self._new: list[Tensor] = []
        self._stepped = False
        this = weakref.ref(self)  # the optimizer must not keep a tap alive that nobody else holds

        @untraced
        def before(*_: Any) -> None:
            tap = this()
            if tap is not None and tap._squares is None:
                tap._squares = tap._squared_norms()

        @untraced
        def after(*_: Any) -> None:
            tap = this()
            if tap is not None:
                tap._take()

        weakref.finalize(self, optimizer.register_step_pre_hook(before).remove)
        weakref.finalize(self, optimizer.register_step_post_hook(after).remove)

    @torch.no_grad()
    def _squared_norms(self) -> list[Tensor | None]:
        squares: list[Tensor | None] = []
        for group in self._optimizer.param_groups:
            weights = [_local(p) for p in group["params"]]
            if not weights:  # not a zero: on which device would it be?
                squares.append(None)
                continue
            norms = [norm.to(weights[0].device) for norm in torch._foreach_norm(weights, 2, dtype=torch.float64)]
            squares.append(torch.stack(norms).square().sum())
        return squares

    def _take(self) -> None:
        """Delta of the step just done; it stays on its device, for reading it would wait for the step."""
        before, self._squares, self._stepped = self._squares, self._squared_norms(), True
        if before is None:
            return
        delta: Tensor | None = None
        # A group that was added since counts from the next step on.
        for old, new, ratio in zip(before, self._squares, self._ratios, strict=False):
            if old is not None and new is not None and ratio > 0.0:
                part = (old - new) / (2.0 * self.lr * ratio)
                delta = part if delta is None else delta + part.to(delta.device)
        if delta is not None:
            self._new.append(delta)

    def has_stepped(self) -> bool:
        """Whether the optimizer was stepped since the last call."""
        stepped, self._stepped = self._stepped, False
        return stepped

    def pending(self) -> Tensor:
        """(k,), float64, on the CPU: Delta of every step since ``forget``."""
        if self._new:
            self._early = torch.cat([self._early, torch.stack(self._new).cpu()])
            self._new = []
        return self._early

    def set_pending(self, deltas: Tensor) -> None:
        """Goes on from another state: ``deltas`` is (k,); the weights may be others by now."""
        self._early, self._new = deltas.cpu().to(torch.float64), []
        self._squares, self._stepped = None, False

    def forget(self) -> None:
        """Lets go of the pending ones."""
        self._early, self._new = self._early[:0], []


def _local(parameter: Any) -> Tensor:
    """This process's share of a parameter (FSDP2's are DTensors); Apple's GPUs have no double precision."""
    local: Tensor = (parameter.to_local() if hasattr(parameter, "to_local") else parameter).detach()
    return local.cpu() if local.device.type == "mps" else local
