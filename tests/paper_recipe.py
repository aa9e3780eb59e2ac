"""The replays of ``examples/benchmarks/replay.py``, for the tests of the minimum test."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "replay", Path(__file__).parents[1] / "examples" / "benchmarks" / "replay.py"
)
assert _spec is not None
assert _spec.loader is not None
_replay = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_replay)

FastPaperGP, is_early, replay = _replay.FastPaperGP, _replay.is_early, _replay.replay
