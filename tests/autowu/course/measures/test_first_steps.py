"""What the first steps tell: their losses, and R where some weights begin at zero."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from autowu_hf import get_autowu_schedule, suggest_lr
from autowu_hf.autowu.course.measures.first_steps import (
    BLIND_SHARE,
    EVEN,
    FARTHEST,
    LEAST_DENSITY,
    LEAST_NARROWING,
    NARROW,
    NARROW_FROM,
    NARROWING_POWER,
    SIGNED,
    UNEVEN,
    BlindLossesError,
    check_losses,
    common_divisor,
    density,
    lie_around_0,
    may_lie_around_0,
    narrowing,
    others_follow,
    seen_norm,
    telling,
    trust_of,
)
from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.autowu.reporting.report import describe
from autowu_hf.runtime.update_meter import Update

USUAL = Update(
    slope=2.0, update_norm=4.0, weight_norm=8.0, alignment=0.5, resolution=1e-3, clipping=1.0, whole_norm=4.5
)
ALONE = replace(USUAL, update_norm=0.01)
"""The first one of LoRA, in which A is moved by its decay alone."""


@pytest.mark.parametrize(("losses", "fall"), [([2.0, 1.0], 1e3), ([1e-30], math.inf), ([3.0], 0.0)])
def test_losses_that_are_positive_tell_something(losses, fall):
    check_losses(losses, fall)


@pytest.mark.parametrize(
    ("losses", "error", "words"),
    [
        ([1e-6, 1e-6], BlindLossesError, "next to nothing"),
        ([-1e-6, 1e-6], BlindLossesError, "next to nothing"),
        ([math.nan, math.nan], BlindLossesError, "were not seen"),
        ([1.0, math.nan], ValueError, "not finite"),
        ([1.0, math.inf], ValueError, "not finite"),
        ([-1.0, -2.0], ValueError, r"not positive \(the lowest is -2\)"),
        ([1.0, -2.0], BlindLossesError, r"lie around 0 \(from -2 to 1\)"),
        ([1.0, 0.0], ValueError, r"not positive \(the lowest is 0\)"),
    ],
)
def test_losses_that_tell_nothing_are_refused(losses, error, words):
    with pytest.raises(error, match=words):
        check_losses(losses, fall=1.0)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0.1, -0.1], True),
        ([0.1, -0.2, 0.3, -0.1], True),
        ([0.1, -0.2, math.nan, math.inf], True),
        ([1.0, 0.9, 0.5, 0.2, -0.1], False),  # a likelihood's that falls below 0
        ([-0.1, -0.2], False),
        ([0.0, 0.0], False),
        ([0.0, 0.1], False),
        ([math.nan], False),
        ([], False),
    ],
)
def test_losses_lie_around_0_where_they_have_both_signs_and_no_mean(losses, expected):
    assert lie_around_0(losses) is expected


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([-0.1, -0.3], True),
        ([0.0, -0.3], True),
        ([*[-0.1, -0.3] * (SIGNED // 2)], False),
        ([-1.0, -1.1], False),
        ([-0.1], False),
        ([0.0, 0.0], False),
        ([0.1, -0.3], False),
        ([-0.1, -math.inf], False),
    ],
)
def test_of_negative_losses_that_are_far_apart_more_have_to_be_seen(losses, expected):
    assert may_lie_around_0(losses) is expected


def test_losses_are_next_to_nothing_below_a_share_of_what_a_large_step_changes():
    check_losses([1.01 * BLIND_SHARE], fall=1.0)
    with pytest.raises(BlindLossesError):
        check_losses([0.99 * BLIND_SHARE], fall=1.0)


def test_an_update_that_moves_only_zeros_tells_no_size():
    assert telling([ALONE, USUAL]) == [USUAL]
    assert others_follow(ALONE, [ALONE, USUAL])
    assert others_follow(ALONE, [USUAL, USUAL])  # it was not measured at the right LR
    assert seen_norm([ALONE, USUAL], follow=True) == 4.0
    assert trust_of([ALONE, USUAL], follow=True) == 8.0 / 4.0


@pytest.mark.parametrize(
    "first",
    [
        USUAL,
        replace(USUAL, whole_norm=100.0),  # LAMB's: biases that are zero move far, and the others as they always do
        replace(USUAL, update_norm=1.0, whole_norm=1.0),  # a smaller step of the same weights
        replace(USUAL, update_norm=2.1, whole_norm=4.5),  # half of it is enough
    ],
)
def test_other_updates_tell_all_that_they_say(first):
    updates = [first, USUAL]
    assert telling(updates) == updates
    assert not others_follow(first, updates)
    assert seen_norm(updates) == pytest.approx(math.sqrt((first.update_norm**2 + 16.0) / 2.0))
    assert trust_of(updates) == pytest.approx(math.hypot(8.0, 8.0) / math.hypot(first.update_norm, 4.0))


def test_where_no_update_moves_them_they_will_move_as_far_as_those_that_are_zero():
    """So it is in half precision, whose measured steps are taken back, and rounding hides the decay."""
    alone = replace(USUAL, update_norm=0.0)
    assert others_follow(alone, [alone, alone])
    assert seen_norm([alone, alone], follow=True) == pytest.approx(4.5)
    assert trust_of([alone, alone], follow=True) == pytest.approx(8.0 / 4.5)
    assert scale_of([alone, alone]).trust == pytest.approx(8.0 / 4.5)


@pytest.mark.parametrize("nothing", [{"update_norm": 0.0}, {"weight_norm": 0.0}])
def test_no_weights_or_no_update_hold_nothing(nothing):
    assert trust_of([replace(USUAL, **nothing)]) == math.inf


# The scale ------------------------------------------------------------------------------------------------------------


def scale_of(updates, first=None, loss=3.0, alignment=0.5):
    return Scale.from_updates([loss] * len(updates), updates, alignment, 0.0, first)


def test_r_is_told_by_the_later_step_and_the_lr_divided_for_the_second_factor():
    scale = scale_of([ALONE, USUAL])
    assert scale.others_follow
    assert scale.trust == 8.0 / 4.0
    by_m = replace(scale, layer_trust=0.1)
    for own, lowest in ((scale, 0.2 * 2.0), (replace(scale, polyak=1.0), 0.3 * 1.0), (by_m, 0.3 * 0.1)):
        assert own.peak_lr == pytest.approx(lowest / 2.0)
        assert replace(own, others_follow=False).peak_lr == pytest.approx(lowest)
    assert scale_of([USUAL, USUAL], first=ALONE) == replace(scale, layer_trust=pytest.approx(math.nan, nan_ok=True))


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("P lies so far above that R is too low", {"loss": 300.0}),
        ("so far above half of R", {"loss": 100.0}),
        ("the updates are gradients, of any size", {"alignment": 1.0}),
        ("the first one was", {"first": replace(ALONE, alignment=1.0)}),
        ("all weights were zero", {"first": replace(ALONE, weight_norm=0.0)}),
    ],
)
def test_elsewhere_r_stays_what_both_steps_say(why, changes):
    scale = scale_of([ALONE, USUAL], **changes)
    assert not scale.others_follow, why
    assert scale.has_small_weights == (changes.get("loss", 0.0) > 200.0)
    all_zero = changes.get("first", USUAL).weight_norm == 0.0
    assert scale.trust == (math.inf if all_zero else trust_of([ALONE, USUAL]))


# Runs -----------------------------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A frozen layer, and beside it a product whose second factor is zero, as in LoRA."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.old, self.a, self.b = nn.Linear(20, 20), nn.Linear(20, 4, bias=False), nn.Linear(4, 20, bias=False)
        self.old.requires_grad_(False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.old(x) + 2.0 * self.b(self.a(x))


def batch_of(step: int):
    torch.manual_seed(1000 + step)
    x = torch.randn(16, 20)
    return x, 3.0 * torch.roll(x, 1, dims=1)


def loss_of(model: nn.Module, batch) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def trained(num_steps: int, at: int | None = None, make=torch.optim.AdamW, num_empty=0, dtype=torch.float32):
    """A run, whose first gradients are zero, if wanted; ``at``: it is saved after so many steps, and goes on from there
    in new objects.
    """
    model = Adapted().to(dtype)

    def fresh(model):
        optimizer = make([own for own in model.parameters() if own.requires_grad], lr=1e-3)
        return optimizer, get_autowu_schedule(optimizer, num_steps)

    optimizer, schedule = fresh(model)
    lrs = []
    for step in range(num_steps):
        if step == at:
            saved = model.state_dict(), optimizer.state_dict(), schedule.state_dict()
            model = Adapted(seed=1).to(dtype)
            optimizer, schedule = fresh(model)
            for own, state in zip((model, optimizer, schedule), saved, strict=True):
                own.load_state_dict(state)
        optimizer.zero_grad()
        loss = loss_of(model, [part.to(dtype) for part in batch_of(step)])
        (loss * (step >= num_empty)).backward()
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(loss)
    return schedule, lrs


def test_a_run_of_a_product_knows_and_says_it():
    schedule, lrs = trained(60)
    report = schedule.report()
    scale = report["approach"]["scale"]
    assert scale["others_follow"]
    assert scale["held_by"] == "trust"
    assert schedule.peak_lr == pytest.approx(0.2 * scale["trust"] / 2.0)
    by_sizes = Adapted().a.weight.norm().item() / math.sqrt(2 * 4 * 20)  # Adam's steps are near 1
    assert 0.7 * by_sizes < scale["trust"] < 1.5 * by_sizes
    assert report["curve"]["decay_type"] == "rex"
    assert "since steps get farther as weights grow that were zero" in describe(report)
    assert all(later < before for before, later in zip(lrs[19:], lrs[20:], strict=False))


@pytest.mark.parametrize("at", [1, 2, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_knows_it_too(at, dtype):
    assert trained(60, at, dtype=dtype)[1] == trained(60, dtype=dtype)[1]


@pytest.mark.parametrize("changes", [{"num_empty": 1}, {"num_empty": 3}, {"dtype": torch.bfloat16}])
def test_neither_empty_gradients_nor_half_precision_hide_it(changes):
    scale, usual = (trained(60, **own)[0].report()["approach"]["scale"] for own in (changes, {}))
    assert scale["others_follow"]
    assert 0.5 * usual["trust"] < scale["trust"] < 2.0 * usual["trust"]  # Adam is slower after empty gradients


@pytest.mark.parametrize(
    "make", [lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9), torch.optim.RAdam]
)
def test_where_updates_are_gradients_at_first_it_is_not_told(make):
    schedule, _ = trained(60, make=make)
    scale = schedule.report()["approach"]["scale"]
    assert scale is None or not scale["others_follow"]


def test_a_suggestion_goes_by_it_as_well():
    model = Adapted()
    optimizer = torch.optim.AdamW([own for own in model.parameters() if own.requires_grad], lr=1e-3)
    suggested = suggest_lr(model, optimizer, loss_of, [batch_of(step) for step in range(20)])
    assert suggested.scale.others_follow
    assert suggested.lr == pytest.approx(suggested.scale.peak_lr)
    assert "the suggestion is 0.2 R, over 2 since products begin at zero" in str(suggested)


@pytest.mark.parametrize(
    ("spreads", "left"),
    [
        ((0.9, 0.7), 1.0),
        ((EVEN, EVEN), 1.0),
        ((EVEN - 0.04, EVEN - 0.04), LEAST_DENSITY**0.5),
        ((UNEVEN - 0.05, UNEVEN + 0.05), LEAST_DENSITY),
        ((0.01, 0.02), LEAST_DENSITY),
        ((0.01, math.nan), 1.0),
    ],
)
def test_the_less_even_the_slope_is_spread_the_less_is_left(spreads, left):
    updates = [replace(USUAL, spread=spread) for spread in spreads]
    weights = [nn.Parameter(torch.ones(2))]
    assert density(torch.optim.AdamW(weights), updates) == pytest.approx(left)
    assert density(torch.optim.RMSprop(weights), updates) == 1.0


def test_the_fewer_weights_have_the_gradient_the_less_of_p_counts():
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    expected = {
        0.5: 1.0,
        NARROW: 1.0,
        0.75 * NARROW: 0.75**NARROWING_POWER,
        0.01: LEAST_NARROWING,
        0.0: LEAST_NARROWING,
    }
    for evenness, left in expected.items():
        assert narrowing(adam, evenness, room=40.0) == pytest.approx(left)
    assert narrowing(adam, math.nan, room=40.0) == 1.0
    assert narrowing(adam, 0.05, room=FARTHEST + 1.0) == 1.0  # a large pretrained model
    assert narrowing(adam, 0.05, room=0.9 * NARROW_FROM) == 1.0  # R allows little more
    assert narrowing(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), 0.05, room=40.0) == 1.0


def test_it_lowers_the_lr_of_p_alone():
    scale = Scale(polyak=1.0, trust=100.0, alignment=0.02, loss=1.0, num_steps=2)
    assert replace(scale, narrowing=0.2).peak_lr == pytest.approx(0.2 * scale.peak_lr)
    assert replace(scale, polyak=1e4, narrowing=0.2).peak_lr == 20.0  # R's


@pytest.mark.parametrize(
    ("norms", "divisors", "found"),
    [
        ((1.0, 1.1), (64.0, 64.0), 64.0),
        ((1.0, 1.1), (0.3 * 64, 0.3 * 64), 0.3 * 64),  # a scale of one's own
        ((1.0, 1.1), (517.0, 480.5), 517.0),  # tokens, of two processes
        ((1.0, 1.1), (517.3, 480.1), None),  # clipped at a bound that moves
        ((1.0, 1.1), (64.0, 1.0), None),  # clipped in one of the steps
        ((1.0, 1.0), (64.0, 64.0), None),  # clipped at the same norm
        ((1.0, 1.0002), (64.0, 65.0), None),
        ((1.0, 1.1), (1.0, 1.0), None),
    ],
)
def test_a_divisor_of_the_loss_is_told_from_clipping(norms, divisors, found):
    pairs = zip(norms, divisors, strict=True)
    updates = [replace(USUAL, gradient_norm=norm, clipping=by, divisor=by) for norm, by in pairs]
    assert common_divisor(updates, is_half=False) == found


def test_norms_that_half_precision_has_rounded_are_the_same():
    updates = [replace(USUAL, gradient_norm=norm, clipping=64.0, divisor=64.0) for norm in (1.0, 1.004)]
    assert common_divisor(updates, is_half=False) == 64.0
    assert common_divisor(updates, is_half=True) is None
