from __future__ import annotations

import warnings

import pytest
import torch
from accelerate import Accelerator

from autowu_hf import get_autowu_schedule
from autowu_hf.runtime.losses.doubts import DividedGradientsWarning, LossOfStepWarning, warn_of_divisor


class Loop:
    """Two optimizers of one accelerator; the schedule is the first one's. Losses are given numbers."""

    def __init__(self, **options):
        self.accelerator = Accelerator(cpu=True, **options)
        models = [torch.nn.Linear(2, 1) for _ in range(2)]
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
        schedule = get_autowu_schedule(optimizers[0], 100, scale=False)
        *self.models, self.own, self.other, self.schedule = self.accelerator.prepare(*models, *optimizers, schedule)

    def loss(self, value, model=0):
        return value + 0.0 * self.models[model].weight.sum()

    def backward(self, value, model=0):
        self.accelerator.backward(self.loss(value, model))


def drops_a_batch(loop, step):
    if step % 3 == 1:  # a NaN, say, whose gradients the loop throws away
        loop.backward(float("nan"))
        loop.own.zero_grad()
    loop.backward(1.0)
    loop.own.step()
    loop.own.zero_grad(set_to_none=step % 2 == 0)


def zeroes_before_each_backward(loop, step):
    loop.own.zero_grad()
    loop.backward(1.0)
    loop.own.step()


def adds_two(loop, step):
    loop.own.zero_grad()
    loop.backward(0.25)
    loop.backward(0.75)
    loop.own.step()


def gives_a_closure(loop, step):
    def closure():
        loop.own.zero_grad()
        loop.backward(1.0)

    for _ in range(2):
        closure()
    loop.own.step(closure)


def is_adversarial(loop, step):
    loop.other.zero_grad()
    loop.backward(5.0, model=1)
    loop.other.step()
    loop.own.zero_grad()
    loop.backward(1.0)
    loop.own.step()


def is_joint(loop, step):
    loop.backward(1.0)
    loop.other.step()
    loop.own.step()
    loop.own.zero_grad()
    loop.other.zero_grad()


def keeps_one_gradient_of_two(loop, step):
    for value in (5.0, 1.0):
        loop.own.zero_grad()
        loop.backward(value)
    loop.own.step()


def mixes(loop, step):
    loop.backward(0.5, model=1)
    loop.other.step()
    loop.backward(0.5)
    loop.own.step()
    loop.own.zero_grad()


@pytest.mark.parametrize(
    ("iteration", "said"),
    [
        (drops_a_batch, None),
        (zeroes_before_each_backward, None),
        (adds_two, None),
        (gives_a_closure, None),
        (is_adversarial, None),
        (is_joint, None),
        (keeps_one_gradient_of_two, "was called between two backward calls"),
        (mixes, "another optimizer of the Accelerator was stepped"),
    ],
)
def test_only_losses_whose_gradients_are_stepped_count(iteration, said):
    loop = Loop()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(5):
            iteration(loop, step)
            loop.schedule.step()
    assert loop.schedule.scheduler.losses == [1.0] * 5
    assert [w.category for w in caught] == ([] if said is None else [LossOfStepWarning])
    assert said is None or said in str(caught[0].message)


def test_gradients_stay_while_micro_batches_accumulate():
    loop = Loop(gradient_accumulation_steps=2)
    for _ in range(3):
        for value in (1.0, 3.0):
            with loop.accelerator.accumulate(loop.models[0]):
                loop.backward(value)
                loop.own.step()
                loop.schedule.step()
                loop.own.zero_grad()
    assert loop.schedule.scheduler.losses == [2.0] * 3


def test_no_doubt_about_losses_that_are_handed_in():
    loop = Loop()
    for step in range(5):
        mixes(loop, step)
        keeps_one_gradient_of_two(loop, step)
        loop.schedule.step(1.0 - 0.1 * step**0.5)


def test_what_gradients_were_divided_by_is_said_where_the_schedule_is_stepped():
    with pytest.warns(DividedGradientsWarning, match="divided by 64 after the backward") as caught:
        warn_of_divisor(64.0)
    assert caught[0].filename == __file__
