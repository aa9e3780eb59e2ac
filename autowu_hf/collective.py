"""What the processes of a run tell each other: their losses, gathered, and the main process's decision, broadcast.

Everything goes through accelerate. With one process nothing is sent, and no distributed state is ever created.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast, gather
from torch import Tensor

from .minimum_test import MinimumTestRecord

_SCALARS: tuple[
    Literal["step", "num_losses", "minimum_step", "positive", "spike_at_end", "outputscale", "noise", "mean"], ...
] = ("step", "num_losses", "minimum_step", "positive", "spike_at_end", "outputscale", "noise", "mean")


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def num_processes() -> int:
    """The number of processes in the run; 1 when nothing distributed has been set up."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def is_main_process() -> bool:
    """Whether this is the process that runs the minimum test."""
    return not _is_distributed() or torch.distributed.get_rank() == 0


def gather_mean(losses: Tensor) -> Tensor:
    """The mean over processes of each loss; one collective, none with one process.

    Args:
        losses: (k,), this process's losses, on its device; k is the same on every process.

    Returns:
        (k,), float64, on the CPU.
    """
    if num_processes() > 1:
        losses = gather(losses.to(PartialState().device)).reshape(num_processes(), -1)
        return losses.cpu().to(torch.float64).mean(dim=0)
    return losses.cpu().to(torch.float64)


def broadcast_record(record: MinimumTestRecord | None, num_tests: int) -> MinimumTestRecord:
    """Gives every process the main process's record of a minimum test; one collective, none with one process.

    Args:
        record: the record; None on the other processes.
        num_tests: the length of its ``p_min``.

    Returns:
        The record.
    """
    if num_processes() == 1:
        assert record is not None
        return record
    numbers = torch.full((len(_SCALARS) + num_tests,), math.nan, dtype=torch.float64)
    if record is not None:
        scalars = [record[name] for name in _SCALARS]
        numbers = torch.tensor([*scalars, *record["p_min"]], dtype=torch.float64)
    numbers = broadcast(numbers.to(PartialState().device), from_process=0).cpu()
    values = dict(zip(_SCALARS, numbers.tolist(), strict=False))
    return {
        "step": int(values["step"]),
        "num_losses": int(values["num_losses"]),
        "p_min": numbers[len(_SCALARS) :].tolist(),
        "minimum_step": values["minimum_step"],
        "positive": bool(values["positive"]),
        "spike_at_end": bool(values["spike_at_end"]),
        "outputscale": values["outputscale"],
        "noise": values["noise"],
        "mean": values["mean"],
    }
