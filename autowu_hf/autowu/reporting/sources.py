"""Where a picture's report comes from: a schedule, a report, an ``autowu.json``, or a checkpoint's scheduler file."""

from __future__ import annotations

import fnmatch
import os
from typing import Any, Protocol

import torch

from ...runtime.checks import opened
from .report import with_sentence
from .report_file import read_report


class Reporting(Protocol):
    """An ``AutoWUScheduler``."""

    def report(self) -> dict[str, Any]: ...


def report_from(source: Reporting | dict[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    """The report that a source holds.

    Args:
        source: a scheduler, bare or prepared; a report; or the path of an ``autowu.json``, or of the file in which
            Trainer ("scheduler.pt") or accelerate ("scheduler.bin") has saved the scheduler's state, or of a folder
            with one of these.

    Returns:
        As of ``AutoWUScheduler.report``.

    Raises:
        TypeError: it is none of these.
        ValueError: the file holds something else, or the folder several reports, or none of these files.
    """
    if isinstance(source, dict):
        return source
    if isinstance(source, (str, bytes, os.PathLike)):
        path = os.fsdecode(source)
        path = _file_in(path) if os.path.isdir(path) else path
        return _read_state(path) if _is_archive(path) else read_report(path)
    scheduler = getattr(source, "scheduler", source)  # accelerate wraps prepared schedulers
    if not hasattr(scheduler, "report"):
        raise TypeError(
            f"plot_autowu draws an AutoWU schedule or what is in its autowu.json, got {type(scheduler).__name__}; "
            'pass the scheduler of lr_scheduler_type="autowu", or the path of an autowu.json or of a checkpoint\'s '
            "scheduler.pt or scheduler.bin"
        )
    report: dict[str, Any] = scheduler.report()
    return report


_STATES = ("scheduler.pt", "scheduler.bin")


def _file_in(folder: str) -> str:
    """The report in a folder, or else the state of a scheduler."""
    names = sorted(fnmatch.filter(os.listdir(folder), "autowu*.json"))
    if len(names) > 1:
        raise ValueError(
            f"{folder} holds {len(names)} reports of AutoWU: {', '.join(names)}; pass the path of one autowu.json"
        )
    for name in (*names, *_STATES):
        if os.path.isfile(path := os.path.join(folder, name)):
            return path
    raise ValueError(
        f"{folder} holds no autowu.json, {' or '.join(_STATES)}; pass the folder that a run wrote its autowu.json into "
        "(the output_dir of Trainer, report_dir elsewhere), or that of a checkpoint"
    )


def _is_archive(path: str) -> bool:
    """Whether it is a file of ``torch.save``, which writes zip archives."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _read_state(path: str) -> dict[str, Any]:
    # Mapped, not read: the snapshots in it may be as large as the model.
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict) or "outline" not in state or "minimum_test" not in state:
        raise ValueError(
            f"{path} holds no AutoWU schedule, or that of an earlier release, which wrote less of it; "
            "pass the scheduler.pt or scheduler.bin of a checkpoint, or the autowu.json of a run"
        )
    state = opened(state)
    losses = state["losses"]
    seen = [*state["course"]["losses_before"], *losses["gathered"].tolist(), *losses["pending"].tolist()]
    return with_sentence({**state["outline"], "losses": seen, "tests": state["minimum_test"]["records"]})
