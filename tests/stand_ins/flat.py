"""A process's share of one of FSDP1's flat parameters, made by torch's own code, without other processes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp._flat_param import FlatParamHandle, HandleShardingStrategy


def flat_parameter(tensors: Sequence[Tensor], rank: int, num_shares: int) -> Any:
    """The tensors end to end, and of that the share of one process.

    Args:
        tensors: of one type; they stay as they are.
        rank: of the process.
        num_shares: 1: it has all of them.
    """
    module = nn.Module()
    module.tensors = nn.ParameterList([nn.Parameter(tensor.detach().clone()) for tensor in tensors])
    handle = FlatParamHandle(
        [*module.parameters()],
        module,
        torch.device("cpu"),
        HandleShardingStrategy.FULL_SHARD if num_shares > 1 else HandleShardingStrategy.NO_SHARD,
        False,
        None,
        None,
        False,
        SimpleNamespace(rank=lambda: rank, size=lambda: num_shares),
        False,
    )
    handle.shard()
    return handle.flat_param
