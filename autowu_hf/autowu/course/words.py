"""What is said of a course; all steps here are optimizer steps."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

from ...runtime import collective
from ..settings import AutoWUSettings
from .approach import Approach
from .breaks import ABOVE, LOST, NO_LOWER, NOT_FINITE, RISEN, THIN, UNLEARNED
from .later.transient import MOST_RISEN
from .measures.bounds import begins_steep
from .measures.first_steps import is_without_bound
from .signs import FEWEST_STEPS

logger = logging.getLogger(__name__)

TOO_SHORT = "the {} is too short to measure the scale and to train"
"""Of a run, or of a warm-up that was asked for."""


def say(*lines: str) -> None:
    """Says something on the main process."""
    for words in lines if collective.is_main_process() else ():
        logger.info("%s", words)


def announcement(approach: Approach | None, settings: AutoWUSettings, steps: int, cap: int, rewinds: bool) -> str:
    """What will be done, in one line.

    Args:
        approach: None where the range of the LRs was given.
        settings: the options.
        steps: of the whole run.
        cap: of the longest growth over a range.
        rewinds: whether weights can be put back.
    """
    back = "the weights then go back" if rewinds else "only the learning rate goes back then, for rewind is off"
    if approach is None or approach.is_over:
        names = [name for name in ("min_lr", "max_lr") if getattr(settings, name) != getattr(type(settings), name)]
        given = f" without the scale, since {' and '.join(names)} was given," if names else ""
        return (
            f"AutoWU looks for the learning rate from {settings.min_lr:g} to {settings.max_lr:g}{given} within "
            f"{cap} of {steps} steps. The loss may rise on the way; {back}"
        )
    first = approach.search.num_first
    end = approach.times.ramp_end(first)
    last = approach.times.look_end(end)
    said = f"AutoWU measures the scale of the learning rate in the first {first} of {steps} steps"
    if steps >= FEWEST_STEPS:
        said += f", grows to it by step {end}, and watches the losses until step {last} or so"
        return f"{said}. The loss may rise on the way; {back}"
    judged = approach.times.judge_end(end + 1) if rewinds else None
    if judged is not None:
        said += f", grows to it by step {end}, and may ask the batches until step {judged} whether that was too far"
        return f"{said}; where it was, the weights go back"
    return f"{said}, and grows to it"


def resumption(steps: int, lr: float, step: int, max_lr: float, end: int) -> str:
    """How a growth goes on that was planned for another run than the one of ``steps`` steps: from ``lr`` at ``step`` to
    ``max_lr`` at ``end``.
    """
    return (
        f"AutoWU goes on with a growth that was planned for another run than this one of {steps} steps: from learning "
        f"rate {lr:.1e} at step {step} to {max_lr:.1e} at step {end}"
    )


def no_scale(obstacle: str | None, settings: AutoWUSettings) -> str:
    """Why there is no scale, and what is done instead."""
    of_policy = (
        "; if it is a likelihood, that is well; if it is the loss of a policy gradient, which says nothing of "
        "progress, what it finds there means nothing: give max_lr, or use another schedule"
    )
    return (
        f"AutoWU cannot tell the scale of the learning rate: {obstacle}; it looks from {settings.min_lr:g} to "
        f"{settings.max_lr:g} instead{of_policy if is_without_bound(obstacle) else ''}"
    )


def events(approach: Approach) -> tuple[int, ...]:
    """How often each of the things has happened that ``news`` tells."""
    later, is_unasked = approach.later, int(approach.later.asked.unasked is not None)
    breaks, changes, raises = approach.breaks.steps, approach.breaks.changes, approach.way.raises
    has_raised = int(approach.transient.raised_at is not None)
    return (
        len(breaks),
        len(changes),
        int(approach.way.is_held),
        len(raises),
        is_unasked,
        len(later.factors),
        len(later.overshoot.found),
        has_raised,
    )


def news(approach: Approach, before: tuple[int, ...], step: int) -> Iterator[str]:
    """What has happened, a line each.

    Args:
        approach: after ``step`` steps.
        before: its ``events`` before.
        step: the steps done.
    """
    breaks, changes, is_held, raises, is_unasked, factors, overshoots, transients = (
        now > then for now, then in zip(events(approach), before, strict=True)
    )
    if breaks or approach.stalled == step:
        yield _setback(approach, step)
    if overshoots:
        yield _overshoot(approach, step)
    if changes:
        yield _change(approach, step)
    if is_held:
        yield _hold(approach)
    if is_unasked:
        yield _doubt(approach)
    if raises:
        yield _raise(approach, step)
    if factors:
        yield _correction(approach, step)
    if transients:
        yield _transient(approach, step)


_SETBACKS = {
    RISEN: "have risen far above their start",
    NOT_FINITE: "are not finite",
    LOST: "have given back half or more of what had been learned",
    ABOVE: "lie above their start",
    UNLEARNED: "have not fallen",
    THIN: "have not fallen, and most tensors hardly had a gradient",
    NO_LOWER: "are no lower than when the learning rate was raised, so that this was no transient",
}
_WERE = {
    RISEN: "a tenth of it since the losses rose too far",
    NOT_FINITE: "a tenth of it since the losses were not finite",
    LOST: "a third of it since the losses had given back what had been learned",
    ABOVE: "a third of it since the losses lay above their start",
    UNLEARNED: "a tenth of it since the losses had not fallen",
    THIN: "lowered since nothing had been learned and most tensors hardly had a gradient",
    NO_LOWER: "back to it since the losses were no lower",
}


def _setback(approach: Approach, step: int) -> str:
    """Why the run goes back after ``step`` steps, to grow again to a lower LR."""
    found = approach.later.ruined.found
    as_large = "" if found is None else f", and many gradients are {found[1]:.2g} times as large as at first"
    seen = f"have not fallen{as_large}" if approach.stalled == step else _SETBACKS[approach.breaks.reasons[-1]]
    asks = ". Is what is handed over a loss, which is to fall?" if approach.breaks.reasons == [RISEN, RISEN] else ""
    return (
        f"AutoWU: by step {step} the losses {seen}, at learning rate {approach.way.legs[-2].lr(step - 1):.1e}; it "
        f"grows again, to at most {approach.way.peak_lr:.1e}{asks}"
    )


def setbacks(steps: Sequence[int], reasons: Sequence[str] | None) -> str:
    """Why the LR is a part of the scale's, as parts of a sentence.

    Args:
        steps: the steps done at each break.
        reasons: one of each; None in a report of a release that knew one only.
    """
    pairs = itertools.groupby(zip(steps, reasons or [RISEN] * len(steps), strict=True), key=lambda pair: pair[1])
    parts = [(reason, " and again by step ".join(str(step) for step, _ in own)) for reason, own in pairs]
    return "".join(f", {_WERE[reason]} by step {told}" for reason, told in parts)


def _overshoot(approach: Approach, step: int) -> str:
    """Why the run goes back although the losses hardly show it."""
    _, rise = approach.later.overshoot.found[-1]
    seen = f"the losses up to step {step} are not finite"
    if rise is not None:
        seen = f"the gradients up to step {step} say that the way so far has raised the loss by {100.0 * rise:.0f} %"
    return (
        f"AutoWU: {seen}, at learning rate {approach.way.legs[-2].lr(step - 1):.1e}; it grows again, to at most "
        f"{approach.way.peak_lr:.1e}"
    )


def _change(approach: Approach, step: int) -> str:
    """That a setback was none, as ``step`` steps show."""
    return (
        "AutoWU: the losses are as high with the weights from before, so that it is the loss that has changed; from "
        f"step {step} on the learning rate grows to {approach.way.peak_lr:.1e} again, and the losses count from there"
    )


def _hold(approach: Approach) -> str:
    """Why the LR does not grow to the scale's yet."""
    way = approach.way
    return (
        "AutoWU: P is so far below R that the first gradients may be nearly all noise; the learning rate stays at "
        f"{way.held * way.peak_lr:.1e} until the batches up to step {way.watch_end} have been asked, or as many more"
    )


def _raise(approach: Approach, step: int) -> str:
    """Why the LR grows on to the scale's, or to more."""
    goes, seen = f"the learning rate goes on to {approach.way.peak_lr:.1e}", approach.later.asked.lasting
    if seen is None:
        return f"AutoWU: {goes}"
    rest = ", the rest was noise" if approach.way.raised > 1.0 else ""
    return (
        f"AutoWU: the batches up to step {step} see {lasting(seen)} of the fall that the first updates promised{rest}; "
        f"{goes}"
    )


def _correction(approach: Approach, step: int) -> str:
    """Why the LR is another one from now on."""
    far = "farther" if approach.later.factors[-1] < 1.0 else "less far"
    found = f"the steps take the weights {far} than the first updates promised"
    if approach.later.factors[-1] > 1.0 and approach.scale is not None and approach.scale.has_small_weights:
        found = "the weights, which began small, have grown and allow more"
    return f"AutoWU: by step {step} {found}; the learning rate goes to {approach.way.peak_lr:.1e}"


def _transient(approach: Approach, step: int) -> str:
    """Why the LR grows on although the losses have halved at the scale's, or a model from scratch began steeply."""
    found = times(approach.transient.kept, approach.transient.risen)
    is_steep = approach.scale is not None and begins_steep(approach.scale)
    seen = f"by step {step}" if is_steep else f"the losses have fallen to half by step {step}, but"
    return (
        f"AutoWU: {seen} P, which falls with what is learned, is {found} what it was, so that "
        f"{'the steep beginning of a model from scratch is over' if is_steep else 'this was a transient'}; the "
        f"learning rate grows on to {approach.way.peak_lr:.1e}"
    )


def _doubt(approach: Approach) -> str:
    """That the scale may be too low, and why nobody could tell."""
    return (
        "AutoWU: P is so far below R that the first gradients may be nearly all noise, and the learning rate far too "
        f"low; later batches cannot tell, for {approach.later.asked.unasked}"
    )


def lasting(share: float | None) -> str:
    """The share of the promised fall that lasts, in percent."""
    if share is None or share < 1e-3:
        return "nothing"
    return "all" if share > 0.99 else f"{100.0 * share:.2g} %"


def times(kept: float | None, risen: float | None) -> str:
    """What is left of P, which may be more where it has risen, per unit of LR, by ``MOST_RISEN``: then no more is told
    apart.
    """
    is_least = risen is None or risen >= MOST_RISEN
    return f"{kept or 0.0:.2g} {'or more ' if is_least else ''}times"
