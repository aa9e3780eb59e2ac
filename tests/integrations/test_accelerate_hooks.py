from __future__ import annotations

import inspect
import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.tracking import GeneralTracker
from margins import assert_above, assert_below, assert_close
from rank_programs import accelerate_loop, two_models
from ranks import run_ranks
from tiny import TinyClassifier, get_schedule
from torch import nn

from autowu_hf import get_autowu_schedule, plot_autowu
from autowu_hf.autowu.reporting.sources import report_from
from autowu_hf.integrations import accelerate_hooks

FAST = {"max_lr": 1e3, "rewind": False}  # an LR that hurts well before the warm-up's cap

MODES = {
    "plain": {},
    "split_batches": {"split_batches": True},
    "accumulation with a short last group": {"accumulation": 3, "samples": 160},
    "two backward calls per step": {"backwards": 2},
    "two backward calls per micro-batch": {"backwards": 2, "accumulation": 3, "samples": 160},
    "explicit loss": {"explicit": True},
    "overflow": {"overflow_at": (3, 20, 21)},
    "overflow with two backward calls per step": {"overflow_at": (0, 20, 21), "backwards": 2},
    "stepped by the loop": {"step_with_optimizer": False},
    "stepped by the loop, explicit loss": {"step_with_optimizer": False, "explicit": True},
    "stepped by the loop per micro-batch": {
        "step_with_optimizer": False,
        "scheduler_steps": "micro-batch",
        "accumulation": 4,
        "samples": 512,
    },
    "stepped by the loop per epoch": {
        "step_with_optimizer": False,
        "scheduler_steps": "epoch",
        "samples": 160,
        "steps": 600,
        "overflow_at": (5, 6),
    },
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_one_observation_per_optimizer_step_and_two_collectives_per_test(mode, processes):
    for seen in run_ranks(accelerate_loop, processes=processes, options=FAST, **MODES[mode]):
        assert seen["skipped"] == len(MODES[mode].get("overflow_at", ()))
        assert_above(seen["num_tests"], 10, seen["num_tests"])
        assert seen["test_steps"] == sorted(set(seen["test_steps"]))
        assert seen["losses"] == pytest.approx(seen["expected"][: len(seen["losses"])], abs=1e-5)
        assert seen["calls"] == ["gather", "broadcast"] * seen["num_tests"] * (processes > 1)
        assert seen["calls_outside_tests"] == 0
        assert seen["all_lrs_equal"]
        assert seen["last_lr"] == 0.0
        assert_below(seen["switch_step"], seen["cap"], seen["cap"])
        if MODES[mode].get("scheduler_steps") == "epoch":
            assert len(seen["losses"]) == seen["switch_step"] * 10 - seen["skipped"]
        else:
            ticks_per_step = 4 if MODES[mode].get("scheduler_steps") == "micro-batch" else 1
            assert len(seen["losses"]) == seen["switch_step"] // ticks_per_step
        assert seen["pending"] == 0


def test_one_two_and_four_processes_do_the_same():
    one, two, four = (run_ranks(accelerate_loop, processes=n, options=FAST) for n in (1, 2, 4))
    for seen in [*two, *four]:
        assert seen["switch_step"] == one[0]["switch_step"]
        assert_below(seen["switch_step"], seen["cap"], seen["cap"])
        assert seen["peak_lr"] == pytest.approx(one[0]["peak_lr"], rel=1e-12)
        assert seen["lrs"] == pytest.approx(one[0]["lrs"], rel=1e-12)
        # Later the LR is above that of the minimum, where training amplifies every difference in rounding.
        assert_close(seen["losses"][:30], one[0]["losses"][:30], 1e-5)
        assert seen["all_lrs_equal"]


@pytest.mark.parametrize(("every", "expected"), [("auto", 1), (3, 2), (8, 4)])
def test_tests_fall_on_whole_optimizer_steps(every, expected):
    """A number of scheduler steps that is no whole number of optimizer steps is rounded up."""
    seen = run_ranks(accelerate_loop, steps=101, options={**FAST, "test_every": every})[0]
    assert seen["cap"] == 50
    assert seen["test_steps"][:3] == [expected, 2 * expected, 3 * expected]


@pytest.mark.parametrize("explicit", [False, True])
def test_a_nan_on_one_rank_is_left_out_and_hangs_nobody(explicit):
    """The mean over ranks of that step is NaN, as the update was: the step keeps its place and leaves the fit."""
    ranks = run_ranks(accelerate_loop, options=FAST, nan_at={10: 1}, explicit=explicit, clean=True)
    for seen in ranks:
        assert [i for i, loss in enumerate(seen["losses"]) if loss != loss] == [10]
        assert seen["all_lrs_equal"]
        assert len(seen["losses"]) == seen["switch_step"]
        assert_above(seen["switch_step"], 15, seen["switch_step"])
        assert_below(seen["switch_step"], seen["cap"], seen["cap"])


def test_a_report_on_the_main_process_has_the_losses_of_all(tmp_path):
    """Without a guard no test gathers the losses at the cap; the last test before it was at step 56 of 60."""
    folder = str(tmp_path / "new" / "reports")
    quiet = {"guard": False, "max_lr": 1e-3, "rewind": False, "test_every": 16}
    for seen in run_ranks(accelerate_loop, options=quiet, report_dir=folder):
        assert seen["switch_step"] == seen["cap"] == len(seen["losses"]) == 60
        assert seen["losses"] == pytest.approx(seen["expected"][:60], abs=1e-5)
        assert seen["all_lrs_equal"]
        assert seen["last_lr"] == 0.0
    report = json.loads((tmp_path / "new" / "reports" / "autowu.json").read_text())
    assert report["ticks_per_step"] == 2
    assert report["step"] == report["num_training_steps"] == 240
    assert report["steps_are"].startswith("scheduler steps, ticks_per_step of them an optimizer step")
    assert report["losses"] == seen["losses"]
    assert (tmp_path / "new" / "reports" / "autowu.png").is_file()


class Tracker(GeneralTracker):
    """What was logged."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[dict[str, float]] = []

    @property
    def tracker(self):
        return self.logged

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **kwargs):
        self.logged.append(values)


def test_a_loop_leaves_a_report_tracker_values_and_a_checkpoint_that_can_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("autowu_hf.autowu.reporting.plotting.importlib.util.find_spec", lambda name: None)
    tracker = Tracker()
    accelerator = Accelerator(cpu=True, log_with=[tracker])
    accelerator.init_trackers("run")
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = get_schedule(optimizer, 60, report_dir=tmp_path)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    labels = torch.tensor([0, 1, 2, 0])
    switch = None
    for step in range(1, 61):
        loss = model(torch.eye(4), labels)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        accelerator.log({"loss": loss.item(), **scheduler.scheduler.log_values()}, step=step)
        report = tmp_path / "autowu.json"
        assert report.is_file() == (scheduler.scheduler.phase == "decay")
        if switch is None and report.is_file():
            switch = scheduler.scheduler.switch_step
            assert json.loads(report.read_text())["step"] == step == switch
        if step == 20:
            accelerator.save_state(str(tmp_path / "checkpoint"))
            at_20 = scheduler.scheduler.report()
    assert json.loads(report.read_text())["step"] == 60
    phases = [values["autowu/phase"] for values in tracker.logged]
    assert phases == [float(step >= switch) for step in range(1, 61)]
    assert tracker.logged[-1]["autowu/peak_lr"] == scheduler.scheduler.peak_lr
    drawn = report_from(tmp_path / "checkpoint" / "scheduler.bin")
    assert repr(drawn) == repr(at_20)  # there may be NaN in it
    figure = plot_autowu(tmp_path / "checkpoint" / "scheduler.bin")
    assert figure.get_suptitle() == "AutoWU: warming up, step 20 of at most 30"


def test_two_schedulers_of_one_accelerator_need_their_losses_spelled_out():
    outcomes = run_ranks(two_models, processes=2)
    for outcome in outcomes:
        assert "two AutoWU schedulers in their warm-up hear the same Accelerator" in outcome["error"]
        assert "scheduler.step(loss)" in outcome["error"]
        assert outcome["losses"] == [[1.0] * 5, [2.0] * 5]


def test_two_accelerators_keep_their_losses_apart():
    schedulers = []
    for value in (1.0, 2.0):
        accelerator = Accelerator(cpu=True)
        model = TinyClassifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        parts = accelerator.prepare(model, optimizer, get_schedule(optimizer, 40))
        schedulers.append((accelerator, value, *parts))
    for _ in range(6):
        for accelerator, value, model, optimizer, scheduler in schedulers:
            loss = model(torch.zeros(1, 4))["logits"].sum() * 0.0 + value
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
    assert [parts[-1].scheduler.losses for parts in schedulers] == [[1.0] * 6, [2.0] * 6]


def test_a_later_scheduler_of_the_same_optimizer_takes_over():
    accelerator = Accelerator(cpu=True)
    model = TinyClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    first = get_schedule(optimizer, 40)
    second = get_schedule(optimizer, 40)
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(3):
        accelerator.backward(model(torch.zeros(1, 4))["logits"].sum() * 0.0 + 3.0)
        optimizer.step()
        second.step()
    assert second.losses == [3.0] * 3
    assert first.losses == []


def test_an_accelerator_of_another_optimizer_is_not_heard():
    accelerator, probe = Accelerator(cpu=True), Accelerator(cpu=True)
    model, other = TinyClassifier(), TinyClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = get_schedule(optimizer, 40)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    other, _ = probe.prepare(other, torch.optim.SGD(other.parameters(), lr=1.0))
    for _ in range(3):
        accelerator.backward(model(torch.zeros(1, 4))["logits"].sum() * 0.0 + 3.0)
        probe.backward(other(torch.zeros(1, 4))["logits"].sum() * 0.0 + 7.0)
        optimizer.step()
        scheduler.step()
    assert scheduler.scheduler.losses == [3.0] * 3


def test_a_step_before_the_first_test_copies_nothing_to_the_host(monkeypatch):
    """As on other devices. ``aten::_local_scalar_dense`` is what ``.item()`` and ``float()`` dispatch to."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        copies = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.copies += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr("autowu_hf.runtime.losses.value._READS_THE_CPU", False)
    accelerator = Accelerator(cpu=True)
    model = TinyClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, foreach=False)
    scheduler = get_schedule(optimizer, 400, test_every=50)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    with Count():
        for step in range(1, 51):
            accelerator.backward(model(torch.zeros(1, 4))["logits"].sum())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            assert Count.copies == 0 or step == 50
    assert len(scheduler.scheduler.tests) == 1


def test_wraps_once_keeps_signatures_and_is_removable():
    owners = [
        (Accelerator, "backward"),
        (Accelerator, "save_state"),
        (Accelerator, "load_state"),
        (Accelerator, "join_uneven_inputs"),
        (Accelerator, "end_training"),
        (AcceleratedOptimizer, "step"),
        (AcceleratedScheduler, "__init__"),
    ]
    accelerate_hooks.remove()
    originals = [getattr(owner, name) for owner, name in owners]
    accelerate_hooks.install()
    accelerate_hooks.install()
    for (owner, name), original in zip(owners, originals, strict=True):
        assert getattr(owner, name) is not original
        assert inspect.signature(getattr(owner, name)) == inspect.signature(original)
    accelerate_hooks.remove()
    assert [getattr(owner, name) for owner, name in owners] == originals
    accelerate_hooks.remove()
    assert [getattr(owner, name) for owner, name in owners] == originals


def test_each_of_two_optimizers_knows_of_its_own_clipping_only():
    """Two models are trained together. One is clipped hard, or in two parts, and the scales stay what they were."""

    def polyak(*clipped):
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        models = [nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)) for _ in range(2)]
        optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
        schedules = [get_autowu_schedule(optimizer, 40) for optimizer in optimizers]
        prepared = accelerator.prepare(*models, *optimizers, *schedules)
        models, optimizers, schedules = prepared[:2], prepared[2:4], prepared[4:]
        for _ in range(4):
            x, y = torch.randn(16, 5), torch.randint(3, (16,))
            loss = nn.functional.cross_entropy(models[0](x) + models[1](x), y)
            accelerator.backward(loss)
            for which in clipped:
                accelerator.clip_grad_norm_(which(models).parameters(), 0.01)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step(loss)
                optimizer.zero_grad()
        return [schedule.scheduler.report()["approach"]["scale"]["polyak"] for schedule in schedules]

    plain = polyak()
    assert polyak(lambda models: models[0]) == pytest.approx(plain, rel=0.1)
    assert polyak(lambda models: models[0], lambda models: models[1]) == pytest.approx(plain, rel=0.1)
    assert polyak(lambda models: models[0][0], lambda models: models[0][2]) == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_a_group_of_micro_batches_that_is_cut_short_by_the_epoch_counts_as_its_gradient(make):
    """accelerate divides its gradient by the number of all: Adam's scale is that of whole groups, SGD's fourfold."""
    scales = {}
    for accumulation in (1, 4):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = make(model.parameters(), lr=1e-3)
        x = torch.randn(8, 4)
        rows = torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))
        schedule = get_autowu_schedule(optimizer, 30)
        prepared = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(rows, batch_size=8), schedule)
        model, optimizer, loader, scheduler = prepared
        for _ in range(4):  # epochs of one micro-batch each
            for inputs, labels in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
        scales[accumulation] = schedule.report()["approach"]["scale"]["polyak"]
    times = 4.0 if make is torch.optim.SGD else 1.0
    assert scales[4] == pytest.approx(times * scales[1], rel=0.01)
