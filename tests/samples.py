"""A small ViT with its loss in the model, and batches to take sample by sample."""

from __future__ import annotations

import torch
from tiny import batches
from torch import nn
from transformers import ViTConfig, ViTForImageClassification


class TinyViT(nn.Module):
    """One layer on four patches; the loss is in the model."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        config = ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=1,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=10,
            hidden_dropout_prob=dropout,
            attn_implementation="eager",  # torch warns that vmap is slow on its fused attention on a CPU
        )
        self.vit = ViTForImageClassification(config)

    def forward(self, pixel_values, labels=None):
        return self.vit(pixel_values=pixel_values, labels=labels)


def examples(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    rows = batches(n, seed)
    return {"x": torch.stack([row["x"] for row in rows]).double(), "labels": torch.stack([r["labels"] for r in rows])}


def one(batch: dict[str, torch.Tensor], i: int) -> dict[str, torch.Tensor]:
    return {name: tensor[i : i + 1] for name, tensor in batch.items()}


def gradients(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    outputs = model(**batch)
    return list(torch.autograd.grad(outputs["loss"], list(model.parameters())))
