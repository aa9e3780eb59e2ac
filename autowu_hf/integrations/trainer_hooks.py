"""What transformers' Trainer is told of a schedule that only looks, or goes back: its methods, wrapped once.

``install`` and ``remove`` are called by registration. The methods of ``Trainer`` itself are wrapped when the first one
is made, because importing it takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, EarlyStoppingCallback

from ..runtime.wrapping import Function, Wrap, unwrap, wrap
from .trainer_callback import AutoWUCallback, adaptive


def _add_callback(this: Wrap) -> Function:
    """Gives every new Trainer an ``AutoWUCallback``, next to its ``DefaultFlowCallback``.

    Done where Trainer collects its callbacks, so that one passed by the user takes the automatic one's place, and its
    position before the reporting callbacks, instead of standing beside it. (Extending ``DEFAULT_CALLBACKS`` would
    double it, and would have to import all of ``transformers.trainer``.)
    """

    def add_callback(self: Any, callback: Any) -> None:
        if not this.is_active:
            this.original(self, callback)
            return
        _install_trainer()
        added = callback() if isinstance(callback, type) else callback
        if isinstance(added, AutoWUCallback):
            for i, present in enumerate(self.callbacks):
                if isinstance(present, AutoWUCallback):
                    self.callbacks[i] = added
                    return
        this.original(self, added)
        is_first = isinstance(added, DefaultFlowCallback)
        if is_first and not any(isinstance(c, AutoWUCallback) for c in self.callbacks):
            this.original(self, AutoWUCallback())

    return add_callback


def _on_train_begin(this: Wrap) -> Function:
    """The schedule hears of early stopping."""

    def on_train_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        scheduler = adaptive(self.lr_scheduler)
        if this.is_active and scheduler is not None and _judges(self.callbacks):
            scheduler.expect_early_stopping()
        return this.original(self, *args, **kwargs)

    return on_train_begin


def _judges(callbacks: Iterable[Any]) -> list[EarlyStoppingCallback]:
    return [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]


def _on_evaluate(this: Wrap) -> Function:
    """Early stopping neither stops nor counts while the schedule only looks."""

    def on_evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        scheduler = adaptive(self.lr_scheduler)
        present = self.callbacks
        judges = _judges(present)
        if not (this.is_active and judges and scheduler is not None and scheduler.is_looking):
            return this.original(self, *args, **kwargs)
        _own(self).say_it_looks(scheduler, type(judges[0]).__name__)
        self.callbacks = [c for c in present if c not in judges]
        try:
            return this.original(self, *args, **kwargs)
        finally:
            self.callbacks = present

    return on_evaluate


def _report_to_hp_search(this: Wrap) -> Function:
    """The pruner of a hyperparameter search does not hear of evaluations while the schedule only looks."""

    def report(self: Any, trial: Any, *args: Any, **kwargs: Any) -> Any:
        scheduler = adaptive(self.lr_scheduler)
        if not (this.is_active and trial is not None and scheduler is not None and scheduler.is_looking):
            return this.original(self, trial, *args, **kwargs)
        _own(self.callback_handler).say_it_looks(scheduler, "the hyperparameter search")
        return None

    return report


def _maybe_log_save_evaluate(this: Wrap) -> Function:
    """The sum of the losses goes back with the weights."""

    def log_save_evaluate(self: Any, tr_loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = this.original(self, tr_loss, *args, **kwargs)
        scheduler = adaptive(self.lr_scheduler)
        if this.is_active and scheduler is not None:
            loss_sum = _own(self.callback_handler).loss_sum
            if loss_sum is not None:
                loss_sum.follow(self, tr_loss, scheduler)
        return result

    return log_save_evaluate


def _save_checkpoint(this: Wrap) -> Function:
    """The losses of all ranks are in the state that rank 0 saves, also where a later callback or an evaluation asked
    for that.
    """

    def save(self: Any, *args: Any, **kwargs: Any) -> Any:
        scheduler = adaptive(self.lr_scheduler)
        if this.is_active and scheduler is not None and len(scheduler.pending_losses()):  # as many on each of them
            scheduler.flush()
        return this.original(self, *args, **kwargs)

    return save


def _hyperparameters(this: Wrap) -> Function:
    """The model card names the LR that was found, or says that none was."""

    def extract(trainer: Any) -> Any:
        found = this.original(trainer)
        scheduler = adaptive(trainer.lr_scheduler)
        if this.is_active and scheduler is not None:
            found["learning_rate"] = scheduler.lr_in_words()
        return found

    return extract


def _own(handler: Any) -> AutoWUCallback:
    """The callback of a Trainer; one without effect where the user has removed it."""
    return next((c for c in handler.callbacks if isinstance(c, AutoWUCallback)), None) or AutoWUCallback()


_HOOKS = (
    (CallbackHandler, "add_callback", _add_callback),
    (CallbackHandler, "on_train_begin", _on_train_begin),
    (CallbackHandler, "on_evaluate", _on_evaluate),
)
_TRAINER_HOOKS = {
    "_report_to_hp_search": _report_to_hp_search,
    "_maybe_log_save_evaluate": _maybe_log_save_evaluate,
    "_save_checkpoint": _save_checkpoint,
}


def install() -> None:
    """Wraps what can be wrapped without importing Trainer; does nothing to what is wrapped already."""
    for owner, name, make in _HOOKS:
        wrap(owner, name, make)


def _install_trainer() -> None:
    module = sys.modules.get("transformers.trainer")
    if module is None:
        return
    for name, make in _TRAINER_HOOKS.items():
        if hasattr(module.Trainer, name):  # they are private
            wrap(module.Trainer, name, make)
    if hasattr(sys.modules["transformers.modelcard"], "extract_hyperparameters_from_trainer"):
        wrap(sys.modules["transformers.modelcard"], "extract_hyperparameters_from_trainer", _hyperparameters)


def remove() -> None:
    """Puts the original methods back."""
    for owner, name, _ in _HOOKS:
        unwrap(owner, name)
    module = sys.modules.get("transformers.trainer")
    if module is not None:
        for name in _TRAINER_HOOKS:
            unwrap(module.Trainer, name)
        unwrap(sys.modules["transformers.modelcard"], "extract_hyperparameters_from_trainer")
