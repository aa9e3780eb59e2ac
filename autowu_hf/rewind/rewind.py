"""Rewind: takes snapshots along the warm-up, as few as suffice, and restores one of them at the switch.

A test sees the minimum, or the cliff, only after the LR has been too high for a while and has damaged the weights.
(Ours; the paper's 2.2 takes back the LR alone.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.finite import OutOfReachError
from ..runtime.param_groups import Obstacle, shares_out_of_reach
from . import portable, snapshot
from .memory import cannot_copy, find_room
from .on_disk import SnapshotFolder
from .portable import StoredSnapshot
from .snapshot import Snapshot
from .thinning import FEWEST, LR_FACTOR, MOST, limit_for, order_of_return, spacing, to_drop
from .untrained import Untrained, find_untrained

logger = logging.getLogger(__name__)
_KEPT = "the weights go back to step %d, but these, which its snapshot lacks or has in another shape, stay: %s"


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
        in_checkpoint: whether ``state_dict`` has the snapshots.

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
        in_checkpoint: bool = True,
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
        self._looks_on, self._in_checkpoint = looks_on, in_checkpoint
        self._untrained = Untrained(shares=mode != "disk")
        self._due_lr, self._said_size = 0.0, False
        self._spare: Snapshot | None = None
        obstacle = shares_out_of_reach(optimizer)
        if obstacle is not None:
            self.refuse(obstacle)

    def refuse(self, obstacle: Obstacle) -> None:
        """Raises an error if the user asked for rewind, which cannot work here; turns rewind off otherwise.

        Raises:
            ValueError: ``mode`` is True or "disk".
        """
        if not self.is_on:
            return
        obstacle = replace(obstacle, remedy=f"{obstacle.remedy}, or rewind=False")
        if self._mode is not None:
            raise ValueError(f"rewind={self._mode!r} cannot work here: {obstacle.reason}; {obstacle.remedy}")
        self.turn_off(obstacle)

    def turn_off(self, obstacle: Obstacle) -> None:
        """Goes on without rewind; the main process warns, with reason and remedy."""
        self.is_on = False
        self.drop()
        if collective.is_main_process():
            logger.warning(
                "AutoWU cannot rewind the weights at the switch, only the learning rate: %s; %s",
                obstacle.reason,
                obstacle.remedy,
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
        room, limit = self._find_room(FEWEST), limit_for(band, self._looks_on)
        self.limit = limit if room is None else min(room, limit)
        self.lr_factor = spacing(band, self.limit)

    def _find_room(self, fewest: int) -> int | None:
        """How many snapshots fit, by one collective; None: no limit, or fewer than ``fewest``, and rewind is off."""
        obstacle = shares_out_of_reach(self._optimizer)
        if obstacle is not None:
            self.refuse(obstacle)
            return None
        share = None if self._mode == "disk" else self._memory_share
        size = partial(snapshot.size, self._optimizer, self._models(), self._untrained)
        self.num_bytes, room, obstacle = find_room(size, share, fewest)
        if obstacle is not None:
            self.turn_off(obstacle)
        return None if obstacle is not None else room

    def look(self) -> None:
        """Takes notice of which buffers and parameters without gradients change, before the first snapshot."""
        if self.is_on:
            self._untrained.look(find_untrained(self._optimizer, self._models()))

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
        self._take(step)
        if not self.is_on:
            return
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
            self._take(step)

    def _take(self, step: int) -> None:
        try:
            taken = snapshot.take(self._optimizer, self._models(), step, self._spare, self._untrained)
        except OutOfReachError as error:
            self.turn_off(cannot_copy(error))
            return
        self._spare = None
        self.snapshots.append(self._stored(taken))

    def restore(self, lr_of: Callable[[float], float], highest_lr: float) -> int | None:
        """Restores the first finite snapshot in the order of ``thinning.order_of_return``; all processes must join,
        and restore the same one.

        A snapshot is finite if its parameters are, on all processes, and each of its buffers that is finite in any; the
        buffers are a process's own under DDP, too.

        Args:
            lr_of: the warm-up's LR as a function of the steps done.
            highest_lr: the LR that training goes on from.

        Returns:
            The scheduler steps done when the snapshot was taken; None where nothing was restored.
        """
        if self._mode is False or not self._everywhere(self.is_on and bool(self.snapshots)):
            return None
        snapshot.wait_for_copies()
        finite_buffers = [s.finite_buffers() for s in self.snapshots]
        ever_finite = set().union(*finite_buffers)
        for i in order_of_return([lr_of(s.step) for s in self.snapshots], highest_lr, start_lr=lr_of(0)):
            saved = self.snapshots[i].load()
            is_broken = bool((saved.buffers.keys() - finite_buffers[i]) & ever_finite) or not saved.is_finite()
            if not self._everywhere(not is_broken):
                continue
            other = snapshot.restore(saved, self._optimizer, self._models(), self._untrained)
            if other and collective.is_main_process():
                logger.warning(_KEPT, saved.step, other)
            return saved.step
        return None

    def drop(self) -> None:
        """Drops all snapshots; the next one is due at once."""
        for stored in self.snapshots:
            stored.discard()
        self.snapshots, self._spare, self._due_lr = [], None, 0.0
        self._untrained.drop_copies()

    def state_dict(self) -> dict[str, Any]:
        """Includes the snapshots where those of one process are everybody's: not under FSDP, nor from files. They have
        also what never changed so far: it may yet, and then no later checkpoint of the model has it as it was.
        """
        snapshot.wait_for_copies()
        states: list[dict[str, Any]] = []
        if self.snapshots and self._in_checkpoint and not self._differs_by_process():
            self.look()
            states = portable.states_of(self.snapshots)
            self._said_size = self._said_size or portable.is_large(states, self._models())
        return {"is_on": self.is_on, "due_lr": self._due_lr, "kept": states, "changed": sorted(self._untrained.changed)}

    def load_state_dict(self, state: dict[str, Any], warming_up: bool) -> None:
        """Restores what ``state_dict`` returned; warns if it lacks snapshots that a switch may want.

        Args:
            state: from ``state_dict``.
            warming_up: whether the warm-up goes on.
        """
        self.drop()
        in_older_states = {name for saved in state["kept"] for name in saved["buffers"]}
        self._untrained = Untrained(self._mode != "disk", state.get("changed", in_older_states))
        self.is_on = self.is_on and state["is_on"]  # what took too much memory then would do so now
        if not warming_up or not self.is_on:
            return
        loaded = portable.snapshots_in(state["kept"], self._optimizer)
        if loaded:
            self._untrained.share(loaded[-1].buffers)
            self.snapshots, self._due_lr = [*map(self._stored, loaded)], state["due_lr"]

    def _stored(self, taken: Snapshot) -> StoredSnapshot:
        """The snapshot where it is kept: in memory, or in a file."""
        return self._folder.store(taken) if self._mode == "disk" else taken

    def _differs_by_process(self) -> bool:
        return snapshot.is_sharded(self._optimizer, self._models())

    def _everywhere(self, holds: bool) -> bool:
        return collective.gather_max([int(not holds)])[0] == 0
