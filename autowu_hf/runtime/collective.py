"""What the processes of a run tell each other: their losses, gathered, and the main process's decision, broadcast.

Everything goes through accelerate, where it knows of the processes. With one process nothing is sent, and no
distributed state is ever created.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, broadcast, gather
from torch import Tensor


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def num_processes() -> int:
    """The number of processes in the run; 1 when nothing distributed has been set up."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def process_index() -> int:
    """The rank of this process; 0 when nothing distributed has been set up."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Whether this is the process that runs the minimum test."""
    return process_index() == 0


def _gather(tensor: Tensor) -> Tensor:
    """(n,) of every process -> (processes, n), on the CPU."""
    tensor = tensor.to(_device())
    if _through_accelerate():
        gathered: Tensor = gather(tensor)
        return gathered.reshape(num_processes(), -1).cpu()
    everyone = [torch.empty_like(tensor) for _ in range(num_processes())]
    torch.distributed.all_gather(everyone, tensor)
    return torch.stack(everyone).cpu()


def _broadcast(tensor: Tensor) -> Tensor:
    """The main process's tensor, on the CPU."""
    tensor = tensor.to(_device())
    if _through_accelerate():
        tensor = broadcast(tensor, from_process=0)
    else:
        torch.distributed.broadcast(tensor, src=0)
    return tensor.cpu()


def _through_accelerate() -> bool:
    """False where a script set up torch.distributed by itself: accelerate may take it for a single process."""
    if not PartialState._shared_state:
        return False
    state = PartialState()
    return state.distributed_type != DistributedType.NO and int(state.num_processes) == num_processes()


def _device() -> torch.device:
    if PartialState._shared_state:
        return torch.device(PartialState().device)
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")


def gather_mean(losses: Tensor, skip_nan: bool = False) -> Tensor:
    """The mean over processes of each loss; one collective, none with one process.

    Args:
        losses: (k,), this process's losses; k is the same on every process.
        skip_nan: take the mean over the processes whose loss is not NaN; without it one NaN makes the mean NaN.

    Returns:
        (k,), float64, on the CPU.
    """
    if num_processes() == 1:
        return losses.cpu().to(torch.float64)
    everyone = _gather(losses).to(torch.float64)
    return everyone.nanmean(dim=0) if skip_nan else everyone.mean(dim=0)


def gather_rows(numbers: Tensor) -> Tensor:
    """The numbers of every process; one collective, none with one process.

    Args:
        numbers: (k,), k the same on every process.

    Returns:
        (processes, k), float64, on the CPU; the main process's first.
    """
    if num_processes() == 1:
        return numbers.cpu().to(torch.float64).reshape(1, -1)
    return _gather(numbers).to(torch.float64)


def gather_numbers(numbers: Sequence[int]) -> list[list[int]]:
    """The numbers of every process; one collective, none with one process."""
    if num_processes() == 1:
        return [list(numbers)]
    return [[int(number) for number in row] for row in _gather(torch.tensor(numbers))]


def gather_max(numbers: Sequence[int]) -> list[int]:
    """The maximum over processes of each number; one collective, none with one process."""
    return [max(column) for column in zip(*gather_numbers(numbers), strict=True)]


def gather_sum(numbers: Tensor) -> Tensor:
    """The sum over processes of each number; one collective, none with one process.

    Args:
        numbers: (k,), k the same on every process.

    Returns:
        (k,), float64, on the CPU.
    """
    if num_processes() == 1:
        return numbers.cpu().to(torch.float64)
    return _gather(numbers).to(torch.float64).sum(dim=0)


def gather_bytes(state: Tensor) -> list[Tensor]:
    """What every process passes: (n,), uint8, n the same everywhere; one collective, none with one process."""
    if num_processes() == 1:
        return [state]
    return [row.clone() for row in _gather(state)]


def broadcast_number(number: float) -> float:
    """The main process's number; one collective, none with one process."""
    return broadcast_numbers([number], 1)[0]


def broadcast_numbers(numbers: Sequence[float] | None, count: int) -> list[float]:
    """The main process's numbers; one collective, none with one process.

    Args:
        numbers: (count,) on the main process; None on the others.
        count: how many there are.
    """
    if num_processes() == 1:
        assert numbers is not None
        return [*numbers]
    own = [math.nan] * count if numbers is None else numbers
    return [float(number) for number in _broadcast(torch.tensor(own, dtype=torch.float64))]
