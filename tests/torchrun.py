"""Launches a program on several processes as a user does, through torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ON_A_PROCESS = Path(__file__).parent / "scripts" / "on_a_process.py"


def torchrun(*program: str, folder: Path | None = None, processes: int = 2) -> str:
    """What a script, or a module after "-m", prints on all processes together; fails where one of them fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launcher, str(ON_A_PROCESS), *program],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONWARNINGS": "ignore"},
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
