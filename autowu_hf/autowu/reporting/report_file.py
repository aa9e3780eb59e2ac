"""The decision as a file: ``autowu.json``."""

from __future__ import annotations

import json
import math
import os
from typing import Any


def write_report(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a report; the file is either whole or the one before.

    Args:
        report: what ``AutoWUScheduler.report`` returned, perhaps with more. Non-finite numbers become null.
        path: where; folders are made.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"  # other processes may write here, too
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(_finite(report), file, allow_nan=False)
        file.write("\n")
    os.replace(temporary, path)


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what ``write_report`` wrote; null losses are NaN again.

    Args:
        path: of ``autowu.json``.

    Returns:
        The report.

    Raises:
        ValueError: the file is not such a report.
    """
    with open(path, encoding="utf-8") as file:
        try:
            report = json.load(file)
        except ValueError:
            report = None
    if not isinstance(report, dict) or "growth_steps" not in report:
        raise ValueError(f"{os.fspath(path)} is not a report of AutoWU; pass the autowu.json of a run")
    report["losses"] = [math.nan if loss is None else loss for loss in report["losses"]]
    return report


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
