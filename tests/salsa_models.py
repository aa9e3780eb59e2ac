"""What SALSA's tests train: a quadratic, and small models under Trainer."""

from __future__ import annotations

import torch
from digits_vit import DigitsViT, digits
from tiny import TinyClassifier, batches
from torch import nn
from transformers import Trainer, TrainingArguments

from autowu_hf.salsa.factory import get_salsa_schedule
from autowu_hf.salsa.trainer import SalsaTrainer

QUICK = {"min_samples": 16, "test_every": 4, "keep": 0.5}
"""First tests after 32 steps."""


class Point(nn.Module):
    """f(x) = c / 2 ||x||^2 + <x, z>, from x = (start, ..., start)."""

    def __init__(self, start: float = 1.0, curvature: float = 1.0, dim: int = 1) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.full((dim,), start, dtype=torch.float64))
        self.curvature = curvature

    def forward(self, z: torch.Tensor | float = 0.0) -> torch.Tensor:
        return 0.5 * self.curvature * self.x.square().sum() + (self.x * z).sum()


def search_once(model: nn.Module, optimizer: torch.optim.Optimizer, **options):
    """The schedule after one search on the model's own loss."""
    scheduler = get_salsa_schedule(optimizer, 1000, **options)
    loss = model()
    loss.backward()
    scheduler.search(model, model, loss)
    return scheduler


def salsa_trainer(folder, kind=SalsaTrainer, momentum=None, vit=False, **options) -> Trainer:
    """A Trainer of a ``TinyClassifier``, or of the ViT on digits; what is no argument of it goes to its arguments."""
    model = DigitsViT(0.1) if vit else options.pop("model", None) or TinyClassifier()
    given = {name: options.pop(name) for name in ("callbacks", "compute_loss_func") if name in options}
    arguments = {
        "lr_scheduler_type": "salsa",
        "lr_scheduler_kwargs": {**QUICK, "keep": 0.125} if vit else QUICK,
        "optim": "sgd",
        "learning_rate": 0.01,
        "max_grad_norm": 0.0,
        "max_steps": 200 if vit else 20,
        "per_device_train_batch_size": 32 if vit else 16,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 0,
        **options,
    }
    if momentum is not None:
        given["optimizers"] = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum), None
    data = digits() if vit else batches(64)
    return kind(model=model, args=TrainingArguments(str(folder), **arguments), train_dataset=data, **given)


def logged(trainer: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry and "loss" in entry]


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]
