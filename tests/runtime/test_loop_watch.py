"""What a loop does that a schedule was not made for."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks

from autowu_hf import LoopWarning
from autowu_hf.runtime.loop_watch import FEWEST_BEYOND, LoopWatch, OtherOptimizer


def weights(num: int = 2, is_trained: bool = True) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2), requires_grad=is_trained) for _ in range(num)]


def test_parameters_that_join_after_the_measurement_are_told_once():
    body, head = weights(3, is_trained=False), weights()
    optimizer = torch.optim.SGD([*body, *head], lr=0.5)
    watch = LoopWatch("AutoWU")
    watch.compare(optimizer, [1.0])
    watch.compare(optimizer, [1.0])
    assert watch.measured == [2]
    for parameter in body:
        parameter.requires_grad_(True)
    with pytest.warns(LoopWarning, match="3 parameter tensors are trained from now on .* It is 5.0e-01 now"):
        watch.compare(optimizer, [1.0])
    watch.compare(optimizer, [1.0])


@pytest.mark.parametrize(("ratio", "is_said"), [(1.0, True), (0.1, False)])
def test_a_group_with_a_smaller_lr_is_what_it_asks_for(ratio, is_said):
    optimizer = torch.optim.SGD(weights(), lr=0.5)
    watch = LoopWatch("AutoWU")
    watch.compare(optimizer, [1.0])
    optimizer.add_param_group({"params": weights(), "lr": 0.5 * ratio})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        watch.compare(optimizer, [1.0, ratio])
    assert len(said) == is_said


def test_what_was_measured_is_known_after_a_resume():
    watch = LoopWatch("AutoWU")
    watch.restart(40, [2])
    assert (watch.next_look, watch.measured) == (41, [2])
    with pytest.warns(LoopWarning, match="1 parameter tensors"):
        watch.compare(torch.optim.SGD(weights(3), lr=0.5), [1.0])
    watch.restart(0, None)
    assert (watch.next_look, watch.measured) == (2, None)


@pytest.mark.parametrize(("num_steps", "ticks", "first"), [(100, 1, 110), (100, 2, 120), (1000, 1, 1020)])
def test_a_run_that_goes_on_far_beyond_its_end_is_told_once(num_steps, ticks, first):
    watch = LoopWatch("AutoWU")
    assert first >= num_steps + FEWEST_BEYOND
    for step in range(first):
        watch.look_beyond(step, num_steps, ticks)
    with pytest.warns(LoopWarning, match=f"step {first} of a run of num_training_steps={num_steps}, .*num_processes"):
        watch.look_beyond(first, num_steps, ticks)
    watch.look_beyond(first + 1, num_steps, ticks)


def scheduled(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer of which torch notes whether it is stepped."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return optimizer


def names(other: OtherOptimizer, optimizer: torch.optim.Optimizer, *stepped: torch.optim.Optimizer) -> set[str | None]:
    found = set()
    for _ in range(6):
        for each in stepped:
            each.step()
        found.add(other.look(optimizer))
    return found


def test_another_optimizer_in_the_place_of_the_first_is_found():
    parameters = weights()
    optimizer, other = scheduled(parameters), torch.optim.Adam(parameters)
    assert names(OtherOptimizer(), optimizer, other) == {None, "Adam"}
    found = OtherOptimizer()
    optimizer.step()
    assert found.look(optimizer) is None
    assert names(found, optimizer, other) == {None, "Adam"}  # later on, too
    watch = LoopWatch("AutoWU")
    with pytest.warns(LoopWarning, match="the SGD .* is not stepped, but another .* is \\(Adam\\): make the schedule"):
        assert [bool(other.step()) or watch.is_replaced(optimizer) for _ in range(9)].count(True) == 1


def test_no_other_optimizer_takes_its_place():
    """Nobody steps it, as while a gradient scaler finds infinities; or one of other parameters is stepped, or it is
    stepped, too, by a wrap say; or one that shares its groups, and with them the learning rates.
    """
    parameters = weights()
    optimizer, wrap, others = scheduled(parameters), torch.optim.Adam(parameters), torch.optim.Adam(weights())
    shares = torch.optim.SGD(weights(), lr=0.1)
    shares.param_groups = optimizer.param_groups
    for stepped in ([], [others], [optimizer], [optimizer, wrap], [wrap, optimizer], [shares]):
        assert names(OtherOptimizer(), optimizer, *stepped) == {None}


def test_it_asks_no_optimizers_steps_once_its_own_is_stepped_or_it_is_gone():
    gc.collect()
    num = len(_global_optimizer_post_hooks)
    optimizer = scheduled(weights())
    other = OtherOptimizer()
    other.look(optimizer)
    assert len(_global_optimizer_post_hooks) == num + 1
    assert copy.deepcopy(other)._hook is None
    optimizer.step()
    other.look(optimizer)
    assert len(_global_optimizer_post_hooks) == num
    optimizer._opt_called = False
    other.look(optimizer)
    assert len(_global_optimizer_post_hooks) == num + 1
    del other
    gc.collect()
    assert len(_global_optimizer_post_hooks) == num
