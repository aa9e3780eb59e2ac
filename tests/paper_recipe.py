"""The paper's fit (100 steps of Adam) on the fast likelihood: the same steps as ``GPyTorchGP``, thirty times faster.

So every recorded curve can be replayed with several subsampling seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autowu_hf.autowu.minimum_test import MinimumTest
from autowu_hf.autowu.settings import AutoWUSettings
from autowu_hf.loss_curve.gp import NOISE_FLOOR, FastGP, GPParameters, log_marginal_likelihood


def softplus(raw: float) -> float:
    return math.log1p(math.exp(raw))


def sigmoid(raw: float) -> float:
    return 1.0 / (1.0 + math.exp(-raw))


class FastPaperGP(FastGP):
    def __init__(self) -> None:
        self.raw = np.array([0.0, math.log(math.expm1(1e-3 - NOISE_FLOOR)), 0.0])
        self.first, self.second, self.steps = np.zeros(3), np.zeros(3), 0

    def parameters(self) -> GPParameters:
        return GPParameters(softplus(self.raw[0]), softplus(self.raw[1]) + NOISE_FLOOR, float(self.raw[2]))

    def fit(self, x, y) -> GPParameters:
        self.raw[2] = y.mean()
        for _ in range(100):
            params = self.parameters()
            _, gradient = log_marginal_likelihood(params, x, y)
            chain = [
                sigmoid(self.raw[0]) / params.outputscale,
                sigmoid(self.raw[1]) / params.noise,
                1.0,
            ]
            descent = -gradient * chain / len(y)
            self.steps += 1
            self.first = 0.9 * self.first + 0.1 * descent
            self.second = 0.999 * self.second + 0.001 * descent**2
            first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
            self.raw = self.raw - 0.01 * first / (np.sqrt(second) + 1e-8)
        return self.parameters()


def replay(
    losses: np.ndarray, cap: int, interval: int, settings: AutoWUSettings, engine: Any = None, stop: int | None = None
) -> tuple[int, float, MinimumTest]:
    """Steps a minimum test through a recorded curve; returns the switch, t*, and the test.

    ``stop`` ends it there: a switch as late is as wrong as any later one.
    """
    test = MinimumTest(settings)
    if engine is not None:
        test._engine = engine
    for step in range(1, cap):
        if step % interval and not test.inconclusive:
            continue
        num_seen = test.records[-1].num_losses if test.records else 0
        test.run(losses[:step], step - num_seen, step)
        if test.has_passed(cap):
            return step, test.records[-1].minimum_step, test
        if stop is not None and step >= stop:
            break
    return cap, float(cap), test


def is_early(record: dict[str, Any], switch: int) -> bool:
    """More than two epochs before the minimum of a moving average of min(loss, 5) over a twentieth of the curve."""
    losses = np.minimum(record["losses"], 5.0)
    window = max(3, len(losses) // 20)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    minimum = smooth.argmin() + window / 2
    return switch < record["total_steps"] // 2 and switch < minimum - 2 * record["steps_per_epoch"]
