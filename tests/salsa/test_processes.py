"""SALSA in two processes."""

from __future__ import annotations

import accelerate
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from margins import assert_above, assert_below
from ranks import run_ranks
from salsa_models import QUICK, Point
from tiny import TinyClassifier, batches
from torch import nn

from autowu_hf.salsa.factory import get_salsa_schedule

HAS_FSDP2 = tuple(int(part) for part in accelerate.__version__.split(".")[:2]) >= (1, 6)


def rank_loop(steps: int) -> dict:
    """An accelerate loop with dropout, where every rank has other batches: LRs and weights."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    salsa = get_salsa_schedule(optimizer, steps * accelerator.num_processes, **QUICK)
    data = torch.utils.data.DataLoader(batches(96), batch_size=8)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, salsa)
    torch.manual_seed(accelerator.process_index)
    examples = [*data]
    lrs = []
    for step in range(steps):
        batch = examples[step % len(examples)]

        def closure(batch=batch):
            return nn.functional.cross_entropy(model(batch["x"]), batch["labels"])

        before = salsa.random_state()
        loss = closure()
        accelerator.backward(loss)
        salsa.search(model, closure, loss, random_state=before)
        optimizer.step()
        lrs.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
        optimizer.zero_grad()
    return {
        "lrs": lrs,
        "switch_step": salsa.switch_step,
        "drops": salsa.drops,
        "ticks": salsa.last_epoch,
        "num_probes": salsa.num_probes,
        "weights": [p.tolist() for p in model.parameters()],
        "losses": salsa._losses.values().tolist(),
    }


def test_two_processes_decide_the_same():
    first, second = run_ranks(rank_loop, 120)
    assert first == second
    assert first["ticks"] == 240
    assert_below(first["switch_step"], 120, 120)
    assert_above(len(set(first["lrs"])), 10, len(set(first["lrs"])))


def rank_pending(folder: str, how: str) -> dict:
    """SASA+ on weights that differ between the ranks, as shards do: what the test after a resume sees, and the whole
    run's.
    """
    accelerator = Accelerator(cpu=True)
    model = Point(1.0 + accelerator.process_index, dim=3)
    salsa = get_salsa_schedule(
        torch.optim.SGD(model.parameters(), lr=0.1), 100, line_search=False, test_every=8, keep=1.0
    )
    optimizer, scheduler = accelerator.prepare(salsa.optimizer, salsa)

    def train(start: int, stop: int) -> None:
        for step in range(start, stop):
            optimizer.zero_grad()
            accelerator.backward(model(float(step % 3)))
            optimizer.step()
            scheduler.step()

    train(0, 5)
    kept, own = model.x.detach().clone(), salsa.pending_losses().tolist()
    if how == "flush":  # as Trainer's callback does before the main process saves its state
        salsa.flush()
    accelerator.save_state(folder)
    train(5, 8)
    whole = salsa._deltas.values().tolist()
    with torch.no_grad():
        model.x.copy_(kept)
    salsa.set_pending_losses(torch.zeros(1))
    accelerator.load_state(folder)
    train(5, 8)
    return {"own": own, "whole": whole, "resumed": salsa._deltas.values().tolist()}


@pytest.mark.parametrize("how", ["files", "flush"])
def test_what_a_process_has_not_shared_survives_a_resume(tmp_path, how):
    first, second = run_ranks(rank_pending, str(tmp_path), how)
    assert first["own"] != second["own"]
    assert first["whole"] == second["whole"]
    assert len(first["whole"]) == 8
    assert first["whole"][:5] == pytest.approx((np.array(first["own"]) + np.array(second["own"])) / 2)
    for rank in (first, second):
        assert rank["resumed"] == rank["whole"]


def rank_fsdp(steps: int) -> dict:
    """SASA+ alone under FSDP2, on the ranks' shards: what it tested, and what there was to test."""
    from accelerate.state import PartialState
    from accelerate.utils import FullyShardedDataParallelPlugin
    from rank_programs import allow_fsdp_on_a_cpu

    PartialState(cpu=True)
    allow_fsdp_on_a_cpu()
    accelerator = Accelerator(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    salsa = get_salsa_schedule(optimizer, 1000, line_search=False, test_every=steps, keep=1.0)
    data = torch.utils.data.DataLoader(batches(64), batch_size=8)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, salsa)
    examples, expected = [*data], []

    def square() -> float:
        return sum(float(p.detach().full_tensor().double().square().sum()) for p in model.parameters())

    for step in range(steps):
        before = square()
        accelerator.backward(model(**examples[step % len(examples)])["loss"])
        optimizer.step()
        expected.append((before - square()) / (2 * 0.01))
        scheduler.step()
        optimizer.zero_grad()
    return {"tested": salsa._deltas.values().tolist(), "expected": expected}


@pytest.mark.skipif(not HAS_FSDP2, reason="this accelerate has no FSDP2")
def test_sasa_alone_works_on_the_shards_of_fsdp():
    first, second = run_ranks(rank_fsdp, 12)
    assert first["tested"] == second["tested"]
    assert 2.0 * np.array(first["tested"]) == pytest.approx(np.array(first["expected"]), rel=1e-9)
