from __future__ import annotations

import copy
import io
import logging

import numpy as np
import psutil
import pytest
import torch
from tiny import get_schedule
from torch import nn

from autowu_hf.divergence import DivergedError
from autowu_hf.rewind import LR_FACTOR, Rewind
from autowu_hf.settings import AutoWUSettings


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


@pytest.mark.parametrize("rewind", [True, "disk", None])
@pytest.mark.parametrize("rule", ["minimum", "cliff"])
def test_the_switch_goes_back_bit_for_bit(rule, rewind, tmp_path):
    model, optimizer = small()
    folder = {"rewind_dir": str(tmp_path / "states")} if rewind == "disk" else {}
    scheduler = get_schedule(optimizer, 400, peak_rule=rule, rewind=rewind, model=model, **folder)
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
    if rule == "minimum":
        assert scheduler.peak_lr == scheduler.curve.warmup(scheduler.minimum_step)
        assert scheduler.minimum_step == pytest.approx(150, abs=5)
    else:
        # Half of the gain is lost 150 / 8 steps behind the minimum.
        cliff = 10 * scheduler.peak_lr
        assert scheduler.curve.warmup(150 + 10) < cliff < scheduler.curve.warmup(150 + 28)
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
    assert 6 <= most < scheduler.rewind.limit == 9
    minimum_only = Rewind(AutoWUSettings(peak_rule="minimum"), optimizer, lambda: [model], reach=1.0)
    assert minimum_only.limit == 5


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
    run(scheduler, model, optimizer, valley(150, 120))
    resumed = get_schedule(optimizer, 400, model=model)
    resumed.load_state_dict(scheduler.state_dict())
    assert "the checkpoint holds no snapshots that fit this run" in caplog.text
    run(resumed, model, optimizer, valley(150, 400)[120:])
    assert resumed.rewound_to == 121


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
    factor = 10**0.5
    assert scheduler.peak_lr / factor / 1.1 < scheduler.curve.warmup(scheduler.rewound_to) <= scheduler.peak_lr


def test_where_it_cannot_work_it_is_refused_or_left_out(caplog):
    class DeepSpeedZeroOptimizer(torch.optim.SGD):
        pass

    class AdaLomo(torch.optim.SGD):
        pass

    for kind, said in ((DeepSpeedZeroOptimizer, "keeps partitions"), (AdaLomo, "inside the backward")):
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
