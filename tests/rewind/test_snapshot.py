from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from autowu_hf.rewind import snapshot
from autowu_hf.runtime.finite import has_finite_parameters


def trained(optimizer_class=torch.optim.AdamW, steps=3, **options):
    """A model with batch norm and tied weights, and its optimizer, after some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[3].weight = model[2].weight
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
    go_on(model, optimizer, steps)
    return model, optimizer


def go_on(model, optimizer, steps):
    for _ in range(steps):
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def everything(model, optimizer):
    return copy.deepcopy([list(model.state_dict().values()), optimizer.state_dict()["state"]])


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"fused": True, "amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adafactor, {}),
    ],
)
def test_everything_is_back_bit_for_bit_and_training_goes_on_as_it_did(optimizer_class, options):
    model, optimizer = trained(optimizer_class, **options)
    taken = snapshot.take(optimizer, [model], 3)
    before = everything(model, optimizer)
    torch.manual_seed(1)
    go_on(model, optimizer, 4)
    expected = everything(model, optimizer)
    addresses = [t.data_ptr() for t in model.state_dict().values()]
    snapshot.restore(taken, optimizer, [model])
    assert_same(everything(model, optimizer), before)
    assert [t.data_ptr() for t in model.state_dict().values()] == addresses
    torch.manual_seed(1)
    go_on(model, optimizer, 4)
    assert_same(everything(model, optimizer), expected)


def test_state_that_came_later_goes_again():
    model, optimizer = trained(steps=0)
    taken = snapshot.take(optimizer, [model], 0)
    go_on(model, optimizer, 2)
    snapshot.restore(taken, optimizer, [model])
    assert not optimizer.state
    go_on(model, optimizer, 1)
    assert all(state["step"] == 1 for state in optimizer.state.values())


def test_nested_state_and_group_options_are_back_and_the_lr_stays():
    model, optimizer = trained()
    first = next(model.parameters())
    optimizer.state[first]["history"] = [torch.ones(2), {"count": 1, "sum": torch.zeros(3)}]
    optimizer.param_groups[0]["k"] = 7
    taken = snapshot.take(optimizer, [model], 3)
    optimizer.state[first]["history"][0].add_(1)
    optimizer.state[first]["history"][1].update(count=2, later=0)
    optimizer.param_groups[0].update(k=9, lr=0.5)
    snapshot.restore(taken, optimizer, [model])
    history = optimizer.state[first]["history"]
    assert history[0].tolist() == [1, 1]
    assert set(history[1]) == {"count", "sum"}
    assert history[1]["count"] == 1
    assert (optimizer.param_groups[0]["k"], optimizer.param_groups[0]["lr"]) == (7, 0.5)


def test_memory_of_a_snapshot_that_is_not_needed_is_used_again():
    model, optimizer = trained()
    old = snapshot.take(optimizer, [model], 3)
    addresses = [t.data_ptr() for t in old.parameters]
    go_on(model, optimizer, 1)
    new = snapshot.take(optimizer, [model], 4, reuse=old)
    assert [t.data_ptr() for t in new.parameters] == addresses
    before = everything(model, optimizer)
    go_on(model, optimizer, 1)
    snapshot.restore(new, optimizer, [model])
    assert_same(everything(model, optimizer), before)


def test_it_can_be_saved_and_knows_its_size():
    model, optimizer = trained()
    taken = snapshot.take(optimizer, [model], 3)
    numbers = sum(p.numel() for p in model.parameters())
    assert taken.num_bytes() == 4 * (3 * numbers + 2 * 8) + 8 + 4 * len(optimizer.state)
    file = io.BytesIO()
    torch.save(taken.state_dict(), file)
    file.seek(0)
    loaded = snapshot.Snapshot(**torch.load(file, weights_only=True))
    assert snapshot.fits(loaded, optimizer)
    assert not snapshot.fits(loaded, torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1))
    before = everything(model, optimizer)
    go_on(model, optimizer, 2)
    snapshot.restore(loaded, optimizer, [model])
    assert_same(everything(model, optimizer), before)


def test_what_is_not_finite_is_noticed():
    model, optimizer = trained()
    assert snapshot.take(optimizer, [model], 3).is_finite()
    assert has_finite_parameters(optimizer)
    with torch.no_grad():
        model[2].bias[0] = float("inf")
    assert not snapshot.take(optimizer, [model], 3).is_finite()
    assert not has_finite_parameters(optimizer)


def test_an_empty_parameter_group_is_taken_and_restored():
    """Trainer makes one where no parameter that is trained has weight decay, under LoRA or BitFit for instance."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    for groups in ([{"params": []}, {"params": model.parameters()}], [{"params": model.parameters()}, {"params": []}]):
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        go_on(model, optimizer, 2)
        before = everything(model, optimizer)
        taken = snapshot.take(optimizer, [model], 2)
        assert taken.num_bytes() == snapshot.size(optimizer, [model])
        assert taken.is_finite()
        assert snapshot.fits(taken, optimizer)
        assert not snapshot.is_sharded(optimizer, [model])
        go_on(model, optimizer, 2)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.5
        assert snapshot.restore(taken, optimizer, [model]) == []
        assert_same(everything(model, optimizer), before)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01]
        again = snapshot.take(optimizer, [model], 2, reuse=taken)
        assert [t.data_ptr() for t in again.parameters] == [t.data_ptr() for t in taken.parameters]


def test_a_snapshot_that_is_given_up_lends_its_memory_unless_a_checkpoint_holds_it():
    model, optimizer = trained()
    taken = snapshot.take(optimizer, [model], 3)
    assert taken.load() is taken
    assert taken.discard() is taken
    state = taken.state_dict()
    assert state["step"] == 3
    assert taken.discard() is None


def test_the_states_of_optimizers_that_wrap_each_other_are_all_in_it():
    model, inner = trained()
    outer = torch.optim.SGD(model.parameters(), lr=0.1)
    outer.inside = inner
    first = next(model.parameters())
    outer.state[first]["slow"] = first.detach().clone()
    outer.param_groups[0]["since"] = 3
    taken = snapshot.take(outer, [model], 3)
    before = everything(model, inner), copy.deepcopy(outer.state[first])
    go_on(model, inner, 2)
    outer.state[first]["slow"].zero_()
    outer.param_groups[0]["since"] = 5
    snapshot.restore(taken, outer, [model])
    assert_same((everything(model, inner), outer.state[first]), before)
    assert outer.param_groups[0]["since"] == 3
    # A snapshot of a release that knew the inner one only.
    taken.states, taken.groups = taken.states[::2], taken.groups[:1]
    go_on(model, inner, 2)
    snapshot.restore(taken, outer, [model])
    assert_same(everything(model, inner), before[0])


def test_an_optimizer_that_hands_its_parameters_to_two_goes_back_with_the_states_of_both():
    model, _ = trained()
    parameters = [*model.parameters()]
    parts = [torch.optim.AdamW(parameters[:2], lr=0.1), torch.optim.SGD(parameters[2:], lr=0.1, momentum=0.9)]
    both = torch.optim.SGD(parameters, lr=0.1)
    both.parts, both.step = parts, lambda: [part.step() for part in parts]
    go_on(model, both, 3)
    before, taken = [everything(model, part) for part in parts], snapshot.take(both, [model], 3)
    go_on(model, both, 2)
    assert snapshot.restore(taken, both, [model]) == []
    assert_same([everything(model, part) for part in parts], before)


def test_a_layer_that_was_frozen_goes_back_although_the_optimizer_has_it_now():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=0.1)
    go_on(model, optimizer, 2)
    before, taken = copy.deepcopy(model.state_dict()), snapshot.take(optimizer, [model], 2)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": model[0].parameters()})
    go_on(model, optimizer, 2)
    head = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [head]})
    assert snapshot.restore(taken, optimizer, [model]) == ["parameter 4 of the optimizer"]  # which it never saw
    assert_same([*model.state_dict().values()], [*before.values()])
