"""What is said of an attempt to go back after the switch; in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .attempt import Attempt


def line(attempt: Attempt, num: int) -> str:
    """What an attempt has come to; ``num`` steps are tried with the earlier weights."""
    if attempt.end is None:
        return (
            f"AutoWU: by step {attempt.since} the losses have risen again, from {attempt.best:.4g} to "
            f"{attempt.level:.4g}; for {num} steps it tries the weights of step {attempt.back_to} at a third of the "
            "learning rate"
        )
    if not attempt.was_lost:
        weights, now = ("these", attempt.tried) if attempt.again is None else ("the later weights", attempt.again)
        return (
            f"AutoWU: the losses are at {now:.4g} with {weights}, too, so that the data or the loss had changed; it "
            f"goes on from the weights of step {attempt.since}, at the learning rate as it was"
        )
    seen = f"by step {attempt.since} the losses are not finite"
    if math.isfinite(attempt.level):
        seen = (
            f"the losses were at {attempt.tried:.4g} with the earlier weights, and are at {attempt.again:.4g} with the "
            "later ones again"
        )
    return f"AutoWU: {seen}; it goes on from the weights of step {attempt.back_to}, at a third of the learning rate"


def in_short(report: Mapping[str, Any]) -> str:
    """Where a run has gone back, by its report, as a part of a sentence; empty where it has not."""
    attempts = report.get("relapses", {"attempts": []})["attempts"]  # a report may be older than that
    said = [f"back to step {a['back_to']} at step {a['end']}, at a third of the LR" for a in attempts if a["was_lost"]]
    return "; the losses rose again: " + " and ".join(said) if said else ""
