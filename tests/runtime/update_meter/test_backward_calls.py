from __future__ import annotations

import gc

import pytest
import torch

from autowu_hf.runtime.update_meter.backward_calls import BackwardCalls, tell_clipping


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
    assert calls.clipping(6.0 / 1500) == pytest.approx(1500.0)
    assert calls.clipping(6.0 / 1024) == pytest.approx(1024.0)


def test_gradients_that_were_divided_by_different_numbers_were_not_clipped():
    """Where it has to be told from a mean over processes, which makes some smaller than others."""
    calls, first, second, tiny = BackwardCalls(), parameter(), parameter(), parameter()
    backward(calls, first, second, size=3.0)
    backward(calls, tiny, size=1e-3)
    norm = (2 * 36.0) ** 0.5
    alike = {id(first): 9.0, id(second): 9.0, id(tiny): 1e-9}
    assert calls.clipping(norm / 2, alike) == pytest.approx(2.0, rel=1e-3)
    assert calls.clipping(norm / 2, alike | {id(second): 12.0}) == 1.0
    assert calls.clipping(norm / 2, {}) == 1.0


def heard(p: torch.Tensor) -> BackwardCalls:
    """Of a gradient whose norm is 6; it looks for scalers anew."""
    calls, p.grad = BackwardCalls(), None
    backward(calls, p, size=3.0)
    return calls


def knowing(optimizer: object, scale: float) -> torch.amp.GradScaler:
    """A gradient scaler that is about to step an optimizer."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.ones(()))  # which makes the scale
    scaler._per_optimizer_states[id(optimizer)]
    return scaler


def test_the_scale_of_the_scaler_that_steps_the_optimizer_is_no_clipping():
    p, optimizer, wrap = parameter(), object(), object()
    scalers = [knowing(optimizer, 1000.0), knowing(object(), 3000.0)]
    calls = heard(p)
    found = [calls.clipping(6.0 / ratio, None, (wrap, optimizer)) for ratio in (990, 1000, 1500, 6000)]
    assert found == [1.0, 1.0, pytest.approx(1.5), pytest.approx(6.0)]
    assert calls.clipping(6.0, None, (optimizer,)) == 1.0
    del scalers[0]._per_optimizer_states  # it is no part of what torch promises
    assert calls.clipping(6.0 / 1500, None, (optimizer,)) is None


def test_only_a_strange_scaler_that_is_in_use_hides_a_clipping():
    p, ratios = parameter(), (2, 1024, 1500)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert [heard(p).clipping(6.0 / ratio) for ratio in ratios] == pytest.approx([2.0, 1024.0, 1500.0])
    scaler = torch.amp.GradScaler("cpu")
    assert scaler.is_enabled()
    calls = heard(p)
    assert [calls.clipping(6.0 / ratio) for ratio in (1024, 1500, 3)] == [1.0, None, pytest.approx(3.0)]
    del scaler
    gc.collect()
    assert calls.clipping(6.0 / 1024) == pytest.approx(1024.0)


def test_a_scaler_of_another_class_is_found_too():
    class Own(torch.amp.GradScaler):
        pass

    class Sharded(Own):
        pass

    scaler = Sharded("cpu")
    assert scaler.is_enabled()
    assert heard(parameter()).clipping(6.0 / 1024) == 1.0


def test_what_was_told_of_clipping_belongs_to_the_parameters_that_were_clipped():
    calls, (p, q, other) = BackwardCalls(), (parameter() for _ in range(3))
    tell_clipping([p], 5.0, 2.0)
    assert calls.told_clipping([p]) == []  # it does not listen
    calls.listen(True)
    tell_clipping([p, q], 5.0, 2.0)
    tell_clipping(iter([q]), 2.0, 1.0)
    assert calls.told_clipping([other]) == []
    assert calls.told_clipping([p, q, other]) == pytest.approx([2.5, 5.0, 1.0], rel=1e-5)
    tell_clipping([other], None, 1.0)  # accelerate does not know
    assert calls.told_clipping([other]) == []
    calls.clear()
    assert calls.told_clipping([p, q]) == []
    calls.listen(False)
    tell_clipping([p], 5.0, 2.0)
    assert calls.told_clipping([p]) == []


def test_a_divisor_is_that_of_all_gradients():
    calls, first, second = BackwardCalls(), parameter(), parameter()
    backward(calls, first, second, size=3.0)  # 36 is the square of either norm
    both = {id(first): 36.0 / 64, id(second): 36.0 / 64}
    assert calls.clipping_and_divisor(both, (), False) == pytest.approx((8.0, 8.0))
    assert calls.clipping_and_divisor(both, (), True) == pytest.approx((8.0, 8.0))
    one = both | {id(second): 36.0}
    assert calls.clipping_and_divisor(one, (), False) == (pytest.approx((2 / (1 + 1 / 64)) ** 0.5), 1.0)
    assert calls.clipping_and_divisor(one, (), True) == (1.0, 1.0)
