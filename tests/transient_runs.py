"""A run whose first losses are those of a transient."""

from __future__ import annotations

import copy

import torch
from torch import nn

from autowu_hf import get_autowu_schedule

STEPS = 120


class Regression:
    """A fresh network whose outputs are far too large for small and noisy targets."""

    def __init__(self, steps=STEPS, size=0.01, seed=3, kind=torch.optim.AdamW, **options):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.optimizer = kind(self.model.parameters(), lr=1e-3, weight_decay=0.0)
        self.schedule = get_autowu_schedule(self.optimizer, steps, **options)
        self.size, self.times, self.done = size, 1.0, 0
        self.losses, self.lrs = [], []

    def batch(self, step):
        generator = torch.Generator().manual_seed(1000 + step)
        x = 2.0 * torch.rand(32, 8, generator=generator) - 1.0
        noise = torch.randn(32, 1, generator=generator)
        return x, self.size * (torch.sin(3.0 * x[:, :1]) + torch.sin(3.0 * x[:, 1:2]) + 0.3 * noise)

    @staticmethod
    def loss_of(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def go(self, num):
        for _ in range(num):
            self.optimizer.zero_grad()
            loss = self.loss_of(self.model, self.batch(self.done)) * self.times
            loss.backward()
            self.lrs.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.schedule.step(loss.detach())
            self.losses.append(float(loss.detach()))
            self.done += 1
        return self

    @property
    def approach(self):
        return self.schedule.report()["approach"]


class Preference(Regression):
    """A model that learns to prefer, beside what it was at first, as by DPO. A logistic loss is as steep as it is high.

    Args:
        beta: how much a difference from the model at first counts; so much that P lies as far below R as in a
            transient.
    """

    def __init__(self, beta=60.0, **options):
        super().__init__(**options)
        self.beta, self.first = beta, copy.deepcopy(self.model)
        self.loss_of = self.of_preference

    def of_preference(self, model, batch):
        x = batch[0]
        with torch.no_grad():
            before = self.first(x)
        return nn.functional.softplus(-self.beta * torch.sign(x[:, :1]) * (model(x) - before)).mean()


class LanguageModel(Regression):
    """A model from scratch that first learns how often each token occurs, from gradients that all go one way.

    Args:
        model: one to go on with; a new one without.
    """

    TOKENS, WIDTH = 512, 192

    def __init__(self, steps=STEPS, seed=0, model=None):
        torch.manual_seed(seed)
        super().__init__(steps, seed=seed)
        self.model = model or Network(self.TOKENS, self.WIDTH)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.schedule = get_autowu_schedule(self.optimizer, steps)

    def batch(self, step):
        generator = torch.Generator().manual_seed(step)
        often = 1.0 / torch.arange(1.0, self.TOKENS + 1.0) ** 1.2
        x, others = (torch.multinomial(often, 256, True, generator=generator) for _ in range(2))
        return x, torch.where(torch.rand(256, generator=generator) < 0.6, (7 * x + 3) % self.TOKENS, others)

    @staticmethod
    def loss_of(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Network(nn.Module):
    """Embeddings, which are the output layer, too, and blocks with norms; (n,) tokens -> (n, num_tokens)."""

    def __init__(self, num_tokens, width):
        super().__init__()
        self.embeddings, self.norm = nn.Embedding(num_tokens, width), nn.LayerNorm(width)
        layers = [nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
        self.blocks = nn.ModuleList([nn.Sequential(*copy.deepcopy(layers)) for _ in range(3)])
        for matrix in self.parameters():
            if matrix.dim() == 2:
                nn.init.normal_(matrix, std=0.02)

    def forward(self, x):
        hidden = self.embeddings(x)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.norm(hidden) @ self.embeddings.weight.T
