"""A small model, small data and a Trainer on them, for the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, Trainer, TrainingArguments

LONG = {"max_warmup_fraction": 0.5, "growth": "exponential", "decay_type": "cosine"}
"""Half of a run to warm up in, so that short ones have room, and a growth and a decay that are known by heart."""

IS_TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5

LOGGED_DIGITS = 1e-6 if IS_TRANSFORMERS_5 else 5.1e-5
"""How exactly Trainer logs a loss: transformers 4 rounds it to four decimals."""


def get_schedule(optimizer: torch.optim.Optimizer, *lengths: int, **options: Any) -> Any:
    """``get_autowu_schedule`` with a ``LONG`` warm-up."""
    from autowu_hf import get_autowu_schedule  # here, for a test that runs a Trainer without the package

    return get_autowu_schedule(optimizer, *lengths, **{**LONG, **options})


class TinyClassifier(nn.Module):
    """Two layers, three classes; the loss is in the model, as in transformers' models."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.config = PretrainedConfig()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class WithTrainedNorms(TinyClassifier):
    """Two layer norms, whose weights say that the model was trained."""

    def __init__(self) -> None:
        super().__init__()
        norms = [nn.LayerNorm(16), nn.LayerNorm(16)]
        for norm in norms:
            nn.init.normal_(norm.weight, 1.0, 0.1)
        self.net = nn.Sequential(nn.Linear(4, 16), norms[0], nn.Tanh(), nn.Linear(16, 16), norms[1], nn.Linear(16, 3))


class AcceptsNumItems(TinyClassifier):
    """Divides by the number of items of the whole optimizer step, as transformers' language models do."""

    accepts_loss_kwargs = True

    def forward(self, x, labels=None, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        outputs = super().forward(x, labels)
        if num_items_in_batch is not None:
            total = nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
            outputs["loss"] = total / num_items_in_batch
        return outputs


def batches(n: int, seed: int = 0, noise: float = 0.0) -> list[dict[str, torch.Tensor]]:
    """n examples of a task that the model can learn: the class is the largest of three linear scores, to which normal
    noise is added.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    scores = x @ torch.randn(4, 3, generator=torch.Generator().manual_seed(7))
    labels = (scores + noise * torch.randn(n, 3, generator=generator)).argmax(1)
    return [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]


def trainer_for(
    folder: Any, callbacks: Any = None, before_trainer: Callable[[], None] = lambda: None, **options: Any
) -> Trainer:
    """A Trainer with autowu on ``TinyClassifier``; what is no argument of Trainer goes to TrainingArguments.

    ``before_trainer`` is called between the making of the arguments, which sets the devices up, and of the Trainer.
    """
    for_trainer = ("model", "model_init", "train_dataset", "eval_dataset", "compute_loss_func", "optimizers")
    for_trainer += ("optimizer_cls_and_kwargs",)
    given = {name: options.pop(name) for name in for_trainer if name in options}
    arguments = {
        "output_dir": str(folder),
        "lr_scheduler_type": "autowu",
        "num_train_epochs": 10,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 0,
        **options,
    }
    if arguments["lr_scheduler_type"] == "autowu":
        arguments["lr_scheduler_kwargs"] = {**LONG, **(options.get("lr_scheduler_kwargs") or {})}
    given = {"model": TinyClassifier(), "train_dataset": batches(64), **given}
    args = TrainingArguments(**arguments)
    before_trainer()
    return Trainer(args=args, callbacks=callbacks, **given)
