"""An accelerate loop with CLARS, for the processes that test_clars.py starts."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from tiny import TinyClassifier, batches

from autowu_hf.clars.optimizer import CLARS

OPTIONS = {"lr": 0.5, "weight_decay": 0.01, "eta": 0.05, "adapt": True, "eps": 0.0}
STEPS, ACCUMULATION, SAMPLES, CLIP = 3, 2, 4, 0.01


def micro_batch(index: int) -> dict[str, torch.Tensor]:
    """The micro-batches of a run, in the order of steps, accumulation and processes."""
    rows = batches(SAMPLES, seed=index)
    return {"x": torch.stack([row["x"] for row in rows]).double(), "labels": torch.stack([r["labels"] for r in rows])}


def train(exact: bool) -> list[Any]:
    """The weights after ``STEPS`` steps, clipped and accumulated, of this process."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    rank, world = accelerator.process_index, accelerator.num_processes
    model = TinyClassifier().double()
    own = {"per_sample_model": model} if exact else {}
    optimizer = CLARS(model.parameters(), **OPTIONS, **own)
    model, optimizer = accelerator.prepare(model, optimizer)
    for index in range(STEPS * ACCUMULATION):
        with accelerator.accumulate(model):
            accelerator.backward(model(**micro_batch(index * world + rank))["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    return [p.tolist() for p in model.parameters()]


def train_both() -> list[Any]:
    return [train(exact) for exact in (False, True)]
