"""``get_autolrs_schedule``: an AutoLRS schedule from options, like transformers' ``get_*_schedule`` functions."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from .scheduler import AutoLRSScheduler
from .stages import AutoLRSSettings


def get_autolrs_schedule(
    optimizer: Optimizer,
    num_training_steps: int,
    num_warmup_steps: int = 0,
    *,
    min_lr: float = 1e-5,
    max_lr: float = 0.1,
    first_stage: int | None = None,
    longest_stage: int = 8000,
    num_candidates: int = 10,
    kappa: float = 1e6,
    validation_loss: Callable[[], float] | None = None,
    model: nn.Module | None = None,
) -> AutoLRSScheduler:
    """An AutoLRS schedule (Jin et al. 2021, arXiv 2105.10762): a constant LR per stage, found by trying some.

    A stage has a search and tau steps of training. The search tries ``num_candidates`` LRs, proposed by a Gaussian
    process, for tau' = tau / ``num_candidates`` steps each, all from the same state; an exponential fitted to their
    losses forecasts the loss after tau steps, and the LR with the lowest forecast is used. tau doubles from stage to
    stage. So half of the steps of a run are spent on searches. A data loader that accelerate prepared gives every
    candidate, and the training that follows, the same batches.

    Args:
        optimizer: of any torch kind. Its LR does not matter without a ramp, only the ratios of its groups' LRs.
        num_training_steps: T, the scheduler steps of the whole run, search included. With ten candidates 101 at least.
        num_warmup_steps: scheduler steps of a linear ramp to the optimizer's own LR before the first stage. Without a
            ramp the first step is made at ``min_lr``. A run that is resumed without its state, and with too few steps
            left for ramp and stage, shortens the ramp; without room for a stage it trains at the optimizer's own LR.
        min_lr: the lowest LR to try, in optimizer units, positive.
        max_lr: the highest, above ``min_lr``.
        first_stage: tau of the first stage in optimizer steps, five for each candidate at least. None: a thirtieth of
            the steps, from 100 to the paper's 1000.
        longest_stage: tau at which the doubling ends, 8000 in the paper.
        num_candidates: at least 2, 10 in the paper.
        kappa: weight of the standard deviation in what is tried, not negative, 1e6 in the authors' code: almost only
            exploration.
        validation_loss: called 16 times per candidate in the stages that follow the first one of ``longest_stage``,
            and returns the validation loss of this process's part of the data; the forecast is then made from these.
            None: from training losses everywhere. (Trainer: see ``AutoLRSValidationCallback``.)
        model: whose buffers (of batch norm) are restored too, in a loop without accelerate.

    Returns:
        The scheduler, to be stepped once per optimizer step.

    Raises:
        ValueError: an argument is outside its limits, or the optimizer cannot be scheduled.

    Example:
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> scheduler = get_autolrs_schedule(optimizer, num_training_steps=1000)
        >>> for batch in batches:
        ...     loss = compute_loss(model, batch)
        ...     loss.backward()
        ...     optimizer.step()
        ...     scheduler.step(loss)
        ...     optimizer.zero_grad()
    """
    settings = AutoLRSSettings(min_lr, max_lr, first_stage, longest_stage, num_candidates, kappa)
    return AutoLRSScheduler(
        optimizer,
        num_training_steps,
        num_warmup_steps,
        settings=settings,
        validation_loss=validation_loss,
        model=model,
    )
