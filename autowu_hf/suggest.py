"""``suggest_lr``: a peak learning rate from a few optimizer steps, taken back, for a schedule of one's own."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .autowu.course.measures.later_measures import LaterMeasures
from .autowu.course.measures.scale import MOST_RAISED, Scale
from .autowu.course.measures.scale_search import ScaleSearch
from .autowu.course.words import lasting as in_percent
from .rewind.trial import trial
from .runtime import collective
from .runtime.param_groups import lr_ratios, set_lrs
from .runtime.random_state import generators_of, same_random_numbers

if TYPE_CHECKING:
    from transformers import Trainer

_ASKED = 5  # the batches that are asked at a time how much of the slope lasts, where P may be far too low
_ENOUGH = 3 + 2 * _ASKED  # batches, two of which measure P and R, and one begins the way that the others look back on


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
        found += "" if math.isnan(scale.layer_trust) else f", M = {scale.layer_trust:.1e}"
        which = {"polyak": "0.3 P", "trust": "0.2 R", "layers": "0.3 M"}[scale.held_by]
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
    max_grad_norm: float | None = None,
) -> SuggestedLR:
    """Suggests a peak learning rate, from the scale of the first gradients (``autowu.course.measures.scale``).

    It makes two optimizer steps (up to eight, where rounding hides the first ones) on the user's own batches, and six
    or eleven more where the gradients may be mostly noise (``Scale.raised_factor``). It puts everything back: weights,
    buffers, the optimizer's state and LRs, gradients, random numbers and the order of the data. One process only.

    Args:
        trainer_or_model: a Trainer, which has all the rest; or a model.
        optimizer: of the model's parameters, in a loop without Trainer.
        loss_of: model and batch -> the scalar loss.
        batches: what is iterated for batches: a DataLoader or a list, but no iterator, which could not be put back.
        max_grad_norm: to what the loop clips the norm of the gradients; None: it does not, or a Trainer does. SGD's LR
            depends on it, Adam's does not.

    Returns:
        The suggestion.

    Raises:
        ValueError: an argument is missing or of the wrong kind, or there is no scale to be had; the message says why.

    Example:
        >>> lr = float(suggest_lr(trainer))
        >>> print(suggest_lr(model, optimizer, loss_of, loader, max_grad_norm=1.0))
    """
    if collective.num_processes() > 1:
        raise ValueError(
            f"suggest_lr looks at the gradients of one process, got {collective.num_processes()}; run it in one, with "
            "the batch size of one"
        )
    is_trainer = hasattr(trainer_or_model, "get_train_dataloader")
    if max_grad_norm is not None and (is_trainer or not max_grad_norm > 0.0):
        raise ValueError(f"max_grad_norm must be positive, got {max_grad_norm}; leave it out, as a Trainer has its own")
    if is_trainer:
        return _of_trainer(trainer_or_model)
    if optimizer is None or loss_of is None or batches is None:
        given = {"optimizer": optimizer, "loss_of": loss_of, "batches": batches}
        lacking = next(name for name, value in given.items() if value is None)
        raise ValueError(f"suggest_lr needs {lacking} beside a model, got None; pass all three, or a Trainer alone")
    model, compute = cast("nn.Module", trainer_or_model), loss_of
    if isinstance(batches, Iterator):
        raise ValueError(
            f"batches must be what can be iterated again, got the iterator {type(batches).__name__}, which cannot be "
            "put back; pass the DataLoader, or a list of thirteen batches"
        )

    def backward(batch: Any) -> float:
        loss = compute(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        _clip(model, max_grad_norm)
        return float(loss.detach())

    with same_random_numbers(_device_of_model(model), generators_of(batches)), trial(model, optimizer):
        first = list(itertools.islice(batches, _ENOUGH))
        over_and_over = itertools.islice(itertools.cycle(first), 6 + _ENOUGH)
        return _search(optimizer, map(backward, over_and_over), len(first))


def _of_trainer(trainer: Any) -> SuggestedLR:
    model, owned, accelerator = trainer.model, trainer.optimizer, trainer.accelerator
    number_of_loaders = len(accelerator._dataloaders)
    with same_random_numbers(_device_of_model(model)):
        optimizer = trainer.create_optimizer() if owned is None else owned
        try:
            with trial(model, optimizer), _checkpointing(trainer.args, model):
                steps = _trainer_steps(trainer, iter(trainer.get_train_dataloader()))
                return _search(optimizer, steps)
        finally:
            trainer.optimizer = owned
            del accelerator._dataloaders[number_of_loaders:]


@contextlib.contextmanager
def _checkpointing(args: Any, model: Any) -> Iterator[None]:
    """Checkpoints activations within the block, as the Trainer would, so that the batches fit into memory."""
    name = "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
    enable = getattr(model, f"{name}_enable", None)
    is_new = getattr(args, name) and not getattr(model, f"is_{name}", False)
    if is_new and enable is not None:
        enable(**{f"{name}_kwargs": getattr(args, f"{name}_kwargs")})
    try:
        yield
    finally:
        if is_new and enable is not None:
            getattr(model, f"{name}_disable")()


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
            with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=num_items)
            loss = loss.mean() / (len(micro_batches) if is_mean else 1)
            loss.backward()
            total += float(loss.detach())
        _clip(trainer.model, trainer.args.max_grad_norm)
        yield total


def _clip(model: nn.Module, max_grad_norm: float | None) -> None:
    if max_grad_norm:  # the hooks of the measurement see by how much
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)


def _search(optimizer: Optimizer, losses: Iterator[float], num_batches: float = math.inf) -> SuggestedLR:
    """Measures optimizer steps until there is a scale, and asks later batches where it may be too low; twice, where the
    first answer raises it by as much as one may.

    Args:
        optimizer: stepped.
        losses: makes the backward of one optimizer step after another.
        num_batches: how many of them are not those of earlier steps.
    """
    ratios = lr_ratios(optimizer)
    search = ScaleSearch(optimizer, ratios)
    later = LaterMeasures(search)
    search.start()
    steps = 0

    def stepped() -> Iterator[float]:
        nonlocal steps
        optimizer.zero_grad()
        for loss in losses:
            set_lrs(optimizer, [search.lr * ratio for ratio in ratios])
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            yield loss

    taken = stepped()
    try:
        for loss in taken:
            search.take(loss)
            if search.obstacle is not None:
                raise ValueError(f"suggest_lr finds no learning rate here: {search.obstacle}")
            if search.scale is not None:
                raised = _raised(search.scale, later, taken, num_batches - steps) if later.can_watch else 1.0
                return SuggestedLR(raised * search.scale.peak_lr, search.scale, steps, later.lasting)
    finally:
        later.stop()
        if not search.is_over:  # too few batches, or an error of the user's
            search.give_up("it was stopped")
    why = f", {search.silence}" if steps >= 2 else ""
    raise ValueError(f"suggest_lr needs the batches of two optimizer steps, got those of {steps}{why}; give it more")


def _raised(scale: Scale, later: LaterMeasures, taken: Iterator[float], num_batches: float) -> float:
    """By what later batches raise the scale's LR; 1 where they are not asked, or are too few.

    Args:
        scale: of the first batches.
        later: asks them.
        taken: the losses of one more optimizer step after another.
        num_batches: how many of them are not those of earlier steps.
    """
    raised = 1.0
    if scale.raised_factor(0.0) == 1.0 or num_batches <= _ASKED:
        return raised
    later.watch()
    for number in (1 + _ASKED, _ASKED):  # the first one has no way behind it
        num_batches -= number
        asked = list(itertools.islice(taken, number))
        if bad := [loss for loss in asked if not loss > 0.0]:
            raise ValueError(f"suggest_lr finds no learning rate here: a later loss is not positive ({bad[0]:.3g})")
        if len(asked) < number:
            break
        factor = scale.raised_factor(later.take_lasting(), raised)
        raised *= factor
        if factor < MOST_RAISED or num_batches < _ASKED:
            break
    return raised


def _device_of_model(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
