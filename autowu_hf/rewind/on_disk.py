"""Snapshots in files, for models whose snapshots do not fit into host memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref

import torch

from .snapshot import Snapshot, wait_for_copies


class SnapshotOnDisk:
    """A snapshot in a file of this process.

    Args:
        snapshot: is written to the file; nothing here holds on to it.
        path: the file's.

    Attributes:
        step: the snapshot's scheduler steps done.
    """

    def __init__(self, snapshot: Snapshot, path: str) -> None:
        wait_for_copies()
        self.step, self._path = snapshot.step, path
        self._finite_buffers = snapshot.finite_buffers()
        torch.save(snapshot.state_dict(), path)

    def finite_buffers(self) -> set[str]:
        """As ``Snapshot.finite_buffers``; the file is not read for it."""
        return self._finite_buffers

    def load(self) -> Snapshot:
        """Reads the snapshot from the file."""
        return Snapshot(**torch.load(self._path, map_location="cpu", weights_only=False))  # its own file

    def discard(self) -> None:
        """Removes the file."""
        if os.path.exists(self._path):
            os.remove(self._path)

    def state_dict(self) -> None:
        """None: a checkpoint does not carry this process's files."""


class SnapshotFolder:
    """A temporary folder for the snapshots of one process, made for the first of them and removed with this object.

    Args:
        parent: the folder that it is made in, which is made too if missing; None for the system's temporary one.
    """

    def __init__(self, parent: str | None) -> None:
        self.parent = parent
        self._path: str | None = None

    def store(self, snapshot: Snapshot) -> SnapshotOnDisk:
        """Writes a snapshot to a file in the folder."""
        if self._path is None:
            os.makedirs(self.parent or tempfile.gettempdir(), exist_ok=True)
            self._path = tempfile.mkdtemp(prefix="autowu_", dir=self.parent)
            weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)
        return SnapshotOnDisk(snapshot, os.path.join(self._path, f"step_{snapshot.step}.bin"))
