"""The loss of every optimizer step, overheard where it is back-propagated.

It sees what Trainer and every accelerate loop really optimise, whatever computed it. ``accelerate_hooks`` tells the
taps of every ``Accelerator.backward`` and of every step of a prepared optimizer; while no scheduler listens that is one
truth test.
"""

from __future__ import annotations

import weakref
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn

from ..param_groups import innermost, trained_ids
from .doubts import LossDoubts
from .value import loss_value


class LossTap:
    """One scheduler's ear: the loss of each optimizer step, put together from the backward calls of that step.

    The step's loss is the sum over its backward calls, for their gradients add up, and Trainer divides the loss of each
    micro-batch by their number. In an accelerate loop with ``gradient_accumulation_steps`` > 1, where the loop's
    losses are whole, it is the mean over the micro-batches. A step ends where the prepared optimizer steps (under
    DeepSpeed, with the backward that steps its engine) or, for an optimizer that was never prepared, where the
    scheduler asks. The losses of a step that the gradient scaler skipped are dropped, and so are those before a
    ``zero_grad`` of the prepared optimizer: their gradients are gone.

    Args:
        optimizer: the optimizer whose steps count, bare or prepared; None hears every accelerator.

    Attributes:
        share: of the loss of the last step whose gradient was taken. Less than 1 where an epoch ends before all of a
            step's micro-batches are there: accelerate divides by the number of all.
        yields: whether it hears only what no other tap hears.
    """

    def __init__(self, optimizer: Any = None) -> None:
        self._optimizer = None if optimizer is None else innermost(optimizer)
        self._prepared: AcceleratedOptimizer | None = None
        self._accelerator: weakref.ref[Accelerator] | None = None
        self._steps: list[Tensor | float] = []  # of the optimizer steps done since the last take
        self._sum: Tensor | float | None = None  # over the backward calls of the step under way
        self._micro_batches = 0
        self._micro_batch = -1
        self._by_hand = False
        self._mean = False
        self._num_wanted = 1
        self.share = 1.0
        self._complete = False
        self._heard = False
        self._ambiguous = False
        self._doubts = LossDoubts()
        self.yields = False

    def listen(self) -> None:
        """From now on every backward reaches this tap, as long as the tap is alive.

        It takes the place of an older tap of the same optimizer.
        """
        for other in _taps():
            if other is self:
                return
            if self._optimizer is not None and other._optimizer is self._optimizer:
                other.stop()
        _listening.append(weakref.ref(self, _listening.remove))

    def stop(self) -> None:
        """No backward reaches this tap any more."""
        _listening[:] = [ref for ref in _listening if ref() is not self]
        self._steps, self._sum = [], None

    def hear(self, loss: Tensor, accelerator: Accelerator, is_divided: bool = False) -> None:
        """Takes in the loss of one backward call.

        Args:
            loss: (), about to be back-propagated; what ``loss_value`` makes of it is kept.
            accelerator: the one whose ``backward`` was called.
            is_divided: whether the loss of a micro-batch is a part of the step's, and adds up, even if the accelerator
                counts micro-batches.

        Raises:
            ValueError: the loss is not a scalar.
        """
        value = loss_value(loss, "accelerator.backward")
        self._heard = True
        if self._accelerator is None:
            self._accelerator = weakref.ref(accelerator)
        if self._complete and accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.end_step(skipped=self._prepared is not None and self._prepared.step_was_skipped)
        gradients = accelerator.gradient_state
        self._doubts.backward(is_first=self._sum is None)
        if self._sum is None:
            self._sum, self._micro_batches, self._micro_batch = value, 1, accelerator.step
            self._num_wanted = gradients.num_steps
            self._mean = self._num_wanted > 1 and not is_divided
            # A loop that accumulates without accelerator.accumulate() has one backward call per micro-batch.
            self._by_hand = self._mean and accelerator.step == 0 and not gradients.end_of_dataloader
        else:
            self._sum = self._sum + value
            if self._by_hand or accelerator.step != self._micro_batch:
                self._micro_batches, self._micro_batch = self._micro_batches + 1, accelerator.step
        self._complete = gradients.sync_gradients

    def drop(self) -> None:
        """The gradients were set to zero; the losses that they came from belong to no step."""
        if self._sum is not None:
            self._sum, self._complete = None, False
            self._doubts.dropped()

    def end_step(self, skipped: bool, has_closure: bool = False) -> None:
        """The optimizer was stepped.

        Args:
            skipped: not really, for the gradients had overflowed.
            has_closure: with a closure, which sets gradients to zero as often as it is called.
        """
        self._doubts.stepped(has_closure)
        if self._sum is not None and not skipped:
            is_mean = self._mean and self._micro_batches > 1  # on a GPU, a division is a kernel to launch
            self._steps.append(self._sum / self._micro_batches if is_mean else self._sum)
            self.share = self._micro_batches / self._num_wanted if self._mean else 1.0
        self._sum, self._complete = None, False

    def take(self, wanted: bool = True) -> list[Tensor | float] | None:
        """The loss of every optimizer step done since the last call.

        Args:
            wanted: False when the caller has a loss of its own.

        Returns:
            Each as ``loss_value`` has it; None when no backward was heard since the last call, and no step is under
            way.

        Raises:
            ValueError: it is wanted, but another scheduler heard the same backward calls.
        """
        if self._ambiguous:
            self._ambiguous = False
            if wanted:
                raise ValueError(
                    "two AutoWU schedulers in their warm-up hear the same Accelerator, so their losses cannot be told "
                    "apart; pass each its own, scheduler.step(loss), or let go of the one that is no longer used with "
                    "accelerator.free_memory()"
                )
        if not self._heard and self._sum is None:
            return None
        if self._complete:
            self.end_step(skipped=False)
        steps, self._steps, self._heard = self._steps, [], False
        if wanted:
            self._doubts.warn()
        return steps

    def models(self) -> list[nn.Module]:
        """The models of the accelerator that was heard, those with a parameter of this optimizer, and those that no
        optimizer trains, as a momentum teacher; none before that.
        """
        accelerator = None if self._accelerator is None else self._accelerator()
        if accelerator is None or self._optimizer is None:
            return []
        own = trained_ids(self._optimizer)
        trained = [model for model in accelerator._models if any(p.requires_grad for p in model.parameters())]
        others = [model for model in trained if all(id(p) not in own for p in model.parameters())]
        return [model for model in accelerator._models if all(model is not other for other in others)]

    def _prepared_by(self, accelerator: Accelerator) -> bool:
        for prepared in accelerator._optimizers:
            if prepared is self._prepared:
                return True
            if self._optimizer is not None and innermost(prepared) is self._optimizer:
                self._prepared = prepared
                return True
        return False


_listening: list[weakref.ref[LossTap]] = []


def _taps() -> list[LossTap]:
    return [tap for tap in [ref() for ref in _listening] if tap is not None]


def tell_backward(loss: Tensor, accelerator: Accelerator, is_divided: bool = False) -> None:
    """A loss is about to be back-propagated: the taps of this accelerator's optimizers hear it.

    Args:
        loss: the scalar loss.
        accelerator: whose ``backward`` was called.
        is_divided: see ``LossTap.hear``.

    Raises:
        ValueError: the loss is not a scalar.
    """
    if not _listening:
        return
    if len(_listening) == 1:  # so it is in most runs, and this is quick
        only = _listening[0]()
        if only is not None and (only._prepared_by(accelerator) or only._prepared is None):
            only.hear(loss, accelerator, is_divided)
        return
    present = _taps()
    taps = [tap for tap in present if tap._prepared_by(accelerator)]
    if not taps:  # an optimizer that no accelerator prepared
        taps = [tap for tap in present if tap._prepared is None]
    if len(taps) > 1:
        taps = [tap for tap in taps if not tap.yields]
    for tap in taps:
        tap._ambiguous = tap._ambiguous or len(taps) > 1
        tap.hear(loss, accelerator, is_divided)


def tell_zero_grad(optimizer: AcceleratedOptimizer) -> None:
    """The gradients of a prepared optimizer are set to zero; accelerate leaves them while micro-batches accumulate.

    Args:
        optimizer: the prepared optimizer.
    """
    if not _listening or not optimizer.gradient_state.sync_gradients:
        return
    for ref in _listening[:]:
        tap = ref()
        if tap is not None and tap._prepared is optimizer:
            tap.drop()


def tell_optimizer_step(optimizer: AcceleratedOptimizer, has_closure: bool = False) -> None:
    """A prepared optimizer was stepped.

    Args:
        optimizer: the prepared optimizer.
        has_closure: whether it was given a closure.
    """
    if not _listening or not optimizer.gradient_state.sync_gradients:
        return
    skipped = bool(optimizer.step_was_skipped)
    for ref in _listening[:]:
        tap = ref()
        if tap is None:
            continue
        if tap._prepared is optimizer:
            tap.end_step(skipped, has_closure)
        elif tap._prepared is not None and tap._sum is not None:
            accelerator = None if tap._accelerator is None else tap._accelerator()
            others = [] if accelerator is None else accelerator._optimizers
            if any(other is optimizer for other in others):
                tap._doubts.other_stepped()
