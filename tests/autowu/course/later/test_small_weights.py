"""Weights that begin near zero: what they allow once they have grown."""

from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch
from scale_runs import made, run, slowly
from torch import nn

from autowu_hf import get_autowu_schedule
from autowu_hf.autowu.course.later.small_weights import MOST_GROWN, grown_factor
from autowu_hf.autowu.course.measures.scale import Scale
from autowu_hf.autowu.reporting.report import headline
from autowu_hf.runtime.update_meter import Update

FIRST = Update(
    slope=1.0, update_norm=10.0, weight_norm=0.1, alignment=0.3, resolution=1e-4, clipping=1.0, layer_trust=0.01
)
SMALL = Scale(polyak=1.0, trust=0.01, alignment=0.3, loss=1.0, num_steps=2, layer_trust=0.01)
"""Of such updates: P is 150 times what R allows."""


def later(**changes):
    return dataclasses.replace(FIRST, **changes)


@pytest.mark.parametrize(("times", "factor"), [(0.5, None), (1.2, None), (4.0, 2.0), (9.0, 3.0), (1e6, MOST_GROWN)])
def test_half_of_the_way_to_what_they_allow_is_gone_in_decades(times, factor):
    now = later(weight_norm=0.1 * times, layer_trust=0.01 * times)
    assert SMALL.held_by == "trust"
    assert SMALL.has_small_weights
    assert grown_factor(SMALL, [FIRST, FIRST], now) == (None if factor is None else pytest.approx(factor))


def test_smaller_updates_do_not_count():
    """Adam's become smaller, and allow more per unit of LR for that alone."""
    now = later(update_norm=5.0, weight_norm=0.9, layer_trust=0.18)
    assert grown_factor(SMALL, [FIRST], now) == pytest.approx(3.0)


@pytest.mark.parametrize(("times", "factor"), [(4.0, 1.5), (9.0, 1.0), (20.0, 1.0)])
def test_updates_that_grow_with_the_weights_allow_no_more(times, factor):
    """LAMB's and Adafactor's do: the LR is not raised then, and not lowered either."""
    now = later(update_norm=10.0 * times, weight_norm=0.9, layer_trust=0.09 / times)
    assert grown_factor(SMALL, [FIRST], now) == pytest.approx(factor)


def test_tensors_that_have_hardly_grown_hold_the_others():
    now = later(weight_norm=1.6, layer_trust=0.02)
    assert grown_factor(SMALL, [FIRST], now) == pytest.approx((0.3 * 0.02 / (0.2 * 0.01)) ** 0.5)
    assert grown_factor(SMALL, [FIRST], later(weight_norm=1.6, layer_trust=math.nan)) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("trust", "factor"), [(0.1, (0.2 * 0.1 / 0.003) ** 0.5), (0.016, (0.2 * 0.016 / 0.003) ** 0.5)]
)
def test_where_m_holds_r_is_that_of_other_weights_and_bounds_it(trust, factor):
    scale = dataclasses.replace(SMALL, trust=trust, layer_trust=0.01)
    assert scale.held_by == "layers"
    now = later(weight_norm=100.0, layer_trust=1.0)
    assert grown_factor(scale, [FIRST], now) == pytest.approx(factor)
    assert grown_factor(scale, [FIRST], later(weight_norm=100.0)) is None  # M has not grown


@pytest.mark.parametrize("polyak", [0.001, 0.19])
def test_a_usual_start_is_left_to_how_far_steps_get(polyak):
    scale = dataclasses.replace(SMALL, polyak=polyak)
    assert grown_factor(scale, [FIRST], later(weight_norm=10.0, layer_trust=1.0)) is None


def test_weights_that_were_zero_say_nothing():
    assert grown_factor(SMALL, [later(update_norm=0.0)], later(weight_norm=1.0)) is None


class WordVectors(nn.Module):
    """word2vec's skip-gram with its usual start, on words whose neighbours are those with a number near theirs."""

    def __init__(self, words=48, size=24):
        super().__init__()
        self.vectors = nn.Embedding(words, size)
        self.out = nn.Linear(size, words, bias=False)
        nn.init.uniform_(self.vectors.weight, -0.5 / size, 0.5 / size)
        nn.init.zeros_(self.out.weight)

    def loss(self, generator, number=256):
        words = self.out.out_features
        word = torch.randint(0, words, (number,), generator=generator)
        near = (word + torch.randint(1, 4, (number,), generator=generator)) % words
        return nn.functional.cross_entropy(self.out(self.vectors(word)), near)


def word_vectors(steps):
    torch.manual_seed(0)
    model, generator = WordVectors(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = get_autowu_schedule(optimizer, steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(generator)
        loss.backward()
        optimizer.step()
        schedule.step(loss.item())
        losses.append(loss.item())
    return schedule, losses


def test_word_vectors_are_learned(monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        schedule, losses = word_vectors(300)
    approach = schedule.report()["approach"]
    assert approach["scale"]["small_weights"]
    assert approach["factor"] > 2.0
    assert any("the weights, which began small, have grown and allow more" in said for said in caplog.messages)
    assert "since the weights, which began small, have grown" in caplog.messages[-1]
    monkeypatch.setattr(Scale, "has_small_weights", property(lambda self: False))
    monkeypatch.setattr("autowu_hf.autowu.course.later.later_measures.averages_noise", lambda optimizer: False)
    _, without = word_vectors(300)  # whose LR is lowered, as that of an optimizer whose steps go one way by themselves
    start, best = losses[0], math.log(3.0)  # each word has three neighbours
    gained, before = ((start - sum(run[-10:]) / 10) / (start - best) for run in (losses, without))
    assert gained > 0.8
    assert before < 0.6


def test_a_usual_network_is_left_alone(monkeypatch):
    lrs = []
    for found in (2.0, 1.0):
        monkeypatch.setattr(
            "autowu_hf.autowu.course.later.later_measures.grown_factor",
            lambda scale, first, now, found=found: found if scale.has_small_weights else None,
        )
        model, optimizer, schedule = made(200)
        lrs.append(run(model, optimizer, schedule, slowly(200)))
        assert not schedule.report()["approach"]["scale"]["small_weights"]
    assert lrs[0] == lrs[1]


@pytest.mark.parametrize(("factor", "said"), [(0.4, "later updates get farther"), (2.0, "began small, have grown")])
def test_what_is_said_of_a_correction(factor, said):
    model, optimizer, schedule = made(100)
    run(model, optimizer, schedule, slowly(100))
    report = schedule.report()
    report["approach"] |= {"factor": factor}
    report["approach"]["scale"] |= {"small_weights": True}
    assert f"times {factor:.2g} since " in headline(report)
    assert said in headline(report)
