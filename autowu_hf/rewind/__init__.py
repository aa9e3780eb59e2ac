"""Rewind: snapshots of training, taken along the warm-up, one of which the switch restores."""

from ..runtime.param_groups import shares_out_of_reach as cannot_rewind
from .memory import free_memory
from .rewind import Rewind
from .snapshot import Snapshot
from .thinning import LR_FACTOR

__all__ = ["LR_FACTOR", "Rewind", "Snapshot", "cannot_rewind", "free_memory"]
