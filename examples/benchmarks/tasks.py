"""The tasks of the comparison: small models on data that is on every machine, each with a part to tune on.

Noise is added to the images, and the training sets are small, so that the learning rate shows in the result.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from data import Pair, Parts, digits, docstrings, lower_digits, parts, signals, stdlib_bytes, upper_digits, waves
from models import (
    DigitsViT,
    LogitsOfGPT,
    SignalCNN,
    TopOfEncoder,
    minilm_folder,
    mlp,
    pretrained_minilm,
    resnet,
    small_gpt,
)
from torch import Tensor, nn
from transformers import AutoTokenizer


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
    data: Callable[[], Parts]
    epochs: int
    batches: tuple[int, int]
    metric: Callable[[Tensor, Tensor], float]
    unit: tuple[str, float]
    chance: float
    loss: Callable[[Tensor, Tensor], Tensor]


# Losses and metrics ---------------------------------------------------------------------------------------------------


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of right classes: logits (n, classes), targets (n,)."""
    return float((outputs.argmax(1) == targets).float().mean())


def r2(outputs: Tensor, targets: Tensor) -> float:
    """The share of the targets' variance that is explained."""
    return 1.0 - float(((outputs - targets) ** 2).mean() / targets.var())


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of logits (n, length, tokens) and tokens (n, length), in nats."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def minus_bits(logits: Tensor, targets: Tensor) -> float:
    """Minus the bits per byte."""
    return -float(token_loss(logits, targets)) / math.log(2)


# Data -----------------------------------------------------------------------------------------------------------------


def digit_parts() -> Parts:
    return parts(*digits(1.0), train=896, tune=400)


def upper_digit_parts() -> Parts:
    return parts(*upper_digits(), train=448, tune=200)


def signal_parts() -> Parts:
    return parts(*signals(), train=2048, tune=500)


def wave_parts() -> Parts:
    return parts(*waves(), train=2048, tune=500)


@functools.lru_cache(maxsize=1)
def byte_parts() -> Parts:
    """(n, 32) each: bytes of the standard library and the bytes after them, from places of the text that are apart."""
    source = stdlib_bytes()
    generator = torch.Generator().manual_seed(0)

    def windows(low: float, high: float, n: int) -> Pair:
        starts = torch.randint(int(low * len(source)), int(high * len(source)) - 33, (n,), generator=generator)
        chosen = source[starts[:, None] + torch.arange(33)]
        return chosen[:, :-1], chosen[:, 1:]

    return windows(0, 0.8, 8192), windows(0.8, 0.9, 500), windows(0.9, 1, 500)


MINILM_LAYERS = 2
"""Trained. The four below are frozen, as they often are, and run once for all runs: grids of LRs become affordable."""


@functools.lru_cache(maxsize=1)
def frozen_minilm() -> Any:
    return pretrained_minilm().eval()


@functools.lru_cache(maxsize=1)
@torch.no_grad()
def docstring_parts() -> Parts:
    """(n, 16, 384) and (n,): what the frozen layers make of the docstrings' first words, and the module of each."""
    texts, labels = docstrings()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))[:1160]
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    tokens = tokenizer(
        [texts[i] for i in order], truncation=True, max_length=16, padding="max_length", return_tensors="pt"
    )
    hidden = [
        frozen_minilm()(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1 - MINILM_LAYERS]
        for ids, mask in zip(tokens["input_ids"].split(100), tokens["attention_mask"].split(100), strict=True)
    ]
    x = torch.cat(hidden) * tokens["attention_mask"][..., None]
    return parts(x, torch.tensor(labels)[order], train=640, tune=120)


# Models that know something already -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def pretrained_vit() -> DigitsViT:
    """A ViT that has learned the digits 0 to 4; in double precision, for the same weights on every machine."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = lower_digits()
        x = x.double()
        model = DigitsViT(4, 64, 5).double()
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
    model = DigitsViT(4, 64, 5)
    head = {name: value.clone() for name, value in model.state_dict().items() if "classifier" in name}
    model.load_state_dict({**pretrained_vit().state_dict(), **head})
    return model


def fine_tuned_minilm() -> nn.Module:
    return TopOfEncoder(copy.deepcopy(frozen_minilm().encoder.layer[-MINILM_LAYERS:]).train(), 384, 20)


# All of them ----------------------------------------------------------------------------------------------------------

CLASSES = {"metric": accuracy, "unit": ("accuracy, %", 100.0), "loss": nn.functional.cross_entropy}

TASKS: dict[str, Task] = {
    "digits MLP": Task(lambda: mlp(64, 10), digit_parts, 30, (32, 128), chance=0.1, **CLASSES),
    "signals MLP": Task(lambda: mlp(40, 10), signal_parts, 20, (32, 128), chance=0.1, **CLASSES),
    "waves": Task(lambda: mlp(8, 1), wave_parts, 20, (32, 128), r2, ("R2, %", 100.0), 0.0, nn.functional.mse_loss),
    "signals CNN": Task(SignalCNN, signal_parts, 20, (32, 128), chance=0.1, **CLASSES),
    "fine-tuned ViT": Task(fine_tuned_vit, upper_digit_parts, 30, (16, 64), chance=0.2, **CLASSES),
    "MiniLM": Task(fine_tuned_minilm, docstring_parts, 3, (4, 16), chance=0.05, **CLASSES),
    "digits ResNet": Task(lambda: resnet(16), digit_parts, 30, (32, 128), chance=0.1, **CLASSES),
    "digits ViT": Task(lambda: DigitsViT(2, 32, 10), digit_parts, 30, (32, 128), chance=0.1, **CLASSES),
    "GPT": Task(
        lambda: LogitsOfGPT(small_gpt(32, 48)),
        byte_parts,
        1,
        (16, 64),
        minus_bits,
        ("bits per byte", -1.0),
        -8.0,
        token_loss,
    ),
}
