from __future__ import annotations

import pytest
import torch
from torch import nn

from autowu_hf.salsa.update_tap import UpdateTap


@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov", "decay", "adamw"])
def test_delta_is_the_papers(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)).double()
    groups = [{"params": model[0].parameters(), "lr": 0.05}, {"params": model[1].parameters()}]
    optimizer = {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1),
        "momentum": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        "nesterov": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
        "decay": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.5, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5),
    }[kind]()
    tap = UpdateTap(optimizer, [0.5, 1.0])
    expected = []
    for k in range(5):
        tap.lr = 0.1 + 0.01 * k
        for group, ratio in zip(optimizer.param_groups, [0.5, 1.0], strict=True):
            group["lr"] = tap.lr * ratio
        old = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]
        optimizer.zero_grad()
        model(torch.randn(8, 4, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        total = 0.0
        for group, before in zip(optimizer.param_groups, old, strict=True):
            alpha = group["lr"]
            for p, x in zip(group["params"], before, strict=True):
                d = (x - p.detach()) / alpha
                total += float((p.detach() * d).sum() + alpha / 2 * d.square().sum())
        expected.append(total)
    assert tap.pending().tolist() == pytest.approx(expected, rel=1e-9)
    tap.forget()
    assert len(tap.pending()) == 0


@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_group_adds_nothing(empty):
    def tapped(has_empty: bool) -> list[float]:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        groups, ratios = [{"params": [weight]}], [1.0]
        if has_empty:
            groups.insert(empty, {"params": []})
            ratios.insert(empty, 0.5)
        optimizer = torch.optim.SGD(groups, lr=0.1)
        tap = UpdateTap(optimizer, ratios)
        tap.lr = 0.1
        for _ in range(3):
            optimizer.zero_grad()
            (weight * torch.randn(3, dtype=torch.float64)).sum().backward()
            optimizer.step()
        return tap.pending().tolist()

    assert tapped(True) == tapped(False)
    assert len(tapped(True)) == 3
