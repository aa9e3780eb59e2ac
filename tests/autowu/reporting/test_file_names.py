"""Several schedules of one process with one folder: no report is lost, and each has its own file."""

from __future__ import annotations

import gc
import json
import logging
import os

import pytest
import torch
from tiny import get_schedule, trainer_for

from autowu_hf.autowu.reporting import file_names
from autowu_hf.autowu.reporting.file_names import FileNames


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """A picture takes a second."""
    monkeypatch.setattr("autowu_hf.autowu.reporting.plotting.plot_autowu", lambda *args: None)


@pytest.fixture
def another_process(monkeypatch):
    """Called where one begins: nothing is known there of what this one wrote."""
    return lambda: monkeypatch.setattr(file_names, "_taken", {})


def test_a_state_gives_up_what_it_does_not_have_and_knows_plain_strings_only(tmp_path):
    names = FileNames()
    before = names.state_dict()
    assert names.claim(tmp_path) == "autowu"
    assert names.state_dict() == {str(tmp_path): 1}
    names.load_state_dict(before)
    assert names.claim(str(tmp_path)) == "autowu"


class Run:
    def __init__(self, folder, loss: float, total: int = 40):
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        self.loss, self.scheduler = loss, get_schedule(self.optimizer, total, report_dir=folder)

    def go_on(self, steps: int):
        for _ in range(steps):
            self.optimizer.step()
            self.scheduler.step(self.loss)
        return self


def written(folder) -> dict[str, tuple[float, int]]:
    """File -> the loss of its run, and its steps."""
    reports = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    return {name: (report["losses"][0], report["step"]) for name, report in reports.items()}


def test_folds_that_are_gone_keep_their_reports(tmp_path, caplog, monkeypatch):
    drawn = []
    monkeypatch.setattr("autowu_hf.autowu.reporting.plotting.plot_autowu", lambda report, path: drawn.append(path))
    with caplog.at_level(logging.INFO, "autowu_hf"):
        for fold in (1.0, 2.0, 3.0):
            Run(tmp_path, fold).go_on(40)
            gc.collect()
    assert written(tmp_path) == {"autowu.json": (1.0, 40), "autowu-2.json": (2.0, 40), "autowu-3.json": (3.0, 40)}
    assert {*drawn} == {str(tmp_path / name) for name in ("autowu.png", "autowu-2.png", "autowu-3.png")}
    said = [record.getMessage() for record in caplog.records if "leaves this report" in record.getMessage()]
    assert said == [
        f"AutoWU leaves this report as autowu-2.json in {tmp_path}: autowu.json is that of another schedule",
        f"AutoWU leaves this report as autowu-3.json in {tmp_path}: autowu-2.json is that of another schedule",
    ]


def test_the_first_step_settles_the_names_and_not_the_switch(tmp_path, another_process):
    """Two networks in one loop, the second of which switches first; so does its rest in another process."""
    first, second = Run(tmp_path, 1.0, total=60), Run(tmp_path, 2.0)
    for _ in range(10):
        first.go_on(1)
        second.go_on(1)
    states = [run.scheduler.state_dict() for run in (first, second)]
    second.go_on(30)
    assert written(tmp_path) == {"autowu-2.json": (2.0, 40)}
    first.go_on(50)
    assert written(tmp_path) == {"autowu.json": (1.0, 60), "autowu-2.json": (2.0, 40)}
    for path in tmp_path.iterdir():
        path.unlink()

    another_process()
    first, second = Run(tmp_path, 1.0, total=60), Run(tmp_path, 2.0)
    for run, state in zip((first, second), states, strict=True):
        run.scheduler.load_state_dict(state)
    second.go_on(30)
    Run(tmp_path, 4.0).go_on(40)
    assert written(tmp_path) == {"autowu-2.json": (2.0, 40), "autowu-3.json": (4.0, 40)}


@pytest.mark.parametrize("at", [5, 25])
def test_a_run_that_is_resumed_in_the_same_process_writes_where_it_wrote(at, tmp_path):
    Run(tmp_path, 1.0).go_on(40)
    run = Run(tmp_path, 2.0).go_on(at)
    state = run.scheduler.state_dict()
    run.go_on(40 - at)
    again = Run(tmp_path, 2.0, total=50)
    again.scheduler.load_state_dict(state)
    again.go_on(50 - at)
    assert written(tmp_path) == {"autowu.json": (1.0, 40), "autowu-2.json": (2.0, 50)}


def test_a_later_run_of_the_script_writes_its_own_file(tmp_path, another_process):
    Run(tmp_path, 1.0).go_on(40)
    another_process()
    Run(tmp_path, 2.0).go_on(40)
    assert written(tmp_path) == {"autowu.json": (2.0, 40)}


def test_a_schedule_that_is_gone_before_it_has_written_leaves_its_name(tmp_path):
    """As where a batch did not fit into memory, and the loop begins again with a smaller one."""
    unused = Run(tmp_path, 1.0)
    Run(tmp_path, 2.0).go_on(5)
    gc.collect()
    Run(tmp_path, 3.0).go_on(40)
    assert written(tmp_path) == {"autowu.json": (3.0, 40)}
    assert unused.scheduler.last_epoch == 0


def test_a_report_that_somebody_has_removed_holds_its_name_no_more(tmp_path, caplog):
    """Trials that each clear their folder, say."""
    for loss in (1.0, 2.0):
        Run(tmp_path, loss).go_on(40)
        assert written(tmp_path) == {"autowu.json": (loss, 40)}
        (tmp_path / "autowu.json").unlink()
    assert "another schedule" not in caplog.text


def test_a_report_that_was_moved_away_leaves_no_name_while_its_schedule_goes_on(tmp_path):
    first = Run(tmp_path, 1.0).go_on(39)
    assert (tmp_path / "autowu.json").exists()  # since the switch
    (tmp_path / "autowu.json").unlink()
    second = Run(tmp_path, 2.0).go_on(40)
    first.go_on(1)
    assert written(tmp_path) == {"autowu.json": (1.0, 40), "autowu-2.json": (2.0, 40)}
    assert second.scheduler.last_epoch == 40


def test_a_folder_has_one_name_however_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = FileNames(), FileNames()
    for folder in ("out", "./out/", str(tmp_path / "out"), os.path.join("other", "..", "out")):
        assert (first.claim(folder), second.claim(folder)) == ("autowu", "autowu-2")
    assert second.claim("elsewhere") == "autowu"
    restored = FileNames()
    restored.load_state_dict(second.state_dict())
    assert (restored.claim("out"), restored.claim("elsewhere")) == ("autowu-2", "autowu")


def test_a_trainer_that_trains_twice_leaves_both_reports_in_both_folders(tmp_path):
    out, reports = tmp_path / "out", tmp_path / "reports"
    options = {"lr_scheduler_kwargs": {"report_dir": str(reports)}, "save_strategy": "steps", "save_steps": 8}
    trainer = trainer_for(out, num_train_epochs=2, **options)
    trainer.train()
    first = trainer.lr_scheduler.losses
    trainer.train()
    second = trainer.lr_scheduler.losses
    trainer.train(resume_from_checkpoint=str(out / "checkpoint-8"))  # of the second training, which wrote it again
    assert first != second
    for folder in (out, reports):
        assert sorted(path.name for path in folder.glob("autowu*")) == ["autowu-2.json", "autowu.json"]
        for name, losses in (("autowu.json", first), ("autowu-2.json", second)):
            assert json.loads((folder / name).read_text())["losses"] == losses
