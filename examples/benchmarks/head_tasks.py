"""One linear layer on the features of a frozen model: the tasks of ``real_models.py --heads``. A run takes a second,
once the features are there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from adapter_tasks import ADAPTER_TASKS
from data import Parts, docstrings, parts, shuffled
from fine_tuning_tasks import Measured, PreparedRun, cross_entropy, measured
from models import SentenceEncoder, pretrained_minilm
from pretrained import DigitsEfficientNet
from real_model_tasks import EFFICIENTNET, MINILM, TASKS, Task, large_digits
from real_model_texts import tokens
from torch import Tensor, nn
from training import outputs

BATCH, EVALUATED = 16, 64
"""Examples in a batch, and those that a frozen model reads at once."""

PRACTICE = 1e-3
"""Adam's default, with which many train a head."""

BUDGETS = (60, 200)


@functools.lru_cache(maxsize=1)
def of_minilm() -> Parts:
    """MiniLM's embeddings of docstrings (n, 384), by mean pooling, and the numbers of their modules."""
    texts, labels = docstrings()
    model = SentenceEncoder(pretrained_minilm()).eval()
    with torch.no_grad():
        found = [model(tokens(texts[start : start + EVALUATED])) for start in range(0, len(texts), EVALUATED)]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    return parts(torch.cat(found)[order], torch.tensor(labels)[order], train=1000, tune=200)


@functools.lru_cache(maxsize=1)
def of_efficientnet() -> Parts:
    """EfficientNet's features of digits (n, 1280), and the digits."""
    model = DigitsEfficientNet(48)
    model.net._fc = nn.Identity()
    first, second, third = ((outputs(model, x), y) for x, y in large_digits())
    return first, second, third


def normalized() -> Parts:
    """MiniLM's embeddings, of length 1, as sentence-transformers has them."""
    first, second, third = ((nn.functional.normalize(x, dim=1), y) for x, y in of_minilm())
    return first, second, third


FEATURES: dict[str, tuple[Callable[[], Parts], tuple[str, ...]]] = {
    "MiniLM": (of_minilm, MINILM),
    "MiniLM, normalized": (normalized, MINILM),
    "EfficientNet": (of_efficientnet, EFFICIENTNET),
}
"""Model -> what makes its features, and the packages that have its weights."""


def head(seed: int, features: str, steps: int) -> PreparedRun:
    """A fresh linear layer learns the classes of features that stay as they are; nothing tells what is kept."""
    make, _ = FEATURES[features]
    (x, y), *held_out = make()
    by_part = dict(zip(("tune", "test"), held_out, strict=True))
    draw = shuffled(len(x), BATCH, seed)
    model = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.normal_(model.weight, std=0.02)  # as transformers begins its heads
    nn.init.zeros_(model.bias)

    def evaluate(model: nn.Module, part: str) -> Measured:
        own, labels = by_part[part]
        return measured(outputs(model, own), labels)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return x[draw(step)], y[draw(step)]

    return PreparedRun(model, batch, steps, len(x) // BATCH, cross_entropy, evaluate)


def head_task(features: str, steps: int) -> Task:
    prepare: Callable[[int], PreparedRun] = functools.partial(head, features=features, steps=steps)
    _, packages = FEATURES[features]
    return Task(prepare, 1e-2, practice=PRACTICE, packages=packages)


HEAD_TASKS = {
    f"head on {features}, {steps} steps": head_task(features, steps) for features in FEATURES for steps in BUDGETS
}
"""Task -> what it is."""

ALL_TASKS = {**TASKS, **ADAPTER_TASKS, **HEAD_TASKS}
