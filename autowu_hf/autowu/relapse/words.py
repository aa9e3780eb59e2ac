"""What is said of an attempt to go back after the switch; in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...loss_curve.lost import LEAST_LOST, NOISES, error, level
from ...runtime.losses.history import Array
from .attempt import Attempt


def line(attempt: Attempt, num: int) -> str:
    """What an attempt has come to; ``num`` steps are tried with the earlier weights."""
    if attempt.end is None:
        return (
            f"AutoWU: by step {attempt.since} the losses have risen again, from {attempt.best:.4g} to "
            f"{attempt.level:.4g}; for {num} steps it tries the weights of step {attempt.back_to} at a tenth of the "
            "learning rate"
        )
    goes_on = f"it goes on from the weights of step {attempt.since}, at the learning rate as it was"
    if attempt.was_lost:
        goes_on = f"it goes on from the weights of step {attempt.back_to}, at a third of the learning rate"
    if attempt.was_cut:
        at_lr = "a third of the learning rate" if attempt.is_lowered else "the learning rate as it was"
        tried = f"AutoWU: what it tried from step {attempt.since} on is cut off at step {attempt.end}"
        return f"{tried}; it goes on from the weights of step {attempt.kept_step}, at {at_lr}"
    if math.isinf(attempt.level):
        return f"AutoWU: by step {attempt.since} the losses are not finite; {goes_on}"
    if attempt.was_lost:
        return (
            f"AutoWU: the losses were at {attempt.tried:.4g} with the earlier weights, at {attempt.again:.4g} with the "
            f"later ones again, and are at {attempt.last:.4g} with the earlier ones; {goes_on}"
        )
    seen = f"at {attempt.tried:.4g} with these, too, so that going back does not help"
    if attempt.last is not None:
        seen = f"at {attempt.last:.4g} with the earlier weights as well by now, so that these are no better for long"
    elif attempt.again is not None:
        seen = f"at {attempt.again:.4g} with the later weights, too, by now, so that they fall again by themselves"
    return f"AutoWU: the losses are {seen}; {goes_on}"


def unlearned_line(step: int, num_steps: int, first: float, last: Array, peak_lr: float) -> str:
    """What is said where the losses have not fallen by a twentieth after ``step`` of ``num_steps`` steps, from the
    level ``first`` to that of the ``last`` ones (n,). A ``max_lr`` is no remedy: over its range, losses that tell
    nothing leave the optimizer's LR.
    """
    now, is_noisy = level(last), NOISES / 2.0 * error(last, len(last)) > LEAST_LOST * abs(first)
    learned = "hardly any progress" if now < first else "no progress"
    seen = f"{learned} that could be seen through their noise" if is_noisy else learned
    return (
        f"AutoWU: by step {step} of {num_steps} the losses show {seen}: they began at {first:.4g}, and are "
        f"at {now:.4g}. If there is more to learn, look at the data and the labels, and try a tenth of the peak LR, "
        f"{0.1 * peak_lr:.1e}, or ten times it, {10.0 * peak_lr:.1e}, as the optimizer's learning rate with another "
        "schedule, rex or cosine"
    )


def in_short(report: Mapping[str, Any]) -> str:
    """Where a run has gone back, by its report, and whether it has learned next to nothing, as a part of a sentence;
    empty where neither is so.
    """
    attempts = report.get("relapses", {"attempts": []})["attempts"]  # a report may be older than that
    lost = [attempt for attempt in attempts if attempt["was_lost"]]
    back = [f"back to step {a['back_to']} at step {a['taken_at']}, at a third of the LR" for a in lost]
    said = "; what was learned was lost again: " + " and ".join(back) if back else ""
    unlearned = report.get("relapses", {}).get("unlearned")
    if unlearned is not None:
        said += f"; by step {unlearned} the losses had not been seen to fall by a twentieth"
    return said
