"""Rewind: takes snapshots along the warm-up, as few as suffice, and restores one of them at the switch.

A test sees the minimum, or the cliff, only after the LR has been too high for a while and has damaged the weights.
(Ours; the paper's 2.2 takes back the LR alone.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.param_groups import Obstacle, weights_out_of_reach
from . import snapshot
from .memory import snapshots_that_fit, too_little_memory
from .on_disk import SnapshotFolder
from .snapshot import Snapshot
from .thinning import FEWEST, LR_FACTOR, MOST, limit_for, order_of_return, spacing, to_drop

logger = logging.getLogger(__name__)


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


class Rewind:
    """Takes snapshots during the warm-up and restores one at its end; every process handles its own share.

    Args:
        optimizer: whose parameters and state are in the snapshots; with accelerate's wraps or without.
        models: called for the models whose buffers are in them; they may be known only once training has begun.
        mode: True keeps the snapshots in memory; "disk" keeps them in files; False takes none; None is True where that
            works, and False elsewhere.
        folder: for "disk"; None for the system's temporary one.
        memory_share: the share of the free host memory, in (0, 1), that the snapshots may take.
        looks_on: whether the warm-up goes on beyond the minimum, so that a switch may go further back than that.

    Attributes:
        is_on: False where rewind is off, cannot work or found too little memory.
        snapshots: oldest first.
        is_planned: whether ``plan`` was called.
        num_bytes: the size of one snapshot, of this process's share.
        limit: the most snapshots that exist at a time, the one that is being taken included.
        lr_factor: the LR grows by this factor from one snapshot to the next.

    Raises:
        ValueError: rewind cannot work with this optimizer, and ``mode`` is True or "disk".
    """

    def __init__(
        self,
        optimizer: Optimizer,
        models: Callable[[], Sequence[nn.Module]],
        mode: bool | str | None,
        folder: str | None,
        memory_share: float,
        looks_on: bool,
    ) -> None:
        self.is_on = mode is not False
        self.snapshots: list[StoredSnapshot] = []
        self.num_bytes = 0
        self.is_planned = False
        self.lr_factor = LR_FACTOR
        self.limit = MOST
        self._mode = mode
        self._folder = SnapshotFolder(folder)
        self._memory_share = memory_share
        self._optimizer = optimizer
        self._models = models
        self._looks_on = looks_on
        self._due_lr = 0.0
        self._spare: Snapshot | None = None
        obstacle = weights_out_of_reach(optimizer)
        if obstacle is not None:
            self.refuse(obstacle)

    def refuse(self, obstacle: Obstacle) -> None:
        """Raises an error if the user asked for rewind, which cannot work here; turns rewind off otherwise.

        Args:
            obstacle: why it cannot work, and what to do instead.

        Raises:
            ValueError: ``mode`` is True or "disk".
        """
        if not self.is_on:
            return
        obstacle = replace(obstacle, remedy=f"{obstacle.remedy}, or rewind=False")
        if self._mode is not None:
            raise ValueError(_sentence(f"rewind={self._mode!r} cannot work here", obstacle))
        self.turn_off(obstacle)

    def turn_off(self, obstacle: Obstacle) -> None:
        """Goes on without rewind; the main process warns, with reason and remedy."""
        self.is_on = False
        self.drop()
        if collective.is_main_process():
            logger.warning(
                _sentence("AutoWU cannot rewind the weights at the switch, only the learning rate", obstacle)
            )

    def plan(self, band: float) -> None:
        """Finds out how many snapshots are wanted and fit, and turns rewind off if too few fit; one collective.
        To be called once, before the first snapshot, when optimizer and models are what they will be.

        Args:
            band: the LR of a step divided by the lowest LR that a switch at this step may go back to.

        Raises:
            ValueError: rewind cannot work with this optimizer, and ``mode`` is True or "disk".
        """
        self.is_planned = True
        self.limit = limit_for(band, self._looks_on)
        self.lr_factor = spacing(band, self.limit)
        room = self._find_room(FEWEST)
        if room is not None and room < self.limit:
            self.limit = room
            self.lr_factor = spacing(band, room)

    def _find_room(self, fewest: int) -> int | None:
        """How many snapshots fit, by one collective; None: no limit, or fewer than ``fewest``, and rewind is off."""
        obstacle = weights_out_of_reach(self._optimizer)
        if obstacle is not None:
            self.refuse(obstacle)
            return None
        self.num_bytes = snapshot.size(self._optimizer, self._models())
        room = None if self._mode == "disk" else snapshots_that_fit(self.num_bytes, self._memory_share)
        if room is not None and room < fewest:
            self.turn_off(too_little_memory(fewest, self.num_bytes, self._memory_share))
            return None
        return room

    def is_due(self, lr: float) -> bool:
        """Whether a snapshot is due once the LR has grown to ``lr``."""
        return lr >= self._due_lr and self.is_on

    def follow(self, step: int, lr_of: Callable[[float], float], lowest_lr: float, wanted_lrs: Sequence[float]) -> None:
        """Takes a snapshot after a step of the warm-up, and drops those that are no longer needed.

        Args:
            step: scheduler steps done.
            lr_of: the warm-up's LR as a function of the steps done.
            lowest_lr: the lowest LR that a switch may go back to by losses that are still to come.
            wanted_lrs: the LRs that a switch would go back to by what is known now.
        """
        taken = snapshot.take(self._optimizer, self._models(), step, reuse=self._spare)
        self._spare = None
        self.snapshots.append(self._stored(taken))
        self._due_lr = self.lr_factor * lr_of(step)
        lrs = [lr_of(s.step) for s in self.snapshots]
        dropped = to_drop(lrs, self.limit, wanted_lrs, lowest_lr if self._looks_on else None)
        for i in dropped:
            self._spare = self.snapshots[i].discard() or self._spare
        self.snapshots = [s for i, s in enumerate(self.snapshots) if i not in dropped]

    def keep_one(self, step: int) -> None:
        """Takes a single snapshot, after ``step`` scheduler steps, before those that ``plan`` is for; one collective.
        Turns rewind off if it does not fit, and raises what ``plan`` raises.
        """
        if self.is_on:
            self._find_room(1)
        if self.is_on:
            self.snapshots.append(self._stored(snapshot.take(self._optimizer, self._models(), step)))

    def restore(self, lr_of: Callable[[float], float], highest_lr: float) -> int | None:
        """Restores the first finite snapshot in the order of ``thinning.order_of_return``.

        A snapshot is finite if its parameters are, on all processes, and each of its buffers that is finite in any
        snapshot.

        Args:
            lr_of: the warm-up's LR as a function of the steps done.
            highest_lr: the LR that training goes on from.

        Returns:
            The scheduler steps done when the snapshot was taken; None where nothing was restored.
        """
        if not self.is_on or not self.snapshots:
            return None
        snapshot.wait_for_copies()
        finite_buffers = [s.finite_buffers() for s in self.snapshots]
        ever_finite = set().union(*finite_buffers)
        for i in order_of_return([lr_of(s.step) for s in self.snapshots], highest_lr, start_lr=lr_of(0)):
            saved = self.snapshots[i].load()
            if not self._everywhere(saved.is_finite() and finite_buffers[i] == ever_finite):
                continue
            other = snapshot.restore(saved, self._optimizer, self._models())
            if other and collective.is_main_process():
                logger.warning("these buffers were others at step %d, and stay as they are: %s", saved.step, other)
            return saved.step
        return None

    def drop(self) -> None:
        """Drops all snapshots; the next one is due at once."""
        for stored in self.snapshots:
            stored.discard()
        self.snapshots, self._spare, self._due_lr = [], None, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Includes the snapshots where those of one process are everybody's: not under FSDP, nor from files."""
        snapshot.wait_for_copies()
        portable = self.snapshots and not self._differs_by_process()
        states = [s.state_dict() for s in self.snapshots] if portable else []
        return {"is_on": self.is_on, "due_lr": self._due_lr, "kept": [s for s in states if s is not None]}

    def load_state_dict(self, state: dict[str, Any], warming_up: bool) -> None:
        """Restores what ``state_dict`` returned; warns if it lacks snapshots that a switch may want.

        Args:
            state: from ``state_dict``.
            warming_up: whether the warm-up goes on.
        """
        self.drop()
        self.is_on = self.is_on and state["is_on"]  # what took too much memory then would do so now
        if not warming_up or not self.is_on:
            return
        loaded = [Snapshot(**saved) for saved in state["kept"]]
        if loaded and snapshot.fits(loaded[0], self._optimizer):
            self.snapshots.extend(map(self._stored, loaded))
            self._due_lr = state["due_lr"]
        elif collective.is_main_process():
            logger.warning(
                "the checkpoint holds no snapshots that fit this run, so that AutoWU's rewind goes back at most to the "
                "step after which the run was resumed"
            )

    def _stored(self, taken: Snapshot) -> StoredSnapshot:
        """The snapshot where it is kept: in memory, or in a file."""
        return self._folder.store(taken) if self._mode == "disk" else taken

    def _differs_by_process(self) -> bool:
        return snapshot.is_sharded(self._optimizer, self._models())

    def _everywhere(self, holds: bool) -> bool:
        """Whether it holds on all processes; under FSDP each sees another share."""
        return collective.gather_max([int(not holds)])[0] == 0 if self._differs_by_process() else holds


def _sentence(statement: str, obstacle: Obstacle) -> str:
    return f"{statement}: {obstacle.reason}; {obstacle.remedy}"
