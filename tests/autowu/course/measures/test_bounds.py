"""One linear layer that is trained alone: P bounds its LR, and neither R nor M."""

from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch
from margins import assert_below
from torch import nn

from autowu_hf import get_autowu_schedule, suggest_lr
from autowu_hf.autowu.course.measures.bounds import (
    NEW,
    SCALING,
    STEEP,
    TRAINED,
    are_factors,
    begins_steep,
    bounded,
    is_one_layer,
    norms_of,
    without_bounds,
)
from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.runtime.update_meter import Update

SCALE = Scale(polyak=1.0, trust=0.1, alignment=0.7, loss=2.3, num_steps=2, layer_trust=0.1)

WIDTH, CLASSES = 24, 6


def optimizer_of(*parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)


def layer(*shapes):
    return optimizer_of(*(nn.Parameter(torch.ones(shape)) for shape in shapes))


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(3, 8), (3,)], True),
        ([(3,), (3, 8)], True),  # the order is the optimizer's
        ([(3, 8)], False),  # embeddings or a prompt may lie below many layers
        ([(3, 8), (8,)], False),  # a norm before it
        ([(3, 8), (3,), (4, 3), (4,)], False),
        ([(3, 8, 1, 1), (3,)], False),
        ([(3, 8), (3, 3)], False),  # a product of two
        ([(27,)], False),  # flat
    ],
)
def test_a_matrix_and_its_bias_are_one_layer(shapes, expected):
    assert is_one_layer(layer(*shapes)) is expected


def test_what_is_frozen_does_not_count_and_groups_do_not_matter():
    frozen, weight, bias = (nn.Parameter(torch.ones(shape)) for shape in ((9, 9), (3, 8), (3,)))
    frozen.requires_grad_(False)
    assert is_one_layer(torch.optim.AdamW([{"params": [frozen, weight]}, {"params": [bias], "weight_decay": 0.0}]))


def test_p_alone_is_left():
    found = without_bounds(SCALE, layer((3, 8), (3,)))
    assert found == dataclasses.replace(SCALE, trust=math.inf, layer_trust=found.layer_trust, is_convex=True)
    assert found.held_by == "polyak"
    assert found.peak_lr == pytest.approx(0.6)
    assert found.peak_lr_for(400) == pytest.approx(0.3)  # by the root of its length
    assert found.borne > SCALE.borne == 1.0
    assert without_bounds(SCALE, layer((3, 8))) is SCALE


ONES, MIXED = torch.ones(8), torch.linspace(-1.0, 1.0, 8)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([0.5 * ONES, -ONES], True),  # norms that were trained
        ([ONES + 0.5 * MIXED, MIXED], True),  # with their biases
        ([ONES.reshape(1, 8), ONES.reshape(8, 1)], True),  # IA3
        ([MIXED, MIXED], False),  # biases
        ([0.0 * ONES, 0.0 * ONES], False),
        ([ONES], False),  # one vector may be anything
        ([ONES, MIXED, MIXED], False),
        ([ONES, ONES.reshape(2, 4)], False),
        ([torch.tensor(1.0), torch.tensor(1.0)], False),
    ],
)
def test_factors_are_vectors_of_one_sign(tensors, expected):
    assert are_factors(optimizer_of(*map(nn.Parameter, tensors))) is expected


def test_where_factors_are_trained_alone_an_update_may_turn_them_a_quarter_as_far():
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3))
    for module in model:
        module.requires_grad_(isinstance(module, nn.LayerNorm))
    torch.manual_seed(0)
    x, y = torch.randn(64, 16), torch.randint(0, 3, (64,))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    found = suggest_lr(model, optimizer, lambda model, _: nn.functional.cross_entropy(model(x), y), range(16))
    assert found.scale.scaling == SCALING
    assert found.scale.trusted_lr == pytest.approx(0.25 * min(0.2 * found.scale.trust, 0.3 * found.scale.layer_trust))
    assert found.scale.held_by == "trust"  # P lies far above, M hardly
    assert "0.2 R, times 0.25 since factors of channels are trained alone" in str(found)


class Features:
    """A classifier of frozen features, whose weights begin small."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(CLASSES, WIDTH, generator=generator)
        self.y = torch.randint(0, CLASSES, (600,), generator=generator)
        x = centres[self.y] + 1.5 * torch.randn(600, WIDTH, generator=generator)
        self.x = nn.functional.normalize(x, dim=1)
        torch.manual_seed(seed)
        self.model = nn.Linear(WIDTH, CLASSES)
        nn.init.normal_(self.model.weight, std=0.02)

    def loss(self, step):
        chosen = torch.randint(0, 600, (16,), generator=torch.Generator().manual_seed(step))
        return nn.functional.cross_entropy(self.model(self.x[chosen]), self.y[chosen])

    @torch.no_grad()
    def final(self):
        return float(nn.functional.cross_entropy(self.model(self.x), self.y))

    def trained(self, schedule_of, steps):
        optimizer = optimizer_of(*self.model.parameters())
        schedule = schedule_of(optimizer, steps)
        for step in range(steps):
            loss = self.loss(step)
            loss.backward()
            optimizer.step()
            schedule.step(*[loss] if hasattr(schedule, "peak_lr") else [])
            optimizer.zero_grad()
        return schedule


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_as_at_the_best_lr_of_a_grid(seed, caplog):
    features = Features(seed)
    start = features.final()
    with caplog.at_level(logging.INFO, "autowu_hf"):
        schedule = features.trained(get_autowu_schedule, 80)
    found = []
    for lr in (1e-3, 1e-2, 1e-1, 1.0):
        other = Features(seed)
        other.trained(lambda optimizer, steps, lr=lr: lr_of(optimizer, lr, steps), 80)
        found.append(other.final())
    assert_below(features.final(), start - 0.8 * (start - min(found)), start)
    assert schedule._course.scale.held_by == "polyak"
    assert "P held the LR at first" in caplog.text


def lr_of(optimizer, lr, steps):
    """A linear decay from an LR."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)


def test_suggest_lr_knows_it_too():
    features = Features()
    optimizer = optimizer_of(*features.model.parameters())
    before = [p.detach().clone() for p in features.model.parameters()]
    found = suggest_lr(features.model, optimizer, lambda model, step: features.loss(step), range(16))
    assert found.scale.held_by == "polyak"
    assert str(found).endswith("the suggestion is 0.6 P, of one linear layer")
    assert all(map(torch.equal, before, features.model.parameters()))


def test_the_weight_decay_and_clipping_do_not_tell_where_the_gradient_lies():
    """Beside clipped gradients the decay of large weights is large, and is no part of the gradient."""
    found = []
    for decay in (0.0, 0.01):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 60), nn.LayerNorm(60), nn.ReLU(), nn.Linear(60, CLASSES))
        with torch.no_grad():
            model[0].weight.mul_(8.0)  # which the norm behind it takes away
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
        schedule = get_autowu_schedule(optimizer, 100)
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(torch.randn(32, 40)), torch.randint(CLASSES, (32,)))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            schedule.step(loss)
            optimizer.zero_grad()
        found.append(schedule.report()["approach"]["scale"])
    plain, decayed = found
    assert decayed["alignment"] < 0.1 < plain["alignment"]
    assert plain["narrowing"] == decayed["narrowing"] == 1.0
    assert decayed["peak_lr"] == pytest.approx(plain["peak_lr"], rel=0.02)


@pytest.mark.parametrize(
    ("new", "trained", "expected"),
    [(2, 0, NEW), (9, 0, NEW), (1, 0, ""), (0, 2, TRAINED), (1, 2, TRAINED), (9, 1, ""), (0, 1, ""), (0, 0, "")],
)
def test_two_norms_tell_whether_a_model_was_trained(new, trained, expected):
    assert norms_of(Update(*[1.0] * 6, new_norms=new, trained_norms=trained)) == expected


def test_a_model_from_scratch_begins_steeply_where_p_lies_below_what_r_and_m_allow():
    fresh = dataclasses.replace(SCALE, norms=NEW, trust=100.0)
    for layer_trust, expected in ((1.1 * STEEP, True), (0.9 * STEEP, False)):
        scale = dataclasses.replace(fresh, layer_trust=layer_trust)
        assert begins_steep(scale) is expected
        assert not begins_steep(dataclasses.replace(scale, norms=TRAINED))
    assert not begins_steep(dataclasses.replace(fresh, alignment=1.0))
    assert not begins_steep(dataclasses.replace(fresh, scale_invariant=0.9))


def test_of_other_kinds_of_optimizers_it_has_to_be_seen_first_how_far_their_steps_get():
    tensors = [nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.ones(8))]
    update = Update(*[1.0] * 6, new_norms=2.0)
    for kind, expected in ((torch.optim.AdamW, NEW), (torch.optim.RMSprop, "")):
        assert bounded(SCALE, kind(tensors), [update]).norms == expected
