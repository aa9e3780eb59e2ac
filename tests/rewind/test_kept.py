from __future__ import annotations

import logging
import math

import pytest
import torch
from rewind_runs import assert_same, small, state_of, train_step

from autowu_hf.rewind.kept import Kept


class Nothing:
    """In the place of a schedule."""

    def step(self, loss: object) -> None:
        pass


@pytest.fixture
def kept_at():
    """Snapshots of steps 2 and 4 of six; model, optimizer and their states after each step."""
    model, optimizer = small()
    kept, states = Kept(optimizer, lambda: [model], True, None, 0.5, True), {}
    for step in range(1, 7):
        train_step(model, optimizer, Nothing(), 1.0)
        states[step] = state_of(model, optimizer)
        if step in (2, 4):
            kept.keep_one(step)
    return kept, model, optimizer, states


def test_goes_to_either(kept_at):
    kept, model, optimizer, states = kept_at
    assert kept.step == 2
    for step in (2, 4, 2, 4):
        assert kept.go_to(step)
        assert_same(state_of(model, optimizer), states[step])
    assert not kept.go_to(3)
    assert_same(state_of(model, optimizer), states[4])  # nothing is restored in its place


def test_no_process_goes_to_one_that_another_lacks(kept_at, monkeypatch):
    kept, model, optimizer, states = kept_at
    monkeypatch.setattr("autowu_hf.runtime.collective.gather_max", lambda numbers: [1])
    assert not kept.go_to(4)
    assert_same(state_of(model, optimizer), states[6])


def test_keeps_one_of_them(kept_at):
    kept, model, optimizer, states = kept_at
    kept.keep_only(4)
    assert kept.step == 4
    assert kept.go_to(4)
    assert_same(state_of(model, optimizer), states[4])
    kept.keep_only(2)
    assert kept.step is None
    assert not kept.go_to(4)


def test_renews_the_oldest(kept_at):
    kept, model, optimizer, states = kept_at
    kept.keep_only(2)
    kept.renew(6)
    assert [stored.step for stored in kept.snapshots] == [6]
    train_step(model, optimizer, Nothing(), 1.0)
    assert kept.go_to(6)
    assert_same(state_of(model, optimizer), states[6])


def test_weights_that_are_not_finite_are_no_place_to_go():
    model, optimizer = small()
    kept = Kept(optimizer, lambda: [model], True, None, 0.5, True)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    kept.keep_one(1)
    assert not kept.go_to(1)


def test_no_room_is_said_and_no_more(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    monkeypatch.setattr("autowu_hf.rewind.memory.free_memory", lambda: 1)
    model, optimizer = small()
    kept = Kept(optimizer, lambda: [model], True, None, 0.5, True)
    kept.keep_one(1)
    assert not kept.is_on
    assert kept.step is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
