"""What one optimizer step does to the weights, and what its gradient says about it; looked at from outside.

torch calls an optimizer's step hooks right before and after its step, whatever kind it is, so the update is measured
and not computed: momentum, preconditioning, weight decay and the groups' own learning rates are in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .. import collective
from ..finite import numbers_of
from ..param_groups import Stepped, cut, num_tensors
from .backward_calls import BackwardCalls
from .layers import over_processes, told_by
from .obstacles import obstacle_in, obstacle_of, why_idle
from .shares import Shares, agreed, say_apart
from .sketch import kind_of, sketch
from .state_aside import StateAside
from .step_hooks import gradient_hooks, step_hooks
from .trials import trial_of
from .update import HALF, Update, on_host, root_mean_square, rows_of, seen_share, summed, sums_of


class UpdateMeter:
    """Measures the optimizer steps made while it is armed. What it copies lies in host memory, for one step.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR.
        is_used: asked once, before the first step that is measured: see ``as_new``.

    Attributes:
        optimizer: the innermost one.
        updates: of the measured steps, oldest first; why, as a part of a sentence, where one could not be measured.
        idle: why the last step that was seen is in no update, it moved no weights, say; None where it is.
        expected_lr: of the steps that are to be measured; at ten times that they are another schedule's.
        takes_back_from: the share of the weights from which an update of them is taken back in full precision, too.
        as_new: whether steps that may be taken back are, and made without the optimizer's state; None: not yet asked.
        divides_loss: whether what all gradients are divided by after the backward is no clipping, but of the loss.
        num_backwards: how often gradients were added up for the last measured step; 0 where that cannot be told.
    """

    def __init__(self, optimizer: Any, ratios: Iterable[float], is_used: Callable[[], bool] = bool) -> None:
        self.updates: list[Update | str] = []
        self.idle: str | None = None
        self.expected_lr = self.takes_back_from = math.inf
        self.as_new: bool | None = None
        self.num_backwards, self.divides_loss, self._is_used = 0, False, is_used
        self._stepped = Stepped(optimizer, ratios)
        self.optimizer = self._stepped.optimizer
        self._aside = StateAside(self.optimizer)
        self._hooks: list[Any] = []
        self._trial: object | None = None
        self._before: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._backward_calls = BackwardCalls()
        self._num_shares: Callable[[], int] = int
        self._takes_back, self._is_apart = True, False
        self._has_start = False
        self._start: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks, which belong to this process and its optimizer, and without copies of weights."""
        names = ("updates", "expected_lr", "takes_back_from", "as_new", "_is_used", "_num_shares", "_takes_back")
        kept = {name: self.__dict__[name] for name in (*names, "_has_start", "divides_loss")}
        had = {"was_armed": bool(self._hooks), "had_start": bool(self._start)}
        return {**UpdateMeter(self._stepped.outermost, self._stepped.ratios).__dict__, **kept, **had}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.__dict__.pop("was_armed"):
            self.arm(self._num_shares, self._takes_back)
        if self.__dict__.pop("had_start"):
            self.updates.append(START_IS_GONE)

    def arm(self, num_shares: Callable[[], int] = int, takes_back: bool = True) -> None:
        """Measures every step from now on.

        Args:
            num_shares: called at a step: into how many shares the processes divide the parameters; see ``Shares``.
            takes_back: whether steps of weights in half precision are taken back; under ZeRO none is.
        """
        self._num_shares, self._takes_back = num_shares, takes_back
        if self._hooks:
            return
        self._trial = trial_of(self.optimizer)
        self._hooks = step_hooks(self, self.optimizer)
        leaves = [p for p in self._parameters() if p.requires_grad and p.is_leaf and not is_lazy(p)]
        self._hooks += gradient_hooks(self, leaves, at_end=collective.num_processes() > 1)
        self._backward_calls.listen(True)

    def hold_start(self, weights: Sequence[Tensor] = ()) -> None:
        """Measures, too, what later batches say of the way since w_0 (``Update.fallen``), until it is disarmed.

        Args:
            weights: w_0, this process's shares in the order of ``param_groups.parameters_of``; none: the weights
                before the next step.
        """
        self._has_start = True
        pairs = zip(self._parameters(), self._stepped.in_order(weights), strict=False)
        self._start = {id(p): w for p, w in pairs}

    def disarm(self) -> None:
        """Measures no more, and lets go of all copies."""
        for hook in self._hooks:
            hook.remove()
        self._aside.forget()
        self._hooks, self._before, self._start, self._has_start = [], [], {}, False
        self._backward_calls.clear()
        self._backward_calls.listen(False)

    @property
    def rests(self) -> bool:
        """Whether the optimizer's steps are those of a trial that began later, and will be taken back."""
        return trial_of(self.optimizer) is not self._trial

    @property
    def has_hooks(self) -> bool:
        """Whether the optimizer calls hooks at its step: not if it never called ``Optimizer.__init__``."""
        return hasattr(self.optimizer, "_optimizer_step_pre_hooks")

    @property
    def is_half(self) -> bool:
        """Whether weights are in half precision, which loses small updates: measured steps are large, and undone."""
        return any(p.dtype in HALF for p in self._parameters())

    def weight_size(self) -> float:
        """The root mean square of the weights, without the tensors that are zero; 0 where it cannot be had."""
        readable = ((p, numbers_of(p)) for p in self._parameters())
        return root_mean_square(piece for p, weights in readable if weights is not None for piece in cut(p, weights))

    def has_gradients(self) -> bool:
        """Whether any parameter has a gradient, or has had one since the last step."""
        return bool(self._backward_calls) or any(p.grad is not None for p in self._parameters())

    def agree(self) -> None:
        """Has every process go on with what the main one has measured, see ``agreed``; all must join."""
        if collective.num_processes() > 1 and (self._hooks or self.updates):
            self.updates[:], apart = agreed(self.updates, self._shares)
            self._is_apart = self._is_apart or say_apart(apart)

    def sketch(self) -> Tensor:
        """The sketch of the weights now; under FSDP1 ``arm`` must have been given ``num_shares`` before."""
        return sketch(self._parameters(), self._shares)

    @property
    def kind_of_sketch(self) -> str:
        """The tensors and processes that a sketch is of; only sketches of the same kind can be compared."""
        return kind_of(self._parameters(), self._shares)

    @property
    def _shares(self) -> Shares:
        return Shares(self._parameters(), self._num_shares())

    def _parameters(self) -> list[Tensor]:
        return self._stepped.parameters()

    def ends_step(self) -> bool:
        """Whether a call of the innermost optimizer ends a step of the run: ZeRO makes several of them for one."""
        return self._stepped.ends()

    @torch.no_grad()
    def look_before(self, has_closure: bool) -> None:
        """Keeps what a step will change, right before it.

        Args:
            has_closure: whether the optimizer is stepped with one.
        """
        if self._stepped.begins():
            self._before, self.idle = [], why_idle(self.optimizer, self._stepped.lr(), self.expected_lr, self.updates)
        if self.idle is not None:
            return
        stepped, zero = self._stepped.with_gradients(), self._stepped.zero
        scale = getattr(self.optimizer, "grad_scale", None)  # gradient scalers hand it, and found_inf, to some
        if has_closure:  # which leaves its gradients behind
            self._backward_calls.clear()
        elif obstacle_in(stepped) is not None:
            return
        for parameter in stepped:
            weights, gradient = numbers_of(parameter), None if has_closure else numbers_of(parameter.grad)
            if weights is not None and (has_closure or gradient is not None):
                held = None if gradient is None else on_host(gradient, scale)
                self._before.append((parameter, on_host(weights), held))
        if self._has_start and not self._start:  # a parameter may get its first gradient later
            trained = self._parameters() if zero is not None else [p for p in stepped if p.requires_grad]
            readable = {id(p): numbers_of(p) for p in trained}
            self._start = {key: on_host(weights) for key, weights in readable.items() if weights is not None}
        if self.as_new is None:
            self.as_new = zero is None and self._is_used()
        if self.as_new and self._takes_back:
            self._aside.take()

    def hear(self, parameter: Tensor) -> None:
        """Notes that a parameter has got a gradient."""
        self._backward_calls.hear(parameter)

    @torch.no_grad()
    def look_after(self) -> None:
        """Measures the step just made."""
        is_new = self._aside.put_back()
        if not self._stepped.ends():
            return
        before, self._before = self._before, []
        if self.idle is not None:
            self._backward_calls.clear()
            return
        lr, parts, shares, zero = self._stepped.lr(), {}, self._shares, self._stepped.zero
        rates = self._stepped.rates()
        unreadable = obstacle_in(self._parameters())
        self._stepped.hide_gradients()
        told = self._backward_calls.told_clipping(self._parameters())
        divisors = dict(zip(map(id, self._parameters()), told, strict=True)) if len({*told}) > 1 else {}
        for parameter, weights, gradient in before if unreadable is None else []:
            now, left = numbers_of(parameter), numbers_of(parameter.grad) if gradient is None else gradient
            if now is None or left is None:
                continue
            w, g, start = weights.to(now.device), left.to(now.device), numbers_of(self._start.get(id(parameter)))
            if divisors:  # not all of them were clipped together
                g = g * divisors[id(parameter)]
            given = [w, now, g] + ([] if start is None else [start.to(now.device)])
            copies, own = shares.copies_of(parameter), rates[id(parameter)]
            pieces = zip(*(cut(parameter, tensor) for tensor in given), strict=True)
            parts[id(parameter)] = [sums_of(a, b, c, *own, *w0) / copies for a, b, c, *w0 in pieces]
        have_row = [id(p) in parts for p in self._parameters() for _ in range(num_tensors(p))]
        owners = [id(p) for p in self._parameters() for _ in parts.get(id(p), [])]
        rows = rows_of([row for p in self._parameters() for row in parts.get(id(p), [])])
        clipping, divisor = 1.0 if divisors else told[0] if told else None, 1.0
        if zero is not None:
            clipping = zero.clipping()
        elif clipping is None and (shares.is_shared or self.divides_loss):  # what a backward leaves is yet to be summed
            clipping = 1.0
        elif clipping is None:
            squares, steppers = summed(owners, rows[:, 2].tolist()), (self._stepped.outermost, self.optimizer)
            is_averaged = collective.num_processes() > 1
            clipping, divisor = self._backward_calls.clipping_and_divisor(squares, steppers, is_averaged)
        sums, layers = over_processes(rows, have_row, shares)
        is_large = self.takes_back_from == 0.0 or seen_share(sums) >= self.takes_back_from
        for parameter, weights, _ in before if self._takes_back and zero is None else []:
            now = numbers_of(parameter)
            if now is not None and (now.dtype in HALF or is_large or is_new):
                now.copy_(weights)
        self.num_backwards, is_repeated = self._backward_calls.num_added, self._backward_calls.began_anew
        self._backward_calls.clear()
        is_repeated = is_repeated and any(gradient is None for *_, gradient in before)
        kept = zero is not None and (len(before) < len(zero.pieces), is_large and self._takes_back)
        obstacle = unreadable or obstacle_of(sums, clipping, is_repeated, *(kept or (False, False)))
        if obstacle is not None or clipping is None:
            self.updates.append(str(obstacle))
        else:
            self.updates.append(Update.from_sums(sums, lr, clipping, divisor=divisor, **told_by(layers, lr)))


START_IS_GONE = "the weights from before are gone"
"""Why it cannot be said how far the loss has fallen since, as a part of a sentence."""
