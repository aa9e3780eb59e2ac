"""AutoLRS's search for the next LR to try: a Gaussian process over the logarithm of the LR (section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..loss_curve.quiet_gpytorch import gpytorch

_GRID_SIZE = 401
_LENGTHSCALES = np.geomspace(0.1, 0.5, 8)
_NOISE = 1e-3
"""The noise variance of a standardised forecast. It is not fitted: much of it would send the search back to an LR."""

_NEAREST = 0.02
"""How near to one that was tried an LR may be, as a share of the range on the logarithmic scale."""


class ForecastModel(gpytorch.models.ExactGP):  # type: ignore[misc]
    """Forecast losses over the logarithm of the LR: Matern 5/2 kernel, mean 0, Gaussian noise of a known variance.

    Args:
        x: (n,), float64, log LRs on [0, 1].
        y: (n,), float64, forecasts, standardised.
        lengthscale: of the kernel, on that scale.
    """

    def __init__(self, x: Tensor, y: Tensor, lengthscale: float) -> None:
        super().__init__(x, y, gpytorch.likelihoods.FixedNoiseGaussianLikelihood(torch.full_like(y, _NOISE)))
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = gpytorch.kernels.MaternKernel(nu=2.5).to(torch.float64)
        self.covar_module.lengthscale = lengthscale

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def propose(tried: Sequence[float], forecasts: Sequence[float], min_lr: float, max_lr: float, kappa: float) -> float:
    """The LR to try next: where the forecast may be lowest, the lower confidence bound m(x) - kappa s(x).

    Args:
        tried: (n,), the LRs tried so far, in optimizer units; the first one to try is the middle of the range.
        forecasts: (n,), their forecast losses. One that is not finite counts as worse than all others.
        min_lr: the lowest LR.
        max_lr: the highest LR.
        kappa: how much the standard deviation counts; the paper's 1e6 explores almost only.

    Returns:
        An LR, in optimizer units.
    """
    low, width = math.log(min_lr), math.log(max_lr) - math.log(min_lr)
    if not tried:
        return math.exp(low + 0.5 * width)
    x = (torch.tensor(tried, dtype=torch.float64).log() - low) / width
    model = _fitted(x, _standardised(torch.tensor(forecasts, dtype=torch.float64)))
    grid = torch.linspace(0.0, 1.0, _GRID_SIZE, dtype=torch.float64)
    with torch.no_grad():
        posterior = model(grid)
        bound = posterior.mean - kappa * posterior.variance.clamp_min(0.0).sqrt()
    bound[(grid[:, None] - x).abs().amin(dim=1) < _NEAREST] = math.inf
    return math.exp(low + width * float(grid[int(bound.argmin())]))


def best_of(tried: Sequence[float], forecasts: Sequence[float]) -> float:
    """The LR with the lowest forecast; the lowest LR, where no forecast is finite.

    Args:
        tried: (n,), the LRs tried, n at least 1.
        forecasts: (n,), their forecast losses.

    Returns:
        One of ``tried``.
    """
    finite = [(forecast, lr) for lr, forecast in zip(tried, forecasts, strict=True) if math.isfinite(forecast)]
    return min(finite)[1] if finite else min(tried)


def _standardised(y: Tensor) -> Tensor:
    finite = y.isfinite()
    if not finite.any():
        return torch.zeros_like(y)
    worst, best = y[finite].max(), y[finite].min()
    y = torch.where(finite, y, worst + (worst - best))
    deviation = y.std(correction=0)
    return (y - y.mean()) / (deviation if deviation > 0 else 1.0)


def _fitted(x: Tensor, y: Tensor) -> ForecastModel:
    """The model with the length-scale under which the forecasts are most likely."""
    models = [ForecastModel(x, y, lengthscale) for lengthscale in _LENGTHSCALES]
    likelihoods = []
    with torch.no_grad():
        for model in models:
            model.train()
            likelihoods.append(float(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)(model(x), y)))
            model.eval()
    return models[int(np.argmax(likelihoods))]
