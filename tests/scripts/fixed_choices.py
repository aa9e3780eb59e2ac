"""A script that has never heard of AutoWU: fixed choices on its command line and get_scheduler of transformers."""

import argparse
import json
import sys

import torch
from accelerate import Accelerator
from transformers import SchedulerType, get_cosine_schedule_with_warmup, get_scheduler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--lr_scheduler_type",
        type=SchedulerType,
        default="linear",
        choices=["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
    )
    args = parser.parse_args()
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_scheduler(
        name=args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=0,
        num_training_steps=args.steps * accelerator.num_processes,
    )
    other = get_cosine_schedule_with_warmup(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 10, 100)
    other_name = type(other).__name__
    del other  # two schedules in their warm-up would hear each other's losses
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    lrs = []
    for _ in range(args.steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        x = torch.randn(8, 1)
        accelerator.backward(((model(x) - 2.0 * x) ** 2).mean())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    if accelerator.is_main_process:
        with open(args.output, "w") as file:
            json.dump(
                {
                    "name": __name__,
                    "file": __file__,
                    "argv": sys.argv,
                    "path": sys.path[0],
                    "processes": accelerator.num_processes,
                    "scheduler": type(scheduler.scheduler).__name__,
                    "other": other_name,
                    "lrs": lrs,
                },
                file,
            )


if __name__ == "__main__":
    main()
