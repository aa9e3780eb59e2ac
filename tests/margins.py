"""Assertions about trained models, and how far each one is from failing.

Rounding differs from processor to processor and training amplifies it, so what a test asserts about a trained model has
to hold by a wide margin. Where the environment variable ``MARGINS`` names a file, every assertion here appends a line
of JSON to it: the test's id, the value, the bound, and the margin, their distance as a share of a reference.
``python tests/margins.py FILE`` lists the smallest margin of each test.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path


def assert_below(value: float, bound: float, reference: float) -> None:
    """``value < bound``.

    Args:
        value: what came out of the training.
        bound: what it may not reach.
        reference: positive, in the unit of both: what training gained, or another distance that the value can move by.
    """
    _record(value, bound, (bound - value) / reference)
    assert value < bound, f"{value} is not below {bound}"


def assert_above(value: float, bound: float, reference: float) -> None:
    """``value > bound``; the arguments are those of ``assert_below``."""
    _record(value, bound, (value - bound) / reference)
    assert value > bound, f"{value} is not above {bound}"


def assert_learned(end: float, start: float, share: float) -> None:
    """A loss fell by more than a share of what it was; the reference is what it fell by.

    Args:
        end: the loss of the trained model.
        start: the loss of one that has learned nothing.
        share: of ``start``; large enough that a model that learns nothing fails in spite of its noise.
    """
    assert_below(end, (1.0 - share) * start, max(start - end, 1e-3 * start))


def assert_close(values: Iterable[float], expected: Iterable[float], tolerance: float) -> None:
    """Two runs gave the same numbers but for rounding; the reference is the tolerance, which is absolute."""
    worst = max((abs(a - b) for a, b in zip(values, expected, strict=True)), default=0.0)
    assert_below(worst, tolerance, tolerance)


def _record(value: float, bound: float, margin: float) -> None:
    path = os.environ.get("MARGINS")
    if path:
        test, _, _ = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "value": value, "bound": bound, "margin": margin}) + "\n")


if __name__ == "__main__":
    smallest: dict[str, float] = {}
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        seen = json.loads(line)
        smallest[seen["test"]] = min(seen["margin"], smallest.get(seen["test"], float("inf")))
    for name, least in sorted(smallest.items(), key=lambda item: item[1]):
        print(f"{least:6.2f}  {name}")
