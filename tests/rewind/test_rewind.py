from __future__ import annotations

import logging

import pytest
import torch
from rewind_runs import assert_same, run, small, state_of, train_step, valley
from tiny import get_schedule
from torch import nn

import autowu_hf.rewind
from autowu_hf.rewind import LR_FACTOR, Rewind
from autowu_hf.runtime.finite import DivergedError
from autowu_hf.runtime.param_groups import Obstacle


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
    assert scheduler.rewind.snapshots == []
    assert not list(tmp_path.rglob("*.bin"))


def test_the_line_says_what_was_restored(caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400)
    run(scheduler, model, optimizer, valley(150, 250))
    first, line = [r.getMessage() for r in caplog.records]
    assert first.endswith("The loss may rise on the way; the weights then go back")
    assert line.startswith(
        f"AutoWU: cliff at step {scheduler.cliff_step}, seen at step {scheduler.switch_step}, minimum "
    )
    assert f"weights and optimizer state of step {scheduler.rewound_to}, cosine decay over" in line


def test_few_snapshots_exist_at_a_time():
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 2000)
    most = 0
    for loss in valley(900, 1000):
        train_step(model, optimizer, scheduler, float(loss))
        most = max(most, len(scheduler.rewind.snapshots))
        steps = [s.step for s in scheduler.rewind.snapshots]
        assert steps == sorted(set(steps))
    assert 6 <= most < scheduler.rewind.limit == 12


def test_where_it_cannot_work_it_is_refused_or_left_out(caplog):
    class DeepSpeedZeroOptimizer(torch.optim.SGD):
        pass

    class AdaLomo(torch.optim.SGD):
        pass

    class ZeroRedundancyOptimizer(torch.optim.SGD):
        pass

    for kind, said in (
        (DeepSpeedZeroOptimizer, "DeepSpeed keeps some of the weights"),
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
        assert scheduler.ended_by in ("minimum", "nothing")
        assert scheduler.rewound_to is None
        assert scheduler._warm_up.minimum_test.rule.name == "minimum"


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


def lr_of(step):
    return 2.0**step


@pytest.mark.parametrize("empty", [False, True], ids=["", "empty group"])
@pytest.mark.parametrize("mode", [True, "disk"])
def test_a_snapshot_in_memory_and_one_in_a_file_do_the_same(mode, empty, tmp_path):
    model, _ = small()
    optimizer = torch.optim.AdamW([{"params": model.parameters()}, *([{"params": []}] if empty else [])])
    rewind = Rewind(optimizer, lambda: [model], mode, str(tmp_path) if mode == "disk" else None, 0.5, looks_on=True)
    rewind.plan(band=4.0)
    assert rewind.limit == 9
    states = []
    for step in range(12):
        assert rewind.is_due(lr_of(step))
        rewind.follow(step, lr_of, lowest_lr=lr_of(step) / 4, wanted_lrs=[lr_of(5)])
        assert not rewind.is_due(1.4 * lr_of(step))
        states.append(state_of(model, optimizer))
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    steps = [s.step for s in rewind.snapshots]
    assert len(steps) == rewind.limit - 1
    assert {0, 5, 9, 10, 11} <= set(steps)
    assert len(list(tmp_path.rglob("*.bin"))) == (len(steps) if mode == "disk" else 0)
    for step in (11, 5, 0):
        assert rewind.restore(lr_of, lr_of(step)) == step
        assert_same(state_of(model, optimizer), states[step])
    state = rewind.state_dict()
    assert [saved["step"] for saved in state["kept"]] == ([] if mode == "disk" else steps)
    rewind.drop()
    assert rewind.restore(lr_of, 1.0) is None
    assert list(tmp_path.rglob("*.bin")) == []


def test_all_processes_restore_the_snapshot_that_is_finite_on_all_of_them(monkeypatch):
    """Another process says that its copies of the two latest are broken: a buffer there may be, under DDP, too."""
    model, optimizer = small()
    rewind = Rewind(optimizer, lambda: [model], True, None, 0.5, looks_on=True)
    rewind.plan(band=4.0)
    for step in range(4):
        rewind.follow(step, lr_of, lowest_lr=lr_of(step) / 4, wanted_lrs=[])
    asked = []

    def others_say(numbers):
        asked.append(numbers)
        return [max(numbers[0], int(len(asked) in (2, 3)))]  # at first, that they have snapshots, too

    monkeypatch.setattr("autowu_hf.runtime.collective.gather_max", others_say)
    assert rewind.restore(lr_of, lr_of(3)) == 1
    assert asked == [[0]] * 4
    rewind.drop()
    asked.clear()
    assert rewind.restore(lr_of, lr_of(3)) is None
    assert asked == [[1]]  # one that has none tells the others, which would wait


class Lomo(torch.optim.SGD):
    """Only its name counts."""


def test_one_sentence_says_why_rewind_cannot_work_and_what_to_do(caplog):
    def rewind(mode, kind=Lomo):
        return Rewind(kind([nn.Parameter(torch.zeros(1))], lr=0.1), list, mode, None, 0.5, looks_on=True)

    why = "LOMO changes the weights inside the backward; use another optimizer, or rewind=False"
    for mode in (True, "disk"):
        with pytest.raises(ValueError, match="cannot work here") as error:
            rewind(mode)
        assert str(error.value) == f"rewind={mode!r} cannot work here: {why}"
    assert caplog.messages == []
    prefix = "AutoWU cannot rewind the weights at the switch, only the learning rate"
    assert not rewind(None).is_on
    assert caplog.messages == [f"{prefix}: {why}"]
    caplog.clear()
    rewind(True, torch.optim.SGD).turn_off(Obstacle("it is 100% full", "empty it"))
    assert not rewind(False).is_on
    assert caplog.messages == [f"{prefix}: it is 100% full; empty it"]


def test_the_names_of_the_former_module_are_in_the_package():
    assert autowu_hf.rewind.free_memory() > 0
    assert autowu_hf.rewind.LR_FACTOR == autowu_hf.rewind.rewind.LR_FACTOR == 1.5
    parameters = [nn.Parameter(torch.zeros(1))]
    assert autowu_hf.rewind.cannot_rewind(torch.optim.SGD(parameters, lr=0.1)) is None
    assert autowu_hf.rewind.cannot_rewind(Lomo(parameters, lr=0.1)).remedy == "use another optimizer"
