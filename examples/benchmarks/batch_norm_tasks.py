"""What ``batch_norm.py`` trains: small networks with batch norm, from scratch and fine-tuned."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from data import Pair, digits, lower_digits, signals, upper_digits
from fine_tuning_tasks import PreparedRun, classification
from models import resnet
from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """The block of MobileNetV2 (Sandler et al. 2018, section 3.3): three convolutions, the middle one depthwise, each
    with batch norm, beside a shortcut where the size stays.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        width = 3 * inputs
        self.layers = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()),
            *(nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU6()),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.has_shortcut = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.has_shortcut else y


def mobilenet(classes: int) -> nn.Sequential:
    """Six blocks for digits (n, 64), which it sees with 16 x 16 pixels."""
    blocks = [InvertedResidual(*sizes) for sizes in ((16, 16), (16, 24, 2), (24, 24), (24, 24), (24, 40, 2), (40, 40))]
    larger = nn.Unflatten(1, (1, 8, 8)), nn.Upsample(scale_factor=2, mode="bilinear")
    first = nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
    last = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(40, classes)
    return nn.Sequential(*larger, *first, *blocks, *last)


def digits_resnet(classes: int) -> nn.Sequential:
    """That of ``models.py`` with as many classes."""
    return with_new_head(resnet(24), classes)


def signals_cnn(classes: int) -> nn.Sequential:
    """Three strided convolutions for signals (n, 40)."""
    widths = ((1, 24), (24, 32), (32, 48))
    blocks = [(nn.Conv1d(*pair, 5, 2, 2), nn.BatchNorm1d(pair[1]), nn.ReLU()) for pair in widths]
    layers = [layer for block in blocks for layer in block]
    return nn.Sequential(
        nn.Unflatten(1, (1, -1)), *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, classes)
    )


def signals_mlp(classes: int) -> nn.Sequential:
    """Two hidden layers of 128 for signals (n, 40)."""
    hidden = [(nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU()) for width in (40, 128)]
    return nn.Sequential(*(layer for layers in hidden for layer in layers), nn.Linear(128, classes))


def with_new_head(model: Any, classes: int) -> nn.Sequential:
    """The model, whose last layer is replaced by a fresh one."""
    model[-1] = nn.Linear(model[-1].in_features, classes)
    return model


def with_classes(data: Pair, classes: range) -> Pair:
    """The rows of these classes, which count from 0 then."""
    x, y = data
    is_one = (y >= classes.start) & (y < classes.stop)
    return x[is_one], y[is_one] - classes.start


def turned(data: Pair) -> Pair:
    """Digits (n, 64) as negatives, turned by a quarter."""
    x, y = data
    return -x.reshape(-1, 8, 8).rot90(1, (1, 2)).reshape(-1, 64), y


@dataclass(frozen=True)
class Task:
    """What is learned.

    Args:
        data: all examples.
        num: the first of them, so many, are trained on.
        classes: as many as there are.
        network: classes -> a fresh network.
        before: the name in ``PRETRAINING`` of what its network has learned before; None from scratch.
    """

    data: Callable[[], Pair]
    num: int
    classes: int
    network: Callable[[int], nn.Sequential]
    before: str | None = None

    @property
    def chance(self) -> float:
        """The accuracy of a guess."""
        return 1.0 / self.classes

    def start(self, seed: int) -> nn.Sequential:
        """The network that is trained, with a new head where it is a pretrained one."""
        torch.manual_seed(seed)
        if self.before is None:
            return self.network(self.classes)
        model = copy.deepcopy(pretrained(self.before, seed))
        torch.manual_seed(seed)
        return with_new_head(model, self.classes)


PRETRAINING = {
    "lower digits, ResNet": (Task(lower_digits, 640, 5, digits_resnet), 25),
    "lower digits, MobileNet": (Task(lower_digits, 640, 5, mobilenet), 25),
    "upright digits": (Task(lambda: digits(0.5), 1200, 10, digits_resnet), 20),
    "first signals": (Task(lambda: with_classes(signals(), range(5)), 1000, 5, signals_cnn), 20),
}
"""What a network has learned before, in so many epochs."""

TASKS = {
    "signals MLP": Task(signals, 2048, 10, signals_mlp),
    "signals CNN": Task(signals, 2048, 10, signals_cnn),
    "other signals": Task(lambda: with_classes(signals(), range(5, 10)), 900, 5, signals_cnn, "first signals"),
    "other digits, ResNet": Task(upper_digits, 600, 5, digits_resnet, "lower digits, ResNet"),
    "turned digits, ResNet": Task(lambda: turned(digits(1.0)), 896, 10, digits_resnet, "upright digits"),
    "other digits, MobileNet": Task(upper_digits, 600, 5, mobilenet, "lower digits, MobileNet"),
    "digits, MobileNet": Task(lambda: digits(1.0), 896, 10, mobilenet),
}
"""The four with "other" or "turned" in their name are fine-tuned."""


@functools.lru_cache(maxsize=64)
def pretrained(name: str, seed: int) -> nn.Sequential:
    """Trained once in a process for all runs that start from it."""
    task, epochs = PRETRAINING[name]
    model = task.start(seed)
    classification(model, *task.data(), task.num, 32, epochs, seed, "cosine").train_at(1e-2)
    return model


def prepared(task: str, batch: int, steps: int, seed: int) -> PreparedRun:
    """A run of one of the tasks. The seed decides the weights, the batches and what is random in training."""
    what = TASKS[task]
    run = classification(what.start(seed), *what.data(), what.num, batch, 1, seed, "cosine")
    torch.manual_seed(seed)
    return replace(run, steps=steps)
