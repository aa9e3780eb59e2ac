from __future__ import annotations

import logging

import pytest
import torch
from tiny import get_schedule

from autowu_hf import get_autolrs_schedule, plot_autowu
from autowu_hf.autowu.reporting.sources import report_from


def trained(steps: int, **options):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = get_schedule(optimizer, 60, **options)
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        optimizer.zero_grad()
    return scheduler


@pytest.mark.parametrize("steps", [0, 15, 60])
@pytest.mark.parametrize("options", [{}, {"scale": True, "max_warmup_fraction": None, "growth": None}])
def test_a_checkpoint_holds_the_report(steps, options, tmp_path):
    scheduler = trained(steps, **options)
    path = tmp_path / ("scheduler.pt" if steps else "scheduler.bin")
    torch.save(scheduler.state_dict(), path)
    assert repr(report_from(path)) == repr(report_from(str(tmp_path)))
    assert repr(report_from(path)) == repr(report_from(scheduler))  # there may be NaN in it
    assert plot_autowu(str(path)).get_suptitle() == plot_autowu(scheduler).get_suptitle()


def test_the_report_says_in_a_sentence_what_the_log_says(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        scheduler = trained(60, scale=True, max_warmup_fraction=None, growth=None)
    found = scheduler.report()["found"]
    assert f"AutoWU: {found}" in caplog.messages
    assert found.startswith("scale ")
    assert f"peak LR {scheduler.peak_lr:.1e}".replace("e-0", "e-") in found
    begun = trained(15, scale=True, max_warmup_fraction=None, growth=None)
    assert begun.report()["found"] == plot_autowu(begun).get_suptitle()


def test_a_folder_is_drawn_where_there_is_one_report_in_it(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no autowu.json, scheduler.pt or scheduler.bin; pass the folder that a"
    ):
        report_from(tmp_path)
    first, second = trained(60), trained(30)
    torch.save(second.state_dict(), tmp_path / "scheduler.pt")
    assert report_from(tmp_path)["step"] == 30
    first.write_report(str(tmp_path), picture=False)
    assert report_from(tmp_path)["step"] == 60
    second.write_report(str(tmp_path), picture=False)
    with pytest.raises(ValueError, match=r"holds 2 reports of AutoWU: autowu-2.json, autowu.json; pass the path"):
        report_from(tmp_path)
    assert report_from(tmp_path / "autowu-2.json")["step"] == 30


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "scheduler.pt"
    state = trained(3).state_dict()
    del state["outline"]  # as earlier releases wrote it
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for other in (state, get_autolrs_schedule(optimizer, 200).state_dict(), [1]):
        torch.save(other, path)
        with pytest.raises(ValueError, match=r"scheduler.pt holds no AutoWU schedule, or that of an earlier release"):
            plot_autowu(path)
