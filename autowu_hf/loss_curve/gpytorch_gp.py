"""The Gaussian process over a loss curve as a GPyTorch model: its definition, and the paper's recipe for fitting it.

``LossCurveModel`` states the model (paper 2.1.2, eq. 2); ``autowu_hf.loss_curve.gp.FastGP`` computes the same thing
fast. ``GPyTorchGP`` fits it the paper's way; importing this module imports gpytorch, which the default engine does
not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .gp import GRID, LENGTHSCALE, Array, GPParameters, Posterior
from .quiet_gpytorch import gpytorch

_NUM_ADAM_STEPS = 100
_ADAM_LR = 0.01
_INITIAL_NOISE = 1e-3


class LossCurveModel(gpytorch.models.ExactGP):  # type: ignore[misc]
    """L(x) = f(x) + eps, f ~ GP(theta, sigma_f^2 exp(-|x - x'|^2 / (2 l^2))), eps ~ N(0, sigma_n^2), with l = 0.2
    fixed.

    Args:
        x: (n,), positions in [0, 1], float64.
        y: (n,), losses, finite, float64.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
        self.covar_module.base_kernel.lengthscale = LENGTHSCALE
        self.covar_module.base_kernel.raw_lengthscale.requires_grad_(False)
        self.to(torch.float64)

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class GPyTorchGP:
    """The loss-curve GP fitted as in the paper; ``gp_engine="gpytorch"``.

    Each fit takes 100 steps of Adam at learning rate 0.01 on the marginal log-likelihood (2.1.2). As in the authors'
    code, the noise and the outputscale and Adam's moments go on from the fit before, the mean restarts at the mean of
    the losses.
    """

    def __init__(self) -> None:
        self._model = LossCurveModel(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
        self._model.likelihood.noise = _INITIAL_NOISE
        trainable = [p for p in self._model.parameters() if p.requires_grad]
        self._adam = torch.optim.Adam(trainable, lr=_ADAM_LR)

    def _set_data(self, x: Array, y: Array) -> tuple[Tensor, Tensor]:
        inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
        self._model.set_train_data(inputs, targets, strict=False)
        return inputs, targets

    def fit(self, x: Array, y: Array) -> GPParameters:
        """Fits the three parameters.

        Args:
            x: (n,), positions in [0, 1].
            y: (n,), losses, finite.

        Returns:
            The parameters after the last step of Adam.
        """
        inputs, targets = self._set_data(x, y)
        model = self._model
        model.train()
        with torch.no_grad():
            model.mean_module.constant.fill_(targets.mean())
        likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        with torch.enable_grad():
            for _ in range(_NUM_ADAM_STEPS):
                self._adam.zero_grad()
                loss = -likelihood(model(inputs), targets)
                loss.backward()
                self._adam.step()
        return GPParameters(
            outputscale=model.covar_module.outputscale.item(),
            noise=model.likelihood.noise.item(),
            mean=model.mean_module.constant.item(),
        )

    def posteriors(self, params: GPParameters, subsets: Sequence[tuple[Array, Array]]) -> list[Posterior]:
        """Conditions the GP on each of several sets of losses.

        Args:
            params: the fitted parameters.
            subsets: pairs (x, y): positions (n,) in [0, 1] and finite losses (n,).

        Returns:
            The posteriors on ``GRID``.
        """
        return [_posterior(params, torch.from_numpy(x), torch.from_numpy(y)) for x, y in subsets]

    def state_dict(self) -> dict[str, Any]:
        """What the next fit goes on from: the raw parameters and Adam's moments; tensors and numbers only."""
        return {
            "parameters": {name: p.detach().clone() for name, p in self._model.named_parameters()},
            "adam": self._adam.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(state["parameters"][name])
        self._adam.load_state_dict(state["adam"])


def _posterior(params: GPParameters, x: Tensor, y: Tensor) -> Posterior:
    model = LossCurveModel(x, y)
    model.covar_module.outputscale = params.outputscale
    model.likelihood.noise = params.noise
    with torch.no_grad():
        model.mean_module.constant.fill_(params.mean)
        model.eval()
        latent = model(torch.from_numpy(GRID))
        mean, covariance = latent.mean.numpy(), latent.covariance_matrix.numpy()
    variance = covariance.diagonal().copy()
    return Posterior(mean, variance, variance + variance[-1] - 2.0 * covariance[:, -1])
