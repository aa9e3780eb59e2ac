"""A small ViT and scikit-learn's handwritten digits, for tests of whole schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

CHANCE = math.log(10)
"""The loss of a model that knows nothing of the ten digits."""


def digits(n: int = 512) -> list[dict[str, torch.Tensor]]:
    """The first n of them, ``pixel_values`` (1, 8, 8) in [0, 1] and ``labels``."""
    data = load_digits()
    images = torch.tensor(data.images[:n], dtype=torch.float32).unsqueeze(1) / 16.0
    return [{"pixel_values": x, "labels": y} for x, y in zip(images, torch.tensor(data.target[:n]), strict=True)]


class DigitsViT(nn.Module):
    """Two layers on 16 patches; with small initial weights its loss is flat at first.

    (Not a ``PreTrainedModel``: Trainer would save it with the weights' names of earlier releases of transformers, and
    find none of them when it resumes.)
    """

    def __init__(self, initializer_range: float = 0.02) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.vit = ViTForImageClassification(
            ViTConfig(
                image_size=8,
                patch_size=2,
                num_channels=1,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                num_labels=10,
                hidden_dropout_prob=0.1,
                initializer_range=initializer_range,
            )
        )

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        return self.vit(pixel_values=pixel_values, labels=labels)


def digits_trainer(folder: Any, name: str, steps: int, **options: Any) -> Any:
    """A Trainer of the ViT with ``lr_scheduler_type=name``; other options are TrainingArguments'."""
    from tiny import trainer_for

    arguments = {
        "model": DigitsViT(),
        "train_dataset": digits(),
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 32,
    }
    arguments |= options
    return trainer_for(folder, lr_scheduler_type=name, max_steps=steps, **arguments)


def digits_loop(
    name: str,
    folder: str,
    steps: int,
    save_at: int | None = None,
    resume: bool = False,
    optimizer_name: str = "AdamW",
    warm_up: int = 0,
    initializer_range: float = 0.02,
    **options: Any,
) -> dict[str, Any]:
    """An accelerate loop of the ViT with ``get_scheduler(name)``: losses, LRs and the last weights.

    Args:
        name: as in ``lr_scheduler_type``.
        folder: of the checkpoint.
        steps: optimizer steps.
        save_at: the step after which the state is saved.
        resume: goes on from there.
        optimizer_name: "AdamW", "SGD" or "CLARS".
        warm_up: ``num_warmup_steps``, in optimizer steps.
        initializer_range: of the model.
        options: ``scheduler_specific_kwargs``.
    """
    from accelerate import Accelerator
    from transformers import get_scheduler

    from autowu_hf import CLARS

    accelerator = Accelerator(cpu=True)
    world = accelerator.num_processes
    model = DigitsViT(initializer_range)
    optimizer: Any
    if optimizer_name == "CLARS":
        optimizer = CLARS(model.parameters(), lr=0.05, eta=0.5)
    elif optimizer_name == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.utils.data.DataLoader(digits(), batch_size=32 // world, shuffle=True)
    scheduler = get_scheduler(name, optimizer, warm_up * world, steps * world, options)
    torch.manual_seed(accelerator.process_index)  # dropout differs from process to process
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
    examples = [*data]
    done = 0
    if resume:
        accelerator.load_state(folder)
        done = int(save_at or 0)
    model.train()
    search = getattr(scheduler.scheduler, "search", None)
    losses, lrs = [], []
    for step in range(done, steps):
        batch = examples[step % len(examples)]
        loss = model(**batch).loss
        accelerator.backward(loss)
        if search is not None:
            search(model, lambda batch=batch: model(**batch).loss)
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step + 1 == save_at and not resume:
            accelerator.save_state(folder)
    return {"losses": losses, "lrs": lrs, "weights": [p.tolist() for p in model.parameters()]}
