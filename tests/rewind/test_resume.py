from __future__ import annotations

import copy
import io

import pytest
import torch
from accelerate import Accelerator
from rewind_runs import assert_same, run, small, state_of, train_step, valley
from tiny import get_schedule


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


def test_a_resumed_accelerate_loop_keeps_its_snapshots_of_a_model_with_buffers(tmp_path):
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
