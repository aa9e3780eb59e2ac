"""The guard after the switch: what it goes back for, and what it leaves alone."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import json
import logging
import math
import weakref
from unittest import mock

import pytest
import torch
from margins import assert_above, assert_below
from relapse_runs import BEARABLE_LR, STEPS, Run

from autowu_hf.autowu.course.signs import Signs
from autowu_hf.autowu.relapse.relapse import DIVISOR, RENEW, TRIAL_DIVISOR, UNTIL
from autowu_hf.autowu.reporting.report import describe

HARDER_AT = 110


@pytest.fixture(scope="module")
def worn() -> Run:
    """A run whose LR is too high for long."""
    return Run().go()


@pytest.fixture(scope="module")
def unwatched() -> Run:
    """The same, without anything to go back to."""
    run = Run()
    for _ in run.train(STEPS):
        if run.scheduler.phase == "decay" and run.scheduler._relapse.is_watching:
            run.scheduler._relapse.stop(run.step)
    return run


def test_what_was_lost_is_won_back(worn, unwatched):
    (attempt,) = worn.attempts
    assert attempt["was_lost"]
    assert max(attempt["tried"], attempt["last"]) < attempt["level"] < attempt["again"]
    assert attempt["back_to"] < attempt["since"] < attempt["taken_at"] < attempt["end"] < UNTIL * STEPS
    assert_below(worn.losses[-1], unwatched.losses[-1] - 0.5, unwatched.losses[-1])
    assert worn.lrs[: attempt["since"]] == unwatched.lrs[: attempt["since"]]


def test_it_tries_at_a_tenth_of_the_lr_and_goes_on_at_a_third(worn):
    (attempt,) = worn.attempts
    peak = worn.scheduler.peak_lr
    assert peak > BEARABLE_LR
    assert worn.lrs[attempt["since"]] == worn.lrs[attempt["taken_at"]] == pytest.approx(peak / TRIAL_DIVISOR)
    assert worn.lrs[attempt["taken_at"] - 1] == peak  # the later weights, once more
    assert worn.lrs[attempt["end"]] == pytest.approx(peak / DIVISOR)
    assert worn.scheduler.get_last_lr() == [0.0]
    assert worn.scheduler.num_steps_lost == attempt["taken_at"] - attempt["back_to"]
    assert worn.scheduler.num_steps_looked == 0


def test_the_weights_are_those_from_before():
    run, states = Run(), {}
    for step in run.train(STEPS):
        states[step] = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()["state"]))
        if run.attempts and run.attempts[-1]["end"] == step:
            break
    (attempt,) = run.attempts
    for step in (attempt["since"], attempt["taken_at"]):
        for now, before in zip(states[step], states[attempt["back_to"]], strict=True):
            torch.testing.assert_close(now, before, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("until", "asked_again"), [(STEPS, False), (HARDER_AT + 11, True)], ids=["harder from then on", "a hard stretch"]
)
def test_harder_data_are_no_relapse(until, asked_again, caplog):
    """Nothing is kept of what was tried, and the LRs are those of a run that tried nothing."""
    caplog.set_level(logging.INFO, "autowu_hf")
    run = Run(wear=0.0, harder=lambda step: 1.0 * (HARDER_AT <= step < until)).go()
    plain = Run(wear=0.0).go()
    (attempt,) = run.attempts
    assert not attempt["was_lost"]
    assert (attempt["again"] is not None) is asked_again
    assert run.lrs[: attempt["since"]] == plain.lrs[: attempt["since"]]
    assert run.lrs[attempt["end"] :] == plain.lrs[attempt["end"] :]
    assert run.scheduler.num_steps_lost == attempt["end"] - attempt["since"]
    assert f"it goes on from the weights of step {attempt['since']}" in caplog.text


def test_with_several_scheduler_steps_to_an_optimizer_step_all_is_the_same(worn):
    run = Run(ticks=2).go()
    assert (run.losses, run.lrs, run.attempts) == (worn.losses, worn.lrs, worn.attempts)
    assert run.scheduler.num_steps_lost == 2 * worn.scheduler.num_steps_lost


def test_an_lr_that_is_still_too_high_is_divided_once_more():
    run = Run(steps=400, wear=0.005, bearable_lr=0.04).go()
    assert [attempt["was_lost"] for attempt in run.attempts] == [True, True]
    factors = [factor for _, factor in run.scheduler.report()["relapses"]["lr_factors"]]
    assert factors[-1] == pytest.approx(1.0 / DIVISOR**2)
    assert run.attempts[1]["factor"] == pytest.approx(1.0 / DIVISOR)
    second = run.attempts[1]
    assert run.scheduler.num_steps_lost == sum(a["taken_at"] - a["back_to"] for a in run.attempts)
    assert run.lrs[second["end"]] == pytest.approx(run.scheduler.peak_lr / DIVISOR**2)


def test_what_was_worn_before_the_switch_is_won_back_too():
    """Nothing is left to compare with after it, so that the approach looks once, at its end."""
    run, too_late = (Run(wear=0.01, steps=400) for _ in range(2))
    run.go()
    with mock.patch.object(Signs, "lost", return_value=None):
        too_late.go()
    assert run.scheduler.report()["approach"]["break_reasons"] == ["lost"]
    assert run.attempts == []
    assert "; the losses ask for no more at step" in describe(run.scheduler.report())  # those taken back do not count
    assert_below(run.losses[-1], too_late.losses[-1] - 0.1, too_late.losses[-1])


def test_newer_weights_take_the_place_of_the_kept_ones_as_the_losses_fall():
    run = Run(wear=0.0, harder=lambda step: 1.0 - step / STEPS)
    kept = []
    for _ in run.train(int(UNTIL * STEPS)):
        snapshots = [] if run.scheduler._relapse._kept is None else run.scheduler._relapse._kept.snapshots
        assert len(snapshots) <= 1
        kept += [stored.step for stored in snapshots if stored.step not in kept]
    assert kept[0] == run.scheduler.switch_step
    assert len(kept) > 3
    assert min(later - earlier for earlier, later in itertools.pairwise(kept)) >= RENEW * STEPS


@pytest.mark.parametrize("at", [*range(68, 78), *range(82, 90)])
def test_weights_that_broke_a_moment_ago_do_not_take_their_place(at):
    """The first renewal is after 81 steps. The median does not show yet what has happened three steps before."""
    run = Run(wear=0.0, harder=lambda step: 1.0 - step / STEPS).go(at)
    run.model.worn += 3.0
    run.go()
    assert run.attempts[0]["was_lost"]


def test_after_a_way_back_the_losses_are_compared_with_what_they_are_then():
    """Weights from before may be some way from the best ones."""
    run = Run(wear=0.002, steps=1000).go()
    assert [attempt["was_lost"] for attempt in run.attempts] == [True]
    run = Run(wear=0.005, steps=400, bearable_lr=0.04).go()
    first, second = run.attempts
    assert second["best"] == first["last"]


def test_only_one_snapshot_is_kept_after_an_attempt(worn):
    for harder in (None, lambda step: 1.0 * (step >= HARDER_AT)):
        run = Run(wear=0.01 if harder is None else 0.0, harder=harder)
        for _ in run.train(STEPS):
            if run.attempts and run.attempts[0]["end"] is not None:
                break
        (attempt,) = run.attempts
        kept = attempt["back_to"] if attempt["was_lost"] else attempt["since"]
        assert [stored.step for stored in run.scheduler._relapse._kept.snapshots] == [kept]


def test_nothing_is_tried_where_it_could_not_end_in_time():
    run = Run(wear=0.0, harder=lambda step: 1.0 * (step >= 140)).go()
    assert run.attempts == []
    assert run.scheduler._relapse._kept.snapshots == []


def test_after_an_attempt_the_losses_are_compared_with_what_they_are_then():
    """A second rise is one of its own, and none where the first one goes on being there."""
    run = Run(wear=0.0, harder=lambda step: 1.0 * (step >= 80)).go()
    assert len(run.attempts) == 1
    again = Run(wear=0.0, harder=lambda step: 1.0 * (step >= 80) + 2.0 * (step >= 115)).go()
    assert len(again.attempts) == 2
    assert again.attempts[1]["best"] == pytest.approx(2.0, abs=0.05)


def test_what_it_compares_with_is_of_the_weights_that_the_switch_goes_on_from():
    run = Run().go(70)
    schedule = run.scheduler
    first, last = schedule._losses_of_now(70)
    assert (len(first), len(last)) == (schedule.switch_step, schedule.switch_step)
    schedule.rewound_to = 20
    first, last = schedule._losses_of_now(70)
    assert last.tolist() == run.losses[:20] == first[:20].tolist()


@pytest.mark.parametrize("period", [18, 20, 22, 24, 26, 40])
def test_data_that_are_hard_and_easy_in_turn_are_no_relapse(period):
    """For one trial of the earlier weights and one of the later ones, each may have had its half."""
    run = Run(wear=0.0, harder=lambda step: 1.0 * (step > 80 and step % period < period // 2)).go()
    assert not any(attempt["was_lost"] for attempt in run.attempts)
    assert run.lrs[165] == Run(wear=0.0).go().lrs[165]


def test_an_lr_that_is_too_high_from_the_switch_on_is_seen():
    """By what the losses were before."""
    run = Run(wear=0.1, bearable_lr=0.3).go(60)
    assert run.scheduler.phase == "decay"
    run.scheduler.peak_lr *= 3.0
    run.go()
    assert run.attempts[0]["was_lost"]
    assert run.attempts[0]["back_to"] == run.scheduler.switch_step
    assert_below(run.losses[-1], 1.5, 1.0)


def test_a_loss_that_goes_on_to_rise_by_itself_is_tried_twice_at_most():
    run = Run(wear=0.0, steps=400, harder=lambda step: max(step - 130, 0) * 0.05).go()
    assert [attempt["was_lost"] for attempt in run.attempts] == [False, False]
    assert not run.scheduler._relapse.is_watching


def test_a_run_that_learns_is_left_alone(caplog):
    run = Run(wear=0.0).go()
    assert run.attempts == []
    assert run.scheduler._relapse._kept.snapshots == []  # the memory is free again
    assert not run.scheduler._relapse.is_watching
    assert run.scheduler.report()["relapses"]["unlearned"] is None


@pytest.mark.parametrize("ticks", [1, 2])
def test_a_run_that_has_learned_next_to_nothing_by_then_is_told_so(ticks, caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    run = Run(wear=0.0, ticks=ticks, harder=lambda step: 20.0).go()  # of which the model takes one
    step = run.scheduler.report()["relapses"]["unlearned"]
    assert UNTIL * STEPS < step < UNTIL * STEPS + 10
    assert f"by step {step} of {STEPS} the losses show hardly any progress: they began at 2" in caplog.text
    assert f"a tenth of the peak LR, {0.1 * run.scheduler.peak_lr:.1e}, or" in caplog.text
    assert run.scheduler.report()["found"].endswith(
        f"by step {step} the losses had not been seen to fall by a twentieth"
    )
    resumed = Run(wear=0.0, ticks=ticks, harder=run.harder).resume(run.state(), STEPS)
    assert resumed.scheduler.report()["relapses"] == run.scheduler.report()["relapses"]


def test_the_state_of_an_older_release_has_one_level_of_the_first_losses():
    run = Run(wear=0.0, harder=lambda step: 20.0).go(120)
    state = copy.deepcopy(run.state())
    run.go()
    (relapse,) = state["scheduler"]["relapse"]
    relapse["levels"] = [relapse["heard"].pop("starts")[0][0], relapse.pop("best")]
    resumed = Run(wear=0.0, harder=run.harder).resume(state, 120)
    assert [num for _, num in resumed.scheduler._relapse.heard.starts] == [3]
    resumed.go()
    assert resumed.losses[-1] == run.losses[-1]
    assert resumed.scheduler.report()["relapses"] == run.scheduler.report()["relapses"]
    assert run.scheduler.report()["relapses"]["unlearned"]


def test_a_loss_that_has_become_another_one_is_not_compared_with_the_start(caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    run = Run(wear=0.0, harder=lambda step: 3.0 * (step >= HARDER_AT)).go()
    assert [attempt["was_lost"] for attempt in run.attempts] == [False]
    assert run.losses[-1] > run.losses[0]
    assert run.scheduler.report()["relapses"]["unlearned"] is None
    assert "progress" not in caplog.text


@pytest.mark.parametrize(("steps", "at"), [(STEPS, 100), (STEPS, 145), (100, 50)])
def test_weights_that_break_are_taken_back_at_once(steps, at, caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    run = Run(wear=0.0, steps=steps).go(at)
    with torch.no_grad():
        run.model.weight.fill_(math.nan)
    run.go()
    (attempt,) = run.attempts
    assert attempt["was_lost"]
    assert (attempt["level"], attempt["tried"]) == (math.inf, None)
    assert run.lrs[attempt["end"]] == pytest.approx(run.scheduler.peak_lr / DIVISOR)
    assert_below(run.losses[-1], run.losses[0], run.losses[0])
    assert "the losses are not finite" in caplog.text


@pytest.mark.parametrize("at", range(78, 90))
def test_weights_that_have_just_become_nan_do_not_take_the_place_of_sound_ones(at):
    """The first renewal is after 81 steps, and the median of many losses hides the one or two that tell."""
    run = Run(wear=0.0, harder=lambda step: 1.0 - step / STEPS).go(at)
    with torch.no_grad():
        run.model.weight.fill_(math.nan)
    run.go()
    (attempt,) = run.attempts
    assert attempt["was_lost"]
    assert attempt["back_to"] <= at
    assert math.isfinite(run.losses[-1])


def test_it_is_said(worn, caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    (attempt,) = Run().go().attempts
    assert f"by step {attempt['since']} the losses have risen again" in caplog.text
    assert f"it goes on from the weights of step {attempt['back_to']}, at a third of the learning rate" in caplog.text
    report = worn.scheduler.report()
    assert f"back to step {attempt['back_to']} at step {attempt['taken_at']}" in report["found"]
    assert report["relapses"]["lr_factors"][-1] == [attempt["end"], 1.0 / DIVISOR]
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("stop", [60, 61, 70, 80, 88, 91, 95, 98, 100, 103, 105, 112, 130])
def test_a_resumed_run_goes_on_bit_for_bit(worn, stop):
    """At the switch, before the attempt, in each of its parts, and after it."""
    (attempt,) = worn.attempts
    assert worn.scheduler.switch_step == 60
    assert 80 < attempt["since"] < 88
    assert 100 < attempt["taken_at"] < 105 < attempt["end"] < 112
    first = Run().go(stop)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = Run().resume(torch.load(file, weights_only=True), stop).go()
    assert second.losses == worn.losses[stop:]
    assert second.lrs == worn.lrs[stop:]
    assert second.attempts == worn.attempts


def test_a_run_whose_checkpoint_holds_no_snapshots_goes_back_to_the_resume_at_most():
    first = Run(rewind_in_checkpoint=False).go(70)
    (attempt,) = Run(rewind_in_checkpoint=False).resume(first.state(), 70).go().attempts
    assert attempt["was_lost"]
    assert_above(attempt["back_to"], 70, STEPS)


@pytest.mark.parametrize("part", ["earlier", "later"])
def test_an_attempt_whose_snapshots_no_checkpoint_holds_is_cut_off_by_the_resume(worn, part, caplog):
    """It goes on at the lower LR, whichever weights these are."""
    caplog.set_level(logging.INFO, "autowu_hf")
    (attempt,) = worn.attempts
    stop = attempt["since"] + 3 if part == "earlier" else attempt["taken_at"] - 3
    first = Run(rewind_in_checkpoint=False).go(stop)
    caplog.clear()
    kept = attempt["back_to"] if part == "earlier" else attempt["since"]
    second = Run(rewind_in_checkpoint=False).resume(first.state(), stop).go()
    assert second.attempts[-1]["was_cut"]
    assert second.attempts[-1]["was_lost"] is (part == "earlier")
    assert second.lrs[1] == pytest.approx(worn.scheduler.peak_lr / DIVISOR)
    assert f"is cut off at step {stop}; it goes on from the weights of step {kept}, at a third of" in caplog.text


@pytest.mark.parametrize("by", ["no losses", "other processes"])
def test_an_attempt_that_is_cut_off_ends_with_the_later_weights_unless_the_others_were_better(worn, by):
    (attempt,) = worn.attempts
    ends = {}
    for part, stop in (("earlier", attempt["since"] + 3), ("later", attempt["taken_at"] - 3)):
        run = Run().go(stop)
        worn_out = run.model.worn.item()
        lost = run.scheduler.num_steps_lost
        if by == "no losses":
            run.hands_over = False
        else:
            run.scheduler.hold_tests(True)
        run.go(stop + 10)
        ends[part] = (run.attempts[-1], run.lrs[-1], run.model.worn.item() - worn_out)
        (last,) = run.attempts
        kept = last["back_to"] if last["was_lost"] else last["since"]
        assert run.scheduler.num_steps_lost - lost == last["taken_at"] - kept
        assert not run.scheduler._relapse.is_watching
    peak = worn.scheduler.peak_lr
    (earlier, earlier_lr, more), (later, later_lr, less) = ends["earlier"], ends["later"]
    assert earlier["was_cut"]
    assert later["was_cut"]
    if by == "no losses":  # all processes can go
        assert (earlier["was_lost"], earlier_lr) == (False, peak)
        assert more > 0.1
        assert less < -0.1
    assert later["was_lost"] is (by == "no losses")
    assert later_lr == pytest.approx(peak / DIVISOR)


def test_a_loop_that_hands_its_losses_over_no_more_is_not_watched(recwarn):
    run = Run().go(70)
    run.hands_over = False
    run.go()
    assert run.attempts == []
    assert not run.scheduler._relapse.is_watching
    assert not recwarn.list


@pytest.mark.parametrize("no_loss", [3, torch.zeros(2), "a loss"])
def test_what_is_no_loss_does_no_harm_after_the_switch(no_loss):
    run = Run().go(70)
    for _ in range(20):
        run.optimizer.step()
        run.scheduler.step(no_loss)
    assert not run.scheduler._relapse.is_watching


@pytest.mark.parametrize("options", [{"rewind": False}, {"scale": False}, {"preset": "paper", "test_every": 20}])
def test_without_a_scale_or_rewind_nothing_is_watched(options):
    run = Run(**options)
    for _ in run.train(STEPS):
        assert not run.scheduler._relapse.is_watching


def test_in_runs_of_fewer_than_200_steps_nothing_is_tried():
    run = Run(steps=199).go()
    assert run.attempts == []
    assert_above(run.losses[-1], 2.0, 1.0)


def test_short_runs_are_not_watched():
    run = Run(steps=59)
    for _ in run.train(59):
        assert not run.scheduler._relapse.is_watching


def test_snapshots_in_files(tmp_path, worn):
    run = Run(rewind="disk", rewind_dir=str(tmp_path)).go()
    assert run.losses == worn.losses
    assert [*tmp_path.rglob("*.bin")] == []


def test_too_little_memory_is_said_and_harms_nothing(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    run = Run().go(59)
    monkeypatch.setattr("autowu_hf.rewind.memory.free_memory", lambda: 1)
    run.go()
    assert run.attempts == []
    assert "does not watch the losses after the switch" in caplog.text


def test_too_little_memory_for_a_second_snapshot_ends_it(monkeypatch):
    run = Run().go(80)
    monkeypatch.setattr("autowu_hf.rewind.memory.free_memory", lambda: 1)
    run.go()
    assert run.attempts == []
    relapse = run.scheduler._relapse
    assert not relapse.is_watching
    assert relapse._kept.snapshots == []
    relapse.heard.history.observe(None)  # and hears nothing any more
    assert len(relapse.heard.history.pending()) == 0


def test_evaluations_of_what_is_tried_do_not_count():
    run = Run()
    for step in run.train(STEPS):
        is_tried = any(a["since"] <= step and a["end"] is None for a in run.attempts)
        assert run.scheduler.is_looking is (run.scheduler.phase == "warmup" or is_tried)


def test_a_schedule_that_nobody_holds_is_gone_at_once():
    run = Run().go(95)
    ref = weakref.ref(run.scheduler)
    history = weakref.ref(run.scheduler._relapse.heard.history)
    gc.disable()
    try:
        del run
        assert ref() is None
        assert history() is None
    finally:
        gc.enable()
