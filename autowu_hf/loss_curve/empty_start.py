"""Losses of exactly 0 at the start of a run: of batches that had no gradient, which say nothing about the weights."""

from __future__ import annotations

import numpy as np

from .gp import Array


def num_empty(losses: Array) -> int:
    """How many losses there are before the first that is not 0.

    Args:
        losses: (n,), one per optimizer step.
    """
    said = np.flatnonzero(losses != 0.0)
    return int(said[0]) if len(said) else len(losses)


def without_empty_start(losses: Array) -> Array:
    """The losses, NaN in the place of those before the first that is not 0.

    Args:
        losses: (n,), one per optimizer step.
    """
    return np.where(np.arange(len(losses)) < num_empty(losses), np.nan, losses)
