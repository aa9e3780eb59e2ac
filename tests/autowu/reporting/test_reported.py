from __future__ import annotations

import json

import pytest
import torch
from tiny import get_schedule

from autowu_hf import DivergedError


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """As without matplotlib: a picture takes a second."""
    monkeypatch.setattr("autowu_hf.autowu.reporting.plotting.importlib.util.find_spec", lambda name: None)


def run(steps: int, total: int, ticks: int = 1, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = get_schedule(optimizer, total * ticks, **options)
    scheduler.prepared(ticks, [optimizer])
    for i in range(steps):
        optimizer.step()
        for _ in range(ticks):
            scheduler.step(1.0 / (i + 1))
    return scheduler


def test_a_plain_loop_leaves_a_report_at_the_switch_and_at_its_end(tmp_path):
    report = tmp_path / "autowu.json"
    run(19, 40, report_dir=str(tmp_path))
    assert not report.exists()
    run(20, 40, report_dir=tmp_path)
    assert json.loads(report.read_text())["step"] == 20
    scheduler = run(40, 40, report_dir=tmp_path)  # another of this process, which leaves the first one's alone
    assert json.loads(report.read_text())["step"] == 20
    assert json.loads((tmp_path / "autowu-2.json").read_text())["losses"] == scheduler.losses
    assert sorted(path.name for path in tmp_path.iterdir()) == ["autowu-2.json", "autowu.json"]


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "file").touch()
    scheduler = run(40, 40, report_dir=tmp_path / "file")
    assert scheduler.get_last_lr() == [0.0]
    assert f"the report of AutoWU could not be written to {tmp_path / 'file'}" in caplog.text


def test_a_report_is_owed_while_processes_may_be_at_different_steps(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = get_schedule(optimizer, 40, report_dir=tmp_path)
    scheduler.hold_tests(True)
    for _ in range(40):
        optimizer.step()
        scheduler.step(1.0)
    assert not (tmp_path / "autowu.json").exists()
    scheduler.hold_tests(False)
    scheduler.catch_up()
    assert json.loads((tmp_path / "autowu.json").read_text())["step"] == 40


def test_a_report_dir_that_is_no_name_is_refused():
    for no_name in (1, b"reports", ""):
        with pytest.raises(ValueError, match=f"report_dir must be the name of a folder, got {no_name!r}"):
            run(0, 40, report_dir=no_name)


def test_a_diverged_run_names_its_optimizer_step():
    """In a loop of two processes the schedule makes two steps for each of them."""
    messages = []
    for ticks in (1, 2):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = get_schedule(optimizer, 100 * ticks, rewind=False)
        scheduler.prepared(ticks, [optimizer])
        optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))
        optimizer.step()
        with pytest.raises(DivergedError) as raised:  # noqa: PT012
            for _ in range(50 * ticks):
                scheduler.step(float("nan"))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert "infinite or NaN after step " in messages[0]
