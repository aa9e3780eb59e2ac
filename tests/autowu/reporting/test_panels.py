"""What the panels of the picture show."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from pictures import dip, marks, run, shaded

from autowu_hf import plot_autowu
from autowu_hf.autowu.reporting.panels import draw_losses, draw_marks
from autowu_hf.autowu.reporting.report import headline


def test_the_peak_comes_from_the_lr_at_the_cliff_that_is_drawn():
    scheduler = run(dip(), 200)
    cliff_lr = scheduler.report()["cliff_lr"]
    assert scheduler.minimum_step < scheduler.cliff_step < scheduler.switch_step
    minimum_lr = 1e-5 * 1e5 ** ((scheduler.minimum_step - 1) / 100)
    assert scheduler.peak_lr == pytest.approx(min(0.2 * cliff_lr, 0.5 * minimum_lr))
    lr_axes = plot_autowu(scheduler).axes[0]
    assert f"{cliff_lr:.2g} at the cliff" in [text.get_text() for text in lr_axes.texts]
    diamond = next(line for line in lr_axes.lines if line.get_marker() == "D")
    assert diamond.get_ydata()[0] == cliff_lr


def test_all_steps_that_were_taken_back_are_shaded():
    """Those of an approach whose LR broke the run twice."""
    legs = [{"since": s, "end": s + 10, "from_lr": 0.0, "to_lr": lr} for s, lr in ((2, 1e-1), (20, 1e-2), (42, 1e-3))]
    approach = {"scale": {"lr": 0.1}, "sweep": None, "legs": legs, "first_lr": 1e-5, "num_lost": 40, "looks": True}
    approach |= {"factor": 1.0, "breaks": [20, 42], "stalled": None, "obstacle": None}
    report = {**run(dip(), 200).report(), "tests": [], "approach": approach, "ended_by": "scale"}
    report |= {"minimum_step": None, "cliff_lr": None, "rewound_to": None, "switch_step": 60, "peak_lr": 1e-3}
    figure = plot_autowu(report)
    assert shaded(figure.axes[0]) == [(2, 20), (20, 42)]
    assert "a tenth of it since the losses rose too far by step 20 and again by step 42" in headline(report)
    assert any(text.get_text() == "scale 0.1" for axes in figure.axes for text in axes.texts)
    lost = {**report, "approach": {**approach, "num_lost": 0}}  # rewind was off
    assert shaded(plot_autowu(lost).axes[0]) == []


def test_a_minimum_that_no_test_was_sure_of_is_not_drawn():
    finished = run(dip(), 200)
    report = {**finished.report(), "ended_by": "cap", "minimum_step": finished.switch_step, "cliff_lr": None}
    assert "minimum t*" not in marks(plot_autowu(report).axes[0])


def marks_of(report) -> dict[str, float]:
    axes = Figure().subplots()
    draw_marks(axes, report)
    return marks(axes)


def test_the_minimum_is_drawn_where_the_peak_comes_from_it():
    """Over this growth the LR grows by a factor of 1e5 in 100 steps: by 2.5 in eight."""
    report = {**run(dip(), 200).report(), "minimum_step": 60, "cliff_lr": 1e-3}
    for cliff, is_drawn in ((67, False), (69, True), (60, False), (55, False)):
        shown = marks_of({**report, "cliff_step": cliff})
        assert shown["cliff"] == cliff
        assert ("minimum t*" in shown) == is_drawn
    by_minimum = {**report, "peak_rule": "minimum", "cliff_step": None, "cliff_lr": None, "switch_step": 62}
    assert marks_of(by_minimum)["minimum t*"] == 60


def test_losses_that_have_diverged_leave_the_rest_to_be_seen():
    losses = [*np.linspace(0.02, 0.01, 20), *np.linspace(0.5, 1.0, 10)]
    report = {**run(dip(), 200).report(), "tests": [], "losses": losses, "switch_step": 30}
    for ended_by, low, high in (("divergence", 0.03, 0.05), ("cliff", 0.9, 1.2)):
        axes = Figure().subplots()
        draw_losses([axes], {**report, "ended_by": ended_by})
        assert low < axes.get_ylim()[1] < high


def decay_axes(report):
    return next(axes for axes in plot_autowu(report).axes if axes.get_title().startswith("from the switch on"))


def lrs_of(axes) -> dict[float, float]:
    """Of the last steps that are drawn."""
    line = max((line for line in axes.lines if len(line.get_xdata()) > 2), key=lambda line: line.get_xdata()[-1])
    return dict(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_what_was_tried_after_the_switch_is_drawn():
    """The LR of the decay with its factors; the steps that were taken back are shaded on the right, too."""
    attempt = {"since": 120, "back_to": 100, "was_lost": True, "end": 140, "taken_at": 130}
    refuted = {"since": 150, "back_to": 100, "was_lost": False, "end": 155, "taken_at": 155}
    factors = [[120, 1 / 3], [126, 1.0], [130, 1 / 3], [150, 1 / 9], [155, 1 / 3]]
    relapses = {"attempts": [attempt, refuted], "lr_factors": factors}
    report = {**run(dip(), 200).report(), "relapses": relapses}
    right = decay_axes(report)
    assert shaded(right)[-2:] == [(100, 130), (150, 155)]
    drawn, without = lrs_of(right), lrs_of(decay_axes({**report, "relapses": {"attempts": [], "lr_factors": []}}))
    for step, factor in ((119, 1.0), (120, 1 / 3), (127, 1.0), (140, 1 / 3), (152, 1 / 9), (180, 1 / 3)):
        assert drawn[step] == pytest.approx(factor * without[step])
    assert "back to step 100 at step 130, at a third of the LR" in headline(report)
