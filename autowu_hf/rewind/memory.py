"""How much host memory is free, and how many snapshots fit into it on every process of a host."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from ..runtime import collective
from ..runtime.finite import OutOfReachError
from ..runtime.param_groups import Obstacle

_ENDLESS = 2**62
"""The size of what cannot be copied on this process, so that the others hear of it."""

_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory() -> int:
    """The host memory, in bytes, that the processes may still take: the machine's, or the container's if that is
    less.
    """
    free = int(psutil.virtual_memory().available)
    for folder, limit, used, cache in _CGROUPS:
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(statistics.get(cache, 0))
            free = min(free, int((folder / limit).read_text()) - taken)
        except (OSError, ValueError):  # not this version of control groups, or no limit
            continue
    return max(free, 0)


def find_room(size: Callable[[], int], share: float | None, fewest: int) -> tuple[int, int | None, Obstacle | None]:
    """How many snapshots there may be; one collective.

    Args:
        size: returns the size of one snapshot of this process, in bytes.
        share: as in ``snapshots_that_fit``; None where they do not go into memory, without a collective.
        fewest: as many are needed.

    Returns:
        The size; how many fit, None where nothing limits them; and why there can be none, or too few.
    """
    obstacle = None
    try:
        num_bytes = size()
    except OutOfReachError as error:
        num_bytes, obstacle = _ENDLESS, cannot_copy(error)
    room = None if share is None else snapshots_that_fit(num_bytes, share)
    if obstacle is None and share is not None and room is not None and room < fewest:
        obstacle = too_little_memory(fewest, num_bytes, share)
    return num_bytes, room, obstacle


def snapshots_that_fit(num_bytes: int, share: float) -> int:
    """How many snapshots every process can hold in memory; the same number everywhere. One collective.

    Args:
        num_bytes: the size of one snapshot of this process.
        share: the share of the free host memory, in (0, 1), that all snapshots on a host may take together.
    """
    host = zlib.crc32(socket.gethostname().encode())
    processes = collective.gather_numbers([free_memory(), num_bytes, host])
    return fewest_that_fit(processes, share)


def fewest_that_fit(processes: Sequence[Sequence[int]], share: float) -> int:
    """How many snapshots fit on the process that has room for the fewest; the processes of a host share its memory
    equally.

    Args:
        processes: for every process its host's free memory and the size of one of its snapshots, in bytes, and a
            number that stands for the host.
        share: the share of the free memory, in (0, 1), that the snapshots may take.
    """
    hosts = [host for _, _, host in processes]
    return min(int(share * free / hosts.count(host) / max(size, 1)) for free, size, host in processes)


def too_little_memory(fewest: int, num_bytes: int, share: float) -> Obstacle:
    """Why rewind cannot work where fewer than ``fewest`` snapshots fit; ``num_bytes`` and ``share`` as above."""
    return Obstacle(
        f"its snapshots, {fewest} of {num_bytes / 2**20:.0f} MiB at least on every process, would take more than "
        f"{share:.0%} of the free host memory",
        'free some, raise rewind_memory, or keep them in files with rewind="disk"',
    )


def cannot_copy(error: OutOfReachError) -> Obstacle:
    """Why rewind cannot work where what is trained cannot be copied."""
    return Obstacle(f"the parameters or the optimizer's state hold {error}", "use another optimizer")
