"""SALSA: a line search while the loss falls, then a drop of the LR whenever training has become stationary.

The method is that of Zhang, Lang, Liu and Xiao 2020, "Statistical Adaptive Stochastic Gradient Methods", arXiv
2002.10597. It was written from a summary of the paper and from what its authors' code (github.com/microsoft/statopt)
does; the paper's text was not at hand.
"""

from __future__ import annotations

from torch.optim import Optimizer

from .scheduler import SalsaScheduler
from .settings import SalsaSettings


def get_salsa_schedule(
    optimizer: Optimizer,
    num_training_steps: int,
    num_warmup_steps: int = 0,
    *,
    initial_lr: float | None = None,
    smoothing: float = 0.1,
    line_search: bool = True,
    drop_factor: float = 10.0,
    significance: float = 0.05,
    keep: float = 0.125,
    min_samples: int | None = None,
    test_every: int | None = None,
) -> SalsaScheduler:
    """A schedule for SGD that finds its LR by a line search and drops it when training has become stationary: SALSA.

    The line search needs ``SalsaTrainer``, or a call of ``SalsaScheduler.search`` in the training loop. With
    ``line_search=False`` SASA+ is left, which takes other optimizers and any loop, from an LR that is given.

    Args:
        optimizer: whose groups get the LR; the ratios of their LRs stay. The line search takes ``torch.optim.SGD``.
        num_training_steps: T, the steps of the whole run, to which ``min_samples`` and ``test_every`` are fitted.
        num_warmup_steps: the longest line search, in steps; 0 for no limit.
        initial_lr: the optimizer's LR at the start, any small one for a line search; None takes its own.
        smoothing: s in (0, 1], how much one mini-batch changes alpha; sqrt(batch size / examples) is the other usual
            choice.
        line_search: False for SASA+ alone, from ``initial_lr``.
        drop_factor: the LR is divided by it at a drop; above 1.
        significance: of both tests, in (0, 1).
        keep: theta in (0, 1], the share of the samples since the last drop that is tested, the latest.
        min_samples: N_min, the samples that a test needs, 16 at least. None: T / 56, from 16 to 1000.
        test_every: optimizer steps between tests. None: a tenth of ``min_samples``, 100 at most.

    Returns:
        The schedule, to be stepped once per optimizer step.

    Raises:
        ValueError: an argument is outside its limits, or the optimizer is one that this cannot work with.

    Example:
        >>> scheduler = get_salsa_schedule(optimizer, num_training_steps=10_000)
        >>> for x, y in batches:
        ...     loss = loss_of(model(x), y)
        ...     loss.backward()
        ...     scheduler.search(model, lambda: loss_of(model(x), y))
        ...     optimizer.step()
        ...     scheduler.step()
        ...     optimizer.zero_grad()

    The constants of the line search, the smoothing, the drop factor and the significance are the paper's. theta = 1/8,
    N_min = 1000 and 100 steps between tests are the defaults of the authors' code. Chosen here: a smaller N_min where a
    run has fewer than 56000 steps; a slope test as often as the other one, where theirs comes at every step; a variance
    from batch means; the momentum, which theirs clears at a drop, stays; and the line search is on the training loss,
    dropout and batch norm as in training, where theirs is in evaluation mode.
    """
    settings = SalsaSettings(
        initial_lr, smoothing, line_search, drop_factor, significance, keep, min_samples, test_every
    )
    return SalsaScheduler(optimizer, num_training_steps, num_warmup_steps, settings=settings)
