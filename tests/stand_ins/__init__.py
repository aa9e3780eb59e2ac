"""Small modules with the names of libraries that the tests do without."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        del sys.modules[name]


@contextlib.contextmanager
def diffusers_stands_in() -> Iterator[None]:
    """The stand-in for diffusers is installed, and nobody has imported it yet."""
    _forget()
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        yield
    finally:
        sys.path.remove(str(Path(__file__).parent))
        _forget()
