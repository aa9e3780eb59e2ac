from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import get_schedule

from autowu_hf import plot_autowu
from autowu_hf.autowu.reporting.report import write_report


def run(losses, steps: int, total: int = 200, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = get_schedule(optimizer, total, **options)
    for i in range(steps):
        optimizer.step()
        scheduler.step(float(losses[min(i, len(losses) - 1)]))
    return scheduler


@pytest.fixture(params=["minimum", "cliff"])
def finished(request):
    s = np.arange(100) / 100
    losses = 2.0 - 1.5 * np.exp(-(((s - 0.6) / 0.3) ** 2)) + 0.02 * np.random.default_rng(0).standard_normal(100)
    return run(losses, 200, peak_rule=request.param)


def test_shows_the_lr_the_losses_the_gp_and_the_tests(finished, tmp_path):
    figure = plot_autowu(finished, tmp_path / "picture.png")
    lr_axes, loss_axes, test_axes = figure.axes
    assert lr_axes.get_yscale() == "log"
    warmup, decay = lr_axes.lines[:2]
    switch = finished.switch_step
    assert warmup.get_ydata() == pytest.approx([1e-5 * 1e5 ** (t / 100) for t in range(switch)])
    assert decay.get_xdata()[0] == switch
    assert decay.get_ydata()[0] == finished.peak_lr
    labels = loss_axes.get_legend_handles_labels()[1]
    assert labels == ["training loss", "Gaussian process, 95 % band", "minimum t*", "switch", "weights taken back"]
    for axes in figure.axes:
        marks = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
        assert marks["minimum t*"] == finished.minimum_step
        assert marks["switch"] == switch
        assert marks["weights taken back"] == finished.rewound_to
    gp = next(line for line in loss_axes.lines if line.get_label().startswith("Gaussian"))
    lowest = gp.get_xdata()[np.argmin(gp.get_ydata())]
    assert lowest == pytest.approx(finished.minimum_step, abs=3)
    assert np.interp(30, gp.get_xdata(), gp.get_ydata()) == pytest.approx(2.0 - 1.5 * math.exp(-1.0), abs=0.05)
    assert test_axes.get_ylabel() == {"minimum": "P_min", "cliff": "P_cliff"}[finished.peak_rule]
    points = [line for line in test_axes.lines if line.get_marker() == "o"]
    assert len(points) == len(finished.tests)
    filled = [line.get_markerfacecolor() != "white" for line in points]
    assert filled == [record.positive for record in finished.tests]
    width, height = figure.get_size_inches() * figure.dpi
    assert (width, height) == (800, 720)
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_report_draws_the_same_picture(finished, tmp_path):
    write_report(finished.report(), tmp_path / "autowu.json")
    pictures = []
    for i, source in enumerate((finished, finished.report(), tmp_path / "autowu.json", str(tmp_path / "autowu.json"))):
        plot_autowu(source, tmp_path / f"{i}.png")
        pictures.append((tmp_path / f"{i}.png").read_bytes())
    assert len(set(pictures)) == 1


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
    figure = plot_autowu(run(losses, len(losses)), tmp_path / "picture.png")
    assert len(figure.axes) == 3


def test_a_report_of_a_finished_run_shows_later_losses(finished):
    report = {**finished.report(), "logged_losses": [[10, 5.0], [150, 0.2], [200, 0.1]]}
    _, axes, _ = plot_autowu(report).axes
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
