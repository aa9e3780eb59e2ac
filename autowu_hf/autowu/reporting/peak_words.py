"""Whose the peak LR is, where it is not AutoWU's alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..verdict import NOTHING


def given(report: Mapping[str, Any]) -> str:
    """Whose the peak LR is where the losses have found none, as a part of a sentence; empty where they have.

    Args:
        report: of a run after the switch.
    """
    if not report.get("peak_is_given", report["ended_by"] == NOTHING):  # a report may be older than the field
        return ""
    is_highest = report["peak_lr"] == report["settings"].get("max_lr")
    return ", which is max_lr" if is_highest else ", which the optimizer was given"


def contested(report: Mapping[str, Any]) -> str:
    """That the run may have trained at other LRs, see ``ForeignLRWarning``, as a part of a sentence; or empty.

    Args:
        report: of a run after the switch.
    """
    return ", but something else in the script sets the LR, too" if report.get("lr_is_contested") else ""
