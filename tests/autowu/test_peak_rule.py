from __future__ import annotations

import pytest

from autowu_hf.autowu.peak_rule import peak_lr


@pytest.mark.parametrize(
    ("rule", "at_cap", "minimum_lr", "cliff_lr", "expected"),
    [
        ("minimum", False, 0.02, 1.0, 0.02),
        ("minimum", True, 0.02, 1.0, 0.015),
        ("cliff", False, 0.02, 0.1, 0.01),  # half of the LR at the minimum
        ("cliff", False, 0.08, 0.1, 0.02),  # a fifth of the LR at the cliff
        ("cliff", False, 0.5, 0.5, 0.1),
        ("cliff", True, 0.5, 0.5, 0.015),  # three hundredths of the LR at the cap
        ("cliff", False, 1e-5, 2e-5, 1e-5),  # never below where it started
    ],
)
def test_the_peak_is_the_lowest_of_what_the_rule_allows(rule, at_cap, minimum_lr, cliff_lr, expected):
    assert peak_lr(rule, at_cap, minimum_lr, cliff_lr, last_lr=0.5, lowest_lr=1e-5) == pytest.approx(expected)
