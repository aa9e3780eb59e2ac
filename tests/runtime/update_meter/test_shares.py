from __future__ import annotations

import pytest
import torch

from autowu_hf.runtime import collective
from autowu_hf.runtime.update_meter.shares import Shares


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
