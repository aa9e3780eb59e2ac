from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import TinyClassifier, trainer_for
from torch import nn

from autowu_hf import get_autolrs_schedule
from autowu_hf.autolrs.search import Search
from autowu_hf.autolrs.stages import AutoLRSSettings, Stage
from autowu_hf.runtime.losses.history import LossHistory
from autowu_hf.runtime.param_groups import device_of

STAGE = Stage(start=3, candidate_steps=5, search_steps=20, train_steps=50, is_full=True)
SETTINGS = AutoLRSSettings(min_lr=1e-4, max_lr=1.0, num_candidates=4)


def begun(groups: Any) -> tuple[Search, LossHistory]:
    """A search for ``STAGE`` with its first candidate."""
    optimizer = torch.optim.SGD(groups, lr=0.1)
    history = LossHistory(optimizer)
    search = Search(optimizer, SETTINGS, history)
    search.begin(STAGE.start)
    search.next_candidate()
    return search, history


def test_every_candidate_begins_where_the_search_did_and_the_best_is_returned():
    weight = nn.Parameter(torch.arange(3.0))
    search, history = begun([weight])
    seen, drawn = [], []
    while True:
        seen.append(weight.detach().clone())
        drawn.append(float(torch.rand(())))
        assert search.is_on
        assert search.place(STAGE, STAGE.start + 5 * len(seen)) == STAGE.candidate_steps
        for _ in range(STAGE.candidate_steps):
            history.observe(abs(search.candidate_lrs[-1] - 0.01))
        with torch.no_grad():
            weight.sub_(search.candidate_lrs[-1])
        search.end_candidate(STAGE, is_validated=False)
        if search.is_complete:
            break
        search.next_candidate()
    lrs = search.candidate_lrs
    result = search.end(STAGE)
    assert all(torch.equal(weights, torch.arange(3.0)) for weights in [*seen, weight])
    assert len(seen) == len(set(lrs)) == 4
    assert len(set(drawn)) == 1
    assert result["lr"] == min(lrs, key=lambda lr: abs(lr - 0.01))
    assert (result["step"], result["lrs"]) == (STAGE.start, lrs)
    assert result["forecasts"] == pytest.approx([abs(lr - 0.01) for lr in lrs])
    assert not search.is_on


def test_a_search_is_given_up_for_its_best_candidate_so_far():
    search, history = begun([nn.Parameter(torch.zeros(1))])
    assert search.give_up() is None
    assert not search.is_on
    search, history = begun([nn.Parameter(torch.zeros(1))])
    for loss in (2.0, 1.0):
        for _ in range(5):
            history.observe(loss)
        search.end_candidate(STAGE, is_validated=False)
        search.next_candidate()
    better = search.candidate_lrs[1]
    assert search.give_up() == better


def test_a_state_of_another_model_cannot_go_on():
    search, history = begun([nn.Parameter(torch.zeros(1))])
    state = search.state_dict()
    for shape, cannot in ((1, False), (2, True)):
        other = Search(torch.optim.SGD([nn.Parameter(torch.ones(shape))], lr=0.1), SETTINGS, history)
        assert not other.cannot_go_on
        other.load_state_dict(state)
        assert other.candidate_lrs == search.candidate_lrs
        assert other.cannot_go_on is cannot
    other.load_state_dict({**state, "start": None})
    assert other.cannot_go_on


@pytest.mark.parametrize("empty", [[0], [1], [0, 2]])
def test_empty_groups_are_no_obstacle(empty):
    weights = [nn.Parameter(torch.full((2,), 5.0)) for _ in range(3)]
    groups: list[dict[str, Any]] = [{"params": [weight]} for weight in weights[: 3 - len(empty)]]
    for i in empty:
        groups.insert(i, {"params": [], "weight_decay": 0.01})
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.1)
    assert device_of(optimizer) == torch.device("cpu")
    scheduler = get_autolrs_schedule(optimizer, 61, num_candidates=3, max_lr=1.0)
    used = [weight for group in groups for weight in group["params"]]
    for step in range(61):
        loss = sum((weight.square().sum() for weight in used), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        if step == 10:  # inside the search: its state has the empty groups too
            assert scheduler.phase == "search"
            scheduler.load_state_dict(scheduler.state_dict())
            assert scheduler.phase == "search"
    assert len(scheduler.results) == len(scheduler.stages)
    assert len(optimizer.param_groups) == 3
    assert all(lr == scheduler.get_last_lr()[0] for lr in scheduler.get_last_lr())


def test_a_device_is_known_without_any_parameter():
    assert device_of(torch.optim.SGD([{"params": []}], lr=0.1)) == torch.device("cpu")


def test_a_trainer_whose_model_trains_its_biases_alone(tmp_path):
    model = TinyClassifier()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bias" in name)
    options = {"num_candidates": 2, "first_stage": 10}
    trainer = trainer_for(
        tmp_path,
        model=model,
        max_steps=41,
        weight_decay=0.01,
        lr_scheduler_type="autolrs",
        lr_scheduler_kwargs=options,
    )
    trainer.train()
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] == [0, 2]
    assert len(trainer.lr_scheduler.results) == len(trainer.lr_scheduler.stages) > 1
