from __future__ import annotations

import psutil
import pytest
from rewind_runs import run, small, train_step, valley
from tiny import get_schedule

from autowu_hf.rewind import Rewind, memory, snapshot


def test_a_checkpoint_of_rewind_turned_off_leaves_it_off(monkeypatch):
    model, optimizer = small()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    scheduler = get_schedule(optimizer, 400, model=model)
    run(scheduler, model, optimizer, valley(150, 100))
    monkeypatch.undo()
    resumed = get_schedule(optimizer, 400, model=model)
    resumed.load_state_dict(scheduler.state_dict())
    assert not resumed.rewind.is_on
    run(resumed, model, optimizer, valley(150, 400)[100:])
    assert resumed.ended_by == "minimum"


def test_memory_is_looked_at_before_any_is_taken(monkeypatch):
    model, optimizer = small()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    monkeypatch.setattr(snapshot, "take", lambda *_, **__: pytest.fail("a snapshot was taken"))
    scheduler = get_schedule(optimizer, 400, model=model)
    run(scheduler, model, optimizer, valley(150, 20))
    assert not scheduler.rewind.is_on


def test_the_memory_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10_000}))
    missing, unlimited, full = (tmp_path / name for name in ("missing", "unlimited", "full"))
    for folder, limit in ((unlimited, "max"), (full, "5000")):
        folder.mkdir()
        (folder / "max").write_text(f"{limit}\n")
        (folder / "now").write_text("4000\n")
        (folder / "memory.stat").write_text("anon 3000\ninactive_file 900\n")

    def free(*folders):
        monkeypatch.setattr(memory, "_CGROUPS", [(folder, "max", "now", "inactive_file") for folder in folders])
        return memory.free_memory()

    assert free(missing, unlimited) == 10_000
    assert free(unlimited, full) == 5000 - (4000 - 900)


def test_too_little_memory_is_said_and_the_run_goes_on_without(caplog, monkeypatch):
    model, optimizer = small()
    size = 4 * (3 * sum(p.numel() for p in model.parameters()) + 2 * 8) + 8 + 4 * 6

    def free(snapshots):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2 * snapshots * size}))

    free(3.9)
    scheduler = get_schedule(optimizer, 400, model=model)
    run(scheduler, model, optimizer, valley(150, 300))
    assert "would take more than 50% of the free host memory" in caplog.text
    assert scheduler.ended_by == "minimum"
    assert scheduler.rewound_to is None

    free(5.5)
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model)
    most = 0
    for loss in valley(150, 300):
        train_step(model, optimizer, scheduler, float(loss))
        most = max(most, len(scheduler.rewind.snapshots))
    assert most + 1 <= scheduler.rewind.limit == 5
    assert scheduler.ended_by == "cliff"
    # Fewer, further apart: the state is from up to that much earlier.
    factor = scheduler.rewind.lr_factor
    assert 10 < factor < 20  # all that a switch may want fits in between
    assert scheduler.peak_lr / factor / 1.1 < scheduler.curve.warmup(scheduler.rewound_to) <= scheduler.peak_lr


@pytest.mark.parametrize(("room", "kept"), [(0.9, False), (1.1, True)])
def test_a_single_snapshot_needs_room_for_itself_alone(caplog, monkeypatch, room, kept):
    model, optimizer = small()
    rewind = Rewind(optimizer, lambda: [model], None, None, 0.5, True)
    size = snapshot.size(optimizer, [model])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2 * room * size}))
    rewind.keep_one(2)
    assert [s.step for s in rewind.snapshots] == ([2] if kept else [])
    assert rewind.is_on is kept
    assert ("its snapshots, 1 of" in caplog.text) is not kept
    if kept:
        rewind.plan(band=10.0)  # more of them do not fit
        assert not rewind.is_on
        assert rewind.snapshots == []


@pytest.mark.parametrize(
    ("processes", "room"),
    [
        ([(1000, 100, 1)], 5),
        ([(999, 100, 1)], 4),
        ([(1000, 100, 1), (1000, 100, 1)], 2),  # two processes of one host
        ([(1000, 100, 1), (1000, 100, 2)], 5),  # two hosts
        ([(1000, 100, 1), (300, 100, 2)], 1),
        ([(1000, 250, 1), (1000, 100, 2)], 2),
        ([(0, 100, 1)], 0),
        ([(10, 0, 1)], 5),  # nothing to take
    ],
)
def test_the_process_with_the_least_room_decides(processes, room):
    assert memory.fewest_that_fit(processes, 0.5) == room


def test_one_process_has_the_machine_to_itself(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    assert memory.snapshots_that_fit(100, 0.25) == 2


def test_too_little_memory_has_a_reason_and_a_remedy():
    obstacle = memory.too_little_memory(4, 3 * 2**20, 0.25)
    assert obstacle.reason == (
        "its snapshots, 4 of 3 MiB at least on every process, would take more than 25% of the free host memory"
    )
    assert obstacle.remedy == 'free some, raise rewind_memory, or keep them in files with rewind="disk"'
