from __future__ import annotations

import math

import pytest
import torch
from salsa_models import Point, search_once
from torch import nn

from autowu_hf.salsa.factory import get_salsa_schedule
from autowu_hf.salsa.line_search import Line, armijo


@pytest.mark.parametrize(
    ("lr", "eta", "probes"),
    [
        (0.475, 0.95, 1),  # up to 1.9 / c the loss falls by 0.05 eta ||g||^2
        (0.476, 0.476, 2),
        (0.95, 0.95, 2),
        (0.951, 0.4755, 2),  # the second halving is not tried
        (100.0, 50.0, 2),
        (1e-6, 2e-6, 1),
    ],
)
def test_armijo_on_a_parabola_of_known_curvature(lr, eta, probes):
    tried = []

    def loss_at(eta):  # f(x) = x^2 at x = 3: c = 2, g = 6
        tried.append(eta)
        return (3.0 - eta * 6.0) ** 2

    assert armijo(lr, 9.0, 36.0, loss_at) == pytest.approx(eta, rel=1e-12)
    assert tried == [2.0 * lr, lr][:probes]


def test_a_loss_that_is_nan_or_infinite_is_too_high():
    assert armijo(1.0, 1.0, 1.0, lambda eta: math.nan) == 0.5
    assert armijo(1.0, 1.0, 1.0, lambda eta: math.inf if eta > 1.0 else 0.0) == 1.0


@pytest.mark.parametrize(("lr", "eta"), [(0.1, 0.2), (0.3, 0.3), (0.6, 0.3), (0.48, 0.24)])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_a_search_smooths_the_lr_and_leaves_the_weights_alone(lr, eta, smoothing):
    model = Point(3.0, curvature=4.0, dim=3)  # eta is accepted up to 1.9 / 4 = 0.475
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    before = model.x.detach().clone()
    scheduler = search_once(model, optimizer, smoothing=smoothing)
    expected = (1 - smoothing) * lr + smoothing * eta
    assert scheduler.lr == pytest.approx(expected, rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0] == scheduler.lr
    assert torch.equal(model.x.detach(), before)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == scheduler.lr


def test_without_a_loss_the_closure_is_asked_for_it():
    model = Point(3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_salsa_schedule(optimizer, 1000)
    model().backward()
    scheduler.search(model, model)
    assert scheduler.num_probes == 2
    assert scheduler.lr == pytest.approx(0.11)


def test_momentum_of_torch_gets_the_lr_of_the_papers():
    model = Point()  # whose line search accepts up to 1.9
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scheduler = get_salsa_schedule(optimizer, 1000)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert scheduler.lr == pytest.approx(0.1)
    scheduler = search_once(model, optimizer, initial_lr=0.06, smoothing=1.0)
    assert scheduler.lr == pytest.approx(1.2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.12)
    damped = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.9)
    assert get_salsa_schedule(damped, 1000).lr == pytest.approx(0.1)
    assert damped.param_groups[0]["lr"] == pytest.approx(0.1)


def test_groups_keep_their_ratios_and_the_search_moves_them_by_these():
    first, second = Point(1.0), Point(1.0, curvature=10.0)
    model = nn.ModuleList([first, second])
    optimizer = torch.optim.SGD([{"params": first.x}, {"params": second.x, "lr": 0.01}], lr=0.1)

    def closure():
        return first() + second()

    scheduler = get_salsa_schedule(optimizer, 1000, initial_lr=0.9)
    loss = closure()
    loss.backward()
    # At eta = 1.8 the point is (1 - 1.8, 1 - 0.1 * 1.8 * 10), whose loss is 3.52 > 5.5 - 0.05 * 1.8 * (1 + 0.1 * 100);
    line = Line(optimizer, [1.0, 0.1], closure, scheduler.random_state(), 1.0)
    assert line.slope() == pytest.approx(11.0)
    assert line.loss_at(1.8) == pytest.approx(0.32 + 3.2)
    line.go_back()
    scheduler.search(model, closure, loss)
    assert scheduler.num_probes == 1
    assert scheduler.lr == pytest.approx(0.9 * 0.9 + 0.1 * 1.8)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([scheduler.lr, 0.1 * scheduler.lr])


def test_the_weight_decay_of_sgd_is_part_of_the_function():
    model, plain = Point(2.0, curvature=1.0), Point(2.0, curvature=4.0)
    decayed = search_once(model, torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=3.0))
    assert decayed.lr == search_once(plain, torch.optim.SGD(plain.parameters(), lr=0.3)).lr == pytest.approx(0.3)
    without = Point(2.0, curvature=1.0)
    assert search_once(without, torch.optim.SGD(without.parameters(), lr=0.3)).lr == pytest.approx(0.33)


def test_scaled_gradients_are_scaled_back_and_overflown_ones_left_alone():
    model = Point(3.0, curvature=4.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    scheduler = get_salsa_schedule(optimizer, 1000, smoothing=1.0)
    loss = model()
    (1024.0 * loss).backward()
    scheduler.search(model, model, loss, gradient_scale=1024.0)
    assert scheduler.lr == 0.3
    model.x.grad.fill_(math.inf)
    scheduler.search(model, model, loss, gradient_scale=1024.0)
    assert scheduler.lr == 0.3
    assert scheduler.num_probes == 2


class Dropping(nn.Module):
    """Dropout, batch norm and a counter, on a batch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self) -> torch.Tensor:
        self.calls += 1
        return self.layers(torch.linspace(-1.0, 1.0, 32).reshape(8, 4)).square().mean()


def test_a_search_sees_the_same_masks_and_leaves_no_trace():
    torch.manual_seed(0)
    model = Dropping()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = get_salsa_schedule(optimizer, 1000)
    state = scheduler.random_state()
    loss = model()
    loss.backward()
    line = Line(optimizer, [1.0], model, state, 1.0)
    assert line.loss_at(0.0) == loss.item()  # its own masks, bit for bit
    line.go_back()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = torch.get_rng_state()
    scheduler.search(model, model, loss, random_state=state)
    assert scheduler.num_probes in (1, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_closure_that_fails_leaves_no_trace_either():
    model = Point(3.0)
    scheduler = get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1), 1000)
    model().backward()

    def closure():
        torch.rand(1)
        raise KeyError("no such batch")

    numbers = torch.get_rng_state()
    with pytest.raises(KeyError):
        scheduler.search(model, closure, 4.5)
    assert model.x.item() == 3.0
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_search_inside_autocast_sees_the_weights_move():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = get_salsa_schedule(optimizer, 1000)

    def closure():
        return model(torch.ones(8, 4)).float().square().mean()

    with torch.autocast("cpu", torch.bfloat16):
        loss = closure()
        loss.backward()
        line = Line(optimizer, [1.0], closure, scheduler.random_state(), 1.0)
        assert line.loss_at(0.1) < loss.item()
        line.go_back()
        assert closure().item() == loss.item()
