"""What every process asserts of a run with several; launched by test_collective.py."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

import autowu_hf
from autowu_hf.runtime import collective

accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
assert collective.num_processes() == world
assert collective.is_main_process() == (rank == 0)

calls: list[str] = []
for name in ("gather", "broadcast"):
    original = getattr(collective, name)
    setattr(collective, name, lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k))[1])

mean = collective.gather_mean(torch.tensor([1.0, 2.0]) * (rank + 1))
assert mean.tolist() == [sum(range(1, world + 1)) / world, 2 * sum(range(1, world + 1)) / world]

numbers = [7.0, -0.125, float("inf"), 1e300]
assert collective.broadcast_numbers(numbers if rank == 0 else None, 4) == numbers
assert collective.broadcast_number(1.5 + rank) == 1.5
everyone = collective.gather_bytes(torch.tensor([rank, 255], dtype=torch.uint8))
assert [row.tolist() for row in everyone] == [[other, 255] for other in range(world)]
assert everyone[0].dtype == torch.uint8
calls.clear()

model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
total = 240 * world  # the prepared scheduler is stepped once per process
scheduler = autowu_hf.get_autowu_schedule(optimizer, total, test_every=4 * world, rewind=False, max_warmup_fraction=0.5)
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
generator = torch.Generator().manual_seed(rank)
lrs, steps_with_calls = [], []
for step in range(240):
    lrs.append(scheduler.get_last_lr()[0])
    before = len(calls)
    s = step / 120
    loss = 2.0 - 1.5 * torch.exp(torch.tensor(-(((s - 0.6) / 0.3) ** 2))) + 0.05 * torch.randn((), generator=generator)
    accelerator.backward(model(torch.zeros(1, 1)).sum() * 0.0 + loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if len(calls) > before:
        assert calls[before:] == ["gather", "broadcast"], calls[before:]
        steps_with_calls.append(step + 1)

inner = scheduler.scheduler
assert inner.phase == "decay"
assert inner.switch_step < inner.warmup_cap
assert inner.get_last_lr() == [0.0]
assert len(inner.losses) * world == inner.switch_step
assert steps_with_calls == [record.step // world for record in inner.tests]
seen = gather_object([(lrs, inner.losses, inner.switch_step, inner.peak_lr)])
assert len(seen) == world
assert all(other == seen[0] for other in seen)
inner.state_dict()
if rank == 0:
    print(f"{world} processes agree")
