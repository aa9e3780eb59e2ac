"""Rewind: snapshots of training, taken along the warm-up and restored at its end."""

from .rewind import LR_FACTOR, Rewind
from .snapshot import Snapshot

__all__ = ["LR_FACTOR", "Rewind", "Snapshot"]
