"""What ``ranks.run_ranks`` starts for the tests of ``autowu_hf.run``: processes that end with the script."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from ranks import run_ranks

from autowu_hf import run


def command(*arguments: str, folder: object, fails: bool = False) -> str:
    """What ``autowu-run`` with these arguments prints, in a folder."""
    code, said = run_ranks(_ended, run.main, list(arguments), str(folder), processes=1)[0]
    assert bool(code) is fails, said
    return f"{said}{code}" if isinstance(code, str) else said


def script_alone(path: str, *arguments: str, folder: object, fails: bool = False) -> str:
    """What a script prints that is not run by this package, though it is registered."""
    code, said = run_ranks(_ended, _run_script, [path, *arguments], str(folder), processes=1)[0]
    assert bool(code) is fails, said
    return said


def on_two_processes(*program: str, folder: object) -> str:
    """What a script prints on two processes that find each other as under torchrun."""
    ranks = run_ranks(_ended, _run_script, [*program], str(folder), timeout=300.0)
    assert all(not code for code, _ in ranks), ranks
    return "".join(said for _, said in ranks)


def _run_script(arguments: list[str]) -> None:
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


def _ended(function: Callable[[list[str]], None], arguments: list[str], folder: str) -> tuple[int | str | None, str]:
    """The exit code or message of a function, and what it said."""
    os.chdir(folder)
    warnings.simplefilter("ignore")
    said = io.StringIO()
    code: int | str | None = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            function(arguments)
        except SystemExit as end:
            code = end.code
    return code, said.getvalue()
