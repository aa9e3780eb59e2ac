from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autowu_hf.loss_curve.gp import (
    GRID,
    LENGTHSCALE,
    NOISE_FLOOR,
    FastGP,
    GPParameters,
    Statistics,
    features,
    log_marginal_likelihood,
)
from autowu_hf.loss_curve.gpytorch_gp import GPyTorchGP, LossCurveModel
from autowu_hf.loss_curve.quiet_gpytorch import gpytorch

SIZES = (5, 17, 100, 500)
PARAMETERS = (
    GPParameters(outputscale=0.7, noise=1e-3, mean=0.2),
    GPParameters(outputscale=12.0, noise=0.3, mean=-1.0),
    GPParameters(outputscale=1e-2, noise=2e-4, mean=0.0),
)


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((a[:, None] - b[None, :]) / LENGTHSCALE) ** 2)


def curve(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    x = np.arange(n) / n
    return x, np.cos(4.0 * x) + 0.1 * rng.standard_normal(n)


def gpytorch_model(params: GPParameters, x: np.ndarray, y: np.ndarray) -> LossCurveModel:
    model = LossCurveModel(torch.from_numpy(x), torch.from_numpy(y))
    model.covar_module.outputscale = params.outputscale
    model.likelihood.noise = params.noise
    model.mean_module.constant.data.fill_(params.mean)
    return model


def test_features_reproduce_the_kernel():
    x = np.random.default_rng(0).random(300)
    assert np.abs(features(x) @ features(x).T - kernel(x, x)).max() < 2e-13


@pytest.mark.parametrize("params", PARAMETERS)
@pytest.mark.parametrize("n", SIZES)
def test_marginal_likelihood_and_gradient_equal_the_dense_closed_form(n, params):
    x, y = curve(n)
    covariance = params.outputscale * kernel(x, x) + params.noise * np.eye(n)
    inverse, residual = np.linalg.inv(covariance), y - params.mean
    alpha = inverse @ residual
    value = -0.5 * (residual @ alpha + np.linalg.slogdet(covariance)[1] + n * math.log(2 * math.pi))

    def by(derivative: np.ndarray) -> float:
        return 0.5 * float(alpha @ derivative @ alpha - np.trace(inverse @ derivative))

    gradient = [by(params.outputscale * kernel(x, x)), by(params.noise * np.eye(n)), alpha.sum()]
    fast_value, fast_gradient = log_marginal_likelihood(params, Statistics(x, y))
    assert fast_value == pytest.approx(value, rel=1e-8)
    np.testing.assert_allclose(fast_gradient, gradient, rtol=1e-6, atol=1e-8 * np.abs(gradient).max())


@pytest.mark.parametrize("params", PARAMETERS)
@pytest.mark.parametrize("n", SIZES)
def test_marginal_likelihood_and_gradient_equal_gpytorch(n, params):
    x, y = curve(n)
    model = gpytorch_model(params, x, y)
    model.train()
    likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    value = likelihood(model(torch.from_numpy(x)), torch.from_numpy(y)) * n  # GPyTorch's is per loss
    value.backward()
    raw_scale, raw_noise = model.covar_module.raw_outputscale, model.likelihood.noise_covar.raw_noise
    # By the chain rule, d/d raw = sigmoid(raw) d/d value for a softplus; d/d log value = value d/d value.
    by_log_scale = raw_scale.grad / torch.sigmoid(raw_scale) * params.outputscale
    by_log_noise = raw_noise.grad / torch.sigmoid(raw_noise) * params.noise
    gradient = [by_log_scale.item(), by_log_noise.item(), model.mean_module.constant.grad.item()]
    fast_value, fast_gradient = log_marginal_likelihood(params, Statistics(x, y))
    assert fast_value == pytest.approx(value.item(), rel=1e-6)
    np.testing.assert_allclose(fast_gradient, gradient, rtol=1e-6, atol=1e-8 * np.abs(gradient).max())


@pytest.mark.parametrize("params", PARAMETERS)
@pytest.mark.parametrize("n", SIZES)
def test_posterior_equals_the_dense_closed_form_and_gpytorch(n, params):
    x, y = curve(n)
    covariance = params.outputscale * kernel(x, x) + params.noise * np.eye(n)
    cross = params.outputscale * kernel(GRID, x)
    mean = params.mean + cross @ np.linalg.solve(covariance, y - params.mean)
    joint = params.outputscale * kernel(GRID, GRID) - cross @ np.linalg.solve(covariance, cross.T)
    variance = joint.diagonal()
    gap_variance = variance + variance[-1] - 2 * joint[:, -1]

    # A shorter set beside it, as after spikes, changes nothing.
    fast, _ = FastGP().posteriors(params, [(x, y), (x[:-2], y[:-2])])
    (slow,) = GPyTorchGP().posteriors(params, [(x, y)])
    for m, v, g in ((mean, variance, gap_variance), (slow.mean, slow.variance, slow.gap_variance)):
        np.testing.assert_allclose(fast.mean, m, rtol=1e-6, atol=1e-8)
        # The differences of nearly equal variances lose digits in the dense forms, not in the fast one.
        np.testing.assert_allclose(fast.variance, v, rtol=1e-6, atol=1e-11 * params.outputscale)
        np.testing.assert_allclose(fast.gap_variance, g, rtol=1e-6, atol=1e-11 * params.outputscale)


@pytest.mark.parametrize("n", SIZES)
def test_fit_is_at_a_maximum(n):
    x, y = curve(n)
    params = FastGP().fit(x, y)
    best, gradient = log_marginal_likelihood(params, Statistics(x, y))
    assert params.noise >= NOISE_FLOOR
    assert abs(gradient[0]) < 1e-4
    assert abs(gradient[2]) < 1e-6
    assert abs(gradient[1]) < 1e-4 or params.noise == NOISE_FLOOR
    for scale in (0.9, 1.1):
        for other in (
            GPParameters(params.outputscale * scale, params.noise, params.mean),
            GPParameters(params.outputscale, max(params.noise * scale, NOISE_FLOOR), params.mean),
            GPParameters(params.outputscale, params.noise, params.mean + scale - 1.0),
        ):
            assert log_marginal_likelihood(other, Statistics(x, y))[0] <= best + 1e-9


def test_sets_of_different_lengths_do_not_disturb_each_other():
    x, y = curve(100)
    together = FastGP().posteriors(PARAMETERS[0], [(x, y), (x[::2], y[::2]), (x[:7], y[:7])])
    for i, one in enumerate(((x, y), (x[::2], y[::2]), (x[:7], y[:7]))):
        (alone,) = FastGP().posteriors(PARAMETERS[0], [one])
        np.testing.assert_allclose(together[i].mean, alone.mean, rtol=1e-9)
        np.testing.assert_allclose(together[i].gap_variance, alone.gap_variance, rtol=1e-7, atol=1e-14)


def test_fit_beats_a_grid_of_parameters():
    x, y = curve(60)
    best, _ = log_marginal_likelihood(FastGP().fit(x, y), Statistics(x, y))
    for scale in np.logspace(-3, 3, 13):
        for noise in np.logspace(-4, 1, 13):
            for mean in (-1.0, 0.0, 0.5, 1.0):
                assert log_marginal_likelihood(GPParameters(scale, noise, mean), Statistics(x, y))[0] <= best


def test_fit_finds_the_noise_of_a_known_curve():
    rng = np.random.default_rng(0)
    x = np.arange(400) / 400
    params = FastGP().fit(x, np.sin(5.0 * x) + 0.2 * rng.standard_normal(400))
    assert params.noise == pytest.approx(0.04, rel=0.15)


def test_fit_of_a_constant_curve_is_noise_at_its_floor():
    params = FastGP().fit(np.arange(50) / 50, np.full(50, 3.0))
    assert params.mean == pytest.approx(3.0)
    assert params.noise == NOISE_FLOOR
    assert params.outputscale < 1e-6
