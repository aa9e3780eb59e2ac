"""Runs a program on one of torchrun's processes, and ends the process before Python shuts down.

Under DistributedDataParallel torch keeps gloo's threads beyond destroy_process_group. One that still lets go of its
last work while Python shuts down aborts the process, whose program has long done all it should.
"""

import os
import runpy
import sys
from pathlib import Path

import torch

sys.argv = sys.argv[1:]
try:
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
