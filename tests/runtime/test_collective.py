from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchrun import torchrun

from autowu_hf.runtime import collective

SCRIPT = Path(__file__).parents[1] / "scripts" / "many_processes.py"


@pytest.mark.once
@pytest.mark.parametrize("processes", [2])
def test_processes_gather_their_losses_and_share_the_decision(processes):
    assert f"{processes} processes agree" in torchrun(str(SCRIPT), processes=processes)


def test_one_process_sends_nothing(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a collective was issued")

    monkeypatch.setattr(collective, "gather", fail)
    monkeypatch.setattr(collective, "broadcast", fail)
    assert collective.num_processes() == 1
    assert collective.is_main_process()
    assert collective.gather_mean(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert collective.broadcast_numbers([1.0, 0.5], 2) == [1.0, 0.5]
    assert collective.broadcast_number(0.25) == 0.25
    assert [state.tolist() for state in collective.gather_bytes(torch.tensor([3]))] == [[3]]
