"""Two processes go back in their data alike; one process is in test_batch_replay.py."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from ranks import run_ranks
from torch import nn
from torch.utils.data import DataLoader

from autowu_hf import get_autolrs_schedule


def ranks_loop(folder: str, resume_at: int = 0) -> dict[str, Any]:
    """Searches over the ends of epochs; the state is saved after every step of them."""
    set_seed(1)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    world, epochs = accelerator.num_processes, 14
    data = DataLoader([torch.tensor([float(i)]) for i in range(25)], batch_size=2, shuffle=True)
    scheduler = get_autolrs_schedule(optimizer, 7 * epochs * world, num_candidates=3, first_stage=24, max_lr=1e-3)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
    assert len(data) == 7
    if resume_at:
        accelerator.load_state(f"{folder}/{resume_at}")
    seen, step = [], resume_at
    for epoch in range(resume_at // 7, epochs):
        data.set_epoch(epoch)
        skip = resume_at % 7 if epoch == resume_at // 7 else 0
        for batch in accelerator.skip_first_batches(data, skip) if skip else data:
            seen.append(batch.flatten().tolist())
            accelerator.backward(model(batch / 25).square().mean())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step in (5, 7, 14, 20, 27) and not resume_at:
                accelerator.save_state(f"{folder}/{step}")
    return {"seen": seen, "lr": optimizer.param_groups[0]["lr"], "weight": model.module.weight.item()}


def test_processes_go_back_alike_and_resume_exactly(tmp_path):
    wholes = run_ranks(ranks_loop, str(tmp_path))
    assert wholes[0]["seen"] != wholes[1]["seen"]
    for whole in wholes:
        candidates = [whole["seen"][1 + 8 * i :][:8] for i in range(4)]
        assert candidates[0] == candidates[1] == candidates[2] == candidates[3]
    for step in (5, 7, 14, 20, 27):
        for part, whole in zip(run_ranks(ranks_loop, str(tmp_path), resume_at=step), wholes, strict=True):
            assert part["seen"] == whole["seen"][step:]
            assert (part["lr"], part["weight"]) == (whole["lr"], whole["weight"])
