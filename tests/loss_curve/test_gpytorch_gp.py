from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from autowu_hf.loss_curve.gpytorch_gp import GPyTorchGP
from autowu_hf.loss_curve.minimum_and_cliff import minimum_probability


def test_recipe_reproduces_the_authors_fits(curves):
    """While a curve has at most 100 losses their subset is the whole curve, so nothing is random: parameters agree."""
    compared = 0
    for record in (curves[i] for i in (0, 7, 13, 20)):
        engine = GPyTorchGP()
        for test in record["tests"][:5]:
            n = test["step"]
            if n > 100:
                break
            x, y = np.arange(n) / n, record["losses"][:n]
            params = engine.fit(x, y)
            assert params.noise == pytest.approx(test["noise"], rel=2e-3)
            assert params.outputscale == pytest.approx(test["outputscale"], rel=2e-3)
            assert params.mean == pytest.approx(test["mean"], rel=1e-4)
            (posterior,) = engine.posteriors(params, [(x, y)])
            assert minimum_probability(posterior) == pytest.approx(test["p_min"][0], abs=5e-3)
            compared += 1
    assert compared >= 15


def test_state_goes_on_bit_for_bit(curves):
    losses = curves[1]["losses"]

    def fit(engine: GPyTorchGP, n: int):
        return engine.fit(np.arange(n) / n, losses[:n])

    engine = GPyTorchGP()
    fit(engine, 11)
    file = io.BytesIO()
    torch.save(engine.state_dict(), file)
    expected = fit(engine, 22)
    file.seek(0)
    resumed = GPyTorchGP()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert fit(resumed, 22) == expected
