"""Checkpoints that version 0.1.0 wrote load, and the runs go on as they did; see data/checkpoints_0_1/README.md."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from old_runs import DECISIONS, FOLDER, PlainRun, decisions, run_trainer

PLAIN = json.loads((FOLDER / "plain" / "runs.json").read_text())
TRAINER = json.loads((FOLDER / "trainer" / "runs.json").read_text())
SAVED_PLAIN = [(name, at) for name, run in PLAIN.items() for at in run["saved_at"]]
SAVED_BY_TRAINER = [(name, at) for name, run in TRAINER.items() for at in run["saved_at"]]

ROUNDING = 1e-12
"""The exp and the cos of another processor's mathematics library may differ in the last bit."""

EXACT = ["cliff-linear-39", "salsa-30", "autolrs-19"]
"""The LRs of these are stored, or come from + - * / alone: to the last bit the same everywhere."""


def close(value: Any) -> Any:
    """What equals ``value``, numbers up to ``ROUNDING``."""
    if isinstance(value, dict):
        return {key: close(item) for key, item in value.items()}
    if isinstance(value, list):
        return [close(item) for item in value]
    return pytest.approx(value, rel=ROUNDING, abs=0.0) if isinstance(value, float) else value


def without_forecasts(found: dict[str, Any]) -> dict[str, Any]:
    """Decisions without AutoLRS's forecasts, which are fits and not that exact."""
    results = [{key: result[key] for key in ("step", "lrs", "lr")} for result in found.get("results", ())]
    return {**found, **({"results": results} if results else {})}


@pytest.mark.parametrize(("name", "at"), SAVED_PLAIN)
def test_a_plain_loop_goes_on_as_it_did(name, at):
    run, expected = PLAIN[name], PLAIN[name]["expected"]
    part = PlainRun(run["schedule"], len(run["losses"]), run["options"], run["losses"], run["momentum"])
    part.load_state_dict(torch.load(FOLDER / "plain" / f"{name}-{at}.pt", weights_only=True))
    lrs = part.run(at, len(run["losses"]))
    assert lrs == close(expected["lrs"][at:])
    if f"{name}-{at}" in EXACT:
        assert lrs == expected["lrs"][at:]
    wanted = {key: expected[key] for key in DECISIONS[run["schedule"]]}
    assert without_forecasts(decisions(run["schedule"], part.scheduler)) == close(without_forecasts(wanted))
    assert part.weight.tolist() == pytest.approx(expected["weight"], rel=1e-9)


@pytest.mark.parametrize(("name", "at"), SAVED_BY_TRAINER)
def test_trainer_goes_on_as_it_did(tmp_path, name, at):
    """As far as it does not depend on losses that are trained after the checkpoint."""
    run, expected = TRAINER[name], TRAINER[name]["expected"]
    certain = run["certain_until"][run["saved_at"].index(at)]
    steps = run["arguments"]["max_steps"]
    state = torch.load(FOLDER / "trainer" / f"{name}-{at}" / "scheduler.pt", weights_only=True)
    trainer, lrs = run_trainer(run["arguments"], str(tmp_path), resume=FOLDER / "trainer" / f"{name}-{at}")
    assert list(lrs) == list(range(at + 1, steps + 1))
    assert [lrs[step] for step in range(at + 1, certain + 1)] == close(expected["lrs"][at:certain])
    assert state["last_epoch"] == at
    scheduler = trainer.lr_scheduler
    found = decisions(name, scheduler)
    if certain == steps:
        assert found == close({key: expected[key] for key in found})
    elif name == "autowu":
        assert certain < scheduler.switch_step <= scheduler.warmup_cap
        assert lrs[scheduler.switch_step] == scheduler.peak_lr
        assert lrs[steps] == 0.0
    elif name == "autolrs":
        (result,) = scheduler.results
        assert result["lrs"][:3] == state["candidate_lrs"]
        assert result["forecasts"][:2] == state["forecasts"]
        assert {lr for step, lr in lrs.items() if step >= 21} == {result["lr"]}
    else:
        assert name == "salsa"
        if at < expected["switch_step"]:
            # An exact line search would find any LR; this one has three outcomes, and moves a tenth of the way.
            ratio = lrs[at + 1] / expected["lrs"][at - 1]
            assert min(abs(ratio - (0.9 + 0.1 * factor)) for factor in (2.0, 1.0, 0.5)) < 1e-9
        assert (scheduler.switch_step, scheduler.ended_by) == (expected["switch_step"], "cap")


def test_the_arguments_load_in_a_process_that_has_not_imported_the_package():
    """The first pickled name of a schedule brings the package along."""
    files = {name: str(FOLDER / "trainer" / f"{name}-{run['saved_at'][0]}") for name, run in TRAINER.items()}
    code = f"""
import os, sys, torch, transformers
assert "autowu_hf" not in sys.modules
for name, folder in {files!r}.items():
    args = torch.load(os.path.join(folder, "training_args.bin"), weights_only=False)
    assert args.lr_scheduler_type is transformers.SchedulerType(name)
    print(name, args.max_steps)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} {run['arguments']['max_steps']}" for name, run in TRAINER.items()]
