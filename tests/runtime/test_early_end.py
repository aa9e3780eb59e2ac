"""What is said of a run that ends before its schedule does."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny import TinyClassifier, batches, trainer_for
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from autowu_hf import AutoWUCallback, get_autolrs_schedule, get_autowu_schedule, get_salsa_schedule
from autowu_hf.integrations.trainer_callback import adaptive
from autowu_hf.runtime import early_end

MAKERS = {"AutoWU": get_autowu_schedule, "AutoLRS": get_autolrs_schedule, "SALSA": get_salsa_schedule}

LOOKING = "the run was ended at step 5 of 120, while AutoWU was looking for the learning rate: the weights are those of"


def run(steps: int, num_training_steps: int = 120, name: str = "AutoWU", **options):
    """A schedule after ``steps`` steps of a loop without accelerate."""
    Accelerator(cpu=True)  # forgets the accumulation of others
    options = {"line_search": False} if name == "SALSA" else options
    model = TinyClassifier()
    schedule = MAKERS[name](torch.optim.SGD(model.parameters(), lr=0.1), num_training_steps, **options)
    return go_on(model, schedule, steps)


def go_on(model, schedule, steps: int):
    for batch in [*DataLoader(batches(8 * steps), batch_size=8)] if steps else []:
        schedule.optimizer.zero_grad()
        loss = model(**batch)["loss"]
        loss.backward()
        schedule.optimizer.step()
        schedule.step(loss.detach())
    return schedule


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == early_end.__name__]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """No error before, and no schedule of another test that somebody holds."""
    monkeypatch.setattr(sys, "last_value", None, raising=False)
    monkeypatch.setattr(early_end, "_watched", early_end._watched.__class__())


def test_a_run_that_ends_while_it_looks_is_told_once(caplog):
    schedule = run(5)
    early_end.at_exit()
    early_end.at_exit()
    (words,) = said(caplog)
    assert words.startswith(LOOKING)
    assert "yet. Where these are all steps that the loop makes, pass num_training_steps=5; where the loop" in words
    assert words.endswith("let it wait while the schedule's is_looking is True")
    assert f"at learning rate {schedule.get_last_lr()[0]:.1e}, on which" in words


def test_a_decay_that_is_broken_off_is_told_and_the_last_steps_of_one_are_not_missed(caplog):
    schedule = run(0, 50, num_warmup_steps=10, max_lr=0.2, rewind=False)
    model = TinyClassifier()
    schedule.optimizer.param_groups[0]["params"][:] = model.parameters()
    go_on(model, schedule, 30)
    assert not schedule.is_looking
    share = schedule.get_last_lr()[0] / schedule.peak_lr
    assert 0.1 < share < 0.9
    words = schedule.early_end()
    assert "is_looking" not in words
    assert f"step 30 of 50, at learning rate {schedule.get_last_lr()[0]:.1e}, {100 * share:.0f} % of AutoWU's" in words
    go_on(model, schedule, 14)
    assert schedule.early_end() is not None
    go_on(model, schedule, 1)
    assert schedule.early_end() is None
    early_end.at_exit()
    assert said(caplog) == []


def test_autolrs_speaks_of_a_search_only_and_salsa_of_nothing():
    assert run(30, 1000, "AutoLRS").early_end().startswith("the run was ended at step 30 of 1000, while AutoLRS was")
    assert run(1, 1000, "AutoLRS").early_end() is not None  # the ramp is one step
    assert run(5, 1000, "SALSA").early_end() is None


def accumulated(num: int, num_training_steps: int, num_batches: int = 20, epochs: int = 1, prepares: bool = True):
    """A loop of accelerate's."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=num)
    model = TinyClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = stepped = get_autowu_schedule(optimizer, num_training_steps)
    loader = DataLoader(batches(8 * num_batches), batch_size=8)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if prepares:
        stepped = accelerator.prepare(schedule)
    for _ in range(epochs):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                if prepares or accelerator.sync_gradients:
                    stepped.step()
                optimizer.zero_grad()
    return accelerator, schedule


@pytest.mark.parametrize("prepares", [True, False])
def test_a_count_of_batches_is_told_where_gradients_are_accumulated(caplog, prepares):
    accelerator, schedule = accumulated(4, 60, epochs=3, prepares=prepares)
    accelerator.end_training()
    (words,) = said(caplog)
    assert words.startswith("the run was ended at step 15 of 60, ")
    assert words.endswith(" num_training_steps seems to count batches: divide it by gradient_accumulation_steps = 4")
    early_end.at_exit()
    accelerator.end_training()
    assert said(caplog) == [words]
    assert schedule.last_epoch == 15


@pytest.mark.parametrize(
    ("num", "num_training_steps", "num_batches", "counts_batches"),
    [(4, 60, 22, False), (4, 22, 22, True), (3, 120, 20, False), (1, 60, 20, False)],
)
def test_only_where_the_numbers_say_so(num, num_training_steps, num_batches, counts_batches):
    _, schedule = accumulated(num, num_training_steps, num_batches)
    assert ("seems to count batches" in schedule.early_end()) is counts_batches


def test_steps_are_those_of_the_optimizer_and_the_remedy_is_in_the_schedules():
    schedule = run(0)
    schedule.prepared(2, [])
    go_on(TinyClassifier(), schedule, 10)
    words = schedule.early_end()
    assert words.startswith("the run was ended at step 5 of 60, while")
    assert "pass num_training_steps=10 (accelerate counts each 2 times)" in words


def test_nothing_is_said_of_those_that_are_not_stepped_or_gone_or_another_ones_copy(caplog):
    kept = [run(0), copy.deepcopy(schedule := run(5)), pickle.loads(pickle.dumps(schedule))]
    kept.append(run(0))
    kept[-1].load_state_dict(schedule.state_dict())
    del schedule
    gc.collect()
    early_end.at_exit()
    assert len(early_end._watched) == 2
    assert said(caplog) == []
    go_on(TinyClassifier(), kept[-1], 1)
    early_end.at_exit()
    assert len(said(caplog)) == 1


def test_a_process_that_an_error_ends_says_nothing_more(caplog, monkeypatch):
    schedule = run(5)
    for owner, name, value in [
        (sys, "last_value", ValueError()),
        (sys, "ps1", ">>> "),
        (early_end, "multiprocessing", SimpleNamespace(parent_process=object)),
        (early_end.os, "getpid", lambda: -1),  # as in a fork
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value, raising=False)
            early_end.at_exit()
        assert said(caplog) == [], name
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(schedule.optimizer)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            raise KeyboardInterrupt
        finally:
            accelerator.end_training()
    early_end.at_exit()
    assert said(caplog) == []


def test_another_process_than_the_first_says_nothing(caplog, monkeypatch):
    schedule = run(5)
    monkeypatch.setenv("RANK", "1")
    early_end.at_exit()
    assert said(caplog) == []
    assert schedule.early_end() is not None


def test_trainer_says_it_by_itself(tmp_path, caplog):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    trainer = trainer_for(tmp_path, max_steps=40, callbacks=[Stop(), AutoWUCallback(plot=False, report=False)])
    trainer.train()
    schedule = adaptive(trainer.lr_scheduler)
    assert schedule.early_end() is not None
    assert schedule not in early_end._watched
    trainer.accelerator.end_training()
    early_end.at_exit()
    assert said(caplog) == []


SCRIPT = """
import os
import torch, autowu_hf

for number, case in enumerate({cases}):  # each in a process that ends as that of a script does
    if os.fork() == 0:
        (steps, end), error = case, os.open(str(number), os.O_CREAT | os.O_WRONLY)
        os.dup2(error, 2)
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else:
    os._exit(0)
weight = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.SGD([weight], lr=0.1)
schedule = autowu_hf.get_autowu_schedule(optimizer, 120)
for step in range(steps):
    loss = 1.0 + weight.square().sum()
    loss.backward()
    optimizer.step()
    schedule.step(loss)
    optimizer.zero_grad()
exec(end)
"""


@pytest.mark.once
def test_the_end_of_a_script_says_it(tmp_path):
    cases = [(5, ""), (5, "raise RuntimeError('broken')"), (120, "")]
    (tmp_path / "script.py").write_text(SCRIPT.format(cases=cases))
    ended = subprocess.run(
        [sys.executable, "-W", "error", "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.stdout.split() == ["0", "1", "0"], ended.stderr
    said = [(tmp_path / str(number)).read_text() for number in range(len(cases))]
    assert "RuntimeError: broken" in said[1]
    for number, is_said in enumerate((True, False, False)):
        assert said[number].count(LOOKING) == said[number].count("the run was ended") == is_said
