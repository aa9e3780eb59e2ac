from __future__ import annotations

import io
import math

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


def walk(steps: int, lr: float, start: float, *, noise: float = 1.0, dim: int = 10, seed: int = 0, **options):
    """SGD on a noisy ``Point`` with SASA+ alone: the schedule."""
    torch.manual_seed(seed)
    model = Point(start, dim=dim)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = get_salsa_schedule(optimizer, 1000, line_search=False, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(noise * torch.randn(dim, dtype=torch.float64)).backward()
        optimizer.step()
        scheduler.step()
    return scheduler


def test_the_line_search_ends_when_the_loss_no_longer_falls():
    noise = np.random.default_rng(1).normal(scale=0.05, size=400)
    falling = np.maximum(2.0 - np.arange(400) / 100.0, 0.5) + noise  # flat from step 150 on
    model = Point(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scheduler = get_salsa_schedule(optimizer, 400, smoothing=0.001, **{**QUICK, "keep": 0.25})
    for loss in falling:
        optimizer.zero_grad()
        model().backward()
        scheduler.search(model, lambda: 0.0, float(loss))
        optimizer.step()
        scheduler.step()
        assert (scheduler.phase == "sasa") == (scheduler.switch_step is not None)
        if scheduler.phase == "sasa":
            break
    assert scheduler.ended_by == "slope"
    assert scheduler.switch_step == scheduler.last_epoch
    assert 150 < scheduler.switch_step < 250
    assert scheduler.switch_step % 4 == 0
    lr, probes = scheduler.lr, scheduler.num_probes
    scheduler.search(model, lambda: 0.0, 1.0)  # no more
    assert (scheduler.lr, scheduler.num_probes) == (lr, probes)
    assert scheduler.lr == pytest.approx(1e-4 * 1.001**scheduler.switch_step)


def test_a_cap_ends_the_line_search():
    model = Point(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scheduler = get_salsa_schedule(optimizer, 400, 5, **QUICK)
    for _ in range(6):
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        scheduler.search(model, model, loss)
        optimizer.step()
        scheduler.step()
    assert (scheduler.switch_step, scheduler.ended_by) == (5, "cap")
    assert scheduler.lr == pytest.approx(1e-4 * 1.1**5)


def test_delta_is_zero_on_average_at_the_stationary_distribution_and_not_on_the_way():
    def deltas(steps: int, start: float) -> np.ndarray:
        scheduler = walk(steps, 0.2, start, test_every=10_000)
        return scheduler._tap.pending().numpy()

    away, near = deltas(40, 20.0), deltas(2500, 0.0)[100:]
    assert away.mean() > 100.0  # ||x|| shrinks: away from the minimum the update points away from 0
    assert deltas(5, 0.0).mean() < 0.0  # from the minimum the noise drives x out
    error = near.std() / math.sqrt(len(near))
    assert abs(near.mean()) < 3.0 * error
    assert near.std() > 1.0


def test_the_lr_drops_at_the_stationary_distribution():
    for seed in range(5):
        scheduler = walk(400, 0.2, 0.5, seed=seed, **QUICK)
        assert scheduler.drops
        assert scheduler.drops[0]["lr"] == pytest.approx(0.02)
        assert scheduler.drops[0]["step"] >= 32
        assert scheduler.optimizer.param_groups[0]["lr"] == scheduler.drops[-1]["lr"]


def test_it_does_not_drop_while_the_weights_are_on_their_way():
    for seed in range(5):
        assert not walk(400, 0.002, 20.0, seed=seed, **QUICK).drops


def test_a_drop_starts_the_samples_anew():
    scheduler = walk(800, 0.2, 0.5, **QUICK)
    steps = [drop["step"] for drop in scheduler.drops]
    assert len(steps) > 2
    assert all(b - a >= 32 for a, b in zip(steps, steps[1:], strict=False))
    assert [drop["lr"] for drop in scheduler.drops] == pytest.approx([0.2 / 10 ** (k + 1) for k in range(len(steps))])


def test_ticks_without_a_step_of_the_optimizer_do_not_count():
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_salsa_schedule(optimizer, 100, test_every=50)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        scheduler.search(model, model, loss)
        optimizer.step()
        for _ in range(4):
            scheduler.step()
    assert scheduler.last_epoch == 12
    assert scheduler.state_dict()["steps"] == len(scheduler.state_dict()["new_deltas"]) == 3


def loop(steps: int, save_at: int | None = None, state=None):
    """SGD with momentum on a small classifier: LRs, weights, the schedule, and what was saved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    scheduler = get_salsa_schedule(optimizer, steps, **QUICK)
    data = batches(64)
    start, lrs, saved = 0, [], None
    if state is not None:
        state = torch.load(io.BytesIO(state), weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
    for step in range(start, steps):
        batch = [data[(step * 16 + i) % 64] for i in range(16)]
        x, y = torch.stack([b["x"] for b in batch]), torch.stack([b["labels"] for b in batch])

        def closure(x=x, y=y):
            return nn.functional.cross_entropy(model(x), y)

        before = scheduler.random_state()
        optimizer.zero_grad()
        loss = closure()
        loss.backward()
        scheduler.search(model, closure, loss, random_state=before)
        optimizer.step()
        lrs.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
        if step + 1 == save_at:
            saved = io.BytesIO()
            parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "step": step + 1, "random": torch.get_rng_state()}, saved)
    return lrs, [p.detach().clone() for p in model.parameters()], scheduler, saved and saved.getvalue()


@pytest.mark.parametrize("save_at", [7, 150])
def test_a_loop_goes_on_bit_for_bit(save_at):
    lrs, weights, scheduler, saved = loop(240, save_at=save_at)
    assert_above(scheduler.switch_step, 7, scheduler.switch_step)
    assert_below(scheduler.switch_step, 150, 150)
    assert_above(math.log(max(lrs) / lrs[0]), math.log(5), math.log(max(lrs) / lrs[0]))
    part = loop(240, state=saved)
    assert part[0] == lrs[save_at:]
    assert all(torch.equal(a, b) for a, b in zip(part[1], weights, strict=True))
    for name in ("lr", "switch_step", "ended_by", "drops", "num_probes"):
        assert getattr(part[2], name) == getattr(scheduler, name)


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
    assert_above(len(set(first["lrs"])), 20, len(set(first["lrs"])))


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


def test_optimizers_that_do_not_follow_the_gradient_are_refused():
    model = Point()
    with pytest.raises(ValueError, match="those of AdamW are not; use torch.optim.SGD, or line_search=False and an LR"):
        get_salsa_schedule(torch.optim.AdamW(model.parameters()), 100)
    with pytest.raises(ValueError, match="the optimizer has maximize=True; negate the loss instead"):
        get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), 100)

    class DeepSpeedZeroOptimizer(torch.optim.SGD):
        pass

    with pytest.raises(ValueError, match="move them, here: DeepSpeedZeroOptimizer keeps partitions of weights"):
        get_salsa_schedule(DeepSpeedZeroOptimizer(model.parameters(), lr=0.1), 100)


def test_sharded_weights_are_refused():
    class FullyShardedDataParallel(Point):
        pass

    model = FullyShardedDataParallel()
    scheduler = get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1), 100)
    model().backward()
    with pytest.raises(
        ValueError, match="the weights are sharded over the processes, .* use DDP, or line_search=False"
    ):
        scheduler.search(model, model)


def test_a_loss_that_is_no_scalar_is_refused():
    model = Point()
    scheduler = get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1), 100)
    model().backward()
    with pytest.raises(ValueError, match=r"the loss passed to search\(\) must be a scalar, got shape \(2,\)"):
        scheduler.search(model, model, torch.ones(2))


def test_another_schedulers_state_is_refused():
    model = Point()
    scheduler = get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1), 100)
    with pytest.raises(ValueError, match=r"not a state of SalsaScheduler, version 1: it has the keys \['last_epoch'\]"):
        scheduler.load_state_dict({"last_epoch": 3})


def test_a_schedule_that_is_gone_leaves_the_optimizer():
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_salsa_schedule(optimizer, 100)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    del scheduler
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
