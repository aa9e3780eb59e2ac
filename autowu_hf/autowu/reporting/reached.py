"""The LRs that a warm-up has reached; all steps are scheduler steps, ``ticks`` of them an optimizer step."""

from __future__ import annotations

from ..course.course import Course


def last_lr(course: Course, step: int, ticks: int) -> float:
    """The LR of the warm-up that ended after ``step`` steps, or is there."""
    if course.scale is None or course.base_lr is not None:
        return course.curve.warmup(step - course.sweep_start)
    return course.lr(max(step - ticks, 0))


def highest_lr(course: Course, switch_step: int | None, ticks: int) -> float | None:
    """The highest LR that a step under tests was made with, that of the last one; without tests, that any step was made
    with. None before the switch.
    """
    if switch_step is None:
        return None
    approach = course.approach
    if approach is not None and approach.way.legs and approach.sweep is None and approach.scale is not None:
        return approach.way.highest_lr(switch_step // ticks)
    return course.curve.warmup(max(switch_step - ticks - course.sweep_start, 0))
