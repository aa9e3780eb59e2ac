"""Plain DistributedDataParallel, launched by torchrun: accelerate is not part of the loop."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

import autowu_hf

torch.distributed.init_process_group("gloo")
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(1, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = autowu_hf.get_autowu_schedule(optimizer, 240, test_every=4, max_warmup_fraction=0.5)
generator = torch.Generator().manual_seed(rank)
lrs = []
for step in range(240):
    lrs.append(optimizer.param_groups[0]["lr"])
    s = step / 120
    value = 2.0 - 1.5 * torch.exp(torch.tensor(-(((s - 0.6) / 0.3) ** 2))) + 0.05 * torch.randn((), generator=generator)
    loss = model(torch.zeros(1, 1)).sum() * 0.0 + value
    loss.backward()
    optimizer.step()
    scheduler.step(loss)
    optimizer.zero_grad()
assert scheduler.phase == "decay"
assert scheduler.switch_step < scheduler.warmup_cap
assert len(scheduler.losses) == scheduler.switch_step
seen = [None] * world
torch.distributed.all_gather_object(seen, (lrs, scheduler.losses, scheduler.switch_step, scheduler.peak_lr))
assert all(other == seen[0] for other in seen)
if rank == 0:
    print(f"{world} processes agree")
