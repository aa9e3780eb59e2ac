"""Processes with unequal numbers of batches, inside ``accelerator.join_uneven_inputs``.

There a process that has run out of batches only answers the collectives of its model, so no other collective may be
issued: minimum tests wait until the context ends, where all processes meet. They then agree on the step that the
longest of them reached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from ..runtime import collective
from ..runtime.scheduler import AdaptiveScheduler


@contextlib.contextmanager
def joined(schedulers: Sequence[AdaptiveScheduler]) -> Iterator[None]:
    """Holds the minimum tests of schedulers back while inside; brings all processes to the same step at the end.

    Args:
        schedulers: those of one accelerator.
    """
    if collective.num_processes() == 1:
        yield
        return
    for scheduler in schedulers:
        scheduler.hold_tests(True)
    try:
        yield
    finally:
        for scheduler in schedulers:
            scheduler.hold_tests(False)
    for scheduler in schedulers:  # not after an error, when the processes do not meet
        scheduler.catch_up()
