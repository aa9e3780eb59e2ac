from __future__ import annotations

import math

import pytest
import torch

from autowu_hf.runtime.update_meter import update
from autowu_hf.runtime.update_meter.update import (
    NUM_SUMS,
    Update,
    product,
    rows_of,
    seen_share,
    square_of,
    summed,
    sums_of,
)


def moved(weights, gradient, change, own_lr=0.1):
    w = torch.tensor(weights)
    return sums_of(w, w + torch.tensor(change), torch.tensor(gradient), own_lr)


def test_values_are_summed_by_their_keys():
    assert summed([3, 3, 5], [1.0, 2.0, 4.0]) == {3: 3.0, 5: 4.0}
    assert summed([], []) == {}


def test_an_update_is_made_of_the_sums_over_its_tensors_per_unit_of_the_lr():
    sums = moved([3.0, 4.0], [1.0, 2.0], [-0.1, -0.2]) + moved([0.0], [2.0], [-0.2])
    update = Update.from_sums(sums, lr=0.1, clipping=2.0)
    assert update.slope == pytest.approx(2.0 * 9.0)  # of the gradient before clipping
    assert update.gradient_norm == pytest.approx(3.0)
    assert update.weight_norm == pytest.approx(5.0)
    assert update.update_norm == pytest.approx(math.sqrt(5.0), rel=1e-5)  # without the tensor of zeros
    assert update.resolution == pytest.approx(0.3 / 5.0, rel=1e-5)  # with it
    assert update.alignment == pytest.approx(1.0)
    assert seen_share(sums) == pytest.approx(math.sqrt(0.05) / 5.0, rel=1e-5)
    assert (update.lr, update.clipping) == (0.1, 2.0)


def test_groups_of_other_lrs_do_not_turn_gradient_descent():
    sums = moved([1.0], [1.0], [-0.1], own_lr=0.1) + moved([1.0], [1.0], [-1e-3], own_lr=1e-3)
    assert Update.from_sums(sums, 0.1, 1.0).alignment == pytest.approx(1.0, rel=1e-4)
    frozen = moved([1.0], [1.0], [0.0], own_lr=0.0)
    assert Update.from_sums(sums + frozen, 0.1, 1.0).alignment == pytest.approx(1.0, rel=1e-4)


def test_weights_that_are_zero_have_no_size():
    sums = moved([0.0, 0.0], [1.0, 0.0], [-0.1, 0.0])
    assert math.isnan(seen_share(sums))
    assert Update.from_sums(sums, 0.1, 1.0).resolution == math.inf


def test_the_way_since_the_start_is_measured_along_the_gradient_before_clipping():
    w, start = torch.tensor([3.0, 4.0]), torch.tensor([3.5, 3.0])
    sums = sums_of(w, w - 0.1, torch.tensor([1.0, 2.0]), 0.1, start=start)
    assert Update.from_sums(sums, 0.1, clipping=2.0).fallen == pytest.approx(2.0 * (0.5 - 2.0))
    assert Update.from_sums(sums_of(w, w - 0.1, w, 0.1), 0.1, 1.0).fallen == 0.0


@pytest.mark.parametrize(("piece", "dtype"), [(1 << 17, torch.float32), (64, torch.float32), (64, torch.bfloat16)])
def test_the_sums_are_those_of_the_formulas_also_in_pieces(piece, dtype, monkeypatch):
    monkeypatch.setattr(update, "_PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    w, d, g, way = (torch.randn(17, 23, generator=generator) for _ in range(4))
    given = [t.to(dtype) for t in (w, w + 0.1 * d, g, w - 0.1 * way)]
    before, now, gradient, start = (t.double() for t in given)
    decay, rate = 0.3, 0.2
    change, decayed = now - before, gradient + decay * before
    sizes = [float((t * t).sum()) for t in (before, gradient, change)]
    down = -float((gradient * change).sum())
    own = [float((decayed**2).sum()), -float((decayed * change).sum()) / rate, sizes[2] / rate**2, down / rate]
    fallen = float((gradient * (start - before)).sum())
    of_rows = [(a * b).sum(1) for a, b in ((gradient, before), (gradient, gradient), (before, before))]
    rows = [23 * float(of_rows[0] @ of_rows[0]), float(of_rows[1] @ of_rows[2])]
    expected = [down, *sizes, sizes[2], *own, fallen, 17 * 23, *rows, 0, 1]
    found = sums_of(*given[:3], rate, decay, given[3])
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert float(square_of(given[2])) == pytest.approx(sizes[1], rel=1e-5)
    assert float(square_of(torch.zeros(0))) == 0.0


def test_the_sum_of_a_vector_is_known():
    assert moved([3.0, 4.5], [1.0, 2.0], [-0.1, -0.2])[-2] == 7.5


def test_one_piece_of_zeros_is_no_tensor_of_zeros(monkeypatch):
    monkeypatch.setattr(update, "_PIECE", 2)
    sums = moved([0.0, 0.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0], [-1.0, 0.0, 0.0, 0.0])
    assert seen_share(sums) == pytest.approx(1.0 / 5.0)


def test_the_sums_of_many_tensors_come_in_double_precision_and_in_their_order():
    parts = [torch.full((NUM_SUMS,), float(i), dtype=(torch.float64, torch.float32)[i % 2]) for i in range(7)]
    assert rows_of(parts)[:, 0].tolist() == [*map(float, range(7))]
    assert rows_of(parts).dtype == torch.float64
    assert rows_of([]).shape == (0, NUM_SUMS)
    assert torch.equal(rows_of([]).sum(0), torch.zeros(NUM_SUMS, dtype=torch.float64))


def test_a_device_without_double_precision_adds_up_in_single(monkeypatch):
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    exact = float(product(w, w))
    monkeypatch.setattr(update, "_WITHOUT_FLOAT64", ("cpu",))
    assert product(w, w).dtype == torch.float32
    assert float(product(w, w)) == pytest.approx(exact, rel=1e-5)
    assert Update.from_sums(rows_of([moved([3.0, 4.0], [1.0, 2.0], [-0.1, -0.2])]).sum(0), 0.1, 1.0).weight_norm == 5.0


def test_the_update_of_a_loss_that_was_divided_as_its_gradients_were():
    sums = moved([1.0, 2.0], [0.5, -0.5], [-0.1, 0.1])
    clipped, plain = Update.from_sums(sums, 0.1, 8.0, divisor=8.0), Update.from_sums(sums, 0.1, 1.0)
    assert clipped.slope == pytest.approx(8.0 * plain.slope)
    divided = clipped.of_divided_loss()
    assert (divided.slope, divided.clipping, divided.divisor) == (pytest.approx(plain.slope), 1.0, 1.0)
    assert plain.of_divided_loss() == plain


def test_how_evenly_the_gradient_lies_does_not_depend_on_the_decay():
    """Beside a gradient that was clipped, the decay of large weights is large. AdamW's updates hardly have it."""
    generator = torch.Generator().manual_seed(0)
    weights, gradient = torch.randn(1000, generator=generator), 0.02 * torch.randn(1000, generator=generator)
    even, with_decay = (
        Update.from_sums(sums_of(weights, now, gradient, 0.01, decay), 0.01, 1.0)
        for decay in (0.0, 0.1)
        for now in (weights - 0.01 * (gradient.sign() + decay * weights),)
    )
    assert even.evenness == even.alignment == pytest.approx(0.8, abs=0.05)  # the root of 2 / pi
    assert with_decay.evenness == pytest.approx(even.evenness, rel=0.01)
    assert with_decay.alignment < 0.4
