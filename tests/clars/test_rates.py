"""The formula of a layer's rate."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from autowu_hf import CLARS
from autowu_hf.clars.per_sample import probes
from autowu_hf.clars.rates import layer_rates

sys.path.append(str(Path(__file__).parents[1] / "scripts"))


def test_eps_is_in_the_denominator():
    model = nn.Linear(3, 1, bias=False).double()
    w, x = model.weight.detach().clone(), torch.randn(1, 3, dtype=torch.float64)
    optimizer = CLARS(model.parameters(), lr=1.0, eta=0.5, eps=2.0)
    model(x).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight - w, -0.5 * w.norm() / (x.norm() + 2.0) * x)


def record(norm: float, gradient: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.tensor([norm], dtype=torch.float64), probes(gradient)])


def layer(weight: float, gradient: float) -> torch.Tensor:
    p = torch.full((3, 4), weight, dtype=torch.float64)
    p.grad = torch.full((3, 4), gradient, dtype=torch.float64)
    return p


GROUP = {"eta": 0.1, "weight_decay": 0.5, "eps": 0.01}


def test_the_rate_is_the_size_of_the_weights_over_that_of_the_samples_gradients():
    p = layer(2.0, 0.3)
    (rate,) = layer_rates({p: GROUP}, [record(5.0, p.grad)]).values()
    size = 2.0 * 12**0.5
    assert float(rate) == pytest.approx(0.1 * size / (5.0 + 0.5 * size + 0.01))


def test_what_has_scaled_the_gradients_since_their_backward_scales_the_norms():
    p = layer(2.0, 0.3)
    before = record(5.0, p.grad)
    p.grad.mul_(0.1)
    (rate,) = layer_rates({p: GROUP}, [before]).values()
    size = 2.0 * 12**0.5
    assert float(rate) == pytest.approx(0.1 * size / (0.5 + 0.5 * size + 0.01))


def test_a_layer_of_zeros_or_without_a_gradient_has_the_rate_1():
    zeros, still = layer(0.0, 0.3), layer(2.0, 0.0)
    rates = layer_rates({zeros: GROUP, still: GROUP}, [record(5.0, zeros.grad), record(0.0, still.grad)])
    assert [float(rate) for rate in rates.values()] == [1.0, 1.0]
