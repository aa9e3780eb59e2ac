from __future__ import annotations

import pytest
import torch
from torch import nn

from autowu_hf.runtime import collective
from autowu_hf.runtime.update_meter import sketch as sketches
from autowu_hf.runtime.update_meter.shares import Shares
from autowu_hf.runtime.update_meter.sketch import SIZE, kind_of, sketch


def tensors(*sizes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def of(parameters):
    return sketch(parameters, Shares(parameters, 1))


def norm(parameters):
    return float(torch.cat([p.detach().flatten().double() for p in parameters]).norm())


@pytest.mark.parametrize("sizes", [(10,), (3, 500, 7), (SIZE,)])
def test_of_few_weights_it_is_exact(sizes):
    parameters = tensors(*sizes)
    assert of(parameters).shape == (SIZE,)
    assert float(of(parameters).norm()) == pytest.approx(norm(parameters), rel=1e-6)


@pytest.mark.parametrize("alike", [False, True])
def test_of_many_weights_it_is_near_also_where_they_are_alike(alike):
    parameters = [torch.ones(300, 700), torch.ones(50_000)] if alike else tensors((300, 700), 50_000)
    assert float(of(parameters).norm()) == pytest.approx(norm(parameters), rel=0.08)  # four standard deviations


def test_the_distance_of_two_is_that_of_the_weights():
    before, change = tensors(5000, (40, 30)), tensors(5000, (40, 30), seed=1)
    after = [w + 1e-3 * d for w, d in zip(before, change, strict=True)]
    distance = float((of(after) - of(before)).norm())
    assert distance == pytest.approx(1e-3 * norm(change), rel=0.08)
    assert torch.equal(of(before), of([w.clone() for w in before]))


def test_it_is_the_same_in_pieces(monkeypatch):
    parameters = tensors(5000, 3, 999)
    whole = of(parameters)
    monkeypatch.setattr(sketches, "_CHUNK", 1000)
    assert torch.allclose(of(parameters), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [512, 1000, 1024, 2048])
def test_a_change_of_one_column_is_seen(width):
    before = torch.zeros(4000, width)
    after = before.clone()
    after[:, 3] = torch.randn(4000, generator=torch.Generator().manual_seed(width))
    assert float((of([after]) - of([before])).norm()) == pytest.approx(norm([after]), rel=0.1)


def test_signs_are_as_often_plus_as_minus_and_others_on_every_process():
    own, other = (sketches._signs(3, 100_000, process, torch.device("cpu")).double() for process in (0, 1))
    far = sketches._signs(3 + (1 << 31), 100_000, 0, torch.device("cpu")).double()
    lags = (*range(1, 65), SIZE, 1024, 2 * SIZE)  # of the same number that is mixed, of the next ones, in the same sum
    for values in (own, own * other, own * far, *(own[lag:] * own[:-lag] for lag in lags)):
        assert abs(float(values.mean())) < 5 / 100_000**0.5
    assert set(own.tolist()) == {-1.0, 1.0}


def test_signs_do_not_depend_on_where_they_begin():
    whole = sketches._signs(0, 200, 0, torch.device("cpu"))
    for first, number in ((0, 1), (15, 2), (16, 16), (37, 100), (48, 0), (49, 0), (199, 1)):
        assert torch.equal(sketches._signs(first, number, 0, torch.device("cpu")), whole[first : first + number])


def test_it_does_not_depend_on_the_default_device():
    parameters = tensors(100)
    expected = of(parameters)
    with torch.device("meta"):
        assert torch.equal(of(parameters), expected)


def test_half_precision_and_complex_weights_count_and_unreadable_ones_do_not():
    half = tensors(400, dtype=torch.bfloat16)
    assert float(of(half).norm()) == pytest.approx(norm(half), rel=1e-6)
    assert float(of([torch.full((8,), 3.0 + 4.0j)]).norm()) == pytest.approx(5.0 * 8**0.5)
    assert float(of([torch.arange(5)]).norm()) == 0.0
    assert float(of([nn.Parameter(torch.zeros(0)), torch.ones(4)]).norm()) == pytest.approx(2.0)


def test_it_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    of(tensors(10))
    assert torch.equal(torch.rand(2), expected)


def test_sketches_of_more_weights_or_other_shares_have_nothing_to_do_with_each_other(monkeypatch):
    whole = tensors(10)
    assert kind_of(whole, Shares(whole, 1)) == "1 tensors, 10 weights, signs by 16"
    monkeypatch.setattr(collective, "num_processes", lambda: 4)
    assert kind_of(whole, Shares(whole, 1)) == "1 tensors, 10 weights, signs by 16"
    assert kind_of(whole, Shares(whole, 4)) == "1 tensors, 4 processes, signs by 16"


class OneOfTwo(Shares):
    """The shares of one of two processes, whose sums the test puts together."""

    def __init__(self, process, copies):
        super().__init__([], 1)
        self._process, self._copies = process, copies

    num_processes = 2
    process = property(lambda self: self._process)

    def copies_of(self, parameter):
        return self._copies

    def gather_sum(self, numbers):
        return numbers


@pytest.mark.parametrize("size", [SIZE // 2, 200_000])
def test_halves_of_two_processes_make_the_norm_of_the_whole(size):
    halves = tensors(size, size)
    together = sum(sketch([half], OneOfTwo(process, copies=1)) for process, half in enumerate(halves))
    assert float(together.norm()) == pytest.approx(norm(halves), rel=1e-6 if size < SIZE else 0.1)


def test_copies_on_two_processes_count_as_one():
    (weights,) = tensors(200_000)
    together = sum(sketch([weights], OneOfTwo(process, copies=2)) for process in (0, 1))
    assert float(together.norm()) == pytest.approx(norm([weights]), rel=0.1)
