"""Rewind: the states along the warm-up that the switch may go back to, as few as that takes.

The minimum, or the cliff, is seen only after the LR has been too high for a while, and the weights with it. (Ours; the
paper's 2.2 takes back the LR alone.)
"""

from __future__ import annotations

import logging
import math
import os
import socket
import tempfile
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.param_groups import Obstacle, innermost, weights_out_of_reach
from . import snapshot
from .snapshot import Snapshot

logger = logging.getLogger(__name__)

LR_FACTOR = 1.5
"""The LR grows by this factor from one snapshot to the next, where memory allows."""

_FEWEST = 4
_MOST = 13
_ROOM_FOR_START = 7

_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class Rewind:
    """Keeps snapshots during the warm-up and restores one at its end; on every process its own share.

    Args:
        optimizer: whose parameters and state are kept; with accelerate's wraps or without.
        models: called for the models whose buffers are kept; they may be known only once training has begun.
        mode: True; "disk" keeps the snapshots in files; False keeps none; None is True where that works.
        folder: for "disk"; None for the system's temporary one.
        memory_share: the share of the free host memory, in (0, 1), that the snapshots may take.
        looks_on: whether the warm-up goes on beyond the minimum, so that a switch may go further back than that.

    Attributes:
        is_on: False where rewind is off, cannot work or found too little memory.
        kept: the snapshots, oldest first; under ``rewind="disk"`` the files that they are in.
        is_planned: whether ``plan`` was called.
        num_bytes: the size of one of them, of this process's share.
        limit: the most of them that exist at a time, the one that is being taken included.
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
        self.kept: list[Snapshot | _OnDisk] = []
        self.num_bytes = 0
        self.is_planned = False
        self.lr_factor = LR_FACTOR
        self.limit = _MOST
        self._mode = mode
        self._parent_folder = folder
        self._memory_share = memory_share
        self._optimizer = optimizer
        self._models = models
        self._looks_on = looks_on
        self._due_lr = 0.0
        self._spare: Snapshot | None = None
        self._folder: str | None = None
        if self.is_on:
            obstacle = weights_out_of_reach(optimizer)
            if obstacle is not None:
                self.refuse(obstacle)

    def refuse(self, obstacle: Obstacle) -> None:
        """It cannot work here: an error where it was asked for, else ``turn_off``.

        Args:
            obstacle: why, and what to do instead.

        Raises:
            ValueError: ``rewind`` is True or "disk".
        """
        if not self.is_on:
            return
        reason = f"{obstacle.reason}; {obstacle.remedy}, or rewind=False"
        if self._mode is not None:
            raise ValueError(f"rewind={self._mode!r} cannot work here: {reason}")
        self.turn_off(reason)

    def turn_off(self, reason: str) -> None:
        """Goes on without rewind, with a warning that says why."""
        self.is_on = False
        self.drop()
        if collective.is_main_process():
            logger.warning("AutoWU cannot rewind the weights at the switch, only the learning rate: %s", reason)

    def is_due(self, lr: float) -> bool:
        """Whether the state is to be kept, now that the LR has grown to ``lr``."""
        return lr >= self._due_lr and self.is_on

    def follow(self, step: int, lr_of: Callable[[float], float], lowest_lr: float, wanted_lrs: Sequence[float]) -> None:
        """Keeps the state after a step of the warm-up, and lets go of what is not needed.

        Args:
            step: scheduler steps done.
            lr_of: the warm-up's LR as a function of the steps done.
            lowest_lr: the lowest LR that a switch in the steps to come would go back to for what the losses do then.
            wanted_lrs: those that it would go back to for what is known now.
        """
        taken = snapshot.take(innermost(self._optimizer), self._models(), step, reuse=self._spare)
        self._spare = None
        self.kept.append(self._to_disk(taken) if self._mode == "disk" else taken)
        self._due_lr = self.lr_factor * lr_of(step)
        self._thin(lr_of, lowest_lr, wanted_lrs)

    def _thin(self, lr_of: Callable[[float], float], lowest_lr: float, wanted_lrs: Sequence[float]) -> None:
        """Lets go of as many as there are too many, first of those between their neighbours in LR that nothing known
        now wants. Wanted are the last states below the wanted LRs, the last one below the lowest, those after that,
        and, where there is room, the start.
        """
        lrs = [lr_of(kept.step) for kept in self.kept]
        wanted = {self._last_below(lrs, lr) for lr in wanted_lrs}
        # Without a look beyond it, whatever is later than the minimum now may be the minimum yet.
        band_starts = self._last_below(lrs, lowest_lr) if self._looks_on else min(wanted)
        if self.limit >= _ROOM_FOR_START:
            wanted.add(0)
        index = list(range(len(lrs)))
        while len(index) > self.limit - 1:
            places = [p for p in range(1, len(index) - 1) if index[p] < band_starts and index[p] not in wanted]
            if places:
                place = min(places, key=lambda p: lrs[index[p + 1]] / lrs[index[p - 1]])
            else:
                place = next((p for p, i in enumerate(index) if i not in wanted), 0)
            self._let_go(self.kept[index.pop(place)])
        self.kept = [self.kept[i] for i in index]

    @staticmethod
    def _last_below(lrs: Sequence[float], highest_lr: float) -> int:
        """The place of the last LR that is not above the highest; the first, where all are."""
        return max((i for i, lr in enumerate(lrs) if lr <= highest_lr), default=0)

    def restore(self, lr_of: Callable[[float], float], highest_lr: float) -> int | None:
        """Goes back to the last kept state that saw no LR above the highest and is finite, else to the first finite.

        Finite are its parameters, and those of its buffers that are finite in any of the states. Where the start alone
        saw no higher LR, the state after it will do that saw one up to ``LR_FACTOR`` times as high.

        Args:
            lr_of: the warm-up's LR as a function of the steps done.
            highest_lr: that it goes on from.

        Returns:
            Its scheduler steps done; None where nothing was restored.
        """
        if not self.is_on or not self.kept:
            return None
        _synchronize()
        lrs = [lr_of(kept.step) for kept in self.kept]
        index = self._last_below(lrs, highest_lr)
        if index == 0 and lrs[0] <= min(highest_lr, LR_FACTOR * lr_of(0)):
            index = min(self._last_below(lrs, LR_FACTOR * highest_lr), 1)
        sound = {kept.step: kept.finite_buffers() for kept in self.kept}
        ever_sound = set().union(*sound.values())
        for kept in (*self.kept[index::-1], *self.kept[index + 1 :]):
            state = kept.load() if isinstance(kept, _OnDisk) else kept
            if not self._everywhere(state.is_finite() and sound[kept.step] == ever_sound):
                continue
            other = snapshot.restore(state, innermost(self._optimizer), self._models())
            if other and collective.is_main_process():
                logger.warning("these buffers were others at step %d, and stay as they are: %s", state.step, other)
            return state.step
        return None

    def _everywhere(self, holds: bool) -> bool:
        """Whether it holds on all processes; FSDP's see different shares."""
        if not snapshot.is_sharded(innermost(self._optimizer), self._models()):
            return holds
        return collective.gather_max([int(not holds)])[0] == 0

    def drop(self) -> None:
        """Lets go of all snapshots."""
        for kept in self.kept:
            self._let_go(kept)
        self.kept, self._spare, self._due_lr = [], None, 0.0

    def _let_go(self, kept: Snapshot | _OnDisk) -> None:
        if isinstance(kept, _OnDisk):
            kept.remove()
        elif not kept.is_shared:
            self._spare = kept

    def plan(self, band: float) -> None:
        """Finds out how many snapshots are wanted and fit, and turns rewind off where it is too few; one collective.
        To be called once, before the first snapshot, when optimizer and models are what they will be.

        Args:
            band: how many times the lowest LR that a switch may go back to goes into the LR of its step.
        """
        self.is_planned = True
        self.limit = min(5 + math.ceil(math.log(band) / math.log(LR_FACTOR)), _MOST) if self._looks_on else 8
        self.lr_factor = self._spacing(band)
        obstacle = weights_out_of_reach(self._optimizer)
        if obstacle is not None:
            self.refuse(obstacle)
            return
        self.num_bytes = needed = snapshot.size(innermost(self._optimizer), self._models())
        if self._mode == "disk":
            return
        everyone = collective.gather_numbers([free_memory(), needed, zlib.crc32(socket.gethostname().encode())])
        hosts = [host for _, _, host in everyone]
        share = self._memory_share
        room = min(int(share * free / hosts.count(host) / max(size, 1)) for free, size, host in everyone)
        if room < _FEWEST:
            self.turn_off(
                f"its snapshots, {_FEWEST} of {needed / 2**20:.0f} MiB at least on every process, would take more than "
                f"{self._memory_share:.0%} of the free host memory; free some, raise rewind_memory, or keep "
                'them in files with rewind="disk"'
            )
        elif room < self.limit:
            self.limit = room
            self.lr_factor = self._spacing(band)

    def _spacing(self, band: float) -> float:
        """The factor in LR between snapshots with which the band takes no more of them than there may be."""
        others = 5 if self.limit >= _ROOM_FOR_START else 4
        return float(max(band ** (1.0 / max(self.limit - others, 1)), LR_FACTOR))

    def _to_disk(self, taken: Snapshot) -> _OnDisk:
        _synchronize()
        if self._folder is None:
            os.makedirs(self._parent_folder or tempfile.gettempdir(), exist_ok=True)
            self._folder = tempfile.mkdtemp(prefix="autowu_", dir=self._parent_folder)
            weakref.finalize(self, _remove_folder, self._folder)
        return _OnDisk(taken, os.path.join(self._folder, f"step_{taken.step}.bin"))

    def state_dict(self) -> dict[str, Any]:
        """The snapshots, where one process's are everybody's: not under FSDP, nor for ``rewind="disk"``."""
        portable = not (
            self._mode == "disk" or (self.kept and snapshot.is_sharded(innermost(self._optimizer), self._models()))
        )
        _synchronize()
        kept = [k.state_dict() for k in self.kept if isinstance(k, Snapshot)] if portable else []
        return {"is_on": self.is_on, "due_lr": self._due_lr, "kept": kept}

    def load_state_dict(self, state: dict[str, Any], warming_up: bool) -> None:
        """Restores what ``state_dict`` returned; says so where snapshots that a switch may want are not in it.

        Args:
            state: the state.
            warming_up: whether the warm-up goes on.
        """
        self.drop()
        self.is_on = self.is_on and state["is_on"]  # what took too much memory then would do so now
        if not warming_up or not self.is_on:
            return
        loaded = [Snapshot(**kept) for kept in state["kept"]]
        if loaded and snapshot.fits(loaded[0], innermost(self._optimizer)):
            self.kept.extend(loaded)
            self._due_lr = state["due_lr"]
        elif collective.is_main_process():
            logger.warning(
                "the checkpoint holds no snapshots that fit this run, so that AutoWU's rewind goes back at most to the "
                "step after which the run was resumed"
            )


class _OnDisk:
    """A snapshot in a file."""

    def __init__(self, taken: Snapshot, path: str) -> None:
        self.step, self._path = taken.step, path
        self._finite_buffers = taken.finite_buffers()
        torch.save(taken.state_dict(), path)

    def finite_buffers(self) -> set[str]:
        return self._finite_buffers

    def load(self) -> Snapshot:
        return Snapshot(**torch.load(self._path, map_location="cpu", weights_only=False))  # its own file

    def remove(self) -> None:
        if os.path.exists(self._path):
            os.remove(self._path)


def free_memory() -> int:
    """The host memory, in bytes, that this process and others may still take: the machine's, or its container's."""
    free = int(psutil.virtual_memory().available)
    for folder, limit, used, cache in _CGROUPS:
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(statistics.get(cache, 0))
            free = min(free, int((folder / limit).read_text()) - taken)
        except (OSError, ValueError):  # not this version of control groups, or no limit
            continue
    return max(free, 0)


def _synchronize() -> None:
    """Waits for the copies that are under way."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _remove_folder(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
