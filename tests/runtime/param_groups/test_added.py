from __future__ import annotations

import functools
import logging

import pytest
import torch

from autowu_hf import (
    get_autolrs_schedule,
    get_autowu_schedule,
    get_rex_schedule_with_warmup,
    get_salsa_schedule,
)
from autowu_hf.runtime.param_groups import drop_empty, lr_ratios, match_ratios, own_lr, set_lrs


def groups_of(*lrs: float, default: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return torch.optim.AdamW(groups, lr=default)


def test_a_group_that_is_added_at_the_lr_of_the_moment_gets_the_ratio_of_the_group_that_has_it():
    optimizer = groups_of(1e-3, 1e-4, default=1e-3)
    ratios, own = lr_ratios(optimizer), own_lr(optimizer)
    set_lrs(optimizer, [0.5, 0.05])
    for lr in (0.05, 2e-3, 0.5):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr})
    match_ratios(ratios, optimizer, own)
    assert ratios == pytest.approx([1.0, 0.1, 0.1, 2.0, 1.0])
    assert [group["initial_lr"] for group in optimizer.param_groups[2:]] == pytest.approx([1e-4, 2e-3, 1e-3])
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": float("nan")})
    with pytest.raises(ValueError, match="must be a finite number, got nan"):
        match_ratios(ratios, optimizer, own)


@pytest.mark.parametrize(
    ("present", "lr", "ratio"),
    [
        (0.5, 0.05, 0.1),  # a tenth of the moment's
        (0.5, 1e-4, 0.1),  # of what was given at the start
        (1e-5, 1e-4, 0.1),  # equally far from both: of the start's
        (1e-5, 1e-6, 0.1),
        (1e-9, 1e-10, 0.1),  # at the end of the decay
        (1e-9, 1e-3, 1.0),
        (0.0, 1e-3, 1.0),
        (0.0, 0.0, 1.0),  # the LR of the moment
        (0.5, 0.0, 0.0),
        (0.012345, 0.0012345, 0.1),  # though it is nearer to what was given at the start
        (0.012345, 0.004115, 1 / 3),
        (0.012345, 0.005, 5.0),  # though it is nearer to the moment's
        (0.012345, 0.015, 0.015 / 0.012345),  # 15 times that of the start would be much
        (2e-4, 3e-5, 0.03),  # another group was given that at the start
        (1.5e-2, 4.5e-4, 0.03),  # another group has that now
    ],
)
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_new_group_is_read_beside_the_lr_of_the_start_or_of_the_moment(present, lr, ratio, kind, caplog):
    optimizer = groups_of(1e-3, 3e-5, default=1e-3)
    ratios, own = lr_ratios(optimizer), own_lr(optimizer)
    set_lrs(optimizer, [present, 0.03 * present])
    for _ in range(2):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": kind(lr)})
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            match_ratios(ratios, optimizer, own)
    assert ratios == pytest.approx([1.0, 0.03, ratio, ratio], rel=1e-5)
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(" times ")[0] for text in said] == [
        f"parameter group {number}, added with lr={lr:.3g}, is trained at {ratio:.3g}" for number in (2, 3)
    ]


def test_an_initial_lr_leaves_no_doubt_and_tensors_are_not_shared_with_the_defaults():
    lr = torch.tensor(1e-3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr, foreach=False)
    schedule = get_autowu_schedule(optimizer, 100)
    for group in ({"lr": 0.1, "initial_lr": 2e-3}, {}, {"lr": 1e-4}):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], **group})
        optimizer.step()
        schedule.step(1.0)
    lrs = [float(group["lr"]) for group in optimizer.param_groups]
    assert lrs == pytest.approx([lrs[0], 2 * lrs[0], lrs[0], 0.1 * lrs[0]])
    assert float(optimizer.defaults["lr"]) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("made", "steps", "moments"),
    [
        (get_autowu_schedule, 100, (1, 3, 50, 99)),
        (functools.partial(get_autowu_schedule, scale=False), 100, (1, 12, 30, 99)),
        (functools.partial(get_autolrs_schedule, num_candidates=2), 101, (1, 13, 60)),
        (functools.partial(get_salsa_schedule, line_search=False), 100, (1, 60)),
        (lambda optimizer, steps: get_rex_schedule_with_warmup(optimizer, 10, steps), 100, (1, 40, 99)),
    ],
)
def test_every_schedule_keeps_a_new_group_at_a_tenth_of_the_others(made, steps, moments):
    for moment in moments:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        schedule = made(optimizer, steps)
        (parameter,) = optimizer.param_groups[0]["params"]
        for step in range(steps):
            if step == moment:
                tenth = optimizer.param_groups[0]["lr"] / 10  # as Lightning's BaseFinetuning
                optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": tenth})
            optimizer.zero_grad()
            loss = parameter.square().sum()
            loss.backward()
            optimizer.step()
            if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
                schedule.step()
            else:
                schedule.step(loss.detach())
            lrs = [group["lr"] for group in optimizer.param_groups]
            assert lrs[1:] == pytest.approx([lrs[0] / 10] * (step >= moment), rel=1e-6)
        resumed = made(optimizer, steps)
        resumed.load_state_dict(schedule.state_dict())


@pytest.mark.parametrize("is_made_with_it", [True, False])
def test_a_resumed_run_keeps_the_ratio_of_a_group_that_was_added(is_made_with_it):
    def made(*lrs):
        groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
        optimizer = torch.optim.SGD(groups, lr=1e-3)
        return optimizer, get_autowu_schedule(optimizer, 100, scale=False)

    def go_on(optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.step()
            schedule.step(1.0)
        return [group["lr"] for group in optimizer.param_groups]

    optimizer, schedule = made(1e-3)
    go_on(optimizer, schedule, 10)
    present = optimizer.param_groups[0]["lr"]
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1 * present})
    lrs = go_on(optimizer, schedule, 3)
    assert lrs[1] == pytest.approx(0.1 * lrs[0])
    state = schedule.state_dict()
    expected = go_on(optimizer, schedule, 20)
    other, resumed = made(1e-3, 1e-3) if is_made_with_it else made(1e-3)
    if not is_made_with_it:
        other.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-3})
    resumed.load_state_dict(state)
    assert [group["lr"] for group in other.param_groups] == lrs
    assert go_on(other, resumed, 20) == expected
    assert resumed.state_dict()["added"] == schedule.state_dict()["added"]


def with_an_empty_group(*lrs):
    """An optimizer whose first group is empty, as that of the weights that decay may be under LoRA."""
    members = [[], *([torch.nn.Parameter(torch.ones(2))] for _ in lrs[1:])]
    return torch.optim.SGD([{"params": p, "lr": lr} for p, lr in zip(members, lrs, strict=True)], lr=lrs[-1])


def drop(optimizer):
    """What DeepSpeed's engine does when it is made."""
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def test_groups_that_were_empty_may_go_and_no_others():
    optimizer = groups_of(1e-3, 1e-4, default=1e-3)
    ratios, had_weights = [1.0, 0.5, 0.1, 0.2], [True, False, True, False]
    assert drop_empty(ratios, optimizer, had_weights) == [1, 3]
    assert (ratios, had_weights) == ([1.0, 0.1], [True, True])
    assert drop_empty(ratios, optimizer, had_weights) == []
    for other, flags in (([1.0, 0.1, 0.2], [True] * 3), ([1.0, 0.5, 0.1, 0.2], [True, False, True, True])):
        with pytest.raises(ValueError, match="must keep its"):
            match_ratios([*other], optimizer, 1e-3, flags)


def made_with_an_empty_group(name, is_dropped):
    """An optimizer and a schedule that accelerate has prepared, which may have dropped the group."""
    optimizer = with_an_empty_group(3e-3, 1e-3, 1e-4)
    if name == "rex":
        schedule = get_rex_schedule_with_warmup(optimizer, 0, 60)
    else:
        schedule = get_autowu_schedule(optimizer, 60, scale=name == "scale")
    if is_dropped:
        drop(optimizer)
    if name != "rex":
        schedule.prepared(1, [optimizer])
    return optimizer, schedule


@pytest.mark.parametrize("name", ["scale", "range", "rex"])
def test_a_schedule_goes_on_without_a_group_that_was_empty_and_is_gone(name):
    def run(is_dropped):
        optimizer, schedule = made_with_an_empty_group(name, is_dropped)
        seen = []
        for step in range(20):
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                parameter.grad = parameter.detach().clone()
            optimizer.step()
            schedule.step(*([] if name == "rex" else [2.0 + 1.0 / (1 + step)]))
            seen.append([group["lr"] for group in optimizer.param_groups][-2:])
        return schedule, seen

    schedule, seen = run(is_dropped=True)
    assert seen == run(is_dropped=False)[1]
    assert seen[-1][1] == pytest.approx(0.1 * seen[-1][0])
    state = schedule.state_dict()
    _, resumed = made_with_an_empty_group(name, is_dropped=True)
    resumed.load_state_dict(state)
    assert resumed.get_last_lr() == seen[-1]
    assert resumed.state_dict().get("added") == state.get("added")
