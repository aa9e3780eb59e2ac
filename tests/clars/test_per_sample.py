from __future__ import annotations

import pytest
import torch
from digits_vit import digits
from samples import TinyViT, examples, gradients, one
from tiny import TinyClassifier
from torch import nn

from autowu_hf import per_sample_gradient_norms


@pytest.mark.parametrize("chunk_size", [None, 2, 1])
@pytest.mark.parametrize("kind", [TinyClassifier, TinyViT])
def test_per_sample_norms_are_those_of_a_loop(kind, chunk_size):
    model = kind().double()
    if kind is TinyViT:
        rows = digits(5)
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        batch["pixel_values"] = batch["pixel_values"].double()
    else:
        batch = examples(5)
    found = per_sample_gradient_norms(model, None, batch, chunk_size)
    names = [name for name, _ in model.named_parameters()]
    assert list(found) == names
    for i in range(5):
        for name, gradient in zip(names, gradients(model, one(batch, i)), strict=True):
            torch.testing.assert_close(found[name][i], gradient.norm(), rtol=1e-9, atol=1e-12)
    assert all(norm.shape == (5,) and not norm.requires_grad for norm in found.values())
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_of_ones_own_constants_and_frozen_layers():
    model = nn.Linear(4, 2).double()
    model.bias.requires_grad_(False)
    x = torch.randn(3, 4, dtype=torch.float64)

    def loss(model, x, weight, power):
        assert x.shape == (1, 4)
        return weight * model(x).sum() ** power

    found = per_sample_gradient_norms(model, loss, (x, torch.tensor(3.0), 1))
    assert list(found) == ["weight"]
    torch.testing.assert_close(found["weight"], 3 * 2**0.5 * x.norm(dim=1))


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_dropout_is_drawn_for_each_sample(chunk_size):
    model = TinyViT(dropout=0.5)
    row = digits(1)[0]
    batch = {"pixel_values": row["pixel_values"].repeat(4, 1, 1, 1), "labels": row["labels"].repeat(4)}

    def different(model):
        found = per_sample_gradient_norms(model, None, batch, chunk_size)
        return len(set(found["vit.classifier.weight"].tolist()))

    assert different(model.train()) == 4
    assert max(per_sample_gradient_norms(model.eval(), None, batch)["vit.classifier.bias"].tolist()) == pytest.approx(
        min(per_sample_gradient_norms(model, None, batch)["vit.classifier.bias"].tolist())
    )


def test_batch_norm_is_refused_in_train_mode_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    def loss(model, x):
        return model(x).sum()

    with pytest.raises(ValueError, match="1 is batch norm in train mode, .* use group or layer norm, put it into eval"):
        per_sample_gradient_norms(model, loss, [torch.randn(2, 4)])
    model[1].eval()
    assert per_sample_gradient_norms(model, loss, [torch.randn(2, 4)])["0.weight"].shape == (2,)


@pytest.mark.parametrize(
    ("batch", "shapes"),
    [
        ({"x": torch.zeros(3, 4), "labels": torch.zeros(1, dtype=torch.long)}, r"\(3, 4\), \(1,\)"),
        ({"x": torch.tensor(1.0)}, "none"),
        ({}, "none"),
    ],
)
def test_a_batch_without_samples_is_refused(batch, shapes):
    with pytest.raises(ValueError, match=f"must share their first dimension, the samples; their shapes: {shapes}"):
        per_sample_gradient_norms(TinyClassifier(), None, batch)


def test_a_model_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="the model returned no loss but dict; call it with labels, or pass compute_"):
        per_sample_gradient_norms(TinyClassifier(), None, {"x": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="the model returned no loss but Tensor"):
        per_sample_gradient_norms(nn.Linear(4, 1), None, [torch.zeros(3, 4)])


def test_what_vmap_cannot_run_is_run_one_by_one():
    model = nn.Linear(4, 1)

    def loss(model, x):
        return model(x).sum() if x.sum() > 0 else -model(x).sum()

    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="gradients of 3 samples could not be had with vmap; .* and 1, which goes"):
        per_sample_gradient_norms(model, loss, [x])
    torch.testing.assert_close(per_sample_gradient_norms(model, loss, [x], 1)["weight"], x.norm(dim=1))
    with pytest.raises(ValueError, match="chunk_size is 0"):
        per_sample_gradient_norms(model, loss, [x], 0)
