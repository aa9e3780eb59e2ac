"""SASA+'s tests: has the loss stopped falling, and has the process become stationary (arXiv 2002.10597)."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtr, stdtrit

from ..loss_curve.gp import Array


class LeakyBucket:
    """The latest share of the samples that were added since it was empty.

    Args:
        share: theta, in (0, 1]; of n samples the latest ceil(theta n) stay.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._num_added = 0
        self._kept: deque[float] = deque()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, value: float) -> None:
        """Takes a sample in, and lets go of old ones."""
        self._num_added += 1
        self._kept.append(value)
        while len(self._kept) > math.ceil(self.share * self._num_added - 1e-9):
            self._kept.popleft()

    def values(self) -> Array:
        """(n,), float64: the samples that are kept, oldest first."""
        return np.array(self._kept, dtype=np.float64)

    def empty(self) -> None:
        """Lets go of everything; the share is that of the samples from now on."""
        self._num_added = 0
        self._kept.clear()

    def state_dict(self) -> dict[str, Any]:
        """The samples and how many there were."""
        return {"num_added": self._num_added, "kept": torch.from_numpy(self.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self._num_added = state["num_added"]
        self._kept = deque(state["kept"].tolist())


def slope_p_value(losses: Array) -> float:
    """The p-value of a falling loss: of the one-sided t-test that the slope of a line through the losses is negative.

    The residuals count as independent, as in the authors' code.

    Args:
        losses: (n,), one per step; those that are not finite leave the fit.

    Returns:
        In [0, 1]; small where the loss falls for sure, 1 where fewer than 3 are finite.
    """
    steps = np.flatnonzero(np.isfinite(losses)).astype(np.float64)
    losses = losses[np.isfinite(losses)]
    n = len(losses)
    if n < 3:
        return 1.0
    x, y = steps - steps.mean(), losses - losses.mean()
    sxx, sxy, syy = float(x @ x), float(x @ y), float(y @ y)
    residual = max(syy - sxy**2 / sxx, 0.0)
    if residual == 0.0:  # on a line
        return 0.5 if sxy == 0.0 else float(sxy > 0.0)
    return float(stdtr(n - 2, sxy / math.sqrt(sxx * residual / (n - 2))))


@dataclass(frozen=True)
class Stationarity:
    """The outcome of a test of the mean of Delta.

    Args:
        mean: of the samples.
        half_width: of its confidence interval.
        halves: the means of the older and of the newer half.
        holds: whether the process counts as stationary.
    """

    mean: float
    half_width: float
    halves: tuple[float, float]
    holds: bool


def stationarity(deltas: Array, significance: float, is_first: bool) -> Stationarity:
    """The two-sided test of mean 0, its variance from batch means: floor(sqrt(n)) samples a batch.

    Where the mean crosses 0 while the process still moves, its interval holds 0 for a while. So the means of both
    halves must have the same sign, and for the first drop 0 must lie within the half-width of each of them. (Both
    rules are those of the authors' code.)

    Args:
        deltas: (n,), n at least 9: Delta of every step, the latest ones.
        significance: of the test; the interval's confidence is 1 - significance.
        is_first: whether the LR has not dropped yet.

    Returns:
        The outcome; not stationary where a sample is not finite, or all are the same.
    """
    size = math.isqrt(len(deltas))
    num_batches = len(deltas) // size
    deltas = deltas[len(deltas) - size * num_batches :]
    mean = float(deltas.mean())
    means = deltas.reshape(num_batches, size).mean(axis=1)
    deviation = math.sqrt(float(((means - mean) ** 2).sum()) / (num_batches - 1))
    half_width = float(stdtrit(num_batches - 1, 1.0 - significance / 2.0)) * deviation / math.sqrt(num_batches)
    middle = len(deltas) // 2
    halves = float(deltas[:middle].mean()), float(deltas[middle:].mean())
    near_zero = halves if is_first else (mean,)
    holds = all(abs(m) < half_width for m in near_zero) and halves[0] * halves[1] > 0.0
    return Stationarity(mean, half_width, halves, holds)
