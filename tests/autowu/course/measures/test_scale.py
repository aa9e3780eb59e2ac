"""The scale of the first gradients, from numbers and from real optimizer steps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autowu_hf.autowu.course.measures.first_steps import BlindLossesError
from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.autowu.optimizer_kinds import rectification
from autowu_hf.runtime.update_meter import Update

BY_P = Scale(polyak=1.0, trust=100.0, alignment=0.5, loss=1.0, num_steps=2)
BY_R = Scale(polyak=100.0, trust=1.0, alignment=0.5, loss=1.0, num_steps=2)


def update(slope=2.0, update_norm=4.0, weight_norm=8.0, resolution=1e-3, alignment=0.5):
    return Update(slope, update_norm, weight_norm, alignment, resolution, clipping=1.0)


def test_p_is_the_loss_over_the_slope_and_r_the_weights_over_the_update():
    scale = Scale.from_updates([3.0, 1.0], [update(slope=1.0), update(slope=3.0)], alignment=0.5, momentum=0.9)
    assert scale.polyak == 1.0
    assert scale.trust == 2.0
    assert (scale.lr, scale.peak_lr, scale.held_by) == (1.0, 0.3, "polyak")
    assert not scale.is_aligned


def test_the_median_of_the_layers_holds_p_down_and_not_r():
    updates = [replace(update(), layer_trust=trust) for trust in (4.0, 9.0, math.nan)]
    scale = Scale.from_updates([300.0], updates, alignment=0.5, momentum=0.0)
    assert scale.layer_trust == pytest.approx(6.0)
    scale = replace(scale, trust=30.0)
    assert scale.peak_lr == pytest.approx(0.3 * 6.0)
    assert scale.lr == pytest.approx(6.0)
    assert scale.held_by == "layers"
    by_r = replace(scale, trust=7.0)
    assert by_r.peak_lr == pytest.approx(0.2 * 7.0)
    assert by_r.held_by == "trust"
    assert replace(scale, polyak=1.0).held_by == "polyak"
    assert replace(scale, alignment=1.0).trusted_lr == pytest.approx(0.2 * 30.0)  # of SGD it says nothing


def test_without_layers_that_tell_r_holds_p_down():
    scale = Scale.from_updates([300.0], [update()], alignment=1.0, momentum=0.0)
    assert scale.polyak == 150.0
    assert scale.peak_lr == pytest.approx(0.2 * 2.0)
    assert scale.held_by == "trust"
    assert scale.is_aligned


@pytest.mark.parametrize("zero", [{"weight_norm": 0.0, "update_norm": 0.0}, {"update_norm": 0.0}])
def test_weights_that_are_zero_hold_nothing_down(zero):
    scale = Scale.from_updates([1.0], [update(**zero)], alignment=0.5, momentum=0.0)
    assert scale.trust == math.inf
    assert scale.peak_lr == pytest.approx(0.3 * 0.5)


def test_weights_that_began_at_zero_hold_nothing_down_in_later_steps_either():
    updates = [update(weight_norm=0.0, update_norm=0.0), update(weight_norm=1e-4)]
    updates[1] = replace(updates[1], layer_trust=1e-4)
    scale = Scale.from_updates([1.0, 1.0], updates, alignment=0.5, momentum=0.0)
    assert scale.trust == scale.trusted_lr == math.inf
    assert Scale.from_updates([1.0, 1.0], updates, alignment=0.5, momentum=0.0, first=update()).trust < 1.0


def test_sgd_counts_what_its_momentum_adds_up_to_and_others_do_not():
    numbers = [300.0], [update()]
    plain, heavy = (Scale.from_updates(*numbers, alignment=1.0, momentum=m).peak_lr for m in (0.0, 0.9))
    assert heavy == pytest.approx(0.1 * plain)
    assert Scale.from_updates(*numbers, alignment=0.5, momentum=0.9).peak_lr == plain


def test_p_falls_with_the_length_of_the_run_and_r_for_sgd_only():
    by_p = Scale(polyak=1.0, trust=100.0, alignment=0.5, loss=1.0, num_steps=2)
    assert by_p.peak_lr_for(20) == by_p.peak_lr_for(100) == by_p.peak_lr == pytest.approx(0.3)
    assert by_p.peak_lr_for(1600) == pytest.approx(0.15)
    by_r = Scale(polyak=100.0, trust=1.0, alignment=0.5, loss=1.0, num_steps=2)
    assert by_r.peak_lr_for(1600) == by_r.peak_lr == pytest.approx(0.2)
    of_sgd = Scale(polyak=100.0, trust=1.0, alignment=1.0, loss=1.0, num_steps=2)
    assert of_sgd.peak_lr == pytest.approx(0.2)
    assert of_sgd.peak_lr_for(1600) == pytest.approx(0.1)


def test_the_lr_of_rectified_updates_is_as_much_larger_as_they_are_smaller():
    """By the middle of the run; a run of one step stands for the last updates, which are as large as Adam's."""
    rectified = Scale(polyak=1.0, trust=100.0, alignment=0.5, loss=1.0, num_steps=2, beta2=0.999)
    assert rectified.peak_lr == BY_P.peak_lr
    for num_steps in (6, 20, 100, 1000, 10**6):
        share = rectification(0.999, max(num_steps / 2, 8))
        assert rectified.peak_lr_for(num_steps) == pytest.approx(BY_P.peak_lr_for(num_steps) / share)
        assert rectified.report(num_steps)["rectified"] == pytest.approx(share)
    assert BY_P.report(100)["rectified"] == 1.0
    assert not Scale(polyak=1e-4, trust=1.0, alignment=0.5, loss=1.0, num_steps=2, beta2=0.999).may_be_noise


@pytest.mark.parametrize("losses", [[0.0, 0.0], [1e-9, -2e-9]])
def test_losses_that_are_next_to_nothing_are_told_from_others(losses):
    with pytest.raises(BlindLossesError, match="next to nothing"):
        Scale.from_updates(losses, [update(), update()], alignment=0.5, momentum=0.0)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([-1.0, -2.0], r"losses are not positive \(the lowest is -2\)"),
        ([-1.0, 2.0], r"losses lie around 0 \(from -1 to 2\)"),
        ([math.nan, math.nan], "losses were not seen"),
        ([math.nan, 1.0], "losses are not finite"),
        ([math.inf, 1.0], "losses are not finite"),
    ],
)
def test_a_loss_without_a_scale_is_refused(losses, said):
    with pytest.raises(ValueError, match=said):
        Scale.from_updates(losses, [update(), update()], alignment=0.5, momentum=0.0)


@pytest.mark.parametrize("slope", [0.0, -1.0, math.nan])
def test_an_update_up_the_hill_is_refused(slope):
    with pytest.raises(ValueError, match="do not go down"):
        Scale.from_updates([1.0], [update(slope=slope)], alignment=0.5, momentum=0.0)


def test_the_size_of_the_first_updates_is_without_zeros_where_r_holds():
    by_p = Scale(polyak=1.0, trust=100.0, alignment=0.5, loss=1.0, num_steps=2)
    assert by_p.size_of(whole=8.0, seen=2.0) == 8.0
    by_r = Scale(polyak=100.0, trust=1.0, alignment=0.5, loss=1.0, num_steps=2)
    assert by_r.size_of(whole=8.0, seen=2.0) == pytest.approx(2.0)
    both = Scale(polyak=1.0, trust=3.0, alignment=0.5, loss=1.0, num_steps=2)
    assert both.size_of(whole=8.0, seen=2.0) == pytest.approx(8.0 * (0.2 * 3.0 / 4) / 0.3)
    zeros = Scale(polyak=1.0, trust=math.inf, alignment=0.5, loss=1.0, num_steps=2)
    assert zeros.size_of(whole=8.0, seen=0.0) == 8.0


def test_where_m_holds_the_lr_later_updates_are_compared_without_the_tensors_that_were_zero():
    scale = Scale(polyak=100.0, trust=100.0, alignment=0.5, loss=1.0, num_steps=2, layer_trust=1.0)
    assert scale.size_of(10.0, 5.0) == pytest.approx(5.0)
    assert replace(scale, polyak=0.1).size_of(10.0, 5.0) == pytest.approx(10.0)
