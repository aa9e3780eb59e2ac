"""The hooks by which a meter hears of steps and gradients."""

from __future__ import annotations

import gc

import pytest
import torch

from autowu_hf.runtime.update_meter.step_hooks import gradient_hooks, step_hooks


class Listening:
    def __init__(self):
        self.rests, self.heard = False, []

    def look_before(self, has_closure):
        self.heard.append(("before", has_closure))

    def look_after(self):
        self.heard.append("after")

    def hear(self, parameter):
        self.heard.append(parameter.shape)


def stepped(weights, optimizer, **options):
    weights.square().sum().backward()
    optimizer.step(**options)


def test_it_hears_of_gradients_and_steps_unless_it_rests_or_nobody_holds_it():
    weights = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weights], lr=0.1)
    listening = Listening()
    heard = listening.heard
    hooks = [*step_hooks(listening, optimizer), *gradient_hooks(listening, [weights])]
    stepped(weights, optimizer)
    assert heard == [(2,), ("before", False), "after"]
    stepped(weights, optimizer, closure=lambda: 1.0)
    assert heard[4] == ("before", True)
    listening.rests = True
    stepped(weights, optimizer)
    assert len(heard) == 6
    listening.rests = False
    stepped(weights, optimizer)
    assert len(heard) == 9
    del listening
    gc.collect()
    stepped(weights, optimizer)
    for hook in hooks:
        hook.remove()
    assert len(heard) == 9


def test_it_may_wait_for_the_end_of_the_backward_and_what_is_done_there():
    """As DDP does there, which averages the gradients after the last of them is there."""
    weights = torch.nn.Parameter(torch.ones(2))
    other = torch.nn.Parameter(torch.ones(3))
    heard = []

    class Meter(Listening):
        def hear(self, parameter):
            heard.append(parameter.grad.tolist())

    meter = Meter()
    hooks = gradient_hooks(meter, [weights, other], at_end=True)

    def halve():
        for parameter in (weights, other):
            parameter.grad /= 2.0

    engine = torch.autograd.Variable._execution_engine
    last = other.register_post_accumulate_grad_hook(lambda _: engine.queue_callback(halve))
    (weights.sum() + 4.0 * other.sum()).backward()
    assert sorted(heard) == [[0.5, 0.5], [2.0, 2.0, 2.0]]
    heard.clear()

    def fail(_):
        raise RuntimeError

    last.remove()
    failing = other.register_hook(fail)
    with pytest.raises(RuntimeError):
        (weights.sum() + other.sum()).backward()
    failing.remove()
    assert heard == []
    weights.grad = other.grad = None
    (weights.sum() + other.sum()).backward()
    assert sorted(heard) == [[1.0, 1.0], [1.0, 1.0, 1.0]]
    for hook in hooks:
        hook.remove()
