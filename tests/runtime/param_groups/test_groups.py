from __future__ import annotations

import logging
import re

import pytest
import torch
from accelerate import Accelerator
from margins import assert_learned
from tiny import TinyClassifier, batches

from autowu_hf import get_autolrs_schedule, get_autowu_schedule
from autowu_hf.runtime.param_groups import innermost, layers, lr_ratios, own_lr, set_lrs, states_of


def groups_of(*lrs: float, default: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return torch.optim.AdamW(groups, lr=default)


def test_ratios_are_to_the_default_and_survive_a_schedule_and_a_wrap():
    optimizer = groups_of(1e-3, 5e-4, default=1e-3)
    assert lr_ratios(optimizer) == [1.0, 0.5]
    get_autowu_schedule(optimizer, 10)
    assert lr_ratios(optimizer) == [1.0, 0.5]
    assert lr_ratios(Accelerator(cpu=True).prepare(optimizer)) == [1.0, 0.5]


class WithoutDefault(torch.optim.SGD):
    """As some optimizers for hidden weights are: the LR is in the groups only."""

    def __init__(self, groups):
        super().__init__(groups, lr=1e-3)
        del self.defaults["lr"]


@pytest.mark.parametrize(
    ("lrs", "default", "own", "ratios"),
    [
        ((1e-3, 1e-2), 1e-3, 1e-3, [1.0, 10.0]),  # a head that learns faster
        ((2e-5,), 1e-3, 2e-5, [1.0]),
        ((0.1, 0.01), 1e-3, 0.1, [1.0, 0.1]),  # no group goes by the default
        ((0.0, 0.1), 0.1, 0.1, [0.0, 1.0]),  # a frozen group
        ((0.02, 3e-4), None, 0.02, [1.0, 0.015]),  # a hybrid of two optimizers
    ],
)
def test_the_own_lr_is_one_that_a_group_has(lrs, default, own, ratios):
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs]
    optimizer = WithoutDefault(groups) if default is None else torch.optim.SGD(groups, lr=default)
    assert own_lr(optimizer) == own
    assert lr_ratios(optimizer) == pytest.approx(ratios)
    schedule = get_autowu_schedule(optimizer, 100, max_lr=0.5)
    reached = []
    for _ in range(25):
        reached.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step(1.0)
    assert reached[0] == pytest.approx([1e-5 * ratio for ratio in ratios])
    assert max(max(lrs) for lrs in reached) <= 0.5 * max(ratios)


class MuonWithAdam(torch.optim.Optimizer):
    """Orthogonal updates of matrices, Adam's of the rest, as by the groups, which alone have an LR."""

    def __init__(self, groups):
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["mean"], state["square"], state["step"] = torch.zeros_like(p), torch.zeros_like(p), 0
                state["step"] += 1
                state["mean"].lerp_(p.grad, 0.1)
                state["square"].lerp_(p.grad.square(), 0.05)
                if group["use_muon"]:
                    u, _, v = torch.linalg.svd(state["mean"], full_matrices=False)
                    update = u @ v
                else:
                    mean = state["mean"] / (1 - 0.9 ** state["step"])
                    update = mean / ((state["square"] / (1 - 0.95 ** state["step"])).sqrt() + 1e-8)
                p.sub_(group["lr"] * update)


@pytest.mark.parametrize("options", [{}, {"scale": False}])
def test_a_hybrid_of_two_optimizers_learns_at_the_ratio_of_its_groups(options):
    model = TinyClassifier()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "lr": 0.02, "use_muon": True},
        {"params": [p for p in model.parameters() if p.ndim < 2], "lr": 3e-4, "use_muon": False},
    ]
    optimizer = MuonWithAdam(groups)
    schedule = get_autowu_schedule(optimizer, 100, **options)
    losses = []
    for step in range(100):
        batch = torch.utils.data.default_collate(batches(32, seed=step))
        loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        muon, adam = (group["lr"] for group in optimizer.param_groups)
        assert adam == pytest.approx(0.015 * muon)
        schedule.step(loss)
        losses.append(loss.item())
    assert schedule.phase == "decay"
    assert_learned(sum(losses[-10:]) / 10, losses[0], 0.3)


def test_an_optimizer_that_another_schedule_has_used_keeps_its_ratios():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.4)
    other = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=4)
    for _ in range(4):
        optimizer.step()
        other.step()
    assert lr_ratios(optimizer) == [1.0]


def test_set_lrs_sets_every_group():
    optimizer = groups_of(1e-3, 5e-4, default=1e-3)
    set_lrs(optimizer, [0.1, 0.2])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_a_tensor_lr_is_filled_in_place():
    lr = torch.tensor(1e-3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr, capturable=False, foreach=False)
    scheduler = get_autowu_schedule(optimizer, 100)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(1e-5)
    optimizer.step()
    scheduler.step(1.0)
    assert lr.item() == pytest.approx(1e-5 * 1e5 ** (0.3 * 10 / 25))


def test_a_layer_wise_optimizer_is_refused():
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    optimizer = LayerWiseDummyOptimizer(optimizer_dict={})
    with pytest.raises(
        ValueError, match="LayerWiseDummyOptimizer steps every layer by itself .* use an optimizer without"
    ):
        get_autowu_schedule(optimizer, 100)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.0),
            "a parameter group must have a positive lr, got 0; pass any positive lr",
        ),
        (
            groups_of(1e-3, float("nan"), default=1e-3),
            "parameter group must be a finite number, got 0.001, nan; pass",
        ),
        (
            groups_of(float("inf"), default=1e-3),
            "parameter group must be a finite number, got inf; pass any positive",
        ),
        (None, "optimizer must be a torch.optim.Optimizer, got NoneType"),
    ],
)
def test_an_optimizer_without_a_unit_is_refused(optimizer, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        get_autowu_schedule(optimizer, 100)


def test_an_optimizer_that_wraps_another_is_known_by_its_parameters():
    inner, part, other = (groups_of(1.0, default=1.0) for _ in range(3))
    wrapper = torch.optim.SGD([*inner.param_groups[0]["params"]], lr=1.0)
    wrapper.part, wrapper.whatever_it_is_called = other, inner
    prepared = Accelerator(cpu=True).prepare(wrapper)
    assert [*map(id, layers(prepared))] == [*map(id, (prepared, wrapper, inner))]
    assert innermost(part) is part
    assert [*map(id, states_of(prepared))] == [id(inner.state), id(wrapper.state)]
    inner.back = wrapper  # a circle ends
    assert innermost(prepared) is inner


def test_an_optimizer_of_two_parts_is_its_own():
    parts = [groups_of(1.0, default=1.0) for _ in range(2)]
    both = torch.optim.SGD([p for part in parts for p in part.param_groups[0]["params"]], lr=1.0)
    both.muon, both.adamw = parts
    assert innermost(both) is both


def test_an_optimizer_without_an_lr_is_refused_with_the_remedy():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    optimizer.param_groups[0]["lr"] = None  # as Adafactor's with relative_step
    with pytest.raises(ValueError, match="SGD has lr=None and finds its own.* pass relative_step=False"):
        get_autowu_schedule(optimizer, 100)


def test_an_optimizer_without_any_lr_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="SGD has no lr in its parameter groups and finds its own"):
        get_autowu_schedule(optimizer, 100)


@pytest.mark.parametrize(
    ("name", "make"),
    [("AutoWU", get_autowu_schedule), ("AutoLRS", get_autolrs_schedule)],
)
def test_an_optimizer_that_maximises_is_refused_but_not_one_with_a_multiplier_that_does(name, make):
    weight, multiplier = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    with pytest.raises(ValueError, match=f"{name} minimises, but the optimizer has maximize=True; negate the loss"):
        make(torch.optim.AdamW([weight], maximize=True), 200)
    groups = [{"params": [weight]}, {"params": [multiplier], "maximize": True}]
    make(torch.optim.AdamW(groups), 200)


@pytest.mark.parametrize("hold", [lambda a, b: {"a": a, "b": b}, lambda a, b: {"all": [a, b]}])
def test_the_states_of_an_optimizer_of_two_parts_are_found_after_its_own(hold):
    parts = [groups_of(1.0, default=1.0) for _ in range(2)]
    both = torch.optim.SGD([p for part in parts for p in part.param_groups[0]["params"]], lr=1.0)
    vars(both).update(hold(*parts))
    assert [*map(id, states_of(both))] == [id(both.state), *(id(part.state) for part in parts)]


def scaled(*pairs):
    """Groups with an LR and an ``lr_scale``, as timm's layer-wise decay has them."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "lr_scale": scale} for lr, scale in pairs]
    return torch.optim.AdamW(groups, lr=1e-3)


def test_an_lr_scale_of_the_groups_is_their_ratio(caplog):
    optimizer = scaled((1e-3, 0.25), (1e-3, 0.5), (1e-3, 1.0))
    with caplog.at_level(logging.INFO, "autowu_hf"):
        schedule = get_autowu_schedule(optimizer, 100)
    assert schedule.get_last_lr() == pytest.approx([schedule.get_last_lr()[2] * scale for scale in (0.25, 0.5, 1.0)])
    assert caplog.text.count("the parameter groups keep their lr_scale, from 0.25 to 1") == 1


def test_an_lr_scale_that_the_lrs_carry_already_counts_once(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        assert lr_ratios(scaled((2.5e-4, 0.25), (1e-3, 1.0))) == pytest.approx([0.25, 1.0])
        assert lr_ratios(scaled((1e-3, 1.0), (1e-3, 1.0))) == [1.0, 1.0]
    assert "lr_scale" not in caplog.text
    with pytest.raises(ValueError, match="finite"):
        lr_ratios(scaled((1e-3, float("nan")), (1e-3, 1.0)))
