from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from rewind_runs import assert_same, run, small, state_of, train_step, valley
from tiny import get_schedule

from autowu_hf import get_autolrs_schedule, get_autowu_schedule, get_salsa_schedule
from autowu_hf.runtime.checks import opened

STOPS = (30, 123, 171, 300)
"""Between two snapshots, past the minimum, and in the decay."""


def go(model, optimizer, scheduler, first, last, each=lambda done: None):
    losses = valley(150, 400)
    for step in range(first, last):
        torch.manual_seed(step)
        train_step(model, optimizer, scheduler, float(losses[step]))
        each(step + 1)


@pytest.fixture(scope="module")
def whole():
    """A whole run, and how its parts were saved at each of the stops."""
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model)
    files = {stop: io.BytesIO() for stop in STOPS}

    def save(done):
        if done in files:
            torch.save([part.state_dict() for part in (model, optimizer, scheduler)], files[done])

    go(model, optimizer, scheduler, 0, 400, save)
    return model, optimizer, scheduler, files


@pytest.mark.parametrize("stop", STOPS)
def test_a_resumed_run_goes_back_to_the_same_state(whole, stop):
    *of_whole, scheduler, files = whole
    files[stop].seek(0)
    state = torch.load(files[stop], weights_only=True)
    second = small(seed=1)
    of_second = get_schedule(second[1], 400, model=second[0])
    for part, saved in zip((*second, of_second), state, strict=True):
        part.load_state_dict(saved)
    go(*second, of_second, stop, 400)
    assert of_second.rewound_to == scheduler.rewound_to is not None
    assert_same(state_of(*second), state_of(*of_whole))


def test_a_resumed_accelerate_loop_keeps_its_snapshots_of_a_model_with_buffers(tmp_path):
    def loop(resume=False):
        model, optimizer = small()
        accelerator = Accelerator(cpu=True)
        scheduler = get_schedule(optimizer, 400)
        prepared = accelerator.prepare(model, optimizer, scheduler)
        first = 0
        if resume:
            accelerator.load_state(str(tmp_path / "state"))
            first = scheduler.last_epoch
        for step in range(first, 250):
            torch.manual_seed(step)
            real = prepared[0](torch.randn(16, 4)).square().mean()
            accelerator.backward(real - real.detach() + float(valley(150, 400)[step]))
            prepared[1].step()
            prepared[2].step()
            prepared[1].zero_grad()
            if step + 1 == 165 and not resume:
                accelerator.save_state(str(tmp_path / "state"))
        accelerator.free_memory()
        return scheduler, state_of(model, optimizer)

    whole, expected = loop()
    resumed, state = loop(resume=True)
    assert whole.switch_step > 165 > resumed.rewound_to
    assert resumed.rewound_to == whole.rewound_to
    assert_same(state, expected)


def test_a_state_dict_keeps_what_it_held_while_training_goes_on():
    model, optimizer = small()
    scheduler = get_schedule(optimizer, 400, model=model)
    run(scheduler, model, optimizer, valley(150, 120))
    state = opened(scheduler.state_dict())
    then = copy.deepcopy(state["rewind"]["kept"])
    run(scheduler, model, optimizer, valley(150, 400)[120:], since=120)
    for before, after in zip(then, state["rewind"]["kept"], strict=True):
        assert_same(before["parameters"], after["parameters"])
        assert_same(before["states"], after["states"])


def made(kind):
    """A model, its optimizer, a schedule, and how it is stepped."""
    model, optimizer = small()
    if kind == "salsa":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, get_salsa_schedule(optimizer, 60, test_every=5, line_search=False)
    if kind == "autolrs":
        options = {"num_candidates": 2, "first_stage": 20, "longest_stage": 20}
        return model, optimizer, get_autolrs_schedule(optimizer, 60, **options)
    if kind == "scale":
        return model, optimizer, get_autowu_schedule(optimizer, 60, model=model)
    return model, optimizer, get_schedule(optimizer, 60, model=model)


@pytest.mark.parametrize("kind", ["scale", "range", "autolrs", "salsa"])
@pytest.mark.filterwarnings("ignore:torch.distributed:UserWarning")
def test_distributed_checkpoints_load_into_a_fresh_schedule(kind, tmp_path):
    """They load into the state of a fresh one, whose lists are shorter."""

    def go(parts, first, last):
        for step in range(first, last):
            torch.manual_seed(step)
            train_step(*parts)

    whole = made(kind)
    go(whole, 0, 20)
    dcp.save({"schedule": whole[2]}, checkpoint_id=tmp_path, no_dist=True)
    saved = copy.deepcopy([part.state_dict() for part in whole[:2]])
    fresh = made(kind)
    dcp.load({"schedule": fresh[2]}, checkpoint_id=tmp_path, no_dist=True)
    for part, state in zip(fresh[:2], saved, strict=True):
        part.load_state_dict(state)
    assert repr(fresh[2].state_dict()) == repr(whole[2].state_dict())
    go(whole, 20, 40)
    go(fresh, 20, 40)
    assert fresh[2].get_last_lr() == whole[2].get_last_lr()
    assert_same(state_of(*fresh[:2]), state_of(*whole[:2]))
