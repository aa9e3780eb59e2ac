"""What torch.compile must call as it is, wherever a compiled function comes upon it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """The same function, which torch.compile calls and does not trace.

    A hook that looks at gradients, or a schedule's step, traces into pages of warnings, and is compiled anew at most
    steps. Elsewhere torch's own ``disable`` would cost a call some microseconds, so it is asked while compiling only.
    """
    disabled = torch.compiler.disable(function)  # type: ignore[no-untyped-call]

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return (disabled if torch.compiler.is_dynamo_compiling() else function)(*args, **options)

    return cast(Function, call)
