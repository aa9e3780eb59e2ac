from __future__ import annotations

import pytest
import torch
from margins import assert_below
from rank_programs import trainer_run, uneven_loop
from ranks import run_ranks

FAST = {"max_lr": 1e4, "test_every": 4, "peak_rule": "minimum"}


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.once), 2])
def test_a_rank_with_fewer_batches_hangs_nobody(processes):
    """Rank 1 has one batch fewer in every epoch; inside join_uneven_inputs no collective of ours is issued."""
    ranks = run_ranks(uneven_loop, processes=processes, options=FAST)
    first = ranks[0]
    for seen in ranks:
        assert seen["calls_inside"] == 0
        assert seen["steps"] == first["steps"]
        assert seen["lr"] == first["lr"]
        assert seen["switch_step"] == first["switch_step"]
        assert_below(seen["switch_step"], seen["cap"], seen["cap"])
        assert seen["losses"] == first["losses"]
        assert seen["test_steps"] == first["test_steps"]
    assert len(first["losses"]) == first["switch_step"] / processes
    if processes > 1:
        assert all(step % (11 * processes) == 0 for step in first["test_steps"])  # at the ends of the epochs
        # The eleventh loss of an epoch is the longer rank's own, the others are means.
        theirs = ranks[1]["own"][0]
        assert first["losses"][:11] == pytest.approx(
            [(a + b) / 2 for a, b in zip(first["own"][0], theirs, strict=False)] + first["own"][0][10:], abs=1e-6
        )
        assert len(theirs) == 10


def test_a_cap_reached_by_the_longer_rank_alone_ends_the_warm_up_of_both():
    ranks = run_ranks(uneven_loop, options={"max_lr": 1e-3}, epochs=2)
    for seen in ranks:
        assert seen["switch_step"] == seen["cap"] == 22
        assert seen["lr"] == ranks[0]["lr"] == 0.0
        assert len(seen["losses"]) == 11


def test_all_ranks_go_back_together_where_one_was_alone_at_the_cap():
    first, second = run_ranks(uneven_loop, options={"max_lr": 1e-3}, epochs=4)
    assert first["switch_step"] == second["switch_step"] == first["cap"] == 44
    assert first["rewound_to"] == second["rewound_to"] == 22  # copies are made at the ends of the epochs
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)


def test_without_a_range_the_lr_stays_the_optimizers():
    """Neither the scale nor a range can be looked at where no collective may be issued."""
    for seen in run_ranks(uneven_loop, options={"scale": True}, epochs=4):
        assert seen["calls_inside"] == 0
        assert seen["switch_step"] == 2
        assert max(seen["lrs"]) == 1e-3
        assert seen["lr"] == 0.0


def test_even_batches_give_every_rank_as_many():
    """accelerate's default repeats samples, so that no rank runs out before another."""
    ranks = run_ranks(uneven_loop, options=FAST, even=True)
    for seen in ranks:
        assert len(seen["own"][0]) == 11
        assert seen["switch_step"] == ranks[0]["switch_step"]
        assert_below(seen["switch_step"], seen["cap"], seen["cap"])


def test_trainer_without_even_batches_tests_at_the_same_steps_on_every_rank(tmp_path):
    """Rank 0 has 11 batches an epoch and rank 1 has 10; DistributedDataParallel pairs their steps by order."""
    ranks = run_ranks(
        trainer_run,
        str(tmp_path),
        samples=21 * 8,
        options={"test_every": "epoch", "peak_rule": "minimum", "max_lr": 1e4},
        accelerator_config={"even_batches": False},
        steps=400,
    )
    for seen in ranks:
        assert seen["steps_per_epoch"] == 11
        assert seen["test_steps"] == [11 * i for i in range(1, len(seen["test_steps"]) + 1)]
        assert len(seen["losses"]) == seen["switch_step"]
        assert_below(seen["switch_step"], seen["cap"], seen["cap"])
        assert seen["all_lrs_equal"]
