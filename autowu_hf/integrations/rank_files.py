"""The losses that each process has not shared yet, beside a checkpoint of ``accelerator.save_state``.

accelerate saves the scheduler's state of the main process alone. Sharing the losses before that would need a
collective, which a script that saves on its main process only could never finish; so every process that saves writes
its own.
"""

from __future__ import annotations

import logging
import os

import torch

from ..runtime import collective
from ..runtime.scheduler import AdaptiveScheduler

logger = logging.getLogger(__name__)


def _path(folder: str | os.PathLike[str], scheduler_index: int, process_index: int) -> str:
    return os.path.join(folder, f"autowu_losses_{scheduler_index}_{process_index}.bin")


def save(scheduler: AdaptiveScheduler, folder: str | os.PathLike[str], scheduler_index: int) -> None:
    """Writes this process's losses since the last test; nothing with one process, whose state holds them all.

    Args:
        scheduler: the scheduler.
        folder: the checkpoint's.
        scheduler_index: its place among the schedulers of the checkpoint.
    """
    if collective.num_processes() > 1 and scheduler.takes_losses:
        state = {"step": scheduler.last_epoch, "losses": scheduler.pending_losses()}
        torch.save(state, _path(folder, scheduler_index, collective.process_index()))


def load(scheduler: AdaptiveScheduler, folder: str | os.PathLike[str], scheduler_index: int) -> None:
    """Gives a scheduler, its state loaded already, the losses that this process had not shared when it was saved.

    Where the checkpoint holds none, it was saved by the main process alone or by fewer processes: every process then
    goes on with the main process's, those in the state.

    Args:
        scheduler: the scheduler.
        folder: the checkpoint's.
        scheduler_index: its place among the schedulers of the checkpoint.
    """
    if collective.num_processes() == 1 or not scheduler.takes_losses:
        return
    path = _path(folder, scheduler_index, collective.process_index())
    if os.path.isfile(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["step"] == scheduler.last_epoch:  # else a leftover of another save into the same folder
            scheduler.set_pending_losses(state["losses"])
            return
    if len(scheduler.pending_losses()) and collective.process_index() > 0:
        logger.warning(
            "%s holds no losses of process %d since they were shared last; those of the main process stand in for them",
            os.fspath(folder),
            collective.process_index(),
        )
