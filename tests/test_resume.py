"""Every rank of a run is killed, and the run resumed: from then on it must be the run that was never interrupted."""

from __future__ import annotations

import random

import pytest
import torch
from margins import assert_above, assert_below, assert_close
from rank_programs import accelerate_loop, trainer_run
from ranks import run_ranks
from tiny import IS_TRANSFORMERS_5

# A test every 3 steps and a checkpoint every 7: most checkpoints fall between two tests.
OPTIONS = {"max_lr": 1e4, "test_every": 6, "peak_rule": "minimum"}
TRAINER_OPTIONS = {"max_lr": 1e4, "test_every": 3, "peak_rule": "minimum"}
SAVE_EVERY = 7
# A few of them show that it works with the oldest releases too.
SEEDS = [pytest.param(seed, marks=[pytest.mark.once] if seed >= 2 else []) for seed in range(20)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The whole run, of 2 ranks, under accelerate and under Trainer."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "accelerate").mkdir()
    return {
        "accelerate": run_ranks(accelerate_loop, folder=str(folder / "accelerate"), options=OPTIONS, save_every=7),
        "trainer": run_ranks(
            trainer_run, str(folder / "trainer"), save_strategy="steps", save_steps=7, options=TRAINER_OPTIONS
        ),
    }


def kill_step(seed: int, switch_step: int) -> int:
    """In the warm-up for even seeds, in the decay for odd ones; after the first checkpoint."""
    first, last = (SAVE_EVERY + 1, switch_step) if seed % 2 == 0 else (switch_step + 1, 119)
    return random.Random(seed).randint(int(first), int(last))


@pytest.mark.parametrize("seed", SEEDS)
def test_an_accelerate_loop_killed_at_a_random_step_resumes_exactly(tmp_path, uninterrupted, seed):
    whole = uninterrupted["accelerate"]
    assert_below(whole[0]["switch_step"], whole[0]["cap"], whole[0]["cap"])
    step = kill_step(seed, whole[0]["switch_step"])
    point = random.Random(seed + 100).choice(["backward", "optimizer", "step"])
    settings = {"folder": str(tmp_path), "options": OPTIONS, "save_every": SAVE_EVERY}
    run_ranks(accelerate_loop, kill_at=(step, point), killed=True, **settings)
    for seen, before in zip(run_ranks(accelerate_loop, resume=True, **settings), whole, strict=True):
        done = len(before["lrs"]) - len(seen["lrs"])
        assert done % SAVE_EVERY == 0
        assert 0 < done <= step
        assert seen["lrs"] == before["lrs"][done:]
        assert seen["expected"] == before["expected"][done:]
        for name in ("losses", "test_steps", "switch_step", "peak_lr", "rewound_to", "pending"):
            assert seen[name] == before[name]


@pytest.mark.parametrize("seed", SEEDS[:10])
def test_trainer_killed_at_a_random_step_resumes_exactly(tmp_path, uninterrupted, seed):
    whole = uninterrupted["trainer"]
    assert_below(whole[0]["switch_step"], whole[0]["cap"], whole[0]["cap"])
    step = kill_step(seed, whole[0]["switch_step"])
    settings = {"save_strategy": "steps", "save_steps": SAVE_EVERY, "options": TRAINER_OPTIONS}
    run_ranks(trainer_run, str(tmp_path), kill_at=step, killed=True, **settings)
    for seen, before in zip(run_ranks(trainer_run, str(tmp_path), resume=True, **settings), whole, strict=True):
        done = len(before["lrs"]) - len(seen["lrs"])
        assert done == (step - 1) // SAVE_EVERY * SAVE_EVERY > 0
        assert seen["lrs"] == before["lrs"][done:]
        for name in ("logged", "losses", "switch_step", "peak_lr", "rewound_to", "num_tests"):
            assert seen[name] == before[name]
        for mine, other in zip(seen["weights"], before["weights"], strict=True):
            assert torch.equal(mine, other)


def test_a_checkpoint_under_trainer_costs_one_gather_in_the_warm_up(uninterrupted):
    for seen in uninterrupted["trainer"]:
        assert_above(seen["num_tests"], 5, seen["num_tests"])
        assert seen["calls"].count("broadcast") == seen["num_tests"]
        # Saves between two tests, and the report at the switch, share the losses so far; and once, at the start, all
        # learn how many snapshots fit everywhere. Where they go back, all learn that all have snapshots, and that the
        # one is finite everywhere.
        extra = seen["calls"].count("gather") - seen["num_tests"] - 1 - 2 * (seen["rewound_to"] is not None)
        assert 0 < extra <= seen["switch_step"] // SAVE_EVERY
        assert seen["all_lrs_equal"]


@pytest.mark.parametrize("processes", [1, 4])
def test_resumed_on_another_number_of_ranks_it_trains_on_with_a_note(tmp_path, processes):
    """The ticks of an accelerate loop count batches, so that the schedule goes on where it was."""
    settings = {"folder": str(tmp_path), "options": OPTIONS, "save_every": SAVE_EVERY}
    run_ranks(accelerate_loop, kill_at=(25, "step"), killed=True, **settings)
    ranks = run_ranks(accelerate_loop, processes=processes, resume=True, log_notes=True, **settings)
    for seen in ranks:
        assert seen["all_lrs_equal"]
        assert_above(len(seen["losses"]) + seen["pending"], 21, seen["switch_step"])
        assert seen["switch_step"] is not None
    assert any(f"goes on with {processes} process(es) from a state of 2" in note for note in ranks[0]["notes"])


@pytest.mark.parametrize("processes", [1, 4])
def test_trainer_resumed_on_another_number_of_ranks_trains_on(tmp_path, uninterrupted, processes):
    settings = {"save_strategy": "steps", "save_steps": SAVE_EVERY, "options": TRAINER_OPTIONS}
    run_ranks(trainer_run, str(tmp_path), kill_at=25, killed=True, **settings)
    before = uninterrupted["trainer"][0]
    for seen in run_ranks(trainer_run, str(tmp_path), processes=processes, resume=True, **settings):
        assert seen["all_lrs_equal"]
        assert len(seen["lrs"]) == 120 - 21
        # The global batches are the same ones too, but older accelerate orders them anew for another number of ranks.
        same = 30 if IS_TRANSFORMERS_5 else 20
        assert_close(seen["losses"][:same], before["losses"][:same], 1e-4)
        assert seen["last_lr"] == 0.0


def test_a_state_saved_on_the_main_process_alone_hangs_nobody_and_goes_on(tmp_path):
    """Many scripts call save_state on the main process only; the other ranks' unshared losses are lost then."""
    settings = {"folder": str(tmp_path), "options": OPTIONS, "save_every": SAVE_EVERY}
    run_ranks(accelerate_loop, kill_at=(30, "step"), killed=True, save_on="main", **settings)
    ranks = run_ranks(accelerate_loop, resume=True, log_notes=True, **settings)
    for seen in ranks:
        assert seen["all_lrs_equal"]
        assert seen["last_lr"] == 0.0
        assert len(seen["losses"]) + seen["pending"] == seen["switch_step"]
    assert any("those of the main process stand in" in note for note in ranks[1]["notes"])
