"""REX, the reflected exponential schedule of Chen, Wolfe and Kyrillidis (arXiv 2107.04197), with warm-up."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .runtime.checks import check_number, plain, whole
from .runtime.methods import register_method
from .runtime.param_groups import common_lr, drop_empty, have_weights, match_ratios
from .shapes import rex_decay

SAMPLINGS = ("step", "epoch")


def get_rex_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    sampling: str | Sequence[float] = "step",
    steps_per_epoch: int | None = None,
    last_epoch: int = -1,
) -> LambdaLR:
    """A linear warm-up from 0 to the optimizer's LR, then REX to 0: lr (1 - s) / (1/2 + (1 - s) / 2), where s is the
    share of the steps after the warm-up that have passed.

    REX stays high for longer than a cosine and then falls fast; the paper finds it the best or the second best of the
    usual profiles at small and large budgets. Its LR is still to be tuned.

    Args:
        optimizer: whose groups' LRs are the peaks.
        num_warmup_steps: W, from 0 to less than ``num_training_steps``.
        num_training_steps: T, the steps of the whole run.
        sampling: when the LR follows the profile, the paper's sampling rate: "step", "epoch", or the milestones at
            which it does, as ascending shares of T in (0, 1), [0.5, 0.75] for example. In between it stays.
        steps_per_epoch: scheduler steps in an epoch, for "epoch": under accelerate, which steps a prepared schedule
            once per process, the optimizer's times the number of processes. Trainer fills it in.
        last_epoch: the steps done when a run goes on, else -1.

    Returns:
        The schedule, to be stepped once per optimizer step.

    Raises:
        ValueError: an argument is outside its limits.
    """
    num_training_steps = _number("num_training_steps", num_training_steps)
    num_warmup_steps = _number("num_warmup_steps", num_warmup_steps)
    steps_per_epoch = None if steps_per_epoch is None else _number("steps_per_epoch", steps_per_epoch)
    sampling = _plain_shares(sampling)
    if num_training_steps < 1:
        raise ValueError(f"num_training_steps is {num_training_steps}, but REX needs 1 at least; pass the run's steps")
    if not 0 <= num_warmup_steps < num_training_steps:
        raise ValueError(
            f"num_warmup_steps is {num_warmup_steps}, but must be from 0 to less than num_training_steps, "
            f"{num_training_steps}; pass fewer"
        )
    if sampling not in SAMPLINGS and not _is_milestones(sampling):
        raise ValueError(
            f"sampling is {sampling!r}, but must be one of {', '.join(SAMPLINGS)}, or milestones that ascend and lie "
            "inside (0, 1), such as [0.5, 0.75]"
        )
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch}, but must be 1 at least; pass None where it is unknown")
    factor = functools.partial(
        rex_factor,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        sampling=sampling,
        steps_per_epoch=steps_per_epoch,
    )
    return RexLR(optimizer, factor, whole(last_epoch))


class RexLR(LambdaLR):
    """torch's ``LambdaLR``, which takes in parameter groups that are added in mid-run, and lets go of empty ones."""

    def __init__(self, optimizer: Any, factor: Any, last_epoch: int) -> None:
        self._had_weights = have_weights(optimizer)
        super().__init__(optimizer, factor, last_epoch)

    def get_lr(self) -> list[float | Tensor]:  # type: ignore[override, unused-ignore]
        """The LR of every parameter group for the next step."""
        self._match_groups()
        return super().get_lr()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's."""
        self._match_groups()
        super().load_state_dict(state_dict)

    def _match_groups(self) -> None:
        if len(self.optimizer.param_groups) == len(self.base_lrs):
            return
        for number in reversed(drop_empty(self.base_lrs, self.optimizer, self._had_weights)):
            del self.lr_lambdas[number]
        lrs = [float(lr) for lr in self.base_lrs]
        own = common_lr(self.optimizer, lrs) or 1.0  # of zeros
        ratios = [lr / own for lr in lrs]
        match_ratios(ratios, self.optimizer, own)
        added = ratios[len(lrs) :]
        self.base_lrs += [ratio * own for ratio in added]
        self.lr_lambdas += [self.lr_lambdas[0]] * len(added)


def _number(name: str, value: Any) -> Any:
    """A number of steps as Python's number; a fraction of one is left to the caller, as by transformers' schedules."""
    number = whole(plain(value))
    check_number(name, number)
    return number


def _plain_shares(sampling: Any) -> Any:
    """Milestones as a list of floats; what is none as it is."""
    try:
        return sampling if isinstance(sampling, str) else [float(share) for share in sampling]
    except (TypeError, ValueError):
        return sampling


def _is_milestones(sampling: Any) -> bool:
    """Whether these are shares of a run, one at least, that ascend and lie inside (0, 1)."""
    try:
        return len(sampling) > 0 and all(a < b for a, b in itertools.pairwise([0.0, *sampling, 1.0]))
    except TypeError:
        return False


def rex_factor(
    step: int,
    *,
    num_warmup_steps: int,
    num_training_steps: int,
    sampling: str | Sequence[float],
    steps_per_epoch: int | None,
) -> float:
    """The factor on the peak LR after ``step`` steps; the other arguments are ``get_rex_schedule_with_warmup``'s.

    Raises:
        ValueError: ``sampling`` is "epoch" and the epoch's length is unknown.
    """
    if step >= num_training_steps:
        return 0.0
    if step < num_warmup_steps:
        return step / num_warmup_steps
    if sampling == "epoch":
        if steps_per_epoch is None:
            if step == 0:
                return 1.0  # Trainer tells the epoch's length when training begins
            raise ValueError('sampling is "epoch", but the epoch\'s length is unknown; pass steps_per_epoch')
        step = step - step % steps_per_epoch
    elif not isinstance(sampling, str):
        milestones = [round(share * num_training_steps) for share in sampling]
        passed = bisect.bisect_right(milestones, step)
        step = milestones[passed - 1] if passed else 0
    return rex_decay(max(step - num_warmup_steps, 0) / (num_training_steps - num_warmup_steps))


def tell_steps_per_epoch(scheduler: Any, steps: int | None) -> None:
    """Tells a REX schedule that was made without it the length of an epoch; other schedules stay as they are.

    Args:
        scheduler: any schedule, or accelerate's wrap of one.
        steps: in scheduler steps; None when unknown.
    """
    factors = getattr(getattr(scheduler, "scheduler", scheduler), "lr_lambdas", [])
    for i, factor in enumerate(factors):
        if getattr(factor, "func", None) is rex_factor and factor.keywords["steps_per_epoch"] is None:
            factors[i] = functools.partial(rex_factor, **{**factor.keywords, "steps_per_epoch": steps})


register_method("rex", get_rex_schedule_with_warmup, is_adaptive=False)
