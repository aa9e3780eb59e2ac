from __future__ import annotations

import logging

import pytest
import torch

from autowu_hf import get_autowu_schedule
from autowu_hf.integrations import rank_files
from autowu_hf.runtime import collective


@pytest.fixture
def scheduler():
    scheduler = get_autowu_schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 100)
    scheduler.optimizer.step()
    return scheduler


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setattr(collective, "num_processes", lambda: 2)
    monkeypatch.setattr(collective, "process_index", lambda: 1)


def pending(*losses: float) -> torch.Tensor:
    return torch.tensor(losses, dtype=torch.float64)


def test_one_process_writes_nothing(tmp_path, scheduler):
    scheduler.step(1.0)
    rank_files.save(scheduler, tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("second_of_two")
def test_every_rank_gets_its_own_losses_back(tmp_path, scheduler):
    scheduler.set_pending_losses(pending(3.0, 4.0))
    rank_files.save(scheduler, tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["autowu_losses_1_1.bin"]
    scheduler.set_pending_losses(pending(1.0, 2.0))  # the main process's, from the state
    rank_files.load(scheduler, tmp_path, 1)
    assert scheduler.pending_losses().tolist() == [3.0, 4.0]


@pytest.mark.usefixtures("second_of_two")
def test_a_leftover_of_another_step_is_not_taken(tmp_path, scheduler, caplog):
    scheduler.set_pending_losses(pending(3.0))
    rank_files.save(scheduler, tmp_path, 0)
    scheduler.last_epoch += 1
    scheduler.set_pending_losses(pending(1.0, 2.0))
    with caplog.at_level(logging.WARNING, "autowu_hf"):
        rank_files.load(scheduler, tmp_path, 0)
    assert scheduler.pending_losses().tolist() == [1.0, 2.0]
    assert "those of the main process stand in for them" in caplog.text
