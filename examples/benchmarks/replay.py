"""Replays a recorded loss curve through a minimum test, with the paper's fit of the Gaussian process or with ours.

The paper's fit is 100 steps of Adam. ``FastPaperGP`` makes the same steps as the engine "gpytorch" on the fast
likelihood, thirty times faster, so that every recorded curve can be replayed with several subsampling seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autowu_hf.autowu.minimum_test import MinimumTest
from autowu_hf.autowu.settings import AutoWUSettings
from autowu_hf.loss_curve.gp import NOISE_FLOOR, FastGP, GPParameters, Statistics, log_marginal_likelihood


def softplus(raw: float) -> float:
    return math.log1p(math.exp(raw))


def sigmoid(raw: float) -> float:
    return 1.0 / (1.0 + math.exp(-raw))


class FastPaperGP(FastGP):
    """Adam (learning rate 0.01, 100 steps a fit) on GPyTorch's raw parameters; every fit goes on from the one before.

    Attributes:
        raw: (3,): output scale and noise before their softplus, and the mean, in the losses' own unit.
    """

    def __init__(self) -> None:
        self.raw = np.array([0.0, math.log(math.expm1(1e-3 - NOISE_FLOOR)), 0.0])
        self.first, self.second, self.steps = np.zeros(3), np.zeros(3), 0

    def parameters(self) -> GPParameters:
        return GPParameters(softplus(self.raw[0]), softplus(self.raw[1]) + NOISE_FLOOR, float(self.raw[2]))

    def fit(self, x: np.ndarray, y: np.ndarray) -> GPParameters:
        """Places (n,) in [0, 1] and losses (n,) -> the parameters."""
        self.raw[2] = y.mean()
        stats = Statistics(x, y)
        for _ in range(100):
            params = self.parameters()
            _, gradient = log_marginal_likelihood(params, stats)
            chain = [sigmoid(self.raw[0]) / params.outputscale, sigmoid(self.raw[1]) / params.noise, 1.0]
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
    """Steps a minimum test through a recorded curve.

    Args:
        losses: (n,), n at least ``cap``: one for each step.
        cap: the longest warm-up, in steps.
        interval: steps from test to test.
        settings: of the test.
        engine: the Gaussian process, instead of that of the settings.
        stop: the step that ends the replay, for callers to whom a later switch is as wrong as any.

    Returns:
        The step of the switch, the minimum's step t*, and the test; both are ``cap`` where no minimum was found.
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
    """Whether a switch comes more than two epochs before the smoothed curve's minimum.

    The curve is smoothed by a moving average of min(loss, 5) over a twentieth of it.

    Args:
        record: of ``tests/data``, with ``losses`` as an array.
        switch: its step.
    """
    losses = np.minimum(record["losses"], 5.0)
    window = max(3, len(losses) // 20)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    minimum = smooth.argmin() + window / 2
    return bool(switch < record["total_steps"] // 2 and switch < minimum - 2 * record["steps_per_epoch"])
