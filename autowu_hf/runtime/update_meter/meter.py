"""What one optimizer step does to the weights, and what its gradient says about it; looked at from outside.

torch calls an optimizer's step hooks right before and after its step, whatever kind it is, so the update is measured
and not computed: momentum, preconditioning, weight decay and the groups' own learning rates are in it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import collective
from ..param_groups import innermost
from .backward_calls import BackwardCalls, numbers
from .update import Update


class UpdateMeter:
    """Measures the optimizer steps made while it is armed. What it copies lies in host memory, for one step.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.

    Attributes:
        updates: of the measured steps, oldest first; why, as a part of a sentence, where one could not be measured.
        idle: why the last step that was seen moved no weights, and is in no update; None where it is.
        takes_back_from: the share of the weights from which an update of them is taken back in full precision, too.
        num_backwards: how often gradients were added up for the last measured step; 0 where that cannot be told.
    """

    def __init__(self, optimizer: Any, ratios: Iterable[float]) -> None:
        self.updates: list[Update | str] = []
        self.idle: str | None = None
        self.takes_back_from = math.inf
        self.num_backwards = 0
        self._outermost = optimizer  # the schedule sets the LRs of its groups
        self._optimizer: Optimizer = innermost(optimizer)
        self._ratios = [*ratios]
        self._hooks: list[Any] = []
        self._before: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._backward_calls = BackwardCalls()
        self._is_sharded: Callable[[], bool] = bool
        self._takes_back = True

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks, which belong to this process and its optimizer, and without copies of weights."""
        kept = {name: self.__dict__[name] for name in ("updates", "takes_back_from", "_is_sharded", "_takes_back")}
        return {**UpdateMeter(self._outermost, self._ratios).__dict__, **kept, "was_armed": bool(self._hooks)}

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

        def before(optimizer: Optimizer, args: Any, options: Any) -> None:
            meter = this()
            if meter is not None:
                meter._look_before(has_closure=any(map(callable, (*args[1:], options.get("closure")))))

        def after(optimizer: Optimizer, *args: Any) -> None:
            meter = this()
            if meter is not None:
                meter._look_after()

        def accumulated(parameter: Tensor) -> None:
            meter = this()
            if meter is not None:
                meter._backward_calls.hear(parameter)

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
        self._hooks, self._before = [], []
        self._backward_calls.clear()
        _armed.discard(self)

    @property
    def has_hooks(self) -> bool:
        """Whether the optimizer calls hooks at its step: not if it never called ``Optimizer.__init__``."""
        return hasattr(self._optimizer, "_optimizer_step_pre_hooks")

    @property
    def is_half(self) -> bool:
        """Whether weights are in half precision, where small updates are rounded away. Their measured steps are taken
        back, so that they can be large ones.
        """
        return any(p.dtype in _HALF for p in self._parameters())

    @torch.no_grad()
    def weight_size(self) -> float:
        """The root mean square of the weights, without the tensors that are zero; 0 where it cannot be had."""
        squares, count = 0.0, 0
        for parameter in self._parameters():
            if parameter.device.type == "meta" or not (parameter.is_floating_point() or parameter.is_complex()):
                continue
            weights = numbers(parameter)
            square = float(_sum(weights, weights))
            if square > 0.0:
                squares, count = squares + square, count + weights.numel()
        return math.sqrt(squares / count) if count and math.isfinite(squares) else 0.0

    def has_gradients(self) -> bool:
        """Whether any parameter has a gradient, or has had one since the last step."""
        return bool(self._backward_calls) or any(p.grad is not None for p in self._parameters())

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _lr(self) -> float:
        """The common LR, that of a group of ratio 1."""
        pairs = zip(self._outermost.param_groups, self._ratios, strict=False)
        return next((float(group["lr"]) / ratio for group, ratio in pairs if ratio > 0.0), 0.0)

    @torch.no_grad()
    def _look_before(self, has_closure: bool) -> None:
        # A gradient scaler hands its scale, and whether there was an overflow, to optimizers that can do with them.
        scale, overflow = (getattr(self._optimizer, name, None) for name in ("grad_scale", "found_inf"))
        is_skipped = overflow is not None and float(overflow) > 0.0
        self.idle = "the gradients overflowed" if is_skipped else None
        if self._lr() <= 0.0:
            self.idle = "the learning rate was 0"
        unscale = 1.0 if scale is None else 1.0 / float(scale)
        self._before = []
        if has_closure:  # which leaves its gradients behind
            self._backward_calls.clear()
            self._before = [(p, _on_host(numbers(p)), None) for p in self._parameters()]
        else:
            pairs = [(p, p.grad) for p in self._parameters() if p.grad is not None]
            if not any(g.is_sparse for _, g in pairs):
                self._before = [(p, _on_host(numbers(p)), _on_host(numbers(g)) * unscale) for p, g in pairs]

    @torch.no_grad()
    def _look_after(self) -> None:
        before, self._before = self._before, []
        if self.idle is not None:
            self._backward_calls.clear()
            return
        lr, sums = self._lr(), torch.zeros(9, dtype=torch.float64)
        own_lrs = {id(p): float(group["lr"]) for group in self._outermost.param_groups for p in group["params"]}
        is_sparse = any(p.grad is not None and p.grad.is_sparse for p in self._parameters())
        for parameter, weights, gradient in before if not is_sparse else []:
            if gradient is None and parameter.grad is None:
                continue
            now = numbers(parameter)
            w, g = weights.to(now.device), numbers(parameter.grad) if gradient is None else gradient.to(now.device)
            d = _wide(now) - _wide(w)
            w2, g2, d2 = (_sum(t, t) for t in (w, g, d))
            down, own_lr = -_sum(g, d), own_lrs[id(parameter)]
            aligned = [x / own_lr**i if own_lr > 0.0 else 0.0 * x for i, x in enumerate((g2, down, d2))]
            sums += torch.stack(
                [down, w2, g2, d2, d2 * (w2 > 0.0), *aligned, torch.ones_like(w2)]
            ).cpu() / self._copies(parameter)
        clipping = self._backward_calls.clipping(math.sqrt(float(sums[2])))
        if self._is_sharded() or any(map(_is_dtensor, self._parameters())):
            sums = collective.gather_sum(sums)
        total_down, w2, g2, d2, seen_d2, own_g2, own_down, own_d2, count = sums.tolist()
        is_large = seen_d2 >= w2 * self.takes_back_from**2 and w2 > 0.0
        for parameter, weights, _ in before if self._takes_back else []:
            now = numbers(parameter)
            if now.dtype in _HALF or is_large:
                now.copy_(weights)
        self.num_backwards, is_repeated = self._backward_calls.num_added, self._backward_calls.began_anew
        self._backward_calls.clear()
        has_closure = any(gradient is None for *_, gradient in before)
        obstacles = {
            "the gradients are sparse": is_sparse,
            "the optimizer calls its closure more than once in a step": has_closure and is_repeated,
            "the optimizer has no gradients at its step": count == 0.0,
            "gradients or weights of a first step are not finite": not math.isfinite(sum(sums.tolist())),
            "the gradients of a first step are clipped in a way that cannot be seen": clipping is None,
        }
        obstacle = next((words for words, holds in obstacles.items() if holds), None)
        if obstacle is not None or clipping is None:
            self.updates.append(str(obstacle))
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
                lr=lr,
            )
        )

    def _copies(self, parameter: Any) -> int:
        """How many processes hold the same share of a parameter, where shares are summed over the processes."""
        if _is_dtensor(parameter):
            places = enumerate(parameter.placements)
            return math.prod(parameter.device_mesh.size(i) for i, place in places if place.is_replicate())
        if self._is_sharded() or not any(map(_is_dtensor, self._parameters())):
            return 1
        return collective.num_processes()  # one that FSDP2 leaves whole


_HALF = (torch.float16, torch.bfloat16)
_armed: weakref.WeakSet[UpdateMeter] = weakref.WeakSet()


def tell_clipping(norm: Any, max_norm: float) -> None:
    """Gradients were clipped through accelerate, from ``norm`` (None: it does not know) to at most ``max_norm``."""
    for meter in list(_armed):
        if norm is not None:
            meter._backward_calls.tell_clipping(max((float(norm) + 1e-6) / float(max_norm), 1.0))


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor


def _sum(a: Tensor, b: Tensor) -> Tensor:
    return (_wide(a) * _wide(b)).sum(dtype=torch.float64)


def _is_dtensor(parameter: Any) -> bool:
    return hasattr(parameter, "to_local")
