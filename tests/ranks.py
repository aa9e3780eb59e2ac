"""Runs a function of ``rank_programs`` in several real processes that find each other as under torchrun.

The processes are forked from a server that has imported everything already, so that a run takes a second, not ten.
"""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "accelerate",
        "transformers.trainer",
        "autowu_hf.integrations.trainer_callback",
        "autowu_hf.loss_curve.gpytorch_gp",
        "deepspeed",  # every Trainer imports it, where it is installed
        "torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # and ZeRO this, which imports torch's compiler
    ]
)

KILLED = -9


def run_ranks(
    function: Callable[..., Any],
    *args: Any,
    processes: int = 2,
    timeout: float = 150.0,
    environment: dict[str, str] | None = None,
    killed: bool = False,
    **kwargs: Any,
) -> list[Any]:
    """The results of ``function(*args, **kwargs)`` on every rank.

    Fails when a rank fails or the ranks need longer than ``timeout`` seconds: a hang. With ``killed`` every rank must
    have died by SIGKILL.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": os.environ.get("TEST_THREADS", "1"),
            "HF_HUB_OFFLINE": "1",
            **(environment or {}),
        }
        ranks = []
        for rank in range(processes):
            own = {**settings, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {**settings}
            ranks.append(_context.Process(target=_run, args=(function, args, kwargs, own, Path(folder) / str(rank))))
            ranks[-1].start()
        deadline = time.monotonic() + timeout
        try:
            for process in ranks:
                process.join(max(deadline - time.monotonic(), 0.0))
            hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        finally:
            for process in ranks:
                process.kill()
                process.join()
        failures = [path.read_text() for path in sorted(Path(folder).glob("*.failed"))]
        assert not failures, "\n".join(failures)
        assert not hung, f"ranks {hung} of {processes} were still running after {timeout} seconds"
        codes = [process.exitcode for process in ranks]
        assert codes == [KILLED if killed else 0] * processes, f"exit codes {codes}"
        return [] if killed else [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(processes)]


def look_for_lomo_once() -> None:
    """accelerate looks for this package twice a step, on all paths."""
    if importlib.util.find_spec("lomo_optim") is None:
        sys.modules["lomo_optim"] = None  # type: ignore[assignment]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _run(function: Callable[..., Any], args: Any, kwargs: Any, environment: dict[str, str], path: Path) -> None:
    import torch

    look_for_lomo_once()
    gc.freeze()  # accelerate collects garbage, for which all that was imported would be read and so copied
    if environment["WORLD_SIZE"] == "1":
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            environment.pop(name)
    os.environ.update(environment)
    log = path.with_suffix(".log")
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
    try:
        result = function(*args, **kwargs)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    except BaseException:
        sys.stdout.flush()
        said = f"{log.read_text()[-4000:]}\n{traceback.format_exc()}"
        path.with_suffix(".failed").write_text(f"rank {path.name}:\n{said}")
        os._exit(1)  # the other ranks must not wait for this one's clean end
    path.write_bytes(pickle.dumps(result))
