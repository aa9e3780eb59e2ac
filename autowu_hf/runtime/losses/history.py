"""Losses of optimizer steps: taken in one by one, gathered over processes only when they are needed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import collective
from ..checks import caller_level
from .doubts import warn_of_divisor
from .tap import LossTap
from .value import loss_value

Array = npt.NDArray[np.float64]


class MissingLossWarning(UserWarning):
    """A schedule that needs losses was stepped without one."""


_MISSING = (
    "AutoWU saw no loss in this step; without losses it finds no learning rate. "
    "Call accelerator.backward(loss) instead of loss.backward(), or pass the loss: scheduler.step(loss); in Lightning, "
    'have it passed: {"scheduler": ..., "interval": "step", "monitor": "train_loss", "reduce_on_plateau": True}'
)


class AccumulatedLossWarning(UserWarning):
    """A schedule may have been handed only a part of the loss of a step."""


_ACCUMULATED = (
    "{num} backward calls add up to the gradient of an optimizer step, and step() was handed a loss: pass the sum of "
    "the losses that were back-propagated, total += loss.detach() and then scheduler.step(total). Where you do, filter "
    "this warning"
)
_STEPPED_AT_EACH = (
    "the schedule is stepped {num} times for an optimizer step, once after each of its backward calls: call "
    "scheduler.step(total) after optimizer.step() only, with the sum of the losses that were back-propagated, and let "
    "num_training_steps count optimizer steps"
)


_COUNTED = 6
"""So many floats that go up by equal steps from the start are no losses."""

_COUNTED_FROM_0 = 3
"""So many are a count for sure, where the first is exactly 0."""

_COUNTS = (
    "what step() gets goes up by {step:g} each time, to {last:g} now, like a count of epochs. {taken}. Pass the loss, "
    "scheduler.step(loss), or nothing where accelerator.backward is called"
)


class LossHistory:
    """The loss of every optimizer step while it is open; until ``flush`` the newest stay on their process and device.

    Args:
        optimizer: the one whose steps count; None for any.
        missing: the warning where a step has no loss.
        model: the model that is trained, where it is known.
        is_quiet: whether it warns of nothing, and yields to a history that hears the same.

    Raises:
        TypeError: the model is no module.

    Attributes:
        gathered: (n,), float64, the losses gathered so far, the mean over processes, in the loss's own unit.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        missing: str = _MISSING,
        model: nn.Module | None = None,
        is_quiet: bool = False,
    ) -> None:
        if not (model is None or isinstance(model, nn.Module)):
            raise TypeError(f"model is {model!r}, but must be a torch.nn.Module, whose buffers are rewound, or None")
        self._missing = missing
        self._model = model
        self.gathered: Array = np.empty(0)
        self._pending: list[Tensor | float] = []
        self._warned = self._said_accumulated = self._said_divisor = self._is_handed = False
        self._num_first: int | None = None  # of the losses that the first scheduler step found, until the second one
        self._first: list[float] = []
        self._tap = LossTap(optimizer)
        self._is_quiet = self._tap.yields = is_quiet

    def open(self) -> None:
        """Listens to every backward from now on."""
        self._tap.listen()

    def observe(self, loss: Any) -> None:
        """Takes in the loss of the optimizer step just done; of all since the last call, where there were several.

        Args:
            loss: a scalar tensor or a number; None for those that ``accelerator.backward`` saw.

        Raises:
            ValueError: the loss is not a scalar, or it is None and another scheduler heard the same backward.
        """
        overheard = self._tap.take(wanted=loss is None and not self._is_quiet)
        if loss is not None:
            is_usual = type(loss) is Tensor and loss.is_floating_point()  # this is quick
            self._pending.append(loss_value(loss, "step()") if is_usual else _checked(loss))
            self._is_handed = overheard is None
            if type(loss) is float and not self._is_quiet:
                self.look_for_count(loss)
        elif overheard is not None:
            self._pending.extend(overheard)  # none while micro-batches accumulate
            if self._num_first != 0:  # only at the first two steps
                self._drop_earlier(len(overheard))
        elif not self._warned and not self._is_quiet:
            self._warned = True
            warnings.warn(self._missing, MissingLossWarning, stacklevel=caller_level())

    @property
    def share(self) -> float:
        """Of the last step's loss, that whose gradient was taken (``LossTap.share``)."""
        return 1.0 if self._is_handed else self._tap.share

    def say_accumulated(self, num_backwards: int, is_stepped_at_each: bool) -> None:
        """Warns once where a step has several backward calls, and its loss is handed in, or the schedule steps at each.

        Args:
            num_backwards: the backward calls of a step.
            is_stepped_at_each: whether the schedule is.
        """
        if (self._is_handed or is_stepped_at_each) and not self._said_accumulated:
            self._said_accumulated = True
            said = (_STEPPED_AT_EACH if is_stepped_at_each else _ACCUMULATED).format(num=num_backwards)
            warnings.warn(said, AccumulatedLossWarning, stacklevel=caller_level())

    def is_divided(self, divisor: float) -> bool:
        """Whether gradients that a loop has divided after their backward are taken for those of the loss that was
        handed in, and not for clipped ones; warns once where they are. ``divisor``: theirs.
        """
        if self._is_handed and not self._said_divisor:
            self._said_divisor = True
            warn_of_divisor(divisor)
        return self._is_handed

    def _drop_earlier(self, num_new: int) -> None:
        """Drops the losses of optimizer steps before the schedule's first step: where that finds more of them than the
        second one, a loop has begun to step the schedule later than the optimizer.
        """
        if self._num_first is None:
            is_first = len(self.gathered) == 0 and len(self._pending) == num_new
            self._num_first = num_new if is_first else 0
        elif self._num_first:
            earlier = max(self._num_first - max(num_new, 1), 0)
            in_gathered = min(earlier, len(self.gathered))
            self.gathered, self._num_first = self.gathered[in_gathered:], 0
            del self._pending[: earlier - in_gathered]

    def forget_earlier(self) -> None:
        """Drops all that was heard up to now; the schedule begins here."""
        self._tap.take(wanted=False)
        self.reset()

    def look_for_count(self, loss: float) -> None:
        """Warns once where the first losses that were handed in are a count, as of epochs, which torch's schedules
        once took; a ValueError where they count from 0. ``observe`` asks it; beyond the warm-up, in which a 0 may have
        ended that at once, the schedule does.
        """
        if len(self._first) >= _COUNTED:
            return
        self._first.append(loss)
        needed = _COUNTED_FROM_0 if self._first[0] == 0.0 else _COUNTED
        if len(self._first) != needed or not all(map(math.isfinite, self._first)):
            return
        increments = np.diff(self._first)
        if increments[0] > 0.0 and np.allclose(increments, increments[0], rtol=1e-6, atol=0.0):
            if needed == _COUNTED_FROM_0:
                taken = "step() takes the loss of the optimizer step just done"
                raise ValueError(_COUNTS.format(last=loss, step=increments[0], taken=taken))
            said = _COUNTS.format(last=loss, step=increments[0], taken="It is taken for the loss")
            warnings.warn(said, UserWarning, stacklevel=caller_level())

    def models(self) -> Sequence[nn.Module]:
        """The model that was given, or those of the accelerator that was heard last; none before one was."""
        return self._tap.models() if self._model is None else [self._model]

    def flush(self) -> None:
        """Gathers the pending losses; with several processes, one collective that all must join."""
        if self._pending:
            self._keep(collective.gather_mean(self._local()))

    def flush_uneven(self, longest: int) -> None:
        """Gathers pending losses of which some processes have fewer: the mean over those that have one.

        Args:
            longest: the largest number of pending losses of a process.
        """
        if longest:
            self._pending += [math.nan] * (longest - len(self._pending))
            self._keep(collective.gather_mean(self.pending(), skip_nan=True))  # one may have none, and no dtype

    def _keep(self, losses: Tensor) -> None:
        self.gathered = np.concatenate([self.gathered, losses.numpy()])
        self._pending = []

    def reset(self) -> None:
        """Forgets all losses so far."""
        self.gathered, self._pending = np.empty(0), []

    def close(self) -> None:
        """Listens no more. With several processes the pending losses wait for a ``flush``."""
        if collective.num_processes() == 1:
            self.flush()
        self._tap.stop()

    def pending(self) -> Tensor:
        """(k,), float64, on the CPU: this process's losses that were not gathered yet."""
        return self._local().cpu().to(torch.float64)

    def set_pending(self, losses: Tensor) -> None:
        """Replaces what was not gathered yet; ``losses`` is (k,)."""
        self._pending = losses.tolist()

    def _local(self) -> Tensor:
        first = next((loss for loss in self._pending if isinstance(loss, Tensor)), None)
        if first is None:
            return torch.tensor(self._pending, dtype=torch.float64)
        return torch.stack([torch.as_tensor(loss, dtype=first.dtype, device=first.device) for loss in self._pending])

    def state_dict(self) -> dict[str, Any]:
        """Gathered and pending losses, the latter of this process; no collective."""
        return {"gathered": torch.from_numpy(self.gathered.copy()), "pending": self.pending()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.gathered = state["gathered"].cpu().numpy().astype(np.float64)
        self.set_pending(state["pending"])


def _checked(loss: Any) -> Tensor | float:
    if isinstance(loss, Tensor) and (loss.is_floating_point() or loss.is_complex()):
        return loss_value(loss, "step()")
    if isinstance(loss, (Tensor, int, np.integer)):
        raise ValueError(
            f"step() takes the loss of the optimizer step just done, got the whole number {float(loss):g}; torch's "
            "schedules once took an epoch there. Pass the loss, or nothing where accelerator.backward is called"
        )
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise ValueError(
            f"the loss passed to step() must be a scalar tensor or a number, got {type(loss).__name__}"
        ) from None
