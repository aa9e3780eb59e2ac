"""What an AutoWU schedule makes of what its loop does."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from relapse_runs import Run

from autowu_hf import LoopWarning, get_autowu_schedule

STEPS = 60


def train(steps: int, swap_at: int | None = None, unfreeze_at: int | None = None, beyond: int = 0, **options):
    """A head on a frozen body; another optimizer is stepped from ``swap_at`` on."""
    torch.manual_seed(0)
    body, head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
    body.requires_grad_(unfreeze_at is None)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()])
    schedule = get_autowu_schedule(optimizer, steps, **options)
    stepped = optimizer
    for step in range(steps + beyond):
        if step == swap_at:
            stepped = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.01)
        if step == unfreeze_at:
            body.requires_grad_(True)
        loss = 1.0 + head(body(torch.randn(16, 4))).square().mean()
        loss.backward()
        stepped.step()
        schedule.step(loss)
        stepped.zero_grad()
    return schedule


@pytest.mark.parametrize("unfreeze_at", [10, 40])
def test_weights_that_were_frozen_at_the_measurement_are_told(unfreeze_at):
    with pytest.warns(LoopWarning, match="2 parameter tensors are trained from now on that were frozen") as said:
        schedule = train(STEPS, unfreeze_at=unfreeze_at)
    assert len(said) == 1
    assert schedule.state_dict()["measured"] == ([2],)


def test_an_optimizer_that_is_swapped_in_the_warm_up_ends_the_search(caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    with pytest.warns(LoopWarning, match="the AdamW that this schedule was made for is not stepped") as said:
        schedule = train(STEPS, swap_at=4)
    assert len(said) == 1
    assert (schedule.ended_by, schedule.peak_lr, schedule.rewound_to) == ("nothing", 1e-3, None)
    assert schedule.switch_step < 20
    assert "the optimizer that the schedule was made for is not stepped, at step" in caplog.text
    assert not schedule.rewind.is_on
    assert schedule.get_last_lr() == [0.0]


def test_over_a_range_it_ends_the_search_too():
    with pytest.warns(LoopWarning, match="is not stepped"):
        schedule = train(STEPS, swap_at=4, max_lr=0.1)
    assert (schedule.ended_by, schedule.rewound_to) == ("nothing", None)


def test_after_the_switch_nothing_is_taken_back():
    run = Run().go(70)
    assert run.scheduler._relapse.is_watching
    own, run.optimizer = run.optimizer, torch.optim.SGD(run.model.parameters(), lr=1e-3)
    with pytest.warns(LoopWarning, match="is not stepped"):
        for _ in run.train(100):
            run.lrs[-1] = own.param_groups[0]["lr"]
    assert not run.scheduler._relapse.is_watching
    assert run.attempts == []
    assert run.scheduler.ended_by != "nothing"


def test_a_few_steps_beyond_the_end_are_no_matter_and_many_are_told_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = train(STEPS, beyond=9)
    assert schedule.get_last_lr() == [0.0]
    with pytest.warns(LoopWarning, match=f"of a run of num_training_steps={STEPS}, beyond which") as said:
        train(STEPS, beyond=40)
    assert len(said) == 1
