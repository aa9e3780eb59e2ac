"""A Trainer that makes SALSA's line search: ``SalsaTrainer``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from ..runtime.random_state import get_random_state, set_random_state
from .scheduler import SalsaScheduler


@dataclass
class _MicroBatch:
    """What it takes to compute the loss of a micro-batch again.

    Args:
        arguments: of ``training_step``, all but the model.
        random_state: (n,), uint8, from before its forward pass.
        loss: its share of the step's loss.
    """

    arguments: tuple[Any, ...]
    random_state: Tensor
    loss: Tensor


class SalsaTrainer(Trainer):
    """A Trainer for ``lr_scheduler_type="salsa"``: makes the line search between the backward and the optimizer's step.

    Everything else is Trainer's, and with another ``lr_scheduler_type`` all of it. With gradient accumulation the
    search is on the loss of all micro-batches of the step, whose gradient it follows, and it keeps them until then. The
    gradient is the one before clipping. Dropout drops the same as in the step itself.

    Raises:
        ValueError: when training begins under DeepSpeed or FSDP, or on several devices in one process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._micro_batches: list[_MicroBatch] = []

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Trainer's, followed by a line search where the step's gradient is complete."""
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if not isinstance(scheduler, SalsaScheduler) or scheduler.phase != "line_search":
            return super().training_step(model, inputs, num_items_in_batch)
        self._require_whole_weights()
        state = get_random_state(self.args.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches.append(_MicroBatch((inputs, num_items_in_batch), state, loss))
        if self.accelerator.sync_gradients:
            # An earlier training may have ended amid a step.
            batches = self._micro_batches[-self.current_gradient_accumulation_steps :]
            self._micro_batches = []
            self._search(scheduler, model, batches)
        return loss

    def _search(self, scheduler: SalsaScheduler, model: nn.Module, batches: list[_MicroBatch]) -> None:
        whole = model.module if isinstance(model, DistributedDataParallel) else model
        training_step = super().training_step

        def closure() -> Tensor:
            losses = []
            for batch in batches:
                set_random_state(batch.random_state, self.args.device)
                losses.append(training_step(whole, *batch.arguments))
            return sum(losses[1:], losses[0])

        scaler = getattr(self.accelerator, "scaler", None)
        with _no_backward(self.accelerator):  # the loss, scaled as Trainer does it, is all that is wanted
            scheduler.search(
                whole,
                closure,
                sum([batch.loss for batch in batches[1:]], batches[0].loss),
                gradient_scale=1.0 if scaler is None else scaler.get_scale(),
            )

    def _require_whole_weights(self) -> None:
        remedy = "use DDP, by torchrun or accelerate launch"
        if self.is_deepspeed_enabled:
            where = "under DeepSpeed"
        elif self.is_fsdp_enabled:
            where, remedy = "under FSDP", f"{remedy}, or lr_scheduler_kwargs={{'line_search': False}}"
        elif self.args.n_gpu > 1:
            where = "on several devices in one process"
        else:
            return
        raise ValueError(
            f"SALSA's line search does not work {where}, for it needs the whole weights on one device of each "
            f"process; {remedy}"
        )


@contextmanager
def _no_backward(accelerator: Any) -> Iterator[None]:
    """Inside, ``accelerator.backward`` does nothing."""
    own = vars(accelerator).get("backward")
    accelerator.backward = lambda *args, **kwargs: None
    try:
        yield
    finally:
        if own is None:
            del accelerator.backward
        else:
            accelerator.backward = own
