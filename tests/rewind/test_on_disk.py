from __future__ import annotations

import gc

import pytest
import torch
from rewind_runs import assert_same, run, small, state_of, valley
from tiny import get_schedule

from autowu_hf.rewind import snapshot
from autowu_hf.rewind.on_disk import SnapshotFolder, SnapshotOnDisk


def test_a_state_without_snapshots_is_resumed_with_a_note(caplog):
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model, rewind="disk")
    run(scheduler, model, optimizer, valley(150, 140))
    resumed = get_schedule(optimizer, 400, model=model)
    resumed.load_state_dict(scheduler.state_dict())
    assert "the checkpoint holds no snapshots that fit this run" in caplog.text
    run(resumed, model, optimizer, valley(150, 400)[140:])
    assert resumed.rewound_to == 141


def taken(step=3):
    model, optimizer = small()
    return model, optimizer, snapshot.take(optimizer, [model], step)


def test_a_snapshot_in_a_file_is_the_one_that_was_written(tmp_path):
    model, optimizer, in_memory = taken()
    before = state_of(model, optimizer)
    stored = SnapshotOnDisk(in_memory, str(tmp_path / "step_3.bin"))
    assert stored.step == 3
    assert stored.finite_buffers() == in_memory.finite_buffers() == set(in_memory.buffers)
    assert stored.state_dict() is None
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    snapshot.restore(stored.load(), optimizer, [model])
    assert_same(state_of(model, optimizer), before)


def test_its_finite_buffers_are_known_without_the_file(tmp_path):
    model, optimizer, _ = taken()
    model[1].running_mean[0] = float("nan")
    stored = SnapshotOnDisk(snapshot.take(optimizer, [model], 1), str(tmp_path / "step_1.bin"))
    stored.discard()
    assert stored.finite_buffers() == {"0.1.running_var", "0.1.num_batches_tracked"}


def test_a_snapshot_that_is_given_up_leaves_no_file(tmp_path):
    stored = SnapshotOnDisk(taken()[2], str(tmp_path / "step_3.bin"))
    assert stored.discard() is None
    assert list(tmp_path.iterdir()) == []
    stored.discard()  # somebody may have removed it already
    with pytest.raises(FileNotFoundError):
        stored.load()


def test_the_folder_comes_with_the_first_snapshot_and_goes_with_its_owner(tmp_path):
    parent = tmp_path / "not" / "there"
    folder = SnapshotFolder(str(parent))
    assert not parent.exists()
    first, second = (folder.store(taken(step)[2]) for step in (3, 4))
    (made,) = parent.iterdir()
    assert sorted(file.name for file in made.iterdir()) == ["step_3.bin", "step_4.bin"]
    assert (first.load().step, second.load().step) == (3, 4)
    del folder
    gc.collect()
    assert list(parent.iterdir()) == []


def test_snapshots_of_a_checkpoint_go_into_files_too(tmp_path):
    losses = valley(150, 400)
    model, optimizer = small()
    in_memory = get_schedule(optimizer, 400, model=model)
    states = run(in_memory, model, optimizer, losses[:140])
    resumed = get_schedule(optimizer, 400, model=model, rewind="disk", rewind_dir=str(tmp_path))
    resumed.load_state_dict(in_memory.state_dict())
    steps = [s.step for s in in_memory.rewind.snapshots]
    assert [s.step for s in resumed.rewind.snapshots] == steps
    assert len(list(tmp_path.rglob("*.bin"))) == len(steps)
    assert resumed.rewind.state_dict()["kept"] == []
    highest = resumed.curve.warmup(steps[-2])
    assert resumed.rewind.restore(resumed.curve.warmup, highest) == steps[-2]
    assert_same(state_of(model, optimizer), states[steps[-2]])
