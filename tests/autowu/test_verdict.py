from __future__ import annotations

import dataclasses
import math

import pytest

from autowu_hf.autowu.settings import AutoWUSettings
from autowu_hf.autowu.verdict import MinimumTestRecord, has_passed, is_inconclusive, is_positive, minimum_passed

TWO = AutoWUSettings(patience=2)


def record(positive=False, step=0, p_min=0.7, spike_at_end=False, diverged=False):
    return MinimumTestRecord(
        step=step,
        num_losses=step,
        p_min=[p_min] * 5,
        minimum_step=0.0,
        p_cliff=[0.0] * 5,
        cliff_step=0.0,
        gain=1.0,
        positive=positive,
        diverged=diverged,
        above=False,
        spike_at_end=spike_at_end,
        outputscale=1.0,
        noise=1.0,
        mean=0.0,
    )


def test_a_record_is_sent_as_numbers():
    sent = dataclasses.replace(record(positive=True, step=7), p_min=[0.1, 0.2], p_cliff=[0.3, math.nan])
    numbers = sent.to_numbers()
    assert len(numbers) == MinimumTestRecord.count_numbers(num_tests=2)
    assert all(type(number) is float for number in numbers)
    came = MinimumTestRecord.from_numbers(numbers)
    assert repr(came) == repr(sent)  # types and NaN, too


def test_more_than_half_of_the_subsets_must_be_confident():
    assert is_positive([0.96, 0.99, 0.951, 0.1, 0.94], TWO)
    assert not is_positive([0.96, 0.99, 0.95, 0.1, 0.94], TWO)


def test_patience_counts_positive_tests_in_a_row():
    records = []
    for positive, passed in ((True, False), (False, False), (True, False), (True, True)):
        records.append(record(positive))
        assert has_passed(records, TWO, span=0) == passed


def test_a_test_without_its_newest_loss_does_not_count():
    spike = record(False, spike_at_end=True)
    assert is_inconclusive(spike)
    assert not is_inconclusive(record(True, spike_at_end=True))
    assert not has_passed([record(True), spike], TWO, span=0)
    assert has_passed([record(True), spike, record(True, spike_at_end=True)], TWO, span=0)


def test_the_positive_tests_must_span_long_enough():
    records = [record(False, 10), *[record(True, step) for step in range(20, 60, 10)]]
    assert has_passed(records, TWO, span=30)
    assert not has_passed(records, TWO, span=31)
    records.insert(3, record(False, 35))
    assert not has_passed(records, TWO, span=30)
    assert has_passed([*records[:2], record(False, 61, diverged=True)], TWO, span=30)
    assert not has_passed([], TWO, span=0)


@pytest.mark.parametrize(
    ("probabilities", "found"),
    [
        ([0.2, 0.7, 0.96, 0.97, 0.99, 0.6, 0.7], 3),  # it is not seen so clearly later, but stays
        ([0.2, 0.96, 0.3, 0.97, 0.6, 0.98], None),
        ([0.96, 0.97, 0.99, 0.4, 0.96, 0.97], 5),  # the loss came back to its minimum: the first was none
        ([0.96, 0.97, 0.99, 0.51, 0.96, 0.97], 1),
        ([0.96, 0.97, 0.99, 0.49], None),
        ([], None),
    ],
)
def test_the_minimum_had_passed_by_the_first_test_since_which_the_loss_stays_above_it(probabilities, found):
    records = [record(p_min=p) for p in probabilities]
    passed = minimum_passed(records, TWO)
    assert passed is None if found is None else passed is records[found]


def test_no_probability_says_nothing():
    assert minimum_passed([record(p_min=math.nan)] * 3, TWO) is None
