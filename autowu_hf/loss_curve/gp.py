"""The Gaussian process over a loss curve (paper 2.1.2, eq. 2), fitted and conditioned fast.

The model is ``autowu_hf.loss_curve.gpytorch_gp.LossCurveModel``: constant mean, scaled RBF kernel of fixed
length-scale, Gaussian noise. Its inputs always lie in [0, 1] and the length-scale is fixed, so the kernel has numerical
rank 19: it equals
``outputscale * phi(x) @ phi(x').T`` to 1e-13, with ``phi`` the Nystrom features of 30 Chebyshev nodes. In that basis
the marginal likelihood of n losses depends on them only through ``phi.T @ phi`` and a few sums (``Statistics``), and
costs O(rank) for any value of the parameters. Everything here is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LENGTHSCALE = 0.2
"""l of the RBF kernel; fixed in the paper (2.1.2)."""

NOISE_FLOOR = 1e-4
"""Smallest noise variance that a fit may reach (GPyTorch's own floor), in squared units of the fitted losses."""

GRID: Array = np.linspace(0.0, 1.0, 500)
"""S of eq. (4): the 500 equally spaced points of [0, 1] at which posteriors are evaluated."""

_NUM_NODES = 30
_NUM_SEARCH_POINTS = 24
_NUM_ROUNDS = 3
_LOG_RATIO_RANGE = (-18.0, 24.0)


@dataclass(frozen=True)
class GPParameters:
    """The three fitted parameters of the GP, in the unit of the losses that it was fitted to.

    Args:
        outputscale: sigma_f^2 of the kernel, in squared loss units.
        noise: sigma_n^2 of the likelihood, in squared loss units.
        mean: theta, the constant mean, in loss units.
    """

    outputscale: float
    noise: float
    mean: float


@dataclass(frozen=True)
class Posterior:
    """The posterior of the latent curve f on ``GRID``, given some losses.

    Args:
        mean: (500,), the mean m(x), in loss units.
        variance: (500,), the variance v(x), in squared loss units.
        gap_variance: (500,), the variance of f(x) - f(1), which is v(x) + v(1) - 2 cov(x, 1), in squared loss units.
    """

    mean: Array
    variance: Array
    gap_variance: Array


def _chebyshev(x: Array) -> Array:
    """The Chebyshev polynomials T_0 .. T_29 of [0, 1] at the points ``x``: (30, n)."""
    table = np.empty((_NUM_NODES, len(x)))
    table[0] = 1.0
    table[1] = 2.0 * x - 1.0
    known = 1  # the highest degree so far, doubled each time by T_(m + j) = 2 T_m T_j - T_(m - j)
    while known < _NUM_NODES - 1:
        new = min(known, _NUM_NODES - 1 - known)
        table[known + 1 : known + 1 + new] = 2.0 * table[known] * table[1 : new + 1] - table[known - new : known][::-1]
        known += new
    return table


def _nystrom() -> Array:
    """(30, rank), the Chebyshev coefficients of the features; they are entire functions, so 30 terms give 1e-13."""
    nodes = 0.5 - 0.5 * np.cos(math.pi * (np.arange(_NUM_NODES) + 0.5) / _NUM_NODES)
    kernel = np.exp(-0.5 * ((nodes[:, None] - nodes[None, :]) / LENGTHSCALE) ** 2)
    values, vectors = np.linalg.eigh(kernel)
    keep = values > 1e-14 * values[-1]
    at_nodes = vectors[:, keep] * np.sqrt(values[keep])
    to_coefficients = _chebyshev(nodes) * (2.0 / _NUM_NODES)
    to_coefficients[0] *= 0.5
    coefficients: Array = to_coefficients @ at_nodes
    return coefficients


_COEFFICIENTS = _nystrom()


def features(x: Array) -> Array:
    """The features phi of the unit-variance kernel: ``features(a) @ features(b).T`` is K(a, b) / sigma_f^2.

    Args:
        x: (n,), points of [0, 1].

    Returns:
        (n, rank), float64.
    """
    return _chebyshev(x).T @ _COEFFICIENTS


_GRID_FEATURES = features(GRID)


class Statistics:
    """What the marginal likelihood needs to know of n losses, in the eigenbasis of ``phi.T @ phi``.

    With ratio R = outputscale / noise, the covariance of the losses is noise * (I + R phi phi.T). By Woodbury,
    u.T (I + R phi phi.T)^-1 v = u.v - sum_i u_i v_i R / (1 + R lambda_i), with u_i the coefficients of phi.T u. Losses
    enter centred on their average, so that no digit is lost to a large offset.

    Args:
        x: (n,), positions in [0, 1].
        y: (n,), losses, finite.
    """

    def __init__(self, x: Array, y: Array) -> None:
        phi = features(x)
        self.n = len(y)
        self.centre = float(y.mean())
        residual = y - self.centre
        values, vectors = np.linalg.eigh(phi.T @ phi)
        self.values = np.maximum(values, 0.0)
        y_coef, one_coef = vectors.T @ (phi.T @ residual), vectors.T @ phi.sum(axis=0)
        self._coefficients = np.stack([y_coef**2, y_coef * one_coef, one_coef**2])
        self._totals = np.array([float(residual @ residual), float(residual.sum()), float(self.n)])

    def quadratic(self, ratio: Array, mean: float | None = None) -> tuple[Array, Array, Array, Array]:
        """The residual's quadratic form (y - mean).T (I + R phi phi.T)^-1 (y - mean), for k values of the ratio.

        Args:
            ratio: (k,), outputscale / noise.
            mean: relative to ``centre``; None for the best one at each ratio.

        Returns:
            Four arrays (k,): the mean, the form, and the form's derivatives in log R and in the mean.
        """
        shrink = 1.0 / (1.0 + np.multiply.outer(self.values, ratio))
        yy, y1, one = self._totals[:, None] - self._coefficients @ (ratio * shrink)
        at = y1 / one if mean is None else np.full_like(ratio, mean)
        d_yy, d_y1, d_one = -self._coefficients @ (ratio * shrink * shrink)
        form = np.maximum(yy - 2.0 * at * y1 + at * at * one, 0.0)
        return at, form, d_yy - 2.0 * at * d_y1 + at * at * d_one, 2.0 * (at * one - y1)

    def profile(self, ratio: Array) -> tuple[Array, Array]:
        """The log marginal likelihood (a constant dropped) with mean and noise profiled out, and its derivative in
        log R.

        Args:
            ratio: (k,), outputscale / noise.

        Returns:
            Two arrays (k,).
        """
        _, form, d_form, _ = self.quadratic(ratio)
        noise = np.maximum(form / self.n, NOISE_FLOOR)
        scaled = np.multiply.outer(self.values, ratio)
        value = -0.5 * (form / noise + self.n * np.log(noise) + np.log1p(scaled).sum(axis=0))
        slope = -0.5 * (d_form / noise + (scaled / (1.0 + scaled)).sum(axis=0))
        return value, slope


def log_marginal_likelihood(params: GPParameters, stats: Statistics) -> tuple[float, Array]:
    """The log marginal likelihood log p(y | x) of the GP and its gradient.

    Args:
        params: the parameters to evaluate it at.
        stats: of the n losses.

    Returns:
        The log likelihood (nats, all n losses together) and its gradient (3,) in (log outputscale, log noise, mean).
    """
    ratio = params.outputscale / params.noise
    terms = stats.quadratic(np.array([ratio]), params.mean - stats.centre)
    _, form, form_by_ratio, form_by_mean = (float(term[0]) for term in terms)
    scaled = ratio * stats.values
    logdet = stats.n * math.log(params.noise) + float(np.log1p(scaled).sum())
    value = -0.5 * (form / params.noise + logdet + stats.n * math.log(2.0 * math.pi))
    by_ratio = -0.5 * (form_by_ratio / params.noise + float((scaled / (1.0 + scaled)).sum()))
    by_noise = 0.5 * (form / params.noise - stats.n)
    return value, np.array([by_ratio, by_noise - by_ratio, -0.5 * form_by_mean / params.noise])


class FastGP:
    """The loss-curve GP with a fast, converged fit; ``gp_engine="fast"``."""

    def fit(self, x: Array, y: Array) -> GPParameters:
        """Maximises the marginal likelihood, to convergence.

        The mean and the noise have closed forms given the ratio R = outputscale / noise, so the search is over log R
        alone: a coarse scan (the likelihood of few losses can have two modes), then nested scans for the root of the
        derivative. The noise is kept at ``NOISE_FLOOR`` or above.

        Args:
            x: (n,), positions in [0, 1].
            y: (n,), losses, finite.

        Returns:
            The parameters at the maximum.
        """
        stats = Statistics(x, y)
        low, high = _LOG_RATIO_RANGE
        points = np.linspace(low, high, 2 * _NUM_SEARCH_POINTS)
        value, _ = stats.profile(np.exp(points))
        best = int(np.argmax(value))
        left, right = max(best - 1, 0), min(best + 1, len(points) - 1)
        for _ in range(_NUM_ROUNDS):
            points = np.linspace(points[left], points[right], _NUM_SEARCH_POINTS)
            _, slope = stats.profile(np.exp(points))
            rising = np.flatnonzero(slope > 0.0)
            left = min(int(rising[-1]) if len(rising) else 0, len(points) - 2)
            right = left + 1
        # The bracket is now so short that the derivative is linear on it.
        share = slope[left] / (slope[left] - slope[right]) if slope[left] > slope[right] else 0.0
        ratio = math.exp(points[left] + min(max(share, 0.0), 1.0) * (points[right] - points[left]))
        mean, form, *_ = (float(term[0]) for term in stats.quadratic(np.array([ratio])))
        noise = max(form / stats.n, NOISE_FLOOR)
        return GPParameters(outputscale=ratio * noise, noise=noise, mean=stats.centre + mean)

    def posteriors(self, params: GPParameters, subsets: Sequence[tuple[Array, Array]]) -> list[Posterior]:
        """Conditions the GP on each of several sets of losses, all at once.

        Args:
            params: the fitted parameters.
            subsets: k pairs (x, y): positions (n,) in [0, 1] and finite losses (n,); n may differ from pair to pair.

        Returns:
            The k posteriors on ``GRID``.
        """
        k, n = len(subsets), max(len(y) for _, y in subsets)
        x, residual, ones = np.zeros((k, n)), np.zeros((k, n, 1)), np.zeros((k, n, 1))
        for i, (positions, losses) in enumerate(subsets):
            x[i, : len(losses)] = positions
            residual[i, : len(losses), 0] = losses - params.mean
            ones[i, : len(losses)] = 1.0
        phi = features(x.ravel()).reshape(k, n, -1) * ones  # the padding of a shorter subset weighs nothing
        transposed = phi.transpose(0, 2, 1)
        values, vectors = np.linalg.eigh(transposed @ phi)
        ratio = params.outputscale / params.noise
        shrink = 1.0 / (1.0 + ratio * np.maximum(values, 0.0))[:, :, None]
        weights = ratio * shrink * (vectors.transpose(0, 2, 1) @ (transposed @ residual))
        grid = _GRID_FEATURES @ vectors
        gap = grid - grid[:, -1:]
        means = params.mean + grid @ weights
        variances = params.outputscale * ((grid * grid) @ shrink)
        gap_variances = params.outputscale * ((gap * gap) @ shrink)
        return [Posterior(means[i, :, 0], variances[i, :, 0], gap_variances[i, :, 0]) for i in range(k)]
