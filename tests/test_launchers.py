"""The support table of the README: every launcher trains, keeps one LR on all ranks, and resumes exactly."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import accelerate
import pytest
import torch
from margins import assert_above, assert_below, assert_close
from rank_programs import deepspeed_config, deepspeed_trainer_run, fsdp_trainer_run, sharded_loop, trainer_run
from ranks import run_ranks
from tiny import IS_TRANSFORMERS_5, LOGGED_DIGITS, TinyClassifier
from torchrun import torchrun

# A test every 3 steps and a checkpoint at 25, between two of them and before the switch, or at 87, in the decay.
OPTIONS = {"test_every": 3, "rewind": False, "max_lr": 1e4}
SAVED_AT = (25, 87)

HAS_FSDP2 = tuple(int(part) for part in accelerate.__version__.split(".")[:2]) >= (1, 6)
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
DEEPSPEED = {"ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu"}

needs_fsdp2 = pytest.mark.skipif(not HAS_FSDP2, reason="this accelerate has no FSDP2")
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="DeepSpeed is not installed")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The same run in one process, which every launcher must repeat."""
    return run_ranks(trainer_run, str(tmp_path_factory.mktemp("one")), processes=1, options=OPTIONS)[0]


def check_trains_with_one_lr_and_resumes(
    folder, one_process, function, *args, tolerance=1e-5, saved_at=SAVED_AT, exact=True, **settings
):
    """A whole run against that of one process, and runs resumed from its checkpoints of ``saved_at`` against itself.

    ``one_process`` None: the launcher's optimizer is another, so that only the schedule can be compared. Not ``exact``:
    the launcher resumes the schedule as it was, but not the training.
    """
    settings = {"options": OPTIONS, "timeout": 400.0, **settings}
    whole = run_ranks(function, str(folder), *args, save_at=saved_at, **settings)
    for seen in whole:
        assert seen["all_lrs_equal"]
        assert_below(seen["switch_step"], seen["cap"], seen["cap"])
        assert_above(seen["switch_step"], SAVED_AT[0], seen["switch_step"])
        if one_process is not None:
            assert seen["switch_step"] == one_process["switch_step"]
            assert seen["lrs"] == pytest.approx(one_process["lrs"], rel=1e-12)
            # Later the LR is above that of the minimum, where training amplifies every difference in rounding.
            assert_close(seen["losses"][:30], one_process["losses"][:30], tolerance)
        assert seen["losses"] == pytest.approx(seen["logged"][: seen["switch_step"]], abs=LOGGED_DIGITS)
        assert seen["calls"][: 2 * seen["num_tests"]] == ["gather", "broadcast"] * seen["num_tests"]
        assert seen["last_lr"] == 0.0
    for step in saved_at:
        resumed = run_ranks(function, str(folder), *args, resume=str(folder / f"checkpoint-{step}"), **settings)
        for seen, before in zip(resumed, whole, strict=True):
            assert seen["lrs"] == before["lrs"][step:]
            assert seen["losses"] == before["losses"]
            if not exact:
                continue
            assert seen["logged"] == before["logged"]
            for mine, other in zip(seen["weights"], before["weights"], strict=True):
                assert torch.equal(mine, other)


class WithBatchNorm(TinyClassifier):
    """Has buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, torch.nn.BatchNorm1d(16))


ZERO = {
    "ZeRO 2": [],
    "ZeRO 3": [],
    "ZeRO 0 in bf16": [pytest.mark.once],
    "ZeRO 1 in bf16": [pytest.mark.once],
    "ZeRO 2 in bf16": [pytest.mark.once],
    "ZeRO 3 in bf16": [pytest.mark.once],
}


@pytest.mark.parametrize(
    ("launcher", "rule"),
    [
        *((launcher, rule) for launcher in ("1 process", "DDP") for rule in ("minimum", "cliff")),
        *(pytest.param("FSDP2", rule, marks=needs_fsdp2) for rule in ("minimum", "cliff")),
        pytest.param("FSDP1 with flat parameters", "cliff", marks=pytest.mark.once),
        *(pytest.param(launcher, "cliff", marks=[needs_deepspeed, *marks]) for launcher, marks in ZERO.items()),
    ],
)
def test_rewind_goes_back_bit_for_bit(tmp_path, launcher, rule):
    """Parameters, optimizer state and buffers, of every process its own share; under DDP batch norm's buffers too;
    under ZeRO its own weights, and those in half precision that the model computes with.
    """
    is_fsdp = launcher.startswith("FSDP")
    function, arguments = (fsdp_trainer_run, (int(launcher[4]), False)) if is_fsdp else (trainer_run, ())
    environment, is_half = None, launcher.endswith("bf16")
    if launcher.startswith("ZeRO"):
        config = deepspeed_config(int(launcher[5])) | ({"bf16": {"enabled": True}} if is_half else {})
        function, arguments, environment = deepspeed_trainer_run, (config,), DEEPSPEED
    ranks = run_ranks(
        function,
        str(tmp_path),
        *arguments,
        processes=1 if launcher == "1 process" else 2,
        timeout=400.0,
        environment=environment,
        model=TinyClassifier if is_half else WithBatchNorm,  # torch has no batch norm in bf16 on a CPU
        watch_states=True,
        options={"test_every": 3, "peak_rule": rule, "max_lr": 100.0},
    )
    for seen in ranks:
        assert seen["rewound_to"] is not None
        assert seen["went_back"] is True
        assert seen["all_lrs_equal"]
        assert seen["lrs"][seen["switch_step"]] == seen["peak_lr"]
        assert seen["peak_rule"] == rule


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.once)])
def test_trainer_ddp(tmp_path, one_process, processes):
    saved_at = SAVED_AT if processes == 2 else SAVED_AT[:1]
    check_trains_with_one_lr_and_resumes(tmp_path, one_process, trainer_run, processes=processes, saved_at=saved_at)


@pytest.mark.parametrize("use_orig_params", [True, pytest.param(False, marks=pytest.mark.once)])
def test_trainer_fsdp1(tmp_path, one_process, use_orig_params):
    """transformers 5 loses the optimizer's state under FSDP1, which it is about to drop, with any schedule."""
    later = {"saved_at": SAVED_AT[1:], "exact": False} if IS_TRANSFORMERS_5 else {}
    check_trains_with_one_lr_and_resumes(
        tmp_path, one_process, fsdp_trainer_run, 1, use_orig_params, tolerance=1e-4, **later
    )


@needs_fsdp2
def test_trainer_fsdp2(tmp_path, one_process):
    check_trains_with_one_lr_and_resumes(tmp_path, one_process, fsdp_trainer_run, 2)


@needs_deepspeed
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.once), 2, pytest.param(3, marks=pytest.mark.once)])
def test_trainer_deepspeed(tmp_path, one_process, stage):
    """Neither optimizer nor scheduler in DeepSpeed's config: Trainer steps the scheduler. Stage 1 resumes as 2 does."""
    config = deepspeed_config(stage)
    check_trains_with_one_lr_and_resumes(
        tmp_path,
        one_process,
        deepspeed_trainer_run,
        config,
        environment=DEEPSPEED,
        tolerance=1e-4,
        saved_at=SAVED_AT[stage % 2 :][: stage > 1],
    )


@pytest.mark.once
@needs_deepspeed
def test_trainer_deepspeed_with_its_own_optimizer(tmp_path):
    """DeepSpeed's engine makes the optimizer and steps the scheduler inside the backward."""
    config = deepspeed_config(2, optimizer=True)
    check_trains_with_one_lr_and_resumes(
        tmp_path, None, deepspeed_trainer_run, config, environment=DEEPSPEED, saved_at=SAVED_AT[1:]
    )


@needs_deepspeed
def test_trainer_deepspeed_with_its_own_scheduler_is_refused(tmp_path):
    config = deepspeed_config(2, scheduler=True)
    with pytest.raises(AssertionError, match="ValueError: the DeepSpeed config has a scheduler of its own, 'WarmupLR'"):
        run_ranks(deepspeed_trainer_run, str(tmp_path), config, environment=DEEPSPEED)


def check_accelerate_loop(folder, kind, environment=None):
    settings = {"environment": environment, "timeout": 400.0}
    whole = run_ranks(sharded_loop, kind, str(folder), save_at=SAVED_AT[0], **settings)
    for seen in whole:
        assert seen["all_lrs_equal"]
        assert len(seen["losses"]) == seen["switch_step"]
        assert_above(seen["switch_step"], SAVED_AT[0], seen["switch_step"])
        assert seen["losses"] == pytest.approx(seen["expected"][: len(seen["losses"])], abs=1e-5)
        assert seen["last_lr"] == 0.0
    resumed = run_ranks(sharded_loop, kind, str(folder), resume=True, **settings)
    for seen, before in zip(resumed, whole, strict=True):
        assert seen["lrs"] == before["lrs"][SAVED_AT[0] :]
        assert seen["losses"] == before["losses"]
        assert seen["expected"] == before["expected"][SAVED_AT[0] :]


@needs_fsdp2
def test_accelerate_fsdp2(tmp_path):
    check_accelerate_loop(tmp_path, "fsdp2")


@pytest.mark.once
@needs_deepspeed
@pytest.mark.parametrize("kind", ["deepspeed", "deepspeed optimizer"])
def test_accelerate_deepspeed(tmp_path, kind):
    check_accelerate_loop(tmp_path, kind, environment=DEEPSPEED)


@pytest.mark.once
def test_torchrun_and_plain_ddp():
    """No accelerate in the loop: torch.distributed alone, and ``scheduler.step(loss)``."""
    printed = torchrun(str(Path(__file__).parent / "scripts" / "plain_ddp.py"))
    assert "2 processes agree" in printed
