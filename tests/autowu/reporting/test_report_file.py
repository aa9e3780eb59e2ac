from __future__ import annotations

import json
import math

import pytest

from autowu_hf.autowu.reporting.report_file import read_report, write_report


def test_round_trip_with_non_finite_losses(tmp_path):
    path = tmp_path / "new" / "autowu.json"
    write_report(
        {"growth_steps": 5, "losses": [1.0, math.nan, math.inf], "tests": [{"p_min": [0.5], "noise": math.nan}]}, path
    )
    assert json.loads(path.read_text())["losses"] == [1.0, None, None]
    report = read_report(path)
    assert report["losses"][0] == 1.0
    assert all(math.isnan(loss) for loss in report["losses"][1:])
    assert report["tests"] == [{"p_min": [0.5], "noise": None}]
    assert [p.name for p in path.parent.iterdir()] == ["autowu.json"]


def test_another_json_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"other.json is not a report of AutoWU; pass the autowu.json of a run"):
        read_report(path)


def test_what_is_no_json_is_no_report(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no report")
    with pytest.raises(ValueError, match=r"notes.txt is not a report of AutoWU"):
        read_report(path)
