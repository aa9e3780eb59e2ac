"""The line search of SALSA: the loss of one mini-batch along its negative gradient, and no trace of having looked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.finite import DivergedError, has_finite_parameters
from ..runtime.losses.value import loss_value
from ..runtime.param_groups import device_of
from ..runtime.random_state import get_random_state, set_random_state

SUFFICIENT_DECREASE = 0.05
INCREASE, DECREASE = 2.0, 0.5
MAX_HALVINGS = 2

Closure = Callable[[], Any]


def armijo(lr: float, loss: float, slope: float, loss_at: Callable[[float], float]) -> float:
    """The LR eta that is large enough and not too large for this mini-batch: it starts at 2 alpha and is halved, twice
    at most, while f(x - eta g) > f(x) - 0.05 eta ||g||^2.

    Args:
        lr: alpha.
        loss: f(x).
        slope: ||g||^2.
        loss_at: eta -> f(x - eta g); one that is NaN is too high.

    Returns:
        eta; after the second halving it is not tried.
    """
    eta = INCREASE * lr
    for _ in range(MAX_HALVINGS):
        if loss_at(eta) <= loss - SUFFICIENT_DECREASE * eta * slope:
            break
        eta *= DECREASE
    return eta


@dataclass(frozen=True)
class Found:
    """The outcome of a line search.

    Args:
        loss: f(x), what the weight decay adds included.
        eta: the LR that was found; None where the gradients have vanished or overflowed.
    """

    loss: float
    eta: float | None


class Line:
    """The function that a line search sees: the loss of a mini-batch at x - eta g, the mean over processes.

    The weight decay w is part of it, w / 2 ||x||^2 in the loss and w x in the gradient, as in the authors' code.

    Args:
        optimizer: SGD, the innermost one, with the gradients of the mini-batch.
        ratios: of each group's LR to the schedule's; its part of the gradient is scaled by it.
        closure: returns the loss at the present weights.
        random_state: (n,), uint8: the random numbers that every closure call starts from; see ``random_state``.
        gradient_scale: what the gradients have been multiplied by.

    Attributes:
        num_probes: how often the closure was called.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        ratios: Sequence[float],
        closure: Closure,
        random_state: Tensor,
        gradient_scale: float,
    ) -> None:
        self.num_probes = 0
        self._optimizer = optimizer
        self._closure = closure
        self._random_state = random_state
        self._device = device_of(optimizer)
        self._scale = gradient_scale
        self._parts: list[tuple[Tensor, Tensor, float, float]] = []
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            decay = float(group["weight_decay"])
            for p in group["params"]:
                if p.grad is not None:
                    self._parts.append((p.detach(), self._direction(p, decay), ratio, decay))
        self._start = [p.clone() for p, *_ in self._parts]

    def _direction(self, p: Tensor, decay: float) -> Tensor:
        assert p.grad is not None
        gradient = p.grad.detach()
        if gradient.is_sparse:
            gradient = gradient.to_dense()
        if self._scale != 1.0:
            gradient = gradient / self._scale
        return gradient.add(p.detach(), alpha=decay) if decay else gradient

    def search(self, model: nn.Module, lr: float, loss: Any, step: int) -> Found:
        """Looks for an LR by ``armijo``; weights, buffers and random numbers are afterwards what they were.

        Args:
            model: what the closure calls.
            lr: alpha.
            loss: of the mini-batch at the present weights, without what the weight decay adds; None has the closure
                find it out.
            step: the optimizer steps done, for the error.

        Raises:
            ValueError: a loss is not a scalar.
            DivergedError: the weights are infinite or NaN.
        """
        with no_trace(model, self._device):
            try:
                return self._search(lr, loss, step)
            finally:
                self.go_back()

    def _search(self, lr: float, loss: Any, step: int) -> Found:
        start = self.loss() if loss is None else mean_loss(loss) + self.penalty()
        if not math.isfinite(start) and not has_finite_parameters(self._optimizer):
            raise DivergedError(
                f"training has diverged: parameters are infinite or NaN after step {step}, at learning rate {lr:.1e}. "
                "Where the loss is flat, SALSA's line search goes on to higher ones; clip the gradients, or end the "
                "search earlier with num_warmup_steps"
            )
        slope = self.slope()
        return Found(start, armijo(lr, start, slope, self.loss_at) if 0.0 < slope < math.inf else None)

    def slope(self) -> float:
        """||g||^2, each group's part times its ratio."""
        return _sum_of_squares((g, ratio) for _, g, ratio, _ in self._parts)

    def penalty(self) -> float:
        """What the weight decay adds to the loss at the present weights."""
        return _sum_of_squares((p, 0.5 * decay) for p, _, _, decay in self._parts if decay)

    def loss(self) -> float:
        """The loss at the present weights; a collective, with several processes."""
        self.num_probes += 1
        set_random_state(self._random_state, self._device)
        torch.clear_autocast_cache()  # else a surrounding autocast goes on with half-precision copies of other weights
        with torch.no_grad():
            loss = self._closure()
        return mean_loss(loss) + self.penalty()

    @torch.no_grad()
    def loss_at(self, eta: float) -> float:
        """The loss at x - eta g."""
        for (p, g, ratio, _), start in zip(self._parts, self._start, strict=True):
            torch.add(start, g, alpha=-eta * ratio, out=p)
        return self.loss()

    @torch.no_grad()
    def go_back(self) -> None:
        """Makes the weights what they were, bit for bit."""
        for (p, *_), start in zip(self._parts, self._start, strict=True):
            p.copy_(start)
        torch.clear_autocast_cache()


def require_search(done: bool) -> None:
    """Raises an error where an optimizer step was made without a line search.

    Args:
        done: whether there was one.

    Raises:
        RuntimeError: there was none.
    """
    if not done:
        raise RuntimeError(
            "SALSA's line search needs the loss of a mini-batch at several weights, but search() was not called for "
            "this step; use autowu_hf.SalsaTrainer in the place of Trainer, call scheduler.search(model, closure) "
            "between the backward and optimizer.step(), or pass line_search=False"
        )


def mean_loss(loss: Any) -> float:
    """The mean of a scalar loss over the processes; a collective, where there are several.

    Raises:
        ValueError: it is not a scalar.
    """
    value = float(loss_value(loss, "search()")) if isinstance(loss, Tensor) else float(loss)
    return float(collective.gather_mean(torch.tensor([value], dtype=torch.float64))[0])


@contextmanager
def no_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Whatever happens inside, a model's buffers and torch's random numbers are afterwards as if it had not.

    Args:
        model: what is called inside.
        device: where it computes.
    """
    random_state = get_random_state(device)
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])
        set_random_state(random_state, device)


def _sum_of_squares(terms: Iterable[tuple[Tensor, float]]) -> float:
    """The sum of weight x ||tensor||^2 over (tensor, weight)."""
    total: Tensor | None = None
    for tensor, weight in terms:
        precision = torch.promote_types(tensor.dtype, torch.float32)
        square = weight * torch.linalg.vector_norm(tensor, dtype=precision).square()
        total = square if total is None else total + square.to(total.device)
    return 0.0 if total is None else float(total)
