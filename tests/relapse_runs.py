"""Runs whose losses rise after the switch: by an LR that is too high for long, or because a test makes them rise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autowu_hf import get_autowu_schedule

STEPS = 200
WEAR, BEARABLE_LR = 0.01, 0.1


class Wearing(nn.Module):
    """Each step at a high LR wears it, in a buffer that no gradient sees, as weights that grow wear real models."""

    def __init__(self, wear: float, bearable_lr: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(20))
        self.register_buffer("worn", torch.zeros(()))
        self.wear, self.bearable_lr = wear, bearable_lr

    def forward(self, harder: float = 0.0) -> Tensor:
        return 1.0 + self.weight.square().mean() + self.worn + harder

    def be_used(self, lr: float) -> None:
        self.worn += self.wear * (lr > self.bearable_lr)


class Run:
    """A plain loop, whose loss is handed to the schedule.

    Args:
        wear: of a step at a high LR, one above ``bearable_lr``.
        harder: what the loss is raised by after so many steps, whatever the weights.
        steps: of the run.
        ticks: scheduler steps per optimizer step.
        options: of the schedule.
    """

    def __init__(
        self,
        wear: float = WEAR,
        harder: Callable[[int], float] | None = None,
        steps: int = STEPS,
        bearable_lr: float = BEARABLE_LR,
        ticks: int = 1,
        **options: Any,
    ) -> None:
        self.harder = harder or (lambda step: 0.0)
        self.model = Wearing(wear, bearable_lr)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0)
        self.scheduler = get_autowu_schedule(self.optimizer, steps * ticks, model=self.model, **options)
        self.scheduler.prepared(ticks, [self.optimizer])
        self.steps, self.step, self.ticks = steps, 0, ticks
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.hands_over = True

    def go(self, to: int | None = None) -> Run:
        """Trains on, to the end or up to a number of steps."""
        for _ in self.train(self.steps if to is None else to):
            pass
        return self

    def train(self, to: int) -> Iterator[int]:
        while self.step < to:
            noise = 0.01 * ((37 * self.step) % 11 - 5) / 5
            self.lrs.append(lr := self.optimizer.param_groups[0]["lr"])
            loss = self.model(self.harder(self.step) + noise)
            loss.backward()
            self.losses.append(loss.item())
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.model.be_used(lr)
            self.step += 1
            for _ in range(self.ticks):
                self.scheduler.step(loss if self.hands_over else None)
            yield self.step

    @property
    def attempts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.scheduler.report()["relapses"]["attempts"]
        return found

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def resume(self, state: dict[str, Any], step: int) -> Run:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = step
        return self
