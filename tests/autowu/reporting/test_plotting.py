from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from pictures import dip, marks, rows_of, run, shaded
from scale_runs import made
from scale_runs import run as lose

from autowu_hf import plot_autowu
from autowu_hf.autowu.reporting.report import headline
from autowu_hf.autowu.reporting.report_file import write_report


@pytest.fixture(scope="module", params=["minimum", "cliff"])
def finished(request):
    return run(dip(), 200, peak_rule=request.param)


def test_shows_the_lr_the_losses_the_gp_and_the_tests(finished, tmp_path):
    figure = plot_autowu(finished, tmp_path / "picture.png")
    (lr_axes, loss_axes, test_axes), (later_lr, _, _) = rows_of(figure)
    assert lr_axes.get_yscale() == "log"
    warmup, decay = lr_axes.lines[:2]
    switch = finished.switch_step
    assert warmup.get_ydata() == pytest.approx([1e-5 * 1e5 ** (t / 100) for t in range(switch)])
    assert decay.get_xdata()[0] == switch
    assert decay.get_ydata()[0] == finished.peak_lr
    assert later_lr.get_xlim() == (switch, 200)
    expected = {"minimum t*": finished.minimum_step, "switch": switch, "weights restored": finished.rewound_to}
    if finished.peak_rule == "cliff":
        expected["cliff"] = finished.cliff_step
    for axes in (lr_axes, loss_axes, test_axes):
        assert marks(axes) == expected
        assert shaded(axes) == [(finished.rewound_to, switch)]
    gp = next(line for line in loss_axes.lines if line.get_label().startswith("Gaussian"))
    lowest = gp.get_xdata()[np.argmin(gp.get_ydata())]
    assert lowest == pytest.approx(finished.minimum_step, abs=3)
    assert np.interp(30, gp.get_xdata(), gp.get_ydata()) == pytest.approx(2.0 - 1.5 * math.exp(-1.0), abs=0.05)
    assert test_axes.get_ylabel() == f"probability\nof the {finished.peak_rule}"
    points = [line for line in test_axes.lines if line.get_marker() == "o"]
    assert len(points) == len(finished.tests)
    filled = [line.get_markerfacecolor() != "white" for line in points]
    assert filled == [record.positive for record in finished.tests]
    width, height = figure.get_size_inches() * figure.dpi
    assert (width, height) == (800, 720)
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_warm_up_and_the_legend_have_room_of_their_own():
    """A warm-up of 100 of 2000 steps takes half of the width, and the legend covers no panel."""
    scheduler = run(dip(), 100, 2000, max_warmup_fraction=0.05)
    report = {**scheduler.report(), "logged_losses": [[1900, 0.2], [2000, 0.1]]}
    for source in (scheduler, report):
        figure = plot_autowu(source)
        figure.draw_without_rendering()
        left, right = rows_of(figure)
        widths = [panels[0].get_window_extent().width for panels in (left, right)]
        assert widths[0] >= 0.9 * widths[1]
        assert left[0].get_xlim()[1] < 1.05 * scheduler.switch_step
        legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
        assert len(legends) == 1
        box = legends[0].get_window_extent()
        drawn = [axes for axes in figure.axes if axes.axison]
        assert not any(box.overlaps(axes.get_window_extent()) for axes in drawn)


def test_where_nothing_was_found_the_picture_says_so_and_marks_no_minimum():
    noise = 1.0 + 0.1 * np.random.default_rng(1).standard_normal(100)
    scheduler = run(noise, 200, scale=False)
    assert scheduler.ended_by == "nothing"
    figure = plot_autowu(scheduler)
    assert figure.get_suptitle().replace("\n", " ") == headline(scheduler.report())
    assert "the losses told nothing" in figure.get_suptitle()
    assert marks(figure.axes[0]) == {"switch": scheduler.switch_step, "weights restored": scheduler.rewound_to}


def test_two_scheduler_steps_per_optimizer_step_draw_the_same_picture():
    one, two = (plot_autowu(run(dip(), 200, ticks=ticks)) for ticks in (1, 2))
    assert one.get_suptitle() == two.get_suptitle()
    assert marks(two.axes[0]) == pytest.approx(marks(one.axes[0]), abs=1)
    assert [axes.get_xlim() for axes in two.axes] == [axes.get_xlim() for axes in one.axes]


def test_a_file_draws_the_same_picture(finished, tmp_path):
    write_report(finished.report(), tmp_path / "autowu.json")
    of_run, of_file = (plot_autowu(source) for source in (finished, tmp_path / "autowu.json"))
    assert of_run.get_suptitle() == of_file.get_suptitle()
    for ours, theirs in zip(of_run.axes, of_file.axes, strict=True):
        for one, other in zip(ours.lines, theirs.lines, strict=True):
            assert np.array_equal(one.get_xydata(), other.get_xydata())


@pytest.mark.parametrize(
    "losses",
    [
        [],
        [1.0],
        np.linspace(2.0, 1.0, 60),
        np.full(60, 3.0),
        np.where(np.arange(60) > 30, np.nan, 1.0),
        np.full(60, np.nan),
        np.exp(np.arange(60.0)),
    ],
)
def test_every_stage_of_a_run_can_be_drawn(losses, tmp_path):
    scheduler = run(losses, len(losses))
    is_all_finite = len(losses) > 0 and np.isfinite(losses).all()
    figure = plot_autowu(scheduler, None if is_all_finite else tmp_path / "picture.png")  # saving takes a second
    columns = rows_of(figure)
    assert len(columns) == (1 if scheduler.switch_step is None else 2)
    assert len(columns[0]) == (3 if scheduler.tests else 2)


def test_a_run_of_one_step_can_be_drawn():
    """Without matplotlib's warning of an axis that has no length."""
    model, optimizer, schedule = made(1)
    lose(model, optimizer, schedule, [1.0])
    assert all(len(row[0].lines) > 0 for row in rows_of(plot_autowu(schedule))[:1])


def test_a_report_of_a_finished_run_shows_later_losses(finished):
    report = {**finished.report(), "logged_losses": [[10, 5.0], [150, 0.2], [200, 0.1]]}
    axes = rows_of(plot_autowu(report))[1][1]
    later = next(line for line in axes.lines if line.get_label() == "logged loss")
    assert later.get_xdata().tolist() == [150, 200]
    assert axes.get_ylim()[0] < 0.1


def test_without_matplotlib_the_error_names_the_remedy(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot_autowu needs matplotlib; install it with: pip install matplotlib"):
        plot_autowu(finished)


def test_what_has_no_report_is_refused_and_a_prepared_schedule_is_drawn(finished):
    assert plot_autowu(SimpleNamespace(scheduler=finished)).axes
    with pytest.raises(TypeError, match=r"draws an AutoWU schedule .* got NoneType; pass the scheduler"):
        plot_autowu(None)
