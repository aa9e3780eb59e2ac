"""``suggest_lr``: a peak learning rate from a few optimizer steps, taken back, for a schedule of one's own."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .autowu.course.suggestion import ENOUGH, MOST_STEPS, SuggestedLR, suggested
from .rewind.trial import trial
from .runtime import collective
from .runtime.param_groups import innermost
from .runtime.random_state import generators_of, same_random_numbers

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["SuggestedLR", "suggest_lr"]

logger = logging.getLogger(__name__)

_NOTHING = object()


def suggest_lr(
    trainer_or_model: Trainer | nn.Module,
    optimizer: Optimizer | None = None,
    loss_of: Callable[[Any, Any], Tensor] | None = None,
    batches: Iterable[Any] | None = None,
    max_grad_norm: float | None = None,
) -> SuggestedLR:
    """Suggests a peak learning rate, from the scale of the first gradients (``autowu.course.measures.scale``).

    It makes two optimizer steps (up to eight, where rounding hides the first ones) on the user's own batches, and six
    or eleven more where the gradients may be mostly noise (``lasting.may_be_raised``). Where they may be those of a
    transient (``may_be_transient``), it trains for eight steps, and for 20 to 45 where the losses fall fast. It puts
    everything back: weights, buffers, the optimizer's state and LRs, gradients, random numbers and the order of the
    data; what a stream of data has given stays given, and so do other attributes that a forward sets. A schedule that
    measures the same optimizer takes no notice. One process only.

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
    if max_grad_norm is not None and is_trainer:
        raise ValueError(f"a Trainer has a max_grad_norm of its own, got {max_grad_norm} beside it; leave it out")
    if max_grad_norm is not None and not max_grad_norm > 0.0:
        raise ValueError(f"max_grad_norm must be positive, got {max_grad_norm}; leave it out where nothing is clipped")
    if is_trainer:
        return _of_trainer(trainer_or_model)
    if optimizer is None or loss_of is None or batches is None:
        given = {"optimizer": optimizer, "loss_of": loss_of, "batches": batches}
        lacking = next(name for name, value in given.items() if value is None)
        raise ValueError(f"suggest_lr needs {lacking} beside a model, got None; pass all three, or a Trainer alone")
    if not callable(loss_of):
        raise ValueError(
            f"loss_of must be a function of model and batch, got {type(loss_of).__name__}; batches come last"
        )
    model, compute = cast("nn.Module", trainer_or_model), loss_of
    if isinstance(batches, Iterator):
        raise ValueError(
            f"batches must be what can be iterated again, got the iterator {type(batches).__name__}, which cannot be "
            "put back; pass the DataLoader, or a list of thirteen batches"
        )

    def backward(batch: Any) -> float:
        loss = _checked(compute(model, batch))
        loss.backward()  # type: ignore[no-untyped-call]
        _clip(model, max_grad_norm)
        return float(loss.detach())

    _require_no_closure(optimizer)
    with same_random_numbers(_device_of_model(model), generators_of(batches)), trial(model, optimizer):
        first = list(itertools.islice(batches, ENOUGH))
        over_and_over = itertools.islice(itertools.cycle(first), MOST_STEPS)
        return suggested(optimizer, map(backward, over_and_over), len(first))


def _require_no_closure(optimizer: Any) -> None:
    """A ValueError where the optimizer cannot be stepped without a closure."""
    inner = innermost(optimizer)
    closure = inspect.signature(type(inner).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"suggest_lr steps the optimizer without a closure, which {type(inner).__name__} needs")


def _of_trainer(trainer: Any) -> SuggestedLR:
    from transformers import Trainer

    if type(trainer).training_step is not Trainer.training_step:
        logger.info(
            "suggest_lr calls compute_loss itself, and not %s.training_step; what that changes of the loss or of the "
            "gradients is not in the suggestion",
            type(trainer).__name__,
        )
    if getattr(trainer.args, "neftune_noise_alpha", None) is not None:
        logger.info("suggest_lr leaves out the noise of neftune_noise_alpha, which Trainer adds in its own steps only")
    model, owned, accelerator = trainer.model, trainer.optimizer, trainer.accelerator
    number_of_loaders = len(accelerator._dataloaders)
    with same_random_numbers(_device_of_model(model)):
        optimizer = trainer.create_optimizer() if owned is None else owned
        try:
            _require_no_closure(optimizer)
            with (
                trial(model, optimizer),
                _checkpointing(trainer.args, model),
                _autocast_kept(accelerator),
            ):
                steps = _trainer_steps(trainer, trainer.get_train_dataloader())
                return suggested(optimizer, steps)
        finally:
            trainer.optimizer = owned
            del accelerator._dataloaders[number_of_loaders:]


@contextlib.contextmanager
def _autocast_kept(accelerator: Any) -> Iterator[None]:
    """Leaves autocast as it was after the block; older releases of accelerate leave it on where an error ends it."""
    if accelerator.mixed_precision == "no":
        yield
        return
    kind = accelerator.device.type
    depth = torch.autocast_increment_nesting()
    try:
        with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)):
            yield
    finally:
        while torch.autocast_decrement_nesting() >= depth:
            pass
        if depth == 1:
            torch.clear_autocast_cache()


@contextlib.contextmanager
def _checkpointing(args: Any, model: Any) -> Iterator[None]:
    """Checkpoints activations within the block, as the Trainer would, so that the batches fit into memory. What that
    sets on the modules, forward hooks included, is put back: transformers' own way to end it leaves some.
    """
    name = "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
    enable = getattr(model, f"{name}_enable", None)
    if enable is None or not getattr(args, name) or getattr(model, f"is_{name}", False):
        yield
        return
    before = [(module, {**vars(module)}, {*module._forward_hooks}) for module in model.modules()]
    enable(**{f"{name}_kwargs": getattr(args, f"{name}_kwargs")})
    is_set = [
        {name for name, value in vars(own).items() if had.get(name, _NOTHING) is not value} for own, had, _ in before
    ]
    try:
        yield
    finally:
        getattr(model, f"{name}_disable")()
        for (module, had, hooks), names in zip(before, is_set, strict=True):
            for hook in {*module._forward_hooks} - hooks:
                del module._forward_hooks[hook]
            for own in names:
                vars(module).pop(own, None)
                vars(module).update({own: had[own]} if own in had else {})


def _trainer_steps(trainer: Any, loader: Iterable[Any]) -> Iterator[float]:
    """Makes the backward calls of one optimizer step after another, as Trainer does; gives the loss of each. An epoch
    of one step is gone through twice.
    """
    number, steps, batches = trainer.args.gradient_accumulation_steps, 0, iter(loader)
    while True:
        micro_batches, num_items = trainer.get_batch_samples(batches, number, trainer.args.device)
        if not micro_batches and steps == 1:
            micro_batches, num_items = trainer.get_batch_samples(iter(loader), number, trainer.args.device)
        if not micro_batches:
            return
        steps += 1
        is_mean = trainer.compute_loss_func is None and not (
            trainer.model_accepts_loss_kwargs and num_items is not None
        )
        total = 0.0
        for micro_batch in micro_batches:
            inputs = trainer._prepare_inputs(micro_batch)
            with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=num_items)
            loss = _checked(loss.mean() / (len(micro_batches) if is_mean else 1))
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        _clip(trainer.model, trainer.args.max_grad_norm)
        yield total


def _checked(loss: Any) -> Tensor:
    """The loss of a batch; a ValueError where it cannot be back-propagated."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss of a batch must be a scalar tensor, got {got}; return loss.mean(), or outputs.loss")
    if not loss.requires_grad:
        raise ValueError(
            "the loss of a batch has no gradient; train at least one weight of the model, do not detach the loss, and "
            "call suggest_lr outside torch.no_grad()"
        )
    return loss


def _clip(model: nn.Module, max_grad_norm: float | None) -> None:
    if max_grad_norm:  # the hooks of the measurement see by how much
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)


def _device_of_model(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
