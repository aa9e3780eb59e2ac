from __future__ import annotations

import io
import logging

import pytest
import torch
from rewind_runs import assert_same, small, state_of, train_step, valley
from tiny import get_schedule
from torch import nn

from autowu_hf import get_autolrs_schedule, get_autowu_schedule
from autowu_hf.rewind import snapshot, untrained
from autowu_hf.rewind.untrained import Untrained, find_untrained
from autowu_hf.runtime.checks import opened

from .test_tensors import OUT_OF_REACH, Closed, EightBitSGD, Quantised


class Student(nn.Module):
    """Has a momentum teacher, a frozen base, and a buffer of a quantised one."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.teacher = (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)) for _ in range(2))
        self.teacher.requires_grad_(False)
        self.base = nn.Linear(50, 100, bias=False).requires_grad_(False)
        self.register_buffer("codes", torch.randint(-128, 127, (100, 100), dtype=torch.int8))

    def forward(self, x):
        return self.net(x)

    def follow(self, how):
        for slow, fast in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            if how == "data":
                slow.data.mul_(0.9).add_(0.1 * fast.data)
            elif how == "replaced":
                slow.data = 0.9 * slow.data + 0.1 * fast.data
            else:
                with torch.no_grad():
                    slow.lerp_(fast, 0.1)


def train(model, optimizer, scheduler, losses, how="data", since=0):
    states = {}
    for step, loss in enumerate(losses, since + 1):
        torch.manual_seed(step)
        warming_up = scheduler.phase == "warmup"
        train_step(model, optimizer, scheduler, None if loss is None else float(loss))
        if warming_up and scheduler.phase == "decay":
            return states
        states[step] = state_of(model, optimizer)
        model.follow(how)
    return states


@pytest.fixture
def little(monkeypatch):
    """A model is large, if its frozen part is larger than 2 KB and than what is trained."""
    monkeypatch.setattr(untrained, "_LITTLE", 2000)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(("how", "kind"), [("data", True), ("replaced", "disk"), ("lerp", None)])
def test_a_teacher_goes_back_with_its_student_and_what_is_frozen_is_not_copied(how, kind):
    model = Student()
    optimizer = torch.optim.AdamW(model.net.parameters())
    scheduler = get_schedule(optimizer, 200, model=model, rewind=kind)
    losses = valley(70, 200)
    states = train(model, optimizer, scheduler, losses[:60], how)
    for stored in scheduler.rewind.snapshots:
        assert stored.load().buffers.keys() == {f"0.teacher.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}
    states |= train(model, optimizer, scheduler, losses[60:], how, since=60)
    assert scheduler.ended_by == "cliff"
    assert_same(state_of(model, optimizer), states[scheduler.rewound_to])


@pytest.mark.usefixtures("little")
def test_around_the_scale_a_teacher_goes_back_too(caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    model = Student()
    model.teacher = nn.Linear(50, 100, bias=False).requires_grad_(False)  # larger than what is trained
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1)
    scheduler = get_autowu_schedule(optimizer, 400, model=model)
    teachers = []
    for step in range(60):
        train_step(model, optimizer, scheduler, 1.0 - 1e-4 * step if step < 25 else 50.0)
        if "goes back to the weights" in caplog.text:
            assert torch.equal(model.teacher.weight, teachers[scheduler.rewind.snapshots[0].step - 1])
            break
        teachers.append(model.teacher.weight.clone())
        model.teacher.weight.data.mul_(0.9)
    assert step < 59


@pytest.mark.usefixtures("little")
def test_a_resumed_run_goes_back_with_what_has_not_changed_yet_too(monkeypatch):
    monkeypatch.setattr(untrained, "_LITTLE", 2**20)  # copied, but never changed
    losses, whole = valley(70, 200), Student()
    optimizer = torch.optim.AdamW(whole.net.parameters())
    scheduler = get_schedule(optimizer, 200, model=whole)
    train(whole, optimizer, scheduler, losses[:60])
    first, last = (stored.load().buffers for stored in (scheduler.rewind.snapshots[i] for i in (0, -1)))
    assert first["0.codes"] is last["0.codes"]
    assert first["0.teacher.0.weight"] is not last["0.teacher.0.weight"]
    file = io.BytesIO()
    torch.save([whole.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    states = opened(saved[2])["rewind"]["kept"]
    for state in states:
        assert {name.split(".")[1] for name in state["buffers"]} == {"teacher", "base", "codes"}
    assert len({state["buffers"]["0.codes"].data_ptr() for state in states}) == 1  # the file has it once
    resumed = Student(seed=1)
    of_resumed = torch.optim.AdamW(resumed.net.parameters())
    again = get_schedule(of_resumed, 200, model=resumed)
    for part, state in zip((resumed, of_resumed, again), saved, strict=True):
        part.load_state_dict(state)
    assert repr(again.state_dict()) == repr(scheduler.state_dict())  # before any step, too
    for run in ((whole, optimizer, scheduler), (resumed, of_resumed, again)):
        train(*run, losses[60:64], since=60)
    copies = {stored.load().buffers["0.codes"].data_ptr() for stored in again.rewind.snapshots}
    assert len(copies) == 1  # those from the checkpoint and later ones share it
    for model in (whole, resumed):
        model.codes.zero_()
    train(whole, optimizer, scheduler, losses[64:], since=64)
    train(resumed, of_resumed, again, losses[64:], since=64)
    assert again.rewound_to == scheduler.rewound_to is not None
    assert_same(state_of(resumed, of_resumed), state_of(whole, optimizer))
    assert torch.equal(resumed.codes, Student().codes)


@pytest.mark.usefixtures("little")
def test_what_is_large_and_changes_late_is_named(caplog):
    model = Student()
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1)
    known = Untrained()
    first = snapshot.take(optimizer, [model], 1, untrained=known)
    model.codes.zero_()
    second = snapshot.take(optimizer, [model], 2, untrained=known)
    assert "0.codes" not in first.buffers
    assert "0.codes" in second.buffers
    assert snapshot.size(optimizer, [model], known) == second.num_bytes()
    assert snapshot.restore(first, optimizer, [model], known) == ["0.codes"]
    assert snapshot.restore(second, optimizer, [model], known) == []


def test_parameters_of_another_optimizer_are_left_to_it():
    model = Student()
    optimizer = torch.optim.SGD(model.net[0].parameters(), lr=0.1)
    names = find_untrained(optimizer, [nn.DataParallel(model)])
    assert not any(name.startswith("0.net") for name in names)
    assert "0.codes" in names


@pytest.mark.parametrize("kind", ["meta", "mkldnn"])
def test_a_buffer_that_cannot_be_copied_is_left_out_with_one_warning(kind, caplog):
    model, optimizer = small()
    model.register_buffer("odd", OUT_OF_REACH[kind]())
    scheduler = get_schedule(optimizer, 200, model=model)
    states = {}
    for step, loss in enumerate(valley(70, 200), 1):
        train_step(model, optimizer, scheduler, float(loss))
        if scheduler.phase == "decay":
            break
        states[step] = model[0].weight.clone()
    assert torch.equal(model[0].weight, states[scheduler.rewound_to])
    assert caplog.text.count("['0.odd']") == caplog.text.count("these buffers cannot be copied") == 1


@pytest.mark.parametrize("kind", [Quantised, Closed])
@pytest.mark.parametrize("around_scale", [True, False])
def test_states_in_tensor_subclasses_go_back_or_rewind_is_off_with_a_warning(kind, around_scale, caplog):
    model, _ = small()
    optimizer = EightBitSGD(model.parameters())
    optimizer.kind = kind
    if around_scale:
        scheduler = get_autowu_schedule(optimizer, 200, model=model)
    else:
        scheduler = get_schedule(optimizer, 200, model=model, rewind=True)
    momenta = {}
    for step, loss in enumerate(valley(35 if around_scale else 70, 200), 1):
        train_step(model, optimizer, scheduler, float(loss))
        if scheduler.phase == "decay":
            break
        momenta[step] = optimizer.state[model[0].weight]["momentum"].values().clone()
    is_off = "cannot rewind the weights at the switch, only the learning rate: the parameters or the optimizer's state"
    assert caplog.text.count(is_off) == (kind is Closed)
    assert scheduler.rewind.is_on is (kind is Quantised)
    assert scheduler.phase == "decay"
    assert (scheduler.rewound_to is None) is (kind is Closed)
    if kind is Quantised:
        assert torch.equal(optimizer.state[model[0].weight]["momentum"].values(), momenta[scheduler.rewound_to])


def searching(seed=0):
    model = Student(seed)
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1)
    scheduler = get_autolrs_schedule(optimizer, 60, num_candidates=2, first_stage=20, longest_stage=20)
    scheduler._history._model = model
    return model, optimizer, scheduler


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_search_takes_the_teacher_back_too(is_resumed):
    """Also one that is resumed from where it began, when nothing had changed yet."""
    model, optimizer, scheduler = searching()
    seen = []
    for step in range(12):
        train_step(model, optimizer, scheduler)
        if is_resumed and step == 0:
            states = [part.state_dict() for part in (model, optimizer, scheduler)]
            model, optimizer, scheduler = searching(seed=1)
            for part, state in zip((model, optimizer, scheduler), states, strict=True):
                part.load_state_dict(state)
        seen.append(model.teacher[0].weight.clone())
        model.follow("data")
    starts = [stage for stage in range(1, 12) if torch.equal(seen[stage], seen[0])]
    assert len(starts) >= 1
