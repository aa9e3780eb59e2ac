"""The names of the files that a schedule leaves in a folder: no schedule of a process takes those of another, but for
one that goes on from its state.
"""

from __future__ import annotations

import logging
import os
import weakref
from typing import Any

from ...runtime import collective

logger = logging.getLogger(__name__)

_taken: dict[str, dict[int, tuple[weakref.ref[FileNames], bool]]] = {}
"""Folder -> number -> whose it is, and whether that one has written; then it is taken for as long as either is there:
the schedule, or the file.
"""


class FileNames:
    """One schedule's: "autowu", or "autowu-2", "autowu-3" and so on where earlier schedules of the process are.

    A state has them, so that a resumed run writes where it wrote before. A later run of the script begins with "autowu"
    again. Nothing is known of what other processes write into the same folder.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def claim(self, folder: str | os.PathLike[str], writes: bool = False) -> str:
        """The name in a folder, without an ending; from now on it is this schedule's.

        Args:
            folder: where.
            writes: whether the files are about to be written. Until then the name is given up with the schedule.
        """
        place = os.path.realpath(folder)
        taken = _taken.setdefault(place, {})
        folder = os.fspath(folder)
        number = next((n for name, n in self._numbers.items() if os.path.realpath(name) == place), None)
        if number is None:
            for other in [
                n for n, (owner, wrote) in taken.items() if owner() is None and not (wrote and _is_there(folder, n))
            ]:
                del taken[other]
            number = self._numbers[folder] = max(taken, default=0) + 1
            if number > 1 and collective.is_main_process():
                logger.info(
                    "AutoWU leaves this report as %s.json in %s: %s.json is that of another schedule",
                    _name(number),
                    folder,
                    _name(number - 1),
                )
        taken[number] = weakref.ref(self), writes or taken.get(number, (None, False))[1]
        return _name(number)

    def state_dict(self) -> dict[str, int]:
        """Folder, as it was given -> number."""
        return dict(self._numbers)

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restores what ``state_dict`` returned; None: that of a release which knew no numbers."""
        for folder, number in self._numbers.items():  # given up where the state does not have them
            taken = _taken.get(os.path.realpath(folder), {})
            if number in taken and taken[number][0]() is self and not taken[number][1]:
                del taken[number]
        self._numbers = dict(state or {})
        for folder in self._numbers:
            self.claim(folder)


def _is_there(folder: str, number: int) -> bool:
    """Whether the report of a number is still where it was written."""
    return os.path.exists(os.path.join(folder, f"{_name(number)}.json"))


def _name(number: int) -> str:
    return "autowu" if number == 1 else f"autowu-{number}"
