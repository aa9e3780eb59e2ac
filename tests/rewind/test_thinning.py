from __future__ import annotations

import pytest

from autowu_hf.rewind.thinning import FEWEST, LR_FACTOR, MOST, last_below, limit_for, order_of_return, spacing, to_drop

LRS = [1.0, 2.0, 2.2, 4.0, 8.0, 16.0, 32.0, 64.0]


def test_the_limit_grows_with_the_band_up_to_the_most():
    assert limit_for(1.0, looks_on=True) == 5
    assert limit_for(1.5, looks_on=True) == 6
    assert limit_for(1.6, looks_on=True) == 7
    assert limit_for(1e9, looks_on=True) == MOST
    assert limit_for(1.0, looks_on=False) == limit_for(1e9, looks_on=False) == 8


@pytest.mark.parametrize("limit", range(FEWEST, MOST + 1))
@pytest.mark.parametrize("band", [1.0, 3.0, 50.0, 1e4])
def test_the_band_holds_no_more_snapshots_than_may_exist(band, limit):
    factor = spacing(band, limit)
    assert factor >= LR_FACTOR
    inside = max(limit - (5 if limit >= 7 else 4), 1)
    assert factor**inside >= band * (1 - 1e-12)
    if factor > LR_FACTOR:  # and is no larger than that takes
        assert factor**inside == pytest.approx(band)


def test_the_last_snapshot_below_an_lr():
    assert last_below(LRS, 4.0) == 3
    assert last_below(LRS, 7.9) == 3
    assert last_below(LRS, 100.0) == 7
    assert last_below(LRS, 0.5) == 0
    assert last_below([1.0, 3.0, 2.0], 2.0) == 2


def test_nothing_is_dropped_while_there_is_room():
    assert to_drop(LRS, 9, [64.0], 16.0) == []
    assert to_drop([], 4, [1.0], 1.0) == []


@pytest.mark.parametrize(
    ("limit", "dropped"),
    [
        (8, [2]),  # 4.0 / 2.0 is the smallest ratio of two neighbours
        (7, [2, 1]),  # now 4.0 / 1.0 and 8.0 / 2.0 are alike: the older one
        (6, [2, 1, 4]),
        (5, [2, 1, 4, 3]),
        (4, [2, 1, 4, 3, 0]),  # the start, which no longer has its place
    ],
)
def test_first_those_below_the_lowest_lr_with_the_closest_neighbours(limit, dropped):
    assert to_drop(LRS, limit, [64.0], 16.0) == dropped


def test_a_wanted_snapshot_stays():
    assert to_drop(LRS, 8, [2.3], 16.0) == [1]
    assert to_drop(LRS, 7, [2.3, 5.0], 16.0) == [1, 4]


def test_then_the_oldest_that_nothing_wants_and_then_the_oldest():
    assert to_drop(LRS, 8, [64.0], 0.5) == [1]  # all are in the band, and the start has its place
    assert to_drop(LRS, 6, [64.0], 0.5) == [0, 1, 2]
    assert to_drop(LRS[:4], 4, LRS[:4], 16.0) == [0]


def test_without_a_lowest_lr_the_band_starts_at_the_lowest_wanted_one():
    assert to_drop(LRS, 8, [4.0, 32.0], None) == [2]
    assert to_drop(LRS, 5, [4.0, 64.0], None) == [2, 1, 0, 4]


@pytest.mark.parametrize("limit", range(FEWEST, MOST + 1))
@pytest.mark.parametrize("band", [3.0, 50.0])
def test_along_a_warm_up_every_lr_of_the_band_has_a_snapshot_closely_below(band, limit):
    growth, factor = 1.02, spacing(band, limit)
    lrs, due = [], 0.0
    for step in range(700):
        lr = growth**step
        if lr >= due:
            lrs.append(lr)
            dropped = to_drop(lrs, limit, [lr / 2], lr / band)
            lrs = [lr for i, lr in enumerate(lrs) if i not in dropped]
            due = factor * lr
        assert len(lrs) < limit
        assert lrs == sorted(lrs)
        assert limit < 7 or lrs[0] == 1.0
        for share in (1.0, 0.7, 1.01 / band):
            wanted = max(lr * share, 1.0)
            assert lrs[last_below(lrs, wanted)] <= wanted
            assert lrs[last_below(lrs, wanted)] > wanted / factor / growth


def test_the_order_of_return_is_down_from_the_highest_lr_and_then_up():
    assert order_of_return(LRS, 4.0, start_lr=1.0) == [3, 2, 1, 0, 4, 5, 6, 7]
    assert order_of_return(LRS, 1e3, start_lr=1.0) == [7, 6, 5, 4, 3, 2, 1, 0]
    assert order_of_return(LRS, 0.5, start_lr=0.5) == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("highest", "start", "first"),
    [
        (1.4, 1.0, 1),  # 2.0 is within the factor of 1.4
        (1.3, 1.0, 0),  # and not of 1.3
        (1.9, 1.0, 1),  # 2.2 is within the factor too, but one step from the start is enough
        (1.4, 0.5, 0),  # the first snapshot is not of the start
    ],
)
def test_the_snapshot_after_the_start_will_do_if_it_saw_little_more(highest, start, first):
    order = order_of_return(LRS, highest, start)
    assert order[0] == first
    assert sorted(order) == list(range(len(LRS)))
