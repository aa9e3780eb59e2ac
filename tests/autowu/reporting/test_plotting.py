from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import get_schedule

from autowu_hf import plot_autowu
from autowu_hf.autowu.reporting.report import headline
from autowu_hf.autowu.reporting.report_file import write_report


def run(losses, steps: int, total: int = 200, ticks: int = 1, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = get_schedule(optimizer, total * ticks, **options)
    if ticks > 1:
        scheduler.prepared(ticks, [optimizer])
    for i in range(steps):
        optimizer.step()
        for _ in range(ticks):
            scheduler.step(float(losses[min(i, len(losses) - 1)]))
    return scheduler


def dip(count: int = 100) -> np.ndarray:
    s = np.arange(count) / count
    noise = 0.02 * np.random.default_rng(0).standard_normal(count)
    return 2.0 - 1.5 * np.exp(-(((s - 0.6) / 0.3) ** 2)) + noise


@pytest.fixture(scope="module", params=["minimum", "cliff"])
def finished(request):
    return run(dip(), 200, peak_rule=request.param)


def marks(axes) -> dict[str, float]:
    """The vertical lines of a panel."""
    lines = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
    return {line.get_label(): line.get_xdata()[0] for line in lines if not line.get_label().startswith("_")}


def shaded(axes) -> list[tuple[float, float]]:
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]


def rows_of(figure):
    """The panels of the warm-up and of what follows, as they stand."""
    columns = sorted({round(axes.get_subplotspec().colspan.start) for axes in figure.axes})
    return [[axes for axes in figure.axes if axes.get_subplotspec().colspan.start == column] for column in columns]


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


def test_a_minimum_that_no_test_was_sure_of_is_not_drawn(finished):
    report = {**finished.report(), "ended_by": "cap", "minimum_step": finished.switch_step, "cliff_lr": None}
    assert "minimum t*" not in marks(plot_autowu(report).axes[0])


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
