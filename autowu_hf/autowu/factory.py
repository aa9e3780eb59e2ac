"""``get_autowu_schedule``: an AutoWU schedule from options, like transformers' ``get_*_schedule`` functions."""

from __future__ import annotations

import logging
import os

from torch import nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.param_groups import innermost
from .optimizer_kinds import finds_own_lr, is_schedule_free
from .scheduler import AutoWUScheduler
from .settings import AutoWUSettings

logger = logging.getLogger(__name__)


def get_autowu_schedule(
    optimizer: Optimizer,
    num_training_steps: int,
    num_warmup_steps: int = 0,
    *,
    steps_per_epoch: int | None = None,
    preset: str | None = None,
    min_lr: float | None = None,
    max_lr: float | None = None,
    max_warmup_fraction: float | None = None,
    growth: str | None = None,
    decay_type: str | None = None,
    decay_fraction: float | None = None,
    test_every: str | int | None = None,
    confidence: float | None = None,
    patience: int | None = None,
    num_tests: int | None = None,
    gp_engine: str | None = None,
    standardize: bool | None = None,
    peak_rule: str | None = None,
    rewind: bool | str | None = None,
    rewind_dir: str | None = None,
    rewind_memory: float | None = None,
    rewind_in_checkpoint: bool | None = None,
    guard: bool | None = None,
    scale: bool | None = None,
    seed: int | None = None,
    report_dir: str | os.PathLike[str] | None = None,
    model: nn.Module | None = None,
) -> AutoWUScheduler:
    """An AutoWU schedule (Kim et al. 2021, arXiv 2107.05855): no peak LR and no warm-up length to choose.

    The first two steps, at a tiny LR, measure the scale of the LR; the LR grows to it within 5 % of the run and stays
    there. Where the losses soon fall to half, it grows on while a Gaussian process watches them (2.1), until they give
    way; the switch then restores the weights from before the damage. Where the loss held the LR and has fallen, and
    mostly with batch norm, the LR falls to 0 from the switch on, elsewhere over the last fifth of the steps (2.2).
    Where a range is given, or there is no scale to be had, the LR grows over that range instead. With
    ``preset="paper"`` the minimum of the losses ends the warm-up, the LR goes back to what it was there, and the
    weights stay.

    Args:
        optimizer: of any torch kind. The ratios of its groups' LRs to its own LR are kept; the LR itself matters only
            where nothing else tells one (``guard``).
        num_training_steps: T, the scheduler steps of the whole run, at least 1.
        num_warmup_steps: the longest warm-up, in scheduler steps, less than T; 0 means no limit around the scale, and
            over a range ``max_warmup_fraction`` of all steps, or the ten that a test needs, or half of the steps if
            there are fewer than twenty.
        steps_per_epoch: steps in an epoch, in the unit of ``num_training_steps``; None when unknown.
        preset: None for this package's defaults; "paper" for the authors' recipe: ``max_warmup_fraction=0.5``,
            ``growth="exponential"``, ``decay_type="cosine"``, ``test_every="epoch"``, ``gp_engine="gpytorch"``,
            ``standardize=False``, ``peak_rule="minimum"``, ``rewind=False``, ``guard=False``, ``scale=False``. Options
            given beside it win.
        min_lr: eta_min, the LR that the warm-up starts from, in optimizer units, positive, 1e-5 (2.1.1).
        max_lr: eta_max, the LR that the warm-up would reach at its cap, above ``min_lr``, 1.0; SGD may need more
            (2.1.1).
        max_warmup_fraction: rho_w, the longest warm-up as a share of all steps, in (0, 1), 0.25; the paper has 0.5
            (2.1.1).
        growth: "quick_start": exponential at two rates, a tenth of the warm-up for the first three tenths of its way;
            "exponential" (eq. 1); or "linear" (appendix C.2, eq. 6).
        decay_type: "constant_then_cosine" or "cosine" (2.2); "rex" (arXiv 2107.04197); or "linear". None: "rex" over a
            range; around the scale where P holds the LR and the losses have fallen by a tenth, the LR is above P, or
            adapters begin at zero; otherwise, and where ``decay_fraction`` is given, "constant_then_cosine".
        decay_fraction: the last share, in (0, 1), of all steps over which "constant_then_cosine" falls (2.2). None:
            0.2; around the scale, where most weights come before a batch norm, as much as makes 24 optimizer steps of
            it, 0.4 at most.
        test_every: steps between minimum tests, "epoch" (2.1.2), or "auto", the default: the epoch when the longest
            warm-up holds at least 30 of them, else 1/60 of it.
        confidence: c, the probability in (0, 1) that a subset must exceed to vote for the end, 0.95 (2.1.2).
        patience: p, the positive tests in a row that end the warm-up, at least 1, 3 (2.1.2).
        num_tests: n_test, the random subsets of losses that vote, at least 1, 5 (2.1.2).
        gp_engine: "fast", a converged fit in milliseconds, or "gpytorch", 100 steps of Adam (2.1.2).
        standardize: True tests losses with spikes removed, mean 0 and standard deviation 1; False, as they are.
        peak_rule: "minimum": the warm-up ends past the minimum of the loss, and the LR there is the peak (eq. 5).
            "cliff": it ends where half of what the loss had gained, and more than its noise, is lost again for good
            (over 8 % of the longest warm-up), and the peak is a fifth of the LR there, or half of the LR at the
            minimum, if that is lower. Each loss is attributed to the previous step's LR, the last update that could
            have affected it. None: "cliff" with rewind, else "minimum".
        rewind: True: the switch restores the weights, the optimizer's state and the buffers from before the peak LR,
            or the minimum, was passed, from snapshots in host memory; "disk": from files. None: True where that
            works, else a logged warning. False: only the LR goes back.
        rewind_dir: the folder for "disk"; None for the system's temporary one.
        rewind_memory: the share of the free host memory, in (0, 1), that the snapshots may take, 0.5.
        rewind_in_checkpoint: True: ``state_dict`` has the snapshots, those of the warm-up and the guard's after it, so
            that a resumed run goes back to the same weights. False: it has not, and is small; a resumed run then goes
            back at most to where it was resumed.
        guard: True ends a warm-up that diverges at once, and looks at the losses once more at its cap. Where they tell
            no LR there either, the peak is a given ``max_lr``, if the losses have certainly fallen all the way up to
            it; for losses that are not positive, but fell, the LR that the first gradients say for as far a fall; else
            the LR that the optimizer was given, or ``max_lr`` if that is lower, and a logged warning says so.
        scale: True lays the LRs around the scale that losses, gradients and weights of the first optimizer steps give
            (``autowu.course``), instead of growing from ``min_lr`` to ``max_lr``; False does not. None: True where
            neither ``min_lr``, ``max_lr``, ``growth`` nor ``max_warmup_fraction`` is given.
        seed: of the random subsets, at least 0, 0.
        report_dir: a folder into which the main process writes ``autowu.json``, and ``autowu.png`` where matplotlib is
            installed, at the switch and after the last step (``autowu-2.json`` and so on for further schedules of the
            process); None writes nothing. Trainer's callback writes them into ``output_dir`` anyway.
        model: whose buffers (of batch norm) are rewound too, in a loop without accelerate.

    Returns:
        The scheduler, to be stepped once per optimizer step.

    Raises:
        ValueError: an argument is outside its limits, a name is unknown, or the optimizer finds its LR by itself or has
            ``maximize=True``.
        TypeError: the model is no module.

    Example:
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> scheduler = get_autowu_schedule(optimizer, num_training_steps=1000)
        >>> for batch in batches:
        ...     loss = compute_loss(model, batch)
        ...     loss.backward()
        ...     optimizer.step()
        ...     scheduler.step(loss)
        ...     optimizer.zero_grad()
    """
    name = type(innermost(optimizer)).__name__
    if finds_own_lr(optimizer):
        raise ValueError(
            f"{name} finds its learning rate by itself, and a schedule's only multiplies it or begins it, so that "
            f'AutoWU has nothing to go by; use lr_scheduler_type="constant" with {name}, or "autowu" with another '
            "optimizer, say AdamW"
        )
    if is_schedule_free(optimizer) and collective.is_main_process():
        logger.warning(
            "%s is made to go without a schedule: it averages where others decay. Use lr_scheduler_type='constant' "
            "with it, or 'autowu' with another optimizer, such as AdamW",
            name,
        )
    options = {
        "min_lr": min_lr,
        "max_lr": max_lr,
        "max_warmup_fraction": max_warmup_fraction,
        "growth": growth,
        "decay_type": decay_type,
        "decay_fraction": decay_fraction,
        "test_every": test_every,
        "confidence": confidence,
        "patience": patience,
        "num_tests": num_tests,
        "gp_engine": gp_engine,
        "standardize": standardize,
        "peak_rule": peak_rule,
        "rewind": rewind,
        "rewind_dir": rewind_dir,
        "rewind_memory": rewind_memory,
        "rewind_in_checkpoint": rewind_in_checkpoint,
        "guard": guard,
        "scale": scale,
        "seed": seed,
        "report_dir": os.fspath(report_dir) if isinstance(report_dir, os.PathLike) else report_dir,
    }
    return AutoWUScheduler(
        optimizer,
        num_training_steps,
        num_warmup_steps,
        steps_per_epoch=steps_per_epoch,
        settings=AutoWUSettings.from_options(preset, options),
        model=model,
    )
