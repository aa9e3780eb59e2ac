"""Snapshots in a checkpoint."""

from __future__ import annotations

import logging

from rewind_runs import run, small, valley
from tiny import get_schedule

from autowu_hf.rewind import portable
from autowu_hf.runtime.checks import opened


def test_the_size_of_large_snapshots_is_said_once_and_an_option_leaves_them_out(caplog, monkeypatch):
    monkeypatch.setattr(portable, "_LARGE", 1000)
    caplog.set_level(logging.INFO, "autowu_hf")
    losses = valley(150, 400)
    for in_checkpoint in (True, False):
        caplog.clear()
        model, optimizer = small()
        scheduler = get_schedule(optimizer, 400, model=model, rewind_in_checkpoint=in_checkpoint)
        run(scheduler, model, optimizer, losses[:100])
        kept = opened(scheduler.state_dict())["rewind"]["kept"]
        assert len(kept) == (len(scheduler.rewind.snapshots) if in_checkpoint else 0)
        state = scheduler.state_dict()
        assert caplog.text.count("rewind_in_checkpoint=False leaves them out") == in_checkpoint
        assert f"holds {len(kept)} snapshots of 0 MiB" in caplog.text or not in_checkpoint
    resumed = get_schedule(optimizer, 400, model=model, rewind_in_checkpoint=False)
    resumed.load_state_dict(state)
    assert "the checkpoint holds no snapshots that fit this run" in caplog.text
    run(resumed, model, optimizer, losses[100:], since=100)
    assert resumed.ended_by == "cliff"
    assert resumed.rewound_to >= 101
