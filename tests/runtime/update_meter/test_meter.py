"""What an optimizer step does, measured from outside."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import math
import weakref

import pytest
import torch
from stand_ins.flat import flat_parameter
from torch import nn

from autowu_hf.runtime import collective, update_meter
from autowu_hf.runtime.update_meter import UpdateMeter


def model_and_batch(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    return model, torch.randn(16, 6, dtype=dtype), torch.randint(0, 3, (16,))


def step(model, optimizer, x, y, micro_batches=1, clip=None, factor=1.0):
    optimizer.zero_grad()
    total = 0.0
    for part_x, part_y in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
        loss = factor * nn.functional.cross_entropy(model(part_x), part_y) / micro_batches
        loss.backward()
        total += float(loss.detach())
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return total


def measured(make, lr=1e-4, dtype=torch.float32, **options):
    model, x, y = model_and_batch(dtype)
    optimizer = make(model.parameters(), lr=lr)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    step(model, optimizer, x, y, **options)
    meter.disarm()
    (update,) = meter.updates
    return update


def gradients():
    model, x, y = model_and_batch()
    nn.functional.cross_entropy(model(x), y).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), torch.cat(
        [p.detach().flatten() for p in model.parameters()]
    )


def test_sgd_moves_along_the_gradient():
    g, w = gradients()
    update = measured(torch.optim.SGD, lr=1e-2)
    assert update.slope == pytest.approx(float(g @ g), rel=1e-3)
    assert update.update_norm == pytest.approx(float(g.norm()), rel=1e-3)
    assert update.weight_norm == pytest.approx(float(w.norm()), rel=1e-5)
    assert update.alignment == pytest.approx(1.0, rel=1e-3)
    assert update.clipping == 1.0


@pytest.mark.parametrize("decay", [1e-3, 0.3])
def test_weight_decay_does_not_hide_that_an_update_is_the_gradient(decay):
    g, w = gradients()
    update = measured(functools.partial(torch.optim.SGD, weight_decay=decay), lr=1e-2)
    assert update.slope == pytest.approx(float(g @ (g + decay * w)), rel=1e-3)
    assert update.alignment == pytest.approx(1.0, rel=1e-3)
    decoupled = functools.partial(torch.optim.RAdam, weight_decay=decay, decoupled_weight_decay=True)
    assert measured(decoupled, lr=1e-2).alignment == pytest.approx(1.0, rel=1e-3)
    assert measured(functools.partial(torch.optim.AdamW, weight_decay=decay)).alignment < 0.95


def test_adam_moves_by_the_signs():
    g, w = gradients()
    update = measured(torch.optim.Adam)
    assert update.slope == pytest.approx(float(g.abs().sum()), rel=1e-3)
    assert update.update_norm == pytest.approx(math.sqrt(len(g)), rel=1e-3)
    assert update.alignment < 0.95
    assert update.resolution == pytest.approx(1e-4 * math.sqrt(len(g)) / float(w.norm()), rel=1e-3)


@pytest.mark.parametrize("options", [{"clip": 0.01}, {"micro_batches": 4}, {"micro_batches": 4, "clip": 0.01}])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_clipping_and_accumulation_change_nothing_but_the_step(make, options):
    plain, other = measured(make), measured(make, **options)
    if make is torch.optim.SGD and "clip" in options:  # its update is clipped, too: the LR counts more steps
        assert other.slope * other.clipping == pytest.approx(plain.slope, rel=0.02)
    else:
        assert other.slope == pytest.approx(plain.slope, rel=0.02)
    assert (other.clipping > 10.0) == ("clip" in options)


def test_a_loss_a_thousand_times_larger_has_a_slope_as_much_larger():
    plain, other = measured(torch.optim.AdamW), measured(torch.optim.AdamW, factor=1000.0)
    assert other.slope == pytest.approx(1000.0 * plain.slope, rel=1e-3)
    assert other.update_norm == pytest.approx(plain.update_norm, rel=1e-3)


@pytest.mark.parametrize("scale", [2.0, 1000.0, 65536.0])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_gradient_scaler_is_no_clipping_and_hides_none(clip, scale):
    model, x, y = model_and_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
    if clip is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()
    (update,), plain = meter.updates, measured(torch.optim.AdamW, clip=clip)
    assert update.slope == pytest.approx(plain.slope, rel=1e-3)
    assert update.clipping == pytest.approx(plain.clipping, rel=1e-3)


def test_gradients_that_were_clipped_beside_strange_scalers_cannot_be_measured():
    model, x, y = model_and_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (1024.0, 4096.0)]
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    scalers[0].scale(nn.functional.cross_entropy(model(x), y)).backward()
    for parameter in model.parameters():
        parameter.grad /= 3000.0
    optimizer.step()  # by none of them
    assert "clipped in a way that cannot be seen" in meter.updates[0]


def test_a_step_that_the_scaler_skips_is_not_measured():
    model, x, y = model_and_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    scaler.scale(math.inf * nn.functional.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    assert meter.updates == []


@pytest.mark.parametrize("overflow", [False, True])
def test_a_fused_optimizer_that_unscales_by_itself(overflow):
    model, x, y = model_and_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    scaler.scale((math.inf if overflow else 1.0) * nn.functional.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    if overflow:
        assert meter.updates == []
    else:
        assert meter.updates[0].slope == pytest.approx(measured(torch.optim.AdamW).slope, rel=1e-3)


def test_sparse_gradients_cannot_be_measured():
    torch.manual_seed(0)
    table = nn.Embedding(8, 4, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=1e-2)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    table(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert meter.updates == ["the gradients are sparse"]


def test_what_accelerate_says_of_its_clipping_is_taken_as_it_is():
    model, x, y = model_and_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    nn.functional.cross_entropy(model(x), y).backward()
    update_meter.tell_clipping(model.parameters(), torch.tensor(8.0), 2.0)
    optimizer.step()
    assert meter.updates[0].clipping == pytest.approx(4.0, rel=1e-6)
    update_meter.tell_clipping(model.parameters(), torch.tensor(0.5), 2.0)
    optimizer.step()
    assert meter.updates[1].clipping == 1.0


def test_tensors_that_are_zero_say_nothing_about_the_size_of_weights():
    model, x, y = model_and_batch()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    for _ in range(2):
        step(model, optimizer, x, y)
    first, second = meter.updates
    rest = sum(p.numel() for p in model[2].parameters())
    # Behind a zero layer the gradient is zero at first, and so is Adam's update.
    assert first.update_norm == 0.0
    assert first.weight_norm == pytest.approx(second.weight_norm, rel=1e-3)
    assert second.resolution > 0.0
    assert rest == 27


def test_half_precision_is_measured_at_a_rate_that_shows_and_put_back():
    model, x, y = model_and_batch(torch.bfloat16)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    meter = UpdateMeter(optimizer, [1.0])
    assert meter.is_half
    meter.arm()
    step(model, optimizer, x, y)
    assert all(torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    assert meter.updates[0].slope == pytest.approx(measured(torch.optim.Adam).slope, rel=0.05)


def test_the_lr_is_the_common_factor_of_the_groups():
    model, x, y = model_and_batch()
    groups = [{"params": model[0].parameters(), "lr": 1e-5}, {"params": model[2].parameters(), "lr": 1e-4}]
    optimizer = torch.optim.Adam(groups, lr=1e-4)
    meter = UpdateMeter(optimizer, [0.1, 1.0])
    meter.arm()
    step(model, optimizer, x, y)
    small, large = (sum(p.numel() for p in model[i].parameters()) for i in (0, 2))
    assert meter.updates[0].update_norm == pytest.approx(math.sqrt(0.01 * small + large), rel=1e-3)


def test_nothing_is_left_behind_and_an_optimizer_keeps_no_meter_alive():
    model, x, y = model_and_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    meter.arm()  # again: no second set of hooks
    step(model, optimizer, x, y)
    assert len(meter.updates) == 1
    meter.disarm()
    step(model, optimizer, x, y)
    assert len(meter.updates) == 1
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    meter.arm()
    gone = weakref.ref(meter)
    del meter
    gc.collect()
    assert gone() is None
    step(model, optimizer, x, y)  # the hooks that are left do nothing


def test_complex_weights_are_pairs_of_reals():
    updates = []
    for as_pairs in (False, True):
        torch.manual_seed(0)
        start = torch.randn(4, 3, dtype=torch.complex64)
        weights = nn.Parameter(torch.view_as_real(start).clone() if as_pairs else start.clone())
        optimizer = torch.optim.SGD([weights], lr=1e-3)
        meter = UpdateMeter(optimizer, [1.0])
        assert meter.weight_size() == pytest.approx(float(torch.view_as_real(start).square().mean().sqrt()))
        meter.arm()
        as_complex = torch.view_as_complex(weights) if as_pairs else weights
        (torch.randn(5, 4, dtype=torch.complex64) @ as_complex).abs().square().mean().backward()
        optimizer.step()
        updates += meter.updates
    for name in ("slope", "update_norm", "weight_norm", "alignment", "clipping"):
        assert getattr(updates[0], name) == pytest.approx(getattr(updates[1], name), rel=1e-4)


def test_a_step_with_a_closure_is_measured_as_one_without():
    model, x, y = model_and_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        return loss

    for _ in range(2):
        optimizer.step(closure)
    plain = measured(torch.optim.AdamW)
    assert meter.updates[0].slope == pytest.approx(plain.slope, rel=0.02)
    assert meter.updates[0].update_norm == pytest.approx(plain.update_norm, rel=0.02)
    assert all(update.clipping > 10.0 for update in meter.updates)


def closures(model, x, y):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return optimizer, lambda: optimizer.step(closure)


def nothing(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return optimizer, optimizer.step


def overflowing(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    (math.inf * nn.functional.cross_entropy(model(x), y)).backward()
    return optimizer, optimizer.step


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (closures, "calls its closure more than once"),
        (nothing, "no gradients at its step"),
        (overflowing, "are not finite"),
    ],
)
def test_what_cannot_be_measured_says_why(make, why):
    optimizer, do_step = make(*model_and_batch())
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    do_step()
    (said,) = meter.updates
    assert why in said


def test_a_step_at_an_lr_of_0_is_none():
    model, x, y = model_and_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    optimizer.param_groups[0]["lr"] = 0.0
    step(model, optimizer, x, y)
    assert meter.updates == []
    assert meter.idle == "the learning rate was 0"


def test_the_backward_calls_that_a_gradient_adds_up_are_counted():
    model, x, y = model_and_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    for micro_batches in (1, 4, 1):
        step(model, optimizer, x, y, micro_batches=micro_batches)
        assert meter.num_backwards == micro_batches
    for _ in range(2):  # of which SAM steps with the second only
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert meter.num_backwards == 1


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_later_batches_say_how_far_the_loss_has_fallen_since_the_start(clip, given):
    model, x, y = model_and_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    start = [p.detach().clone() for p in model.parameters()]
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    meter.hold_start(start if given else ())
    for _ in range(2):
        step(model, optimizer, x, y, clip=clip)
    way = [a - b.detach() for a, b in zip(start, model.parameters(), strict=True)]
    step(model, optimizer, x, y)
    expected = sum(float((p.grad * d).sum()) for p, d in zip(model.parameters(), way, strict=True))
    first, _, third = meter.updates
    assert first.fallen == 0.0
    assert third.fallen == pytest.approx(expected, rel=1e-4)
    assert third.fallen > 0.0
    meter.disarm()
    assert meter._start == {}


def test_a_copy_of_the_meter_has_no_start():
    model, x, y = model_and_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    meter.hold_start()
    assert copy.deepcopy(meter).updates == []  # nothing was measured yet: it starts where the copy is
    step(model, optimizer, x, y)
    assert copy.deepcopy(meter).updates[1:] == [update_meter.START_IS_GONE]


def test_a_parameter_that_has_its_first_gradient_later_has_a_start():
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.SGD([first, second], lr=0.1, weight_decay=0.1)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    meter.hold_start()
    for parts in ([first], [second], [second]):
        optimizer.zero_grad()
        sum(part.sum() for part in parts).backward()
        optimizer.step()
    assert [update.fallen for update in meter.updates] == pytest.approx([0.0, 0.0, 3 * 0.11], rel=1e-3)


def update_of_flat(tensors, gradients, num_shares, monkeypatch):
    """The update of AdamW that processes measure together of FSDP1's shares of some tensors."""
    told: list[torch.Tensor] = []
    monkeypatch.setattr(collective, "gather_sum", lambda numbers: told.append(numbers) or sum(told))
    for rank in range(num_shares):
        share = flat_parameter(tensors, rank, num_shares)
        share.grad = flat_parameter(gradients, rank, num_shares).detach()
        optimizer = torch.optim.AdamW([share], lr=1e-4, weight_decay=0.0)
        meter = UpdateMeter(optimizer, [1.0])
        meter.arm(lambda: num_shares)
        optimizer.step()
    return meter.updates[0]  # the last one has heard of all others


@pytest.mark.parametrize("num_shares", [1, 2, 3])
def test_flat_parameters_are_measured_tensor_by_tensor(monkeypatch, num_shares):
    """Among them one of zeros, which counts in no norm, and shares that are padded."""
    monkeypatch.setattr(collective, "num_processes", lambda: num_shares)
    torch.manual_seed(0)
    tensors = [torch.randn(6, 5), torch.zeros(7), 8.0 * torch.randn(4, 4), 1.0 + torch.rand(3)]
    gradients = [torch.randn_like(tensor) for tensor in tensors]
    parameters = [nn.Parameter(tensor.clone()) for tensor in tensors]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    flat = update_of_flat(tensors, gradients, num_shares, monkeypatch)
    assert dataclasses.asdict(flat) == pytest.approx(dataclasses.asdict(meter.updates[0]), rel=1e-5)


def test_the_size_of_weights_leaves_tensors_of_zeros_out_of_flat_parameters_too():
    flat = flat_parameter([torch.full((2, 2), 3.0), torch.zeros(12)], 0, 1)
    assert UpdateMeter(torch.optim.SGD([flat], lr=0.1), [1.0]).weight_size() == pytest.approx(3.0)


@pytest.mark.parametrize("belongs_to_loss", [False, True])
def test_gradients_that_were_divided_are_clipped_or_those_of_a_divided_loss(belongs_to_loss):
    model, x, y = model_and_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    meter = UpdateMeter(optimizer, [1.0])
    meter.divides_loss = belongs_to_loss
    meter.arm()
    (16.0 * nn.functional.cross_entropy(model(x), y)).backward()
    for parameter in model.parameters():
        parameter.grad /= 16.0
    optimizer.step()
    (update,), plain = meter.updates, measured(torch.optim.AdamW)
    assert update.slope == pytest.approx((1.0 if belongs_to_loss else 16.0) * plain.slope, rel=1e-3)
    assert (update.clipping, update.divisor) == pytest.approx((1.0, 1.0) if belongs_to_loss else (16.0, 16.0))
    assert copy.deepcopy(meter).divides_loss == belongs_to_loss
