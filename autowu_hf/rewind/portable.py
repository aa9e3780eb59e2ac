"""Snapshots in a checkpoint: what of them it holds, how large that is, and what of it a resumed run can use."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.finite import parts
from .snapshot import Snapshot, fits
from .tensors import num_bytes, tensors_in

logger = logging.getLogger(__name__)

_LARGE = 100 * 2**20


class StoredSnapshot(Protocol):
    """A snapshot, in memory or in a file, that was taken after ``step`` scheduler steps."""

    step: int

    def finite_buffers(self) -> set[str]:
        """The names of the buffers without an infinity or NaN."""

    def load(self) -> Snapshot:
        """The snapshot in memory."""

    def discard(self) -> Snapshot | None:
        """Gives the snapshot up; returns one whose memory may be used again, or None."""

    def state_dict(self) -> dict[str, Any] | None:
        """What a checkpoint carries of it; None if it cannot leave its process."""


def states_of(snapshots: Sequence[StoredSnapshot]) -> list[dict[str, Any]]:
    """The states of those that can leave their process.

    Args:
        snapshots: oldest first.
    """
    states = [stored.state_dict() for stored in snapshots]
    return [state for state in states if state is not None]


def is_large(states: Sequence[dict[str, Any]], models: Sequence[nn.Module]) -> bool:
    """Whether they take more than 100 MiB, and more than the weights of the models; the main process says so.

    Args:
        states: from ``states_of``.
        models: those that are trained.
    """
    # Some share tensors.
    sizes = {part.data_ptr(): num_bytes(part) for tensor in tensors_in(states) for part in parts(tensor) or []}
    size = sum(sizes.values())
    weights = sum(num_bytes(p) for model in models for p in model.parameters())
    if size <= max(weights, _LARGE):
        return False
    if collective.is_main_process():
        logger.info(
            "AutoWU: the schedule's state in a checkpoint holds %d snapshots of %d MiB together; "
            "rewind_in_checkpoint=False leaves them out",
            len(states),
            size // 2**20,
        )
    return True


def snapshots_in(states: Sequence[dict[str, Any]], optimizer: Optimizer) -> list[Snapshot]:
    """The snapshots of a checkpoint, oldest first; none, and the main process warns, where they do not fit this run.

    Args:
        states: from ``states_of``.
        optimizer: whose parameters they must fit.
    """
    loaded = [Snapshot(**state) for state in states]
    if loaded and fits(loaded[0], optimizer):
        return loaded
    if collective.is_main_process():
        logger.warning(
            "the checkpoint holds no snapshots that fit this run (rewind_in_checkpoint=False leaves them out, and "
            'FSDP, ZeRO and rewind="disk" do), so that AutoWU\'s rewind goes back at most to the '
            "step after which the run was resumed"
        )
    return []
