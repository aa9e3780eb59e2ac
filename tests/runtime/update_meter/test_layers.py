"""The trust ratios of single tensors, and their median."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from autowu_hf.runtime import collective
from autowu_hf.runtime.update_meter import UpdateMeter
from autowu_hf.runtime.update_meter.layers import (
    _OWN,
    kinds_of_norms,
    layer_trust,
    over_processes,
    scale_invariant_share,
    spread_of,
    told_by,
)
from autowu_hf.runtime.update_meter.shares import Shares
from autowu_hf.runtime.update_meter.update import NUM_SUMS, sums_of

CPU = Shares([], 1)


def median(*pairs):
    """Of tensors with a norm, and that of their update."""
    return layer_trust(torch.tensor([[w**2, d**2] for w, d in pairs], dtype=torch.float64))


def test_half_of_the_update_is_in_tensors_whose_ratio_is_no_higher():
    assert median((10.0, 1.0)) == pytest.approx(10.0)
    assert median((30.0, 1.0), (10.0, 1.0), (20.0, 1.0)) == pytest.approx(20.0)
    assert median((10.0, 1.0), (20.0, 0.7), (40.0, 0.7)) == pytest.approx(10.0)
    assert median((10.0, 1.0), (20.0, 0.8), (40.0, 0.8)) == pytest.approx(20.0 / 0.8)


def test_it_is_a_sixth_of_the_ratio_of_all_weights_at_least():
    for large, small in ((15.0, 1.0), (1500.0, 100.0), (10.0, 0.8)):
        of_all = math.hypot(large, small) / math.hypot(1.0, 2.0)
        assert median((large, 1.0), (small, 2.0)) == pytest.approx(of_all / 6.0)
    assert median((10.0, 1.0), (4.0, 2.0)) == pytest.approx(2.0)


def test_tensors_that_began_at_zero_or_next_to_it_tell_nothing():
    zero, of_the_last_step, frozen = (0.0, 1.0), (1e-3, 1.0), (50.0, 0.0)
    assert median(zero, of_the_last_step, frozen, (10.0, 0.5)) == pytest.approx(20.0)
    assert median((10.0, 1.0), (1.0, 5.0)) < median((10.0, 1.0), (0.5, 5.0)) == pytest.approx(10.0)
    assert math.isnan(median(zero, frozen))
    assert math.isnan(layer_trust(torch.zeros(0, 2)))


def test_where_nearly_all_of_the_update_is_in_tensors_of_zeros_the_decay_of_the_others_tells_nothing():
    assert math.isnan(median((0.0, 1.0), (10.0, 0.09)))
    assert median((0.0, 1.0), (10.0, 0.11)) == pytest.approx(10.0 / 0.11)


def test_each_tensor_has_its_place_among_the_parameters():
    rows = torch.arange(2.0 * NUM_SUMS, dtype=torch.float64).reshape(2, NUM_SUMS)
    sums, layers = over_processes(rows, [False, True, False, True], CPU)
    assert torch.equal(sums, rows.sum(0))
    own = [1, 3, 0, 11, 12, 10, 13]  # of the weights, the change, the slope, the two of rows, their number and sum
    assert layers.tolist() == [[0.0] * 7, rows[0, own].tolist(), [0.0] * 7, rows[1, own].tolist()]
    sums, layers = over_processes(torch.zeros(0, NUM_SUMS, dtype=torch.float64), [False, False], CPU)
    assert not sums.any()
    assert layers.shape == (2, 7)


def test_shares_of_one_tensor_are_put_together_before_the_median(monkeypatch):
    monkeypatch.setattr(collective, "gather_sum", lambda numbers: numbers + other)
    other = torch.zeros(NUM_SUMS + 14, dtype=torch.float64)
    other[NUM_SUMS:][:7] = torch.tensor([300.0, 3.0, 1.0, -1.0, 7.0, 2.0, 5.0])  # the first tensor's other share
    rows = torch.ones(2, NUM_SUMS, dtype=torch.float64)
    rows[:, 1] = 100.0
    _, layers = over_processes(rows, [True, True], Shares([], 2))
    assert layers.tolist() == [[400.0, 4.0, 2.0, 0.0, 8.0, 3.0, 6.0], [100.0, *[1.0] * 6]]
    assert scale_invariant_share(layers) == 0.8


def measured(scale=1.0, seed=0):
    """The update of a first step of AdamW, where the last layer of three is ``scale`` times as large."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 16))
    with torch.no_grad():
        model[4].weight.mul_(scale)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    meter.disarm()
    return meter.updates[0]


def test_one_large_layer_decides_r_and_not_the_median():
    usual, large, larger = measured(), measured(scale=8.0), measured(scale=20.0)
    trust = [update.weight_norm / update.update_norm for update in (usual, large, larger)]
    assert trust[1] > 3.0 * trust[0]
    assert large.layer_trust == pytest.approx(usual.layer_trust, rel=0.5)
    assert usual.layer_trust == pytest.approx(trust[0], rel=0.5)
    assert larger.layer_trust == pytest.approx(trust[2] / 6.0, rel=1e-3)


def test_an_enlarged_update_has_a_smaller_ratio():
    update = measured()
    assert update.enlarged(2.0).layer_trust == pytest.approx(update.layer_trust / 2.0)


@pytest.mark.parametrize(("cosine", "share"), [(0.0, 0.8), (0.049, 0.8), (0.051, 0.0), (0.5, 0.0)])
def test_rows_are_orthogonal_as_random_ones_hardly_are(cosine, share):
    of_random = 36.0
    free, other = [[9.0, d2, 0.0, gw2, of_random] for d2, gw2 in ((4.0, cosine**2 * of_random), (1.0, of_random))]
    assert scale_invariant_share(torch.tensor([free, other], dtype=torch.float64)) == share


def test_the_share_is_that_of_the_slope_where_it_is_larger():
    """LAMB's first updates are mostly in biases, whose slope is small."""
    free, other = [1.0, 1.0, 6.0, 0.0, 1.0], [1.0, 9.0, 4.0, 1.0, 1.0]
    assert scale_invariant_share(torch.tensor([free, other], dtype=torch.float64)) == 0.6
    up, down = [1.0, 1.0, -6.0, 0.0, 1.0], [1.0, 9.0, -3.0, 1.0, 1.0]
    assert scale_invariant_share(torch.tensor([up, other], dtype=torch.float64)) == 0.1
    assert scale_invariant_share(torch.tensor([free, down], dtype=torch.float64)) == 1.0


def test_tensors_of_zeros_and_those_without_rows_are_not_said_to_be_scale_invariant():
    without, free = [1.0, 8.0, 4.0, 0.0, 0.0], [1.0, 2.0, 1.0, 0.0, 1.0]
    assert scale_invariant_share(torch.tensor([without, free], dtype=torch.float64)) == 0.2
    assert scale_invariant_share(torch.zeros(0, 5)) == 0.0
    assert scale_invariant_share(torch.zeros(2, 5)) == 0.0


def share_of(network, optimizer_class=torch.optim.AdamW, steps=2, autocast=None, is_training=True):
    """Of the first steps of a network for images, the share at each."""
    network.train(is_training)
    optimizer = optimizer_class(network.parameters(), lr=1e-5)
    meter, generator = UpdateMeter(optimizer, [1.0]), torch.Generator().manual_seed(0)
    meter.arm()
    for _ in range(steps):
        optimizer.zero_grad()
        images, labels = torch.randn(8, 2, 6, 6, generator=generator), torch.randint(4, (8,), generator=generator)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    meter.disarm()
    return [update.scale_invariant for update in meter.updates]


def network(*norms, seed=0):
    """Two convolutions, after which the norms come, and a linear layer."""
    torch.manual_seed(seed)
    first, second = norms or (nn.Identity(), nn.Identity())
    convolutions = nn.Conv2d(2, 16, 3, bias=False), nn.Conv2d(16, 16, 3, bias=False)
    layers = convolutions[0], first, nn.ReLU(), convolutions[1], second, nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_weights_before_a_norm_are_found_with_any_optimizer_and_in_half_precision(autocast, optimizer_class):
    for norm in (nn.BatchNorm2d, nn.InstanceNorm2d):
        assert min(share_of(network(norm(16), norm(16)), optimizer_class, autocast=autocast)) > 0.3


def test_a_frozen_batch_norm_and_networks_without_one_have_none():
    norms = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
    with torch.no_grad():
        for norm in norms:
            norm.running_var.fill_(0.3)
    assert max(share_of(network(*norms), is_training=False)) == 0.0
    for seed in range(10):
        assert max(share_of(network(seed=seed))) == 0.0


def test_norms_over_features_have_none():
    """What they leave alone is a tensor's size, not that of each row; and no running statistics lag behind."""
    groups = nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)
    layers = nn.LayerNorm([16, 4, 4]), nn.LayerNorm([16, 2, 2])
    for norms in (groups, layers):
        assert max(share_of(network(*norms))) == 0.0


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_that_is_given_twice_has_two_places():
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight, weight], lr=1e-3)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    weight.sum().backward()
    optimizer.step()
    meter.disarm()
    assert meter.updates[0].layer_trust > 0.0


def spread(*pairs):
    """Of tensors with the norm of their update, and its slope."""
    return spread_of(torch.tensor([[1.0, d**2, down, 0.0, 0.0] for d, down in pairs], dtype=torch.float64))


def test_a_slope_is_spread_evenly_where_each_tensor_has_its_part_of_the_update():
    assert spread((3.0, 0.1)) == pytest.approx(1.0)
    assert spread((1.0, 2.0), (2.0, 8.0), (0.5, 0.5)) == pytest.approx(1.0)
    assert spread((1.0, 5.0), *[(1.0, 0.0)] * 24) == pytest.approx(1.0 / 5.0)
    assert spread((1.0, 5.0), *[(1.0, -1.0)] * 24) == pytest.approx(1.0 / 5.0)  # up the slope of this batch
    assert spread((2.0, 6.0), (1.0, 1.0)) == pytest.approx(7.0 / math.sqrt(10.0 * 5.0))


def test_frozen_tensors_say_nothing_of_the_spread_and_without_a_slope_nothing_does():
    assert spread((1.0, 2.0), (0.0, 0.0)) == pytest.approx(1.0)
    assert math.isnan(spread((1.0, 0.0)))
    assert math.isnan(spread((0.0, 0.0)))


def test_the_spread_of_an_update_does_not_depend_on_the_lr():
    torch.manual_seed(0)
    spreads = []
    for lr in (1e-4, 1e-6):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        meter = UpdateMeter(torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0), [1.0])
        meter.arm()
        model(torch.randn(8, 6, dtype=torch.float64)).square().sum().backward()
        meter.optimizer.step()
        spreads.append(meter.updates[0].spread)
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-6)
    assert 0.5 < spreads[0] < 1.0


OF_TRAINED = 1.0 + 0.05 * torch.randn(8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize(
    ("vectors", "new", "trained"),
    [
        ([torch.ones(8), torch.ones(8) + 1e-5], 2, 0),  # the second one has moved in the first measured step
        ([torch.ones(8), torch.full((8,), 1e-2)], 1, 0),  # a layer's scale
        ([torch.full((8,), 0.5)], 0, 0),
        ([torch.ones(8), OF_TRAINED, -OF_TRAINED], 1, 2),
        ([torch.zeros(8), torch.linspace(-1.0, 1.0, 8), torch.ones(1)], 0, 0),  # biases
        ([torch.ones(8, 8), torch.ones(8).bfloat16()], 1, 0),
    ],
)
def test_norms_tell_whether_they_are_new_also_in_shares(vectors, new, trained, shares):
    """A matrix that processes share out is known to be one only where its numbers are not of one sign."""
    layers = torch.zeros(len(vectors), 7, dtype=torch.float64)
    for vector, layer in zip(vectors, layers, strict=True):
        for share in vector.chunk(shares):
            layer += sums_of(share, 0.9 * share, share, 0.1)[_OWN]
    assert kinds_of_norms(layers) == {"new_norms": new, "trained_norms": trained}


def test_what_single_tensors_tell_is_in_the_unit_of_the_lr():
    layers = torch.tensor([[4.0, 1.0, 2.0, 0.0, 0.0, 4.0, 4.0]], dtype=torch.float64)
    norms = {"new_norms": 1.0, "trained_norms": 0.0}
    expected = {"layer_trust": 0.2, "scale_invariant": 0.0, "spread": 1.0, **norms}
    assert told_by(layers, 0.1) == pytest.approx(expected)
