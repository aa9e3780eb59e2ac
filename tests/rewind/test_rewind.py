from __future__ import annotations

import copy
import io
import logging

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from tiny import get_schedule
from torch import nn

from autowu_hf.runtime.finite import DivergedError
from autowu_hf.rewind import rewind, snapshot
from autowu_hf.rewind.rewind import LR_FACTOR


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters())


def state_of(model, optimizer):
    return copy.deepcopy([list(model.state_dict().values()), optimizer.state_dict()["state"]])


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def train_step(model, optimizer, scheduler, loss=None):
    """A real step, of which the scheduler is told ``loss``."""
    real = model(torch.randn(16, 4)).square().mean()
    real.backward()
    optimizer.step()
    scheduler.step(real.detach() if loss is None else loss)
    optimizer.zero_grad()


def valley(minimum, length, slope=4.0):
    """Falls to 0 at ``minimum``, then rises ``slope`` times as fast."""
    t = np.arange(length) - minimum
    return np.where(t < 0, -t, slope * t) / minimum + 0.01 * np.random.default_rng(0).standard_normal(length)


def run(scheduler, model, optimizer, losses, since=0):
    """Every state on the way, by the steps done."""
    states = {}
    for step, loss in enumerate(losses, since + 1):
        warming_up = scheduler.phase == "warmup"
        train_step(model, optimizer, scheduler, float(loss))
        if warming_up and scheduler.phase == "warmup":
            states[step] = state_of(model, optimizer)
    return states


@pytest.mark.parametrize("kind", [True, "disk", None])
@pytest.mark.parametrize("rule", ["minimum", "cliff"])
def test_the_switch_goes_back_bit_for_bit(rule, kind, tmp_path):
    model, optimizer = small()
    folder = {"rewind_dir": str(tmp_path / "states")} if kind == "disk" else {}
    scheduler = get_schedule(optimizer, 400, peak_rule=rule, rewind=kind, model=model, **folder)
    states, losses = {}, valley(150, 400)
    for step, loss in enumerate(losses, 1):
        train_step(model, optimizer, scheduler, float(loss))
        if scheduler.phase == "decay":
            break
        states[step] = state_of(model, optimizer)
    assert scheduler.ended_by == rule
    assert_same(state_of(model, optimizer), states[scheduler.rewound_to])
    # The next step runs at the peak LR, and no step before the restored state did at a higher one.
    assert scheduler.get_last_lr() == [scheduler.peak_lr]
    assert scheduler.curve.warmup(scheduler.rewound_to) <= scheduler.peak_lr
    assert scheduler.curve.warmup(scheduler.rewound_to) > scheduler.peak_lr / LR_FACTOR / 1.1
    share, lag = {"minimum": (1.0, 0), "cliff": (0.5, 1)}[rule]  # the cliff lies far beyond the minimum here
    assert scheduler.peak_lr == share * scheduler.curve.warmup(scheduler.minimum_step - lag)
    assert scheduler.minimum_step == pytest.approx(150, abs=5)
    assert scheduler.rewind.kept == []
    assert not list(tmp_path.rglob("*.bin"))


def test_the_line_says_what_was_restored(caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400)
    run(scheduler, model, optimizer, valley(150, 250))
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith(f"cliff at step {scheduler.switch_step}, minimum at step ")
    assert f"weights and optimizer state of step {scheduler.rewound_to}, cosine decay over" in line


def test_few_are_kept_at_a_time():
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 2000)
    most = 0
    for loss in valley(900, 1000):
        train_step(model, optimizer, scheduler, float(loss))
        most = max(most, len(scheduler.rewind.kept))
        steps = [kept.step for kept in scheduler.rewind.kept]
        assert steps == sorted(set(steps))
    assert 6 <= most < scheduler.rewind.limit == 12


@pytest.mark.parametrize("stop", [30, 123, 171, 300])
def test_a_resumed_run_goes_back_to_the_same_state(stop):
    """Stopped between two snapshots, past the minimum, and in the decay."""
    losses = valley(150, 400)

    def go(model, optimizer, scheduler, first, last):
        for step in range(first, last):
            torch.manual_seed(step)
            train_step(model, optimizer, scheduler, float(losses[step]))

    whole = small()
    of_whole = get_schedule(whole[1], 400, model=whole[0])
    go(*whole, of_whole, 0, 400)
    first = small()
    of_first = get_schedule(first[1], 400, model=first[0])
    go(*first, of_first, 0, stop)
    file = io.BytesIO()
    torch.save([first[0].state_dict(), first[1].state_dict(), of_first.state_dict()], file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = small(seed=1)
    of_second = get_schedule(second[1], 400, model=second[0])
    for part, saved in zip((*second, of_second), state, strict=True):
        part.load_state_dict(saved)
    go(*second, of_second, stop, 400)
    assert of_second.rewound_to == of_whole.rewound_to is not None
    assert_same(state_of(*second), state_of(*whole))


def test_a_state_without_snapshots_is_resumed_with_a_note(caplog):
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model, rewind="disk")
    run(scheduler, model, optimizer, valley(150, 140))
    resumed = get_schedule(optimizer, 400, model=model)
    resumed.load_state_dict(scheduler.state_dict())
    assert "the checkpoint holds no snapshots that fit this run" in caplog.text
    run(resumed, model, optimizer, valley(150, 400)[140:])
    assert resumed.rewound_to == 141


@pytest.mark.parametrize("place", [0.02, 0.1, 0.3])
def test_a_peak_below_all_that_was_thought_of_goes_back_to_the_start(place, caplog):
    """The records say at the end that the minimum was long before the states that are still kept for it."""
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model)
    states = {}
    for step, loss in enumerate(valley(150, 160), 1):
        train_step(model, optimizer, scheduler, float(loss))
        states[step] = state_of(model, optimizer)
    steps = [kept.step for kept in scheduler.rewind.kept]
    assert steps[0] == 1
    highest = scheduler.curve.warmup(place * steps[1])
    assert scheduler.rewind.restore(scheduler.curve.warmup, highest) == 1
    assert_same(state_of(model, optimizer), states[1])
    # The one after it, where that saw little more.
    assert scheduler.rewind.restore(scheduler.curve.warmup, scheduler.curve.warmup(steps[1]) / 1.4) == steps[1]


class Masked(nn.Module):
    """Has a mask of infinities and batch norm among its buffers, and one that changes its shape."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        self.register_buffer("cache", torch.zeros(0))

    def forward(self, x):
        self.cache = torch.arange(len(self.cache) + 1.0)
        return self.net(x)


def test_buffers_that_are_infinite_or_change_their_shape_are_no_hindrance(caplog):
    model = Masked()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = get_schedule(optimizer, 400, model=model)
    states, losses = {}, valley(150, 400)
    for step, loss in enumerate(losses, 1):
        train_step(model, optimizer, scheduler, float(loss))
        if scheduler.phase == "decay":
            break
        states[step] = state_of(model.net, optimizer)
    assert_same(state_of(model.net, optimizer), states[scheduler.rewound_to])
    assert len(model.cache) == scheduler.switch_step
    assert "buffers were others" in caplog.text
    assert "['0.cache']" in caplog.text


def _last_step_below(scheduler, lr):
    return max(step for step in range(scheduler.switch_step) if scheduler.curve.warmup(step) <= lr)


def test_statistics_that_broke_on_the_way_are_not_gone_back_to():
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model)
    for step, loss in enumerate(valley(150, 250), 1):
        train_step(model, optimizer, scheduler, float(loss))
        if step == 120:
            model[1].running_mean[0] = float("nan")
    assert scheduler.phase == "decay"
    assert scheduler.rewound_to < 120 < _last_step_below(scheduler, scheduler.peak_lr)
    assert torch.isfinite(model[1].running_mean).all()


def test_a_resumed_accelerate_loop_keeps_its_copies_of_a_model_with_buffers(tmp_path):
    def loop(stop, resume=False):
        model, optimizer = small()
        accelerator = Accelerator(cpu=True)
        scheduler = get_schedule(optimizer, 400)
        prepared = accelerator.prepare(model, optimizer, scheduler)
        first = 0
        if resume:
            accelerator.load_state(str(tmp_path / "state"))
            first = scheduler.last_epoch
        for step in range(first, stop):
            torch.manual_seed(step)
            real = prepared[0](torch.randn(16, 4)).square().mean()
            accelerator.backward(real - real.detach() + float(valley(150, 400)[step]))
            prepared[1].step()
            prepared[2].step()
            prepared[1].zero_grad()
        if stop == 165:
            accelerator.save_state(str(tmp_path / "state"))
        accelerator.free_memory()
        return scheduler, state_of(model, optimizer)

    whole, expected = loop(250)
    loop(165)
    resumed, state = loop(250, resume=True)
    assert whole.switch_step > 165 > resumed.rewound_to
    assert resumed.rewound_to == whole.rewound_to
    assert_same(state, expected)


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


def test_a_state_dict_keeps_what_it_held_while_training_goes_on():
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model)
    run(scheduler, model, optimizer, valley(150, 120))
    state = scheduler.state_dict()
    then = copy.deepcopy(state["rewind"]["kept"])
    run(scheduler, model, optimizer, valley(150, 400)[120:], since=120)
    for before, after in zip(then, state["rewind"]["kept"], strict=True):
        assert_same(before["parameters"], after["parameters"])
        assert_same(before["states"], after["states"])


@pytest.mark.parametrize("rule", ["minimum", "cliff"])
@pytest.mark.parametrize("slope", [0.5, 4.0, 20.0])
@pytest.mark.parametrize("every", ["auto", 20])
def test_weights_that_saw_an_lr_above_the_peak_are_never_gone_back_to(every, slope, rule):
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 800, model=model, test_every=every, peak_rule=rule)
    run(scheduler, model, optimizer, valley(200, 400, slope))
    assert scheduler.phase == "decay"
    assert scheduler.curve.warmup(scheduler.rewound_to) <= scheduler.peak_lr
    assert scheduler.curve.warmup(scheduler.rewound_to) > scheduler.peak_lr / scheduler.rewind.lr_factor**2


def test_memory_is_looked_at_before_any_is_taken(monkeypatch):
    model, optimizer = small()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    monkeypatch.setattr(snapshot, "take", lambda *_, **__: pytest.fail("a copy was made"))
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
        monkeypatch.setattr(rewind, "_CGROUPS", [(folder, "max", "now", "inactive_file") for folder in folders])
        return rewind.free_memory()

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
        most = max(most, len(scheduler.rewind.kept))
    assert most + 1 <= scheduler.rewind.limit == 5
    assert scheduler.ended_by == "cliff"
    # Fewer, further apart: the state is from up to that much earlier.
    factor = scheduler.rewind.lr_factor
    assert 10 < factor < 20  # all that a switch may want fits in between
    assert scheduler.peak_lr / factor / 1.1 < scheduler.curve.warmup(scheduler.rewound_to) <= scheduler.peak_lr


def test_where_it_cannot_work_it_is_refused_or_left_out(caplog):
    class DeepSpeedZeroOptimizer(torch.optim.SGD):
        pass

    class AdaLomo(torch.optim.SGD):
        pass

    class ZeroRedundancyOptimizer(torch.optim.SGD):
        pass

    for kind, said in (
        (DeepSpeedZeroOptimizer, "keeps partitions"),
        (AdaLomo, "inside the backward"),
        (ZeroRedundancyOptimizer, "keeps its state to itself"),
    ):
        optimizer = kind([nn.Parameter(torch.zeros(1))], lr=0.1)
        with pytest.raises(ValueError, match=said):
            get_schedule(optimizer, 100, rewind=True)
        caplog.clear()
        scheduler = get_schedule(optimizer, 100)
        assert said in caplog.text
        assert not scheduler.rewind.is_on
        assert scheduler.peak_rule == "minimum"
        for loss in valley(50, 100):
            optimizer.step()
            scheduler.step(float(loss))
        assert scheduler.ended_by in ("minimum", "cap")
        assert scheduler.rewound_to is None
        assert scheduler._warm_up.minimum_test.rule == "minimum"


def break_at_60(model, optimizer, scheduler):
    """A loss that falls, and from step 60 on parameters and losses that are NaN, as long as nobody restores them."""
    for step in range(200):
        if step == 60:
            with torch.no_grad():
                model[0].weight.fill_(float("nan"))
        finite = all(torch.isfinite(p).all() for p in model.parameters())
        train_step(model, optimizer, scheduler, 1.0 - step / 200 if finite else float("nan"))


def test_a_run_that_turns_to_nan_goes_on_from_finite_weights():
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 200, model=model)
    break_at_60(model, optimizer, scheduler)
    assert scheduler.ended_by == "divergence"
    assert scheduler.rewound_to <= 60
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_without_rewind_it_stops_with_an_error_instead_of_burning_the_budget():
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 200, rewind=False)
    with pytest.raises(DivergedError, match=r"parameters are infinite or NaN after step 6\d.*rewind=True keeps some"):
        break_at_60(model, optimizer, scheduler)
