"""Wrote the checkpoints in this folder, with version 0.1.0 of the package; see README.md. To see how, not to run again.

With that version checked out, and this folder and tests/old_runs.py copied into it, from the root:
PYTHONPATH=.:tests python tests/data/checkpoints_0_1/make_checkpoints.py
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from old_runs import FOLDER, PlainRun, decisions, run_trainer

import autowu_hf

LONG = {"max_warmup_fraction": 0.5, "growth": "exponential"}
PURE = {"max_warmup_fraction": 0.5, "growth": "linear", "decay_type": "rex"}  # + - * / alone: the same on any processor


def valley(steps: int, lowest: int) -> list[float]:
    """Losses that fall until ``lowest`` and then rise, with some noise."""
    draw = random.Random(0)
    losses = []
    for step in range(steps):
        down, up = max(1.0 - step / lowest, 0.0), max(step - lowest - 4, 0)
        losses.append(round(min(0.5 + 1.8 * down**2 + 0.02 * up**2, 4.0) + draw.gauss(0.0, 0.02), 4))
    return losses


def noise(steps: int) -> list[float]:
    draw = random.Random(1)
    return [round(draw.gauss(0.0, 1.0), 4) for _ in range(steps)]


def falls(steps: int) -> list[float]:
    """Losses that fall during each candidate's five steps, at a rate of its own."""
    rates = [0.10, 0.02, 0.30, 0.16]
    return [round(2.0 - rates[(step - 1) // 5 % 4] * ((step - 1) % 5), 4) for step in range(steps)]


SEARCH = {"num_candidates": 4, "min_lr": 1e-4, "max_lr": 1.0, "first_stage": 20}
PLAIN: dict[str, dict[str, Any]] = {
    "cliff": {"schedule": "autowu", "options": {}, "losses": valley(200, 25), "momentum": 0.9},
    "cliff-linear": {"schedule": "autowu", "options": PURE, "losses": valley(120, 25), "momentum": 0.9},
    "minimum": {
        "schedule": "autowu",
        "options": {**LONG, "peak_rule": "minimum", "rewind": False, "decay_type": "cosine"},
        "losses": valley(100, 22),
        "momentum": 0.9,
    },
    "paper": {
        "schedule": "autowu",
        "options": {"preset": "paper", "steps_per_epoch": 8},
        "losses": valley(120, 18),
        "momentum": 0.9,
    },
    "salsa": {
        "schedule": "salsa",
        "options": {"line_search": False, "min_samples": 16, "test_every": 4, "keep": 0.5},
        "losses": noise(150),
        "momentum": 0.0,
    },
    "autolrs": {"schedule": "autolrs", "options": SEARCH, "losses": falls(61), "momentum": 0.9},
}
SAVE_BEFORE_SWITCH, SAVE_AFTER_SWITCH = 3, 9
SAVE_AT = {
    "cliff": ["warmup", "decay"],
    "cliff-linear": ["warmup"],
    "minimum": ["warmup"],
    "paper": ["warmup"],
    "salsa": [30],
    "autolrs": [13, 19],  # in the third candidate and in the fourth, the last
}

COMMON = {
    "per_device_train_batch_size": 8,
    "logging_steps": 1000,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "seed": 0,
}
TRAINER: dict[str, dict[str, Any]] = {
    "autowu": {
        "lr_scheduler_type": "autowu",
        "lr_scheduler_kwargs": {**LONG, "min_lr": 0.001, "max_lr": 100.0, "test_every": 4},
        "optim": "sgd",  # no state of its own, for small files
        "max_steps": 80,
    },
    "autolrs": {"lr_scheduler_type": "autolrs", "lr_scheduler_kwargs": SEARCH, "max_steps": 61},
    "salsa": {
        "lr_scheduler_type": "salsa",
        "lr_scheduler_kwargs": {"min_samples": 16, "test_every": 4, "keep": 0.5},
        "optim": "sgd",
        "learning_rate": 0.01,
        "max_grad_norm": 0.0,
        "warmup_steps": 20,
        "max_steps": 60,
    },
    "rex": {
        "lr_scheduler_type": "rex",
        "learning_rate": 0.01,
        "warmup_steps": 10,
        "max_steps": 40,
    },
}


def certain_until(name: str, at: int, scheduler: Any) -> int:
    """The last step after which the LR of a run that goes on from step ``at`` does not depend on losses to come."""
    if name == "autowu":
        return 80 if at > scheduler.switch_step else at + 3 - at % 4  # until the next test
    if name == "autolrs":
        return 15  # the candidate ends after 16
    if name == "salsa":
        return at if at < scheduler.switch_step else at + 3 - at % 4
    return 40


def exact(value: Any) -> Any:
    """JSON keeps a float's repr, which is the float."""
    assert json.loads(json.dumps(value)) == value
    return value


def places(wanted: list[Any], scheduler: Any) -> list[int]:
    """The steps to save at."""
    switch = getattr(scheduler, "switch_step", None) or 0
    words = {"warmup": switch - SAVE_BEFORE_SWITCH, "decay": switch + SAVE_AFTER_SWITCH}
    return [words.get(at, at) for at in wanted]


def make_plain() -> None:
    folder = FOLDER / "plain"
    folder.mkdir()
    records = {}
    for name, case in PLAIN.items():
        steps = len(case["losses"])
        given = (case["schedule"], steps, case["options"], case["losses"], case["momentum"])
        whole = PlainRun(*given)
        lrs = whole.run(0, steps)
        saved_at = places(SAVE_AT[name], whole.scheduler)
        for at in saved_at:
            part = PlainRun(*given)
            part.run(0, at)
            torch.save(part.state_dict(), folder / f"{name}-{at}.pt")
        expected = {"lrs": lrs, "weight": whole.weight.tolist(), **decisions(case["schedule"], whole.scheduler)}
        records[name] = {**case, "saved_at": saved_at, "expected": exact(expected)}
        print(name, saved_at, decisions(case["schedule"], whole.scheduler))
    (folder / "runs.json").write_text(json.dumps(records, separators=(",", ":")) + "\n")


def make_trainer() -> None:
    folder = FOLDER / "trainer"
    folder.mkdir()
    records = {}
    wanted = {"autowu": ["warmup", "decay"], "autolrs": [13], "salsa": [14, 25], "rex": [6]}
    for name, own in TRAINER.items():
        arguments = {**COMMON, **own}
        home = os.getcwd()
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)  # so that no path of a machine is in the files
            trainer, lrs = run_trainer({**arguments, "save_strategy": "steps", "save_steps": 1}, "run")
            os.chdir(home)
            scheduler = trainer.lr_scheduler
            saved_at = places(wanted[name], scheduler)
            for at in saved_at:
                shutil.copytree(Path(scratch) / "run" / f"checkpoint-{at}", folder / f"{name}-{at}")
        expected = {
            "lrs": [lrs[step] for step in sorted(lrs)],
            **decisions(name, scheduler),
        }
        records[name] = {
            "arguments": arguments,
            "saved_at": saved_at,
            "certain_until": [certain_until(name, at, scheduler) for at in saved_at],
            "expected": exact(expected),
        }
        print(name, saved_at, records[name]["certain_until"], decisions(name, scheduler))
    (folder / "runs.json").write_text(json.dumps(records, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("autowu_hf", autowu_hf.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
    for part in ("plain", "trainer"):
        shutil.rmtree(FOLDER / part, ignore_errors=True)
    make_plain()
    make_trainer()
