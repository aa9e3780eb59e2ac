from __future__ import annotations

import math

import pytest
import torch

from autowu_hf.runtime import collective
from autowu_hf.runtime.update_meter import Update
from autowu_hf.runtime.update_meter.shares import Shares, agreed, say_apart


class Place:
    def __init__(self, replicates):
        self._replicates = replicates

    def is_replicate(self):
        return self._replicates


class Mesh:
    def size(self, dim):
        return (2, 4)[dim]


class Sharded(torch.Tensor):
    """Looks like one of FSDP2's parameters on a mesh of two times four processes."""

    device_mesh = Mesh()
    placements = (Place(True), Place(False))

    def to_local(self):
        return self


@pytest.fixture
def eight_processes(monkeypatch):
    monkeypatch.setattr(collective, "num_processes", lambda: 8)
    monkeypatch.setattr(collective, "process_index", lambda: 5)
    monkeypatch.setattr(collective, "gather_sum", lambda numbers: 8 * numbers)


def test_under_ddp_nothing_is_shared_out(eight_processes):
    shares = Shares([torch.ones(2)], 1)
    assert (shares.is_shared, shares.num_processes, shares.process) == (False, 1, 0)
    assert shares.copies_of(torch.ones(2)) == 1
    assert torch.equal(shares.gather_sum(torch.ones(2)), torch.ones(2))


def test_under_fsdp1_every_process_has_its_own_share(eight_processes):
    shares = Shares([torch.ones(2)], 8)
    assert (shares.is_shared, shares.num_processes, shares.process) == (True, 8, 5)
    assert shares.copies_of(torch.ones(2)) == 1
    assert Shares([torch.ones(2)], 4).copies_of(torch.ones(2)) == 2  # HYBRID_SHARD
    assert torch.equal(shares.gather_sum(torch.ones(2)), 8 * torch.ones(2))


def test_under_fsdp2_copies_count_as_one(eight_processes):
    sharded = torch.ones(2).as_subclass(Sharded)
    shares = Shares([sharded, torch.ones(2)], 8)
    assert shares.is_shared
    assert shares.copies_of(sharded) == 2
    assert shares.copies_of(torch.ones(2)) == 8  # one that is left whole


def test_on_a_part_of_the_processes_the_others_hold_copies(eight_processes):
    class Part(Sharded):
        """On a mesh of four of the eight processes."""

        device_mesh = type("Mesh", (), {"size": lambda self, dim: 4})()
        placements = (Place(False),)

    sharded = torch.ones(2).as_subclass(Part)
    assert Shares([sharded], 8).copies_of(sharded) == 2


def seen(norm):
    sizes = ("slope", "update_norm", "weight_norm", "alignment", "resolution", "clipping")
    return Update(**dict.fromkeys(sizes, 1.0 / 3.0), gradient_norm=norm, lr=1e-5)


def agreed_by(monkeypatch, *processes):
    """What each of the processes goes on with."""
    tables = []
    with monkeypatch.context() as during:
        during.setattr(collective, "gather_rows", lambda table: tables.append(table) or table.reshape(1, -1))
        for updates in processes:
            agreed(updates, Shares([], 1))
        during.setattr(collective, "gather_rows", lambda table: torch.stack(tables))
        return [agreed(updates, Shares([], 1)) for updates in processes]


def test_all_processes_go_on_with_what_the_main_one_has_measured(monkeypatch):
    (main, apart), (other, other_apart) = agreed_by(monkeypatch, [seen(1.0), seen(2.0)], [seen(1.5), seen(2.0)])
    assert str(main) == str(other) == str([seen(1.0), seen(2.0)])  # fields that were not measured are NaN
    assert apart == other_apart == pytest.approx(0.5 / 1.5)


def test_they_have_as_many_as_the_main_one_and_its_reasons(monkeypatch):
    why = "the gradients are sparse"
    (main, apart), (other, _) = agreed_by(monkeypatch, [seen(1.0), why], [seen(1.0)])
    assert main[1] == why
    assert [isinstance(update, str) for update in other] == [False, True]
    assert "main process" in other[1]
    assert apart == 0.0
    (main, _), (other, _) = agreed_by(monkeypatch, [seen(1.0)], [why, why])
    assert str(main) == str(other) == str([seen(1.0)])
    assert agreed_by(monkeypatch, [], [])[0] == ([], 0.0)


def test_shares_of_the_weights_have_been_added_up_already(eight_processes):
    updates = [seen(math.pi)]
    assert agreed(updates, Shares([torch.ones(2)], 8)) == (updates, 0.0)


def test_gradients_that_were_not_averaged_are_said(monkeypatch, caplog):
    assert not say_apart(1e-6)
    assert caplog.messages == []
    assert say_apart(0.4)
    assert "differ, by 40 %" in caplog.text
    caplog.clear()
    monkeypatch.setattr(collective, "process_index", lambda: 1)
    assert say_apart(0.4)
    assert caplog.messages == []
