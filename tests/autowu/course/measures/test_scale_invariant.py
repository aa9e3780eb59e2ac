"""Networks with batch norm, whose weights' size changes nothing: R and M tell the LR, and P is too low."""

from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch
from torch import nn

from autowu_hf import get_autowu_schedule, suggest_lr
from autowu_hf.autowu.course.legs import Way
from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.autowu.course.measures.scale_invariant import BORNE, INVARIANT_FROM, decay_fraction, least_lr
from autowu_hf.autowu.reporting.report import headline
from autowu_hf.runtime.update_meter import Update

DEEP = Scale(polyak=1e-4, trust=0.2, alignment=0.3, loss=2.3, num_steps=2, layer_trust=0.1, scale_invariant=0.9)
"""Of a deep network with batch norm: P is a tenth of what R and M make of it."""


def test_a_fifth_of_what_r_and_m_allow_is_the_least():
    assert least_lr(5.0, False) == 1.0
    assert least_lr(math.inf, False) == least_lr(math.inf, True) == 0.0
    assert DEEP.peak_lr == pytest.approx(0.3 * 0.1 / 5.0)
    assert DEEP.lr == pytest.approx(DEEP.peak_lr / 0.3)
    assert DEEP.held_by == "invariance"
    assert dataclasses.replace(DEEP, layer_trust=math.nan).peak_lr == pytest.approx(0.2 * 0.2 / 5.0)
    assert not DEEP.may_be_noise  # so that nobody asks how much of the slope lasts, or whether it is a transient's
    assert dataclasses.replace(DEEP, scale_invariant=0.0).may_be_noise


def test_it_does_not_fall_with_the_length_of_the_run():
    assert DEEP.peak_lr_for(100_000) == DEEP.peak_lr
    higher = dataclasses.replace(DEEP, polyak=1.0 / 30.0)  # 0.3 P is above it, until the run is long
    assert higher.peak_lr == pytest.approx(0.01)
    assert higher.held_by == "polyak"
    assert higher.peak_lr_for(100_000) == DEEP.peak_lr
    assert higher.report(100_000)["held_by"] == "invariance"  # which the log goes by
    assert dataclasses.replace(DEEP, polyak=1.0).peak_lr == pytest.approx(0.3 * 0.1)


@pytest.mark.parametrize(
    "changes",
    [{"scale_invariant": INVARIANT_FROM - 0.01}, {"trust": math.inf, "layer_trust": math.nan}],
)
def test_elsewhere_p_decides(changes):
    """Where most weights are others, and without R."""
    scale = dataclasses.replace(DEEP, **changes)
    assert scale.least_lr == 0.0
    assert scale.peak_lr == pytest.approx(0.3 * DEEP.polyak)


def test_gradients_that_become_smaller_as_weights_grow_need_all_of_it():
    of_sgd = dataclasses.replace(DEEP, alignment=1.0, momentum=0.9)
    assert of_sgd.held_by == "invariance"
    assert of_sgd.peak_lr == pytest.approx(0.2 * 0.2 * (1.0 - 0.9))
    assert of_sgd.peak_lr_for(1600) == pytest.approx(of_sgd.peak_lr / 2.0)


def test_all_measured_steps_must_agree():
    update = Update(slope=1.0, update_norm=1.0, weight_norm=1.0, alignment=0.3, resolution=1e-4, clipping=1.0)
    updates = [dataclasses.replace(update, scale_invariant=share) for share in (0.9, 0.1)]
    assert Scale.from_updates([1.0, 1.0], updates, 0.3, 0.0).scale_invariant == 0.1


def test_the_size_of_updates_counts_as_it_does_for_r_and_m():
    assert DEEP.size_of(10.0, 4.0) == 4.0
    assert dataclasses.replace(DEEP, scale_invariant=0.0).size_of(10.0, 4.0) == 10.0


@pytest.mark.parametrize(("steps", "share"), [(6, 0.4), (60, 0.4), (80, 0.3), (120, 0.2), (10_000, 0.2)])
def test_the_lr_falls_over_as_many_steps_as_running_statistics_need(steps, share):
    assert decay_fraction(steps) == pytest.approx(share)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        wide = 3 * width
        self.layers = nn.Sequential(
            *(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return x + self.layers(x)


CENTRES = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(5))


def images(generator, number):
    labels = torch.randint(len(CENTRES), (number,), generator=generator)
    return CENTRES[labels] + 3.0 * torch.randn(number, 3, 6, 6, generator=generator), labels


def deep():
    """A small MobileNet: eight blocks of three convolutions with batch norm."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()
    last = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12 * 4, 6)
    return nn.Sequential(*first, *(Block(12) for _ in range(8)), *last)


def trained(steps=60, optimizer_class=torch.optim.AdamW, to_the_switch=False, **options):
    """The schedule, the LRs after each step, and the loss on other images; or only the schedule at the switch."""
    model, generator = deep(), torch.Generator().manual_seed(0)
    momentum = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
    optimizer = optimizer_class(model.parameters(), lr=1e-3, **momentum)
    schedule = get_autowu_schedule(optimizer, steps, model=model, **options)
    lrs = []
    for _ in range(steps):
        optimizer.zero_grad()
        batch, labels = images(generator, 16)
        loss = nn.functional.cross_entropy(model(batch), labels)
        loss.backward()
        optimizer.step()
        schedule.step(loss.item())
        lrs += schedule.get_last_lr()
        if to_the_switch and schedule.phase == "decay":
            return schedule
    model.eval()
    with torch.no_grad():
        batch, labels = images(torch.Generator().manual_seed(1), 500)
        return schedule, lrs, float(nn.functional.cross_entropy(model(batch), labels))


def test_so_it_does_with_sgd(monkeypatch):
    schedule, _, loss = trained(optimizer_class=torch.optim.SGD)
    assert schedule.report()["approach"]["scale"]["held_by"] == "invariance"
    monkeypatch.setattr(Scale, "is_scale_invariant", property(lambda self: False))
    *_, without = trained(optimizer_class=torch.optim.SGD)
    assert loss < without - 0.2  # of 1.8 at the start; 0.4 and more on three seeds


def test_a_deep_network_with_batch_norm_learns_in_few_steps(monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        schedule, _, loss = trained()
    report = schedule.report()
    scale = report["approach"]["scale"]
    assert (scale["held_by"], report["curve"]["decay_type"]) == ("invariance", "rex")
    assert schedule.peak_lr == pytest.approx(scale["peak_lr"]) == pytest.approx(0.06 * scale["layer_trust"])
    assert "told by M and R since most weights are scale-invariant" in headline(report)
    assert "told by M and R since most weights are scale-invariant" in caplog.messages[-1]
    monkeypatch.setattr(Scale, "is_scale_invariant", property(lambda self: False))
    *_, without = trained()
    assert loss < without - 0.2  # of 1.8 at the start; 0.4 and more on three seeds


@pytest.mark.parametrize(
    ("options", "last"),
    [({"decay_type": "constant_then_cosine"}, 24), ({"decay_fraction": 0.2}, 12), ({"decay_fraction": 0.5}, 30)],
)
def test_an_lr_that_is_kept_falls_sooner_unless_a_share_was_given(options, last):
    schedule, lrs, _ = trained(**options)
    curve = schedule.report()["curve"]
    assert curve["decay_type"] == "constant_then_cosine"
    assert curve["decay_fraction"] == pytest.approx(last / 60)
    assert lrs[60 - last - 2] == pytest.approx(schedule.peak_lr) == pytest.approx(lrs[60 - last - 1])
    assert lrs[60 - last] < lrs[60 - last - 1]
    assert lrs[-1] == 0.0


@pytest.mark.parametrize(("rise", "is_too_far"), [(0.1, False), (0.19, False), (0.21, True)])
def test_it_bears_four_times_the_rise(monkeypatch, rise, is_too_far):
    monkeypatch.setattr(
        "autowu_hf.autowu.course.later.overshoot.rise_of",
        lambda rises, first, last, bar, is_sure: rise if rise > bar else None,
    )
    schedule = trained(to_the_switch=True)
    assert bool(schedule.report()["approach"]["overshot"]) == is_too_far
    monkeypatch.setattr(Scale, "is_scale_invariant", property(lambda self: False))
    schedule = trained(to_the_switch=True)
    assert schedule.report()["approach"]["overshot"]


def test_their_losses_may_rise_as_much():
    """In small batches that is noise. A state keeps it, and one of an older release has none."""
    way = Way()
    way.set_out(2, 0.1, borne=DEEP.borne)
    assert way.signs.borne == BORNE
    way.set_out(9, 0.01)
    assert way.signs.borne == BORNE
    again = Way()
    again.load_state_dict(state := way.state_dict())
    assert again.signs.borne == BORNE
    del state["borne"]
    again.load_state_dict(state)
    assert again.signs.borne == dataclasses.replace(DEEP, scale_invariant=0.0).borne == 1.0


def test_the_suggestion_says_so():
    model, generator = deep(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss_of(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    found = suggest_lr(model, optimizer, loss_of, [images(generator, 16) for _ in range(20)])
    assert found.lr == pytest.approx(0.06 * found.scale.layer_trust)
    assert found.steps == 2
    assert "what scale-invariant weights need by M and R, for P is too low for them" in str(found)
