"""``suggest_lr``: a peak learning rate from a few optimizer steps, taken back, for a schedule of one's own."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .autowu.course.later_measures import LaterMeasures
from .autowu.course.scale import Scale
from .autowu.course.scale_search import ScaleSearch
from .autowu.course.words import lasting as in_percent
from .rewind import snapshot
from .runtime import collective
from .runtime.param_groups import Obstacle, device_of, innermost, lr_ratios, set_lrs, weights_out_of_reach
from .runtime.random_state import get_random_state, set_random_state

if TYPE_CHECKING:
    from transformers import Trainer


_WATCHED = 5  # the batches that are asked how much of the slope lasts, where P may be far too low


@dataclass(frozen=True)
class SuggestedLR:
    """A peak learning rate and its evidence; ``float()`` of it is the LR.

    Args:
        lr: for a schedule with a short warm-up, in optimizer units, for a parameter group whose LR is the optimizer's
            default; other groups keep their ratio to it.
        scale: what it comes from.
        steps: the optimizer steps that were made, and taken back.
        lasting: the share of the first updates' slope that the batches after them see. None where P is not so low that
            they are asked, and where they cannot be: in half precision, or with fewer than eight.
    """

    lr: float
    scale: Scale
    steps: int
    lasting: float | None = None

    def __float__(self) -> float:
        return self.lr

    def __str__(self) -> str:
        scale = self.scale
        found = f"{self.lr:.1e}: P = {scale.polyak:.1e}, R = {scale.trust:.1e}"
        which = "0.3 P" if scale.held_by == "polyak" else "0.2 R"
        if scale.momentum > 0.0:
            which += f", times {1.0 - scale.momentum:.2g} for the momentum"
        if self.lr != scale.peak_lr:
            share = in_percent(self.lasting)
            which += f", times {self.lr / scale.peak_lr:.2g} since {share} of the slope lasts on later batches"
        elif scale.raised_factor(0.0) > 1.0 and self.lasting is None:
            which += ", which may be too low by far, and more batches would tell, in single precision"
        doubt = "; the update is the gradient itself, so take it as where to look" if scale.is_aligned else ""
        return f"{found}, from {self.steps} optimizer steps at loss {scale.loss:.3g}; the suggestion is {which}{doubt}"


def suggest_lr(
    trainer_or_model: Trainer | nn.Module,
    optimizer: Optimizer | None = None,
    loss_of: Callable[[Any, Any], Tensor] | None = None,
    batches: Iterable[Any] | None = None,
) -> SuggestedLR:
    """Suggests a peak learning rate, from the scale of the first gradients (``autowu.course.scale``).

    It makes two optimizer steps (up to eight, where rounding hides the first ones) on the user's own batches, and six
    more where the gradients may be mostly noise (``Scale.raised_factor``). It puts everything back: weights, buffers,
    the optimizer's state and LRs, gradients, random numbers and the order of the data. One process only.

    Args:
        trainer_or_model: a Trainer, which has all the rest; or a model.
        optimizer: of the model's parameters, in a loop without Trainer.
        loss_of: model and batch -> the scalar loss.
        batches: what is iterated for batches: a DataLoader or a list, but no iterator, which could not be put back.

    Returns:
        The suggestion.

    Raises:
        ValueError: an argument is missing or of the wrong kind, or there is no scale to be had; the message says why.

    Example:
        >>> lr = float(suggest_lr(trainer))
        >>> print(suggest_lr(model, optimizer, loss_of, loader))
    """
    if collective.num_processes() > 1:
        raise ValueError(
            f"suggest_lr looks at the gradients of one process, got {collective.num_processes()}; run it in one, with "
            "the batch size of one"
        )
    if hasattr(trainer_or_model, "get_train_dataloader"):
        return _of_trainer(trainer_or_model)
    for name, value in (("optimizer", optimizer), ("loss_of", loss_of), ("batches", batches)):
        if value is None:
            raise ValueError(
                f"suggest_lr(model, optimizer, loss_of, batches) needs {name}, got None; or pass a Trainer"
            )
    assert optimizer is not None
    assert loss_of is not None
    assert batches is not None
    model, compute = trainer_or_model, loss_of
    if iter(batches) is batches:
        raise ValueError(
            f"batches must be what can be iterated again, got the iterator {type(batches).__name__}, which cannot be "
            "put back; pass the DataLoader, or a list of eight batches"
        )

    def backward(batch: Any) -> float:
        loss = compute(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    with _put_back(model, optimizer):
        first = list(itertools.islice(batches, 3 + _WATCHED))
        return _search(optimizer, map(backward, _over_and_over(first)), can_ask=len(first) == 3 + _WATCHED)


def _of_trainer(trainer: Any) -> SuggestedLR:
    model, owned, accelerator = trainer.model, trainer.optimizer, trainer.accelerator
    number_of_loaders = len(accelerator._dataloaders)
    with _random_numbers(_device_of_model(model)):
        optimizer = trainer.create_optimizer() if owned is None else owned
        try:
            with _put_back(model, optimizer):
                steps = _trainer_steps(trainer, iter(trainer.get_train_dataloader()))
                return _search(optimizer, steps)
        finally:
            trainer.optimizer = owned
            del accelerator._dataloaders[number_of_loaders:]


def _trainer_steps(trainer: Any, batches: Iterator[Any]) -> Iterator[float]:
    """Makes the backward calls of one optimizer step after another, as Trainer does; gives the loss of each."""
    number = trainer.args.gradient_accumulation_steps
    while True:
        micro_batches, num_items = trainer.get_batch_samples(batches, number, trainer.args.device)
        if not micro_batches:
            return
        is_mean = trainer.compute_loss_func is None and not (
            trainer.model_accepts_loss_kwargs and num_items is not None
        )
        total = 0.0
        for micro_batch in micro_batches:
            inputs = trainer._prepare_inputs(micro_batch)
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=num_items)
            loss = loss.mean() / (len(micro_batches) if is_mean else 1)
            loss.backward()
            total += float(loss.detach())
        yield total


def _search(optimizer: Optimizer, losses: Iterator[float], can_ask: bool = True) -> SuggestedLR:
    """Measures optimizer steps until there is a scale, and asks later batches where it may be too low.

    Args:
        optimizer: stepped.
        losses: makes the backward of one optimizer step after another.
        can_ask: whether there are batches enough that are not those of earlier steps.
    """
    ratios = lr_ratios(optimizer)
    search = ScaleSearch(optimizer, ratios)
    later = LaterMeasures(search)
    search.start()
    steps = to_watch = 0
    optimizer.zero_grad()
    try:
        for loss in losses:
            set_lrs(optimizer, [search.lr * ratio for ratio in ratios])
            optimizer.step()
            if not later.is_watching:
                search.take(loss)
            optimizer.zero_grad()
            steps += 1
            if later.is_watching and not loss > 0.0:
                raise ValueError(f"suggest_lr finds no learning rate here: a later loss is not positive ({loss:.3g})")
            if search.obstacle is not None:
                raise ValueError(f"suggest_lr finds no learning rate here: {search.obstacle}")
            scale = search.scale
            may_raise = scale is not None and scale.raised_factor(0.0) > 1.0 and can_ask and later.can_watch
            if may_raise and not later.is_watching:
                later.watch()
                to_watch = 2 + _WATCHED
            to_watch -= 1
            if scale is not None and to_watch <= 0:
                break
        if search.scale is not None:
            lasting = later.take_lasting() if later.is_watching and to_watch <= 0 else None
            factor = search.scale.raised_factor(lasting)
            return SuggestedLR(factor * search.scale.peak_lr, search.scale, steps, lasting)
    finally:
        later.stop()
        if not search.is_over:  # too few batches, or an error of the user's
            search.give_up("it was stopped")
    why = f", {search.silence}" if steps >= 2 else ""
    raise ValueError(f"suggest_lr needs the batches of two optimizer steps, got those of {steps}{why}; give it more")


def _over_and_over(batches: list[Any]) -> Iterator[Any]:
    """As many as may be needed; none where there are none."""
    return itertools.islice(itertools.cycle(batches), 9 + _WATCHED)


def _device_of_model(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def _random_numbers(device: torch.device) -> Iterator[None]:
    """Puts the random numbers of Python, numpy and torch back."""
    states = random.getstate(), np.random.get_state(), get_random_state(device)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        set_random_state(states[2], device)


@contextlib.contextmanager
def _put_back(model: Any, optimizer: Any) -> Iterator[None]:
    """Puts weights, buffers, gradients, training mode, the optimizer and random numbers back.

    Raises:
        ValueError: the weights are out of reach.
    """
    obstacle: Obstacle | None = weights_out_of_reach(optimizer)
    if obstacle is not None:
        raise ValueError(f"suggest_lr cannot work here: {obstacle.reason}; {obstacle.remedy}")
    inner = innermost(optimizer)
    before = snapshot.take(optimizer, [model], 0)
    gradients = [parameter.grad for parameter in model.parameters()]
    lrs = [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in inner.param_groups]
    modes = [module.training for module in model.modules()]
    for parameter in model.parameters():
        parameter.grad = None
    model.train()
    try:
        with _random_numbers(device_of(inner)):
            yield
    finally:
        snapshot.restore(before, optimizer, [model])
        set_lrs(inner, lrs)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
