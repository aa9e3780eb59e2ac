"""The scale under every launcher finds what one process finds, and resumes within its first steps."""

from __future__ import annotations

import functools

import pytest
import torch
from rank_programs import (
    clipped_loop,
    deepspeed_config,
    deepspeed_trainer_run,
    fsdp_trainer_run,
    trainer_run,
    unprepared_loop,
)
from ranks import run_ranks
from test_launchers import DEEPSPEED, needs_deepspeed, needs_fsdp2
from tiny import WithTrainedNorms

from autowu_hf.autowu.course.measures.bounds import TRAINED

OPTIONS = {"scale": True, "max_lr": None}
STEPS = 60
RELAPSES = {"relapses": True, "steps": 120}
"""In 60 steps there is no time for an attempt."""
SAVED = {2: 1, 3: 2}
"""Stage of ZeRO -> the step of its checkpoint: before there is a snapshot, which no checkpoint of shares has."""


def run(function, folder, *args, processes=2, steps=STEPS, **settings):
    settings = {"model": WithTrainedNorms, "processes": processes, "steps": steps, **settings}
    return run_ranks(function, str(folder), *args, options=OPTIONS, **settings)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return run(trainer_run, tmp_path_factory.mktemp("one"), processes=1)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_process):
    """Processes -> what the ranks of a whole run saw."""
    return {1: [one_process], 2: run(trainer_run, tmp_path_factory.mktemp("two"))}


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    """Stage of ZeRO -> the folder of a whole run and what its ranks saw. Its checkpoint is that of step ``SAVED``."""

    @functools.cache
    def of(stage):
        folder = tmp_path_factory.mktemp("zero")
        saved = {"save_at": (SAVED[stage],)} if stage in SAVED else {}
        return folder, run_deepspeed(folder, deepspeed_config(stage), **saved)

    return of


def check_finds_the_same(ranks, one_process, tolerance):
    for seen in ranks:
        assert seen["all_lrs_equal"]
        assert seen["approach"]["scale"]["norms"] == TRAINED
        for number in ("polyak", "trust", "layer_trust", "peak_lr"):
            assert seen["approach"]["scale"][number] == pytest.approx(
                one_process["approach"]["scale"][number], rel=tolerance
            )
        expected = one_process["approach"]["reaches"]
        assert len(expected) == 2
        assert seen["approach"]["reaches"] == pytest.approx(expected, rel=max(0.1, tolerance))  # sums of other signs
        assert seen["last_lr"] == 0.0
        assert 0 < seen["switch_step"] < STEPS * 2


def test_one_process_finds_a_scale(one_process):
    scale = one_process["approach"]["scale"]
    assert scale["num_steps"] == 2
    assert 0 < one_process["lrs"][0] < 1e-2 * scale["peak_lr"] < max(one_process["lrs"])


def test_ddp(one_process, whole):
    ranks = whole[2]
    check_finds_the_same(ranks, one_process, tolerance=1e-2)
    # The losses of the two measured steps, and no collective on an ordinary step after them.
    assert ranks[0]["calls"][:2] == ["gather", "gather"]


@pytest.mark.once
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_fsdp1(tmp_path, one_process, use_orig_params):
    ranks = run(fsdp_trainer_run, tmp_path, 1, use_orig_params=use_orig_params)
    check_finds_the_same(ranks, one_process, tolerance=1e-2)


@pytest.mark.once
@needs_fsdp2
def test_fsdp2(tmp_path, one_process):
    check_finds_the_same(run(fsdp_trainer_run, tmp_path, 2), one_process, tolerance=1e-2)


def run_deepspeed(folder, config, **settings):
    return run(deepspeed_trainer_run, folder, config, environment=DEEPSPEED, timeout=400.0, **settings)


@needs_deepspeed
@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.once), pytest.param(1, marks=pytest.mark.once), 2, 3]
)
def test_deepspeed(zero, one_process, stage):
    """ZeRO keeps flat shares of the weights; the same is found in them."""
    check_finds_the_same(zero(stage)[1], one_process, tolerance=1e-2)


@pytest.mark.once
@needs_deepspeed
def test_deepspeed_finds_the_same_in_half_precision_and_clipped_and_accumulated(tmp_path, one_process):
    """Half precision rounds the gradients; an accumulated step has other examples."""
    half, half_0 = ({**deepspeed_config(stage), "bf16": {"enabled": True}} for stage in (3, 0))
    check_finds_the_same(run_deepspeed(tmp_path / "half", half), one_process, tolerance=5e-2)
    # The first clips in the engine, the others in DeepSpeed's optimizers.
    for name, config in (("0", deepspeed_config(0)), ("2", deepspeed_config(2)), ("0 half", half_0)):
        clipped = {**config, "gradient_clipping": "auto"}
        ranks = run_deepspeed(tmp_path / f"clipped {name}", clipped, max_grad_norm=0.01)
        check_finds_the_same(ranks, one_process, tolerance=5e-2)
    accumulated = {"gradient_accumulation_steps": 4, "samples": 1920}
    (expected,) = run(trainer_run, tmp_path / "one", processes=1, **accumulated)
    ranks = run_deepspeed(tmp_path / "accumulated", deepspeed_config(2), **accumulated)
    check_finds_the_same(ranks, expected, tolerance=1e-2)


@pytest.mark.once
@needs_deepspeed
@pytest.mark.parametrize("stage", SAVED)
def test_deepspeed_goes_on_from_a_checkpoint_of_its_first_steps(zero, stage):
    saved, (folder, whole) = SAVED[stage], zero(stage)
    resumed = run_deepspeed(folder, deepspeed_config(stage), resume=str(folder / f"checkpoint-{saved}"))
    for seen, before in zip(resumed, whole, strict=True):
        assert seen["approach"]["scale"] == before["approach"]["scale"]
        assert seen["lrs"] == before["lrs"][saved:]


@pytest.mark.once
@needs_deepspeed
def test_deepspeed_counts_the_parts_that_each_process_has(tmp_path, zero):
    """Also where its optimizer steps the weights in several parts, one after the other."""
    config = deepspeed_config(3)
    config["zero_optimization"]["sub_group_size"] = 20
    _, whole = zero(3)
    small = run_deepspeed(tmp_path, config)
    for seen, other in zip(small, whole, strict=True):
        for number in ("polyak", "trust", "layer_trust"):
            assert seen["approach"]["scale"][number] == pytest.approx(other["approach"]["scale"][number], rel=1e-5)


@pytest.mark.once
def test_processes_whose_gradients_differ_take_one_lr_and_are_told(tmp_path):
    main, other = run_ranks(unprepared_loop)
    assert main["lrs"] == other["lrs"]
    assert main["scale"] == other["scale"]
    assert main["scale"] is not None
    assert sum("the gradients of the processes differ" in note for note in main["notes"]) == 1
    assert not any("differ" in note for note in other["notes"])


@pytest.mark.parametrize("limit", [0.01, 0.24])
def test_what_torch_clips_is_seen_under_ddp(limit):
    """Both of the first steps, or the first one alone, whose gradient is the larger one."""
    (free,) = run_ranks(clipped_loop, 1e3, processes=1)
    for seen in run_ranks(clipped_loop, limit):
        assert seen["obstacle"] is None
        assert seen["scale"]["polyak"] == pytest.approx(free["scale"]["polyak"], rel=0.05)  # AdamW's epsilon counts


@pytest.mark.once
def test_clipping_and_accumulation_change_nothing(tmp_path, one_process):
    for name, options, tolerance in (
        ("clipped", {"max_grad_norm": 0.01}, 1e-2),
        ("not clipped", {"max_grad_norm": 0.0}, 5e-2),  # Adam adds up two gradients, which clipping makes alike
        ("accumulated", {"gradient_accumulation_steps": 4, "samples": 1920}, 0.3),  # other examples
    ):
        (seen,) = run(trainer_run, tmp_path / name, processes=1, **options)
        assert seen["approach"]["scale"]["peak_lr"] == pytest.approx(
            one_process["approach"]["scale"]["peak_lr"], rel=tolerance
        )


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What one process saw that had later batches say how much of the first slope lasts."""
    return run(trainer_run, tmp_path_factory.mktemp("asked"), processes=1, asks_later=True)


LAUNCHERS = ["ddp", 1, pytest.param(2, marks=needs_fsdp2)]
ZERO = {stage: pytest.param(f"zero {stage}", marks=needs_deepspeed) for stage in (2, 3)}
"""Each of the two where it is asked; they differ in how the weights are divided alone."""


def run_by(kind, folder, **options):
    """What two processes saw, by DDP, by FSDP of version 1 or 2, or by ZeRO 2 or 3."""
    if str(kind).startswith("zero"):
        return run_deepspeed(folder, deepspeed_config(int(kind[-1])), **options)
    where = (trainer_run, folder) if kind == "ddp" else (fsdp_trainer_run, folder, kind)
    return run(*where, **options)


@pytest.mark.once
@pytest.mark.parametrize("kind", [*LAUNCHERS, ZERO[3]])
def test_later_batches_say_the_same_under_every_launcher(kind, tmp_path, asked):
    for seen in run_by(kind, tmp_path, asks_later=True):
        assert seen["all_lrs_equal"]
        assert seen["approach"]["lasting"] == pytest.approx(asked[0]["approach"]["lasting"], rel=1e-2)


@pytest.fixture(scope="module")
def too_far(tmp_path_factory):
    """Processes -> what the ranks saw whose batches after the growth said that it had gone too far."""
    folder = tmp_path_factory.mktemp("too far")
    return {n: run(trainer_run, folder / str(n), processes=n, goes_too_far=True) for n in (1, 2)}


@pytest.mark.once
@pytest.mark.parametrize("kind", [*LAUNCHERS, ZERO[2]])
def test_a_growth_that_has_gone_too_far_is_judged_alike_under_every_launcher(kind, tmp_path, too_far):
    expected = too_far[1][0]["approach"]["overshot"]
    assert len(expected) == 2
    for seen in too_far[2] if kind == "ddp" else run_by(kind, tmp_path, goes_too_far=True):
        assert seen["all_lrs_equal"]
        (first, rise), (second, _) = seen["approach"]["overshot"]
        assert [first, second] == [step for step, _ in expected]
        assert rise == pytest.approx(expected[0][1], rel=5e-2)


def check_goes_on_bit_for_bit(folder, whole, killed, same, **options):
    """That a run which is killed after so many steps goes on from its last checkpoint as the whole one did.

    Args:
        folder: for the checkpoints.
        whole: what each process of the whole run saw.
        killed: the steps done.
        same: names of what has to be the same in the end, beside LRs and weights.
        options: of both runs.
    """
    run(trainer_run, folder, kill_at=killed + 1, killed=True, save_strategy="steps", save_steps=1, **options)
    for seen, before in zip(run(trainer_run, folder, resume=True, **options), whole, strict=True):
        assert seen["lrs"] == before["lrs"][killed:]
        assert [seen[name] for name in same] == [before[name] for name in same]
        assert all(torch.equal(a, b) for a, b in zip(seen["weights"], before["weights"], strict=True))


@pytest.mark.once
@pytest.mark.parametrize(("processes", "killed"), [(1, 9), (2, 9), (2, 24)])
def test_a_run_that_is_killed_while_that_is_asked_goes_on_bit_for_bit(tmp_path, too_far, processes, killed):
    options = {"processes": processes, "goes_too_far": True}
    check_goes_on_bit_for_bit(tmp_path, too_far[processes], killed, ["approach"], **options)


@pytest.mark.once
@pytest.mark.parametrize(("processes", "killed"), [(1, 1), (1, 2), (2, 1), (2, 2), (1, 5), (1, 6), (2, 7)])
def test_a_run_that_is_killed_within_its_first_steps_goes_on_bit_for_bit(tmp_path, whole, asked, processes, killed):
    """After 5 steps later batches are being asked, after 6 and 7 it is being measured how far updates get."""
    is_asked = killed == 5
    before = asked if is_asked else whole[processes]
    options = {"processes": processes, "asks_later": is_asked}
    check_goes_on_bit_for_bit(tmp_path, before, killed, ["losses", "approach"], **options)


@pytest.fixture(scope="module")
def relapsed(tmp_path_factory):
    """Processes -> what the ranks saw that went back after the switch."""
    folder = tmp_path_factory.mktemp("relapsed")
    return {n: run(trainer_run, folder / str(n), processes=n, **RELAPSES) for n in (1, 2)}


@pytest.mark.once
@pytest.mark.parametrize("kind", [*LAUNCHERS, ZERO[3]])
def test_a_relapse_is_judged_alike_under_every_launcher(kind, tmp_path, relapsed):
    expected = relapsed[1][0]["relapses"]
    assert [attempt["was_lost"] for attempt in expected["attempts"]][:1] == [True]
    for seen in relapsed[2] if kind == "ddp" else run_by(kind, tmp_path, **RELAPSES):
        assert seen["all_lrs_equal"]
        assert seen["relapses"]["lr_factors"] == expected["lr_factors"]
        for attempt, other in zip(seen["relapses"]["attempts"], expected["attempts"], strict=True):
            assert attempt["tried"] == pytest.approx(other["tried"], rel=0.1)
            assert attempt["again"] == pytest.approx(other["again"], rel=0.1)
            assert attempt["last"] == pytest.approx(other["last"], rel=0.1)


@pytest.mark.once
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_while_earlier_weights_are_tried_goes_on_bit_for_bit(tmp_path, relapsed, processes):
    options, whole = {"processes": processes, **RELAPSES}, relapsed[processes]
    killed = whole[0]["relapses"]["attempts"][0]["since"] + 3
    check_goes_on_bit_for_bit(tmp_path, whole, killed, ["relapses"], **options)
