"""Every rank of a run is killed, and the run resumed: from then on it must be the run that was never interrupted."""

from __future__ import annotations

import random
import shutil
from typing import Any

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
# The first ones show that it works with the oldest releases too.
KILLED = [range(2), range(2, 8), range(8, 14), range(14, 20)]
TRAINER_KILLED = [range(2), range(2, 6), range(6, 10)]


def some_once(groups: list[range]) -> list[Any]:
    """One test for each group of seeds."""
    return [
        pytest.param(seeds, id=f"{seeds[0]}-{seeds[-1]}", marks=[pytest.mark.once] if seeds[0] >= 2 else [])
        for seeds in groups
    ]


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


@pytest.mark.parametrize("seeds", some_once(KILLED))
def test_an_accelerate_loop_killed_at_random_steps_resumes_exactly(tmp_path, uninterrupted, seeds):
    """What is resumed is killed again further on, so that every resumed run but the last is itself resumed."""
    whole = uninterrupted["accelerate"]
    assert_below(whole[0]["switch_step"], whole[0]["cap"], whole[0]["cap"])
    settings = {"folder": str(tmp_path), "options": OPTIONS, "save_every": SAVE_EVERY}
    kills = []
    for seed in seeds:
        point = random.Random(seed + 100).choice(["backward", "optimizer", "step"])
        kills.append((kill_step(seed, whole[0]["switch_step"]), point))
    for i, (step, point) in enumerate(sorted(kills)):
        run_ranks(accelerate_loop, kill_at=(step, point), killed=True, resume=i > 0, **settings)
    for seen, before in zip(run_ranks(accelerate_loop, resume=True, **settings), whole, strict=True):
        done = len(before["lrs"]) - len(seen["lrs"])
        assert done % SAVE_EVERY == 0
        assert 0 < done <= step
        assert seen["lrs"] == before["lrs"][done:]
        assert seen["expected"] == before["expected"][done:]
        for name in ("losses", "test_steps", "switch_step", "peak_lr", "rewound_to", "pending"):
            assert seen[name] == before[name]


@pytest.mark.parametrize("seeds", some_once(TRAINER_KILLED))
def test_trainer_killed_at_random_steps_resumes_exactly(tmp_path, uninterrupted, seeds):
    whole = uninterrupted["trainer"]
    assert_below(whole[0]["switch_step"], whole[0]["cap"], whole[0]["cap"])
    settings = {"save_strategy": "steps", "save_steps": SAVE_EVERY, "options": TRAINER_OPTIONS}
    for i, step in enumerate(sorted(kill_step(seed, whole[0]["switch_step"]) for seed in seeds)):
        run_ranks(trainer_run, str(tmp_path), kill_at=step, killed=True, resume=i > 0, **settings)
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


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What runs of 2 ranks left that were killed at step 25."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("accelerate", "trainer")}
    settings = {"folder": str(folders["accelerate"]), "options": OPTIONS, "save_every": SAVE_EVERY}
    run_ranks(accelerate_loop, kill_at=(25, "step"), killed=True, **settings)
    settings = {"save_strategy": "steps", "save_steps": SAVE_EVERY, "options": TRAINER_OPTIONS}
    run_ranks(trainer_run, str(folders["trainer"]), kill_at=25, killed=True, **settings)
    return folders


@pytest.mark.parametrize("processes", [1, 4])
def test_resumed_on_another_number_of_ranks_it_trains_on_with_a_note(tmp_path, killed, processes):
    """The ticks of an accelerate loop count batches, so that the schedule goes on where it was."""
    shutil.copytree(killed["accelerate"], tmp_path, dirs_exist_ok=True)
    settings = {"folder": str(tmp_path), "options": OPTIONS, "save_every": SAVE_EVERY}
    ranks = run_ranks(accelerate_loop, processes=processes, resume=True, log_notes=True, **settings)
    for seen in ranks:
        assert seen["all_lrs_equal"]
        assert_above(len(seen["losses"]) + seen["pending"], 21, seen["switch_step"])
        assert seen["switch_step"] is not None
    assert any(f"goes on with {processes} process(es) from a state of 2" in note for note in ranks[0]["notes"])


@pytest.mark.parametrize("processes", [1, 4])
def test_trainer_resumed_on_another_number_of_ranks_trains_on(tmp_path, uninterrupted, killed, processes):
    shutil.copytree(killed["trainer"], tmp_path, dirs_exist_ok=True)
    settings = {"save_strategy": "steps", "save_steps": SAVE_EVERY, "options": TRAINER_OPTIONS}
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
