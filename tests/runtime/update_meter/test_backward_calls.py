from __future__ import annotations

import pytest
import torch

from autowu_hf.runtime.update_meter.backward_calls import BackwardCalls


def parameter() -> torch.Tensor:
    return torch.zeros(4, requires_grad=True)


def backward(calls: BackwardCalls, *parameters: torch.Tensor, size: float = 1.0) -> None:
    for p in parameters:
        p.grad = torch.full_like(p, size) if p.grad is None else p.grad.add_(size)
        calls.hear(p)


def test_calls_add_up_until_the_gradients_are_set_to_none():
    calls, first, second = BackwardCalls(), parameter(), parameter()
    assert not calls
    assert calls.num_added == 0
    backward(calls, first, second)
    backward(calls, first)
    assert calls
    assert calls.num_added == 1  # what every parameter has at least
    backward(calls, second)
    assert calls.num_added == 2
    assert not calls.began_anew
    first.grad = second.grad = None
    backward(calls, first, second)
    assert calls.num_added == 1
    assert calls.began_anew
    calls.clear()
    assert not calls


def test_the_clipping_is_what_the_step_lacks_of_the_gradient():
    calls, p = BackwardCalls(), parameter()
    assert calls.clipping(3.0) == 1.0  # nothing was heard
    backward(calls, p, size=3.0)  # its norm is 6
    assert calls.clipping(6.0) == 1.0
    assert calls.clipping(1.0) == pytest.approx(6.0)
    assert calls.clipping(7.0) == 1.0  # weight decay was added, say
    assert calls.clipping(6.0 / 1024) == 1.0  # a gradient scaler's
    assert calls.clipping(6.0 / 1500) is None  # that, and a clipping
    calls.tell_clipping(2.5)
    assert calls.clipping(1.0) == 2.5
