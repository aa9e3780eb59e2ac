"""Parameter groups that are added in mid-run, to unfreeze layers say: what their learning rate is meant to be; and
empty ones that are gone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from .. import collective
from ..checks import require_finite
from .groups import keep_own_lrs

logger = logging.getLogger(__name__)

_NEAR = 1e-6  # LRs may be float32
_HIGH = 10.0  # a ratio above it is no likely wish, however round: the LR at the start may be one that matters to nobody


def have_weights(optimizer: Optimizer) -> list[bool]:
    """Of every group of an optimizer, whether there is a parameter in it."""
    return [bool(group["params"]) for group in optimizer.param_groups]


def drop_empty(ratios: list[Any], optimizer: Optimizer, had_weights: list[bool]) -> list[int]:
    """Leaves out the ratios of groups that are gone since a schedule was made because they were empty, as DeepSpeed
    drops them; none where others must be gone, too.

    Args:
        ratios: of the groups known so far; changed in place.
        optimizer: any torch optimizer, or accelerate's wrap of one.
        had_weights: of every group that it had then, whether there was a parameter in it; changed as the ratios are.

    Returns:
        The places that they had.
    """
    empty = [number for number, had in enumerate(had_weights) if not had]
    if not empty or len(optimizer.param_groups) != len(ratios) - len(empty):
        return []
    for number in reversed(empty):
        del ratios[number], had_weights[number]
    return empty


def match_ratios(ratios: list[float], optimizer: Optimizer, own: float, had_weights: list[bool] | None = None) -> None:
    """Takes in parameter groups that were added since a schedule was made, each with the ratio of its LR to that of the
    others, which the log says.

    The LR of a new group may be meant beside the one that the optimizer was given, or beside the one of the moment (a
    tenth of it, as Lightning's ``BaseFinetuning`` has it). It is read as a ratio that somebody would choose: one that
    another group has, or a round one, which chance hardly gives. Where that leaves both or none, it is the ratio nearer
    to 1. An ``initial_lr`` in the group leaves no doubt.

    Args:
        ratios: of the groups known so far; those of the new ones are appended.
        optimizer: any torch optimizer, or accelerate's wrap of one; its LRs are still those of the moment.
        own: its own LR when the schedule was made.
        had_weights: as in ``drop_empty``, which is done then.

    Raises:
        ValueError: it has fewer groups than then, or the LR of a new one is not finite.
    """
    groups = optimizer.param_groups
    if len(groups) == len(ratios):
        return
    if len(groups) < len(ratios) and drop_empty(ratios, optimizer, had_weights or []):
        return
    if len(groups) < len(ratios):
        raise ValueError(
            f"the optimizer must keep its {len(ratios)} parameter groups, but has {len(groups)}; leave one in that is "
            "trained no more, and call requires_grad_(False) on its parameters"
        )
    known = [*ratios]
    present = [float(group["lr"]) / ratio for group, ratio in zip(groups, known, strict=False) if ratio > 0.0]
    for number, group in enumerate(groups[len(known) :], start=len(known)):
        lr = float(group["lr"])
        require_finite([lr, float(group.get("initial_lr", lr))])
        if "initial_lr" not in group:
            group["initial_lr"] = own * _ratio(lr, own, present[0] if present else own, known)
        ratios.append(float(group["initial_lr"]) / own)
        if collective.is_main_process():
            logger.info(
                "parameter group %d, added with lr=%.3g, is trained at %.3g times the learning rate of the others; for "
                "another multiple, add it with an initial_lr of that many times %.3g",
                number,
                lr,
                ratios[-1],
                own,
            )
    keep_own_lrs(optimizer)


def added_ones(ratios: list[float], had_weights: list[bool]) -> list[Any]:
    """What ``restore_added`` takes: how many groups there were at first, and the ratios of those that were added."""
    return [len(had_weights), ratios[len(had_weights) :]]


def restore_added(
    ratios: list[float],
    optimizer: Optimizer,
    own: float,
    added: tuple[int, list[float]] | None,
    had_weights: list[bool],
) -> None:
    """Gives groups that had been added before a checkpoint the ratios that they had then. A script that goes on from it
    makes them with the others, at LRs which say nothing of the moment at which they were added.

    Args:
        ratios: of the groups known so far; changed in place, and those of others appended.
        optimizer: as in ``match_ratios``.
        own: the same.
        added: how many groups there were at first, and the ratios of those that were added; None: not known.
        had_weights: as in ``drop_empty``; afterwards as long as there were groups at first.
    """
    match_ratios(ratios, optimizer, own, had_weights)
    if added is None:
        return
    first, restored = added
    for number, ratio in enumerate(restored, start=first):
        if number < len(ratios):
            ratios[number], optimizer.param_groups[number]["initial_lr"] = ratio, own * ratio
    had_weights[:] = [*had_weights, *[True] * first][: min(first, len(ratios))]


def _ratio(lr: float, own: float, present: float, known: Sequence[float]) -> float:
    """The ratio of a new group.

    Args:
        lr: that it was added with.
        own: the LR at the start of a group of ratio 1.
        present: the LR of the moment of such a group.
        known: the ratios of the other groups.
    """
    if lr == present:  # both may be 0
        return 1.0
    readings = [lr / own, lr / present if present > 0.0 else math.inf]

    def strangeness(ratio: float) -> tuple[bool, float]:
        if any(math.isclose(ratio, other, rel_tol=_NEAR) for other in known):
            return False, 0.0
        if not 0.0 < ratio < math.inf:
            return True, math.inf
        is_meant = ratio <= _HIGH and (_is_round(ratio) or _is_round(1.0 / ratio))
        return not is_meant, round(abs(math.log(ratio)), 5)

    return min(readings, key=strangeness)  # the first one where they are equally strange


def _is_round(ratio: float) -> bool:
    """Whether a positive number has two digits at most, before or after its zeros."""
    return math.isclose(float(f"{ratio:.1e}"), ratio, rel_tol=_NEAR)
