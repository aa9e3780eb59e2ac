"""What one optimizer step does to the weights, and what its gradient says about it; looked at from outside.

torch calls an optimizer's step hooks right before and after its step, whatever kind it is, so the update is measured
and not computed: momentum, preconditioning, weight decay and the groups' own learning rates are in it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import collective
from .finite import numbers_of
from .param_groups import innermost

_LOSS_SCALE = 256.0
"""A gradient that is so many times smaller at the step was not only clipped: torch's scaler has undone its scale."""


@dataclass(frozen=True)
class Update:
    """One optimizer step, per unit of learning rate: u is the change of the weights divided by the LR.

    Args:
        slope: -<g, u>, by how much the loss of the step's batch would fall; g is the gradient before clipping.
        update_norm: ||u||, over the weights that are not all zero (see ``weight_norm``).
        weight_norm: ||w||, over the same; tensors that are zero throughout say nothing about the size of weights, such
            as LoRA's B or a fresh bias, and are left out of both norms.
        alignment: -<g, u> / (||g|| ||u||) over all weights, u being per unit of its group's own LR: 1 where the update
            is the gradient itself, as in SGD's first step.
        resolution: ||lr u|| / ||w|| over all weights; far below the precision of the weights, rounding decides.
        clipping: by what the norm of the gradient was divided before the step, at least 1.
        gradient_norm: ||g|| at the step.
    """

    slope: float
    update_norm: float
    weight_norm: float
    alignment: float
    resolution: float
    clipping: float
    gradient_norm: float = math.nan


class UpdateMeter:
    """Measures the optimizer steps made while it is armed. What it copies lies in host memory, for one step.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.

    Attributes:
        updates: of the measured steps, oldest first; None where a step could not be measured.
        expected_lr: of the steps that are to be measured; at ten times that they are another schedule's.
    """

    def __init__(self, optimizer: Any, ratios: Iterable[float]) -> None:
        self.updates: list[Update | None] = []
        self.expected_lr = math.inf
        self._optimizer: Optimizer = innermost(optimizer)
        self._ratios = [*ratios]
        self._hooks: list[Any] = []
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []
        self._is_skipped = False
        self._accumulated: dict[int, Tensor] = {}
        self._told: float | None = None
        self._is_sharded: Callable[[], bool] = bool
        self._takes_back = True

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks, which belong to this process and its optimizer, and without copies of weights."""
        kept = {name: self.__dict__[name] for name in ("updates", "expected_lr", "_is_sharded", "_takes_back")}
        return {**UpdateMeter(self._optimizer, self._ratios).__dict__, **kept, "was_armed": bool(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.__dict__.pop("was_armed"):
            self.arm(self._is_sharded, self._takes_back)

    def arm(self, is_sharded: Callable[[], bool] = bool, takes_back: bool = True) -> None:
        """Measures every step from now on.

        Args:
            is_sharded: called at a step: whether every process holds another share of the parameters, as under FSDP1;
                FSDP2's parameters say so themselves.
            takes_back: whether steps of weights in half precision are taken back.
        """
        self._is_sharded, self._takes_back = is_sharded, takes_back
        if self._hooks:
            return
        this = weakref.ref(self)  # the optimizer must not keep alive a meter that nobody else holds

        def before(optimizer: Optimizer, *args: Any) -> None:
            meter = this()
            if meter is not None:
                meter._look_before()

        def after(optimizer: Optimizer, *args: Any) -> None:
            meter = this()
            if meter is not None:
                meter._look_after()

        def accumulated(parameter: Tensor) -> None:
            meter = this()
            gradient = None if meter is None else numbers_of(parameter.grad)
            if meter is not None and gradient is not None:
                meter._accumulated[id(parameter)] = gradient.float().square().sum()

        self._hooks = [
            self._optimizer.register_step_pre_hook(before),
            self._optimizer.register_step_post_hook(after),
        ]
        if collective.num_processes() == 1:  # else what a backward leaves is not yet the mean over the processes
            leaves = [p for p in self._parameters() if p.requires_grad and p.is_leaf]
            self._hooks += [p.register_post_accumulate_grad_hook(accumulated) for p in leaves]  # type: ignore[no-untyped-call]
        _armed.add(self)

    def disarm(self) -> None:
        """Measures no more, and lets go of all copies."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before, self._accumulated, self._told = [], [], {}, None
        _armed.discard(self)

    @property
    def is_half(self) -> bool:
        """Whether weights are in half precision, which loses small updates: measured steps are large, and undone."""
        return any(p.dtype in _HALF for p in self._parameters())

    @torch.no_grad()
    def weight_size(self) -> float:
        """The root mean square of the weights, without the tensors that are zero; 0 where it cannot be had."""
        squares, count = 0.0, 0
        for parameter in self._parameters():
            weights = numbers_of(parameter)
            square = 0.0 if weights is None else float(_sum(weights, weights))
            if square > 0.0:
                squares, count = squares + square, count + parameter.numel()
        return math.sqrt(squares / count) if count and math.isfinite(squares) else 0.0

    def has_gradients(self) -> bool:
        """Whether any parameter has a gradient."""
        return any(p.grad is not None for p in self._parameters())

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _lr(self) -> float:
        """The common LR, that of a group of ratio 1."""
        pairs = zip(self._optimizer.param_groups, self._ratios, strict=False)
        return next((float(group["lr"]) / ratio for group, ratio in pairs if ratio > 0.0), 0.0)

    @torch.no_grad()
    def _look_before(self) -> None:
        if len(self.updates) >= _MOST or self._lr() > 10.0 * self.expected_lr:
            self._is_skipped = True
            return
        # A gradient scaler hands its scale, and whether there was an overflow, to optimizers that can do with them.
        scale, overflow = (getattr(self._optimizer, name, None) for name in ("grad_scale", "found_inf"))
        self._is_skipped = overflow is not None and float(overflow) > 0.0
        unscale = 1.0 if scale is None else 1.0 / float(scale)
        parameters = [p for p in self._parameters() if p.grad is not None]
        pairs = [(p, numbers_of(p), numbers_of(p.grad)) for p in parameters]
        if any(w is None or g is None for _, w, g in pairs):  # sparse, say, so that the step cannot be measured
            pairs = []
        self._before = [(p, _on_host(w), _on_host(g) * unscale) for p, w, g in pairs if w is not None and g is not None]

    @torch.no_grad()
    def _look_after(self) -> None:
        before, self._before = self._before, []
        if self._is_skipped:
            return
        lr, sums = self._lr(), torch.zeros(8, dtype=torch.float64)
        own_lrs = {id(p): float(group["lr"]) for group in self._optimizer.param_groups for p in group["params"]}
        for parameter, weights, gradient in before:
            now = numbers_of(parameter)
            assert now is not None
            w, g = weights.to(now.device), gradient.to(now.device)
            d = _wide(now) - _wide(w)
            w2, g2, d2 = (_sum(t, t) for t in (w, g, d))
            down, own_lr = -_sum(g, d), own_lrs[id(parameter)]
            aligned = [x / own_lr**i if own_lr > 0.0 else 0.0 * x for i, x in enumerate((g2, down, d2))]
            sums += torch.stack([down, w2, g2, d2, d2 * (w2 > 0.0), *aligned]).cpu() / self._copies(parameter)
            if now.dtype in _HALF and self._takes_back:
                now.copy_(w)
        clipping = self._clipping(math.sqrt(float(sums[2])))
        if self._is_sharded() or any(map(_is_dtensor, self._parameters())):
            sums = collective.gather_sum(sums)
        total_down, w2, g2, d2, seen_d2, own_g2, own_down, own_d2 = sums.tolist()
        self._accumulated, self._told = {}, None
        if not before or lr <= 0.0 or clipping is None or not math.isfinite(sum(sums.tolist())):
            self.updates.append(None)
            return
        self.updates.append(
            Update(
                slope=clipping * total_down / lr,
                update_norm=math.sqrt(seen_d2) / lr,
                weight_norm=math.sqrt(w2),
                alignment=own_down / math.sqrt(own_g2 * own_d2) if own_g2 * own_d2 > 0.0 else 0.0,
                resolution=math.sqrt(d2 / w2) if w2 > 0.0 else math.inf if d2 > 0.0 else 0.0,
                clipping=clipping,
                gradient_norm=math.sqrt(g2),
            )
        )

    def _clipping(self, norm: float) -> float | None:
        """By what the gradient was divided between its backward and the step; None where that cannot be told."""
        if self._told is not None:
            return self._told
        if not self._accumulated or norm <= 0.0:
            return 1.0
        ratio = math.sqrt(sum(float(square) for square in self._accumulated.values())) / norm
        exponent = math.log2(ratio) if ratio > 0.0 and math.isfinite(ratio) else 0.0
        if abs(exponent - round(exponent)) < 1e-4:
            return 1.0  # nothing, or the scale of a gradient scaler, which is a power of two
        if ratio < _LOSS_SCALE:
            return max(ratio, 1.0)
        return None

    def _copies(self, parameter: Any) -> int:
        """How many processes hold the same share of a parameter, where shares are summed over the processes."""
        if _is_dtensor(parameter):
            places = enumerate(parameter.placements)
            return math.prod(parameter.device_mesh.size(i) for i, place in places if place.is_replicate())
        if self._is_sharded() or not any(map(_is_dtensor, self._parameters())):
            return 1
        return collective.num_processes()  # one that FSDP2 leaves whole


_HALF = (torch.float16, torch.bfloat16)
_MOST = 8  # the measured steps that nobody has taken in: the schedule is not stepped yet
_armed: weakref.WeakSet[UpdateMeter] = weakref.WeakSet()


def tell_clipping(norm: Any, max_norm: float) -> None:
    """Gradients were clipped through accelerate, from ``norm`` (None: it does not know) to at most ``max_norm``."""
    for meter in list(_armed):
        if norm is not None:
            meter._told = max((float(norm) + 1e-6) / float(max_norm), 1.0)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor


def _sum(a: Tensor, b: Tensor) -> Tensor:
    return (_wide(a) * _wide(b)).sum(dtype=torch.float64)


def _is_dtensor(parameter: Any) -> bool:
    return hasattr(parameter, "to_local")
