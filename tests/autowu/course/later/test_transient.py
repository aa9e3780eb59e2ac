"""Whether losses that have halved were those of a transient, and what the LR makes of it."""

from __future__ import annotations

import copy
import dataclasses
import io
import logging
import math
import statistics
from unittest import mock

import numpy as np
import pytest
import torch
from margins import assert_below
from scale_runs import made, quickly, run
from transient_runs import STEPS, LanguageModel, Preference, Regression

from autowu_hf.autowu.course.later import transient
from autowu_hf.autowu.course.later.transient import (
    FARTHEST,
    KEPT,
    MOST_RISEN,
    STEADY,
    SURELY_KEPT,
    TRIED,
    goes_on,
    may_be_transient,
    told_by,
)
from autowu_hf.autowu.course.legs import Way
from autowu_hf.autowu.course.measures.bounds import NEW, TRAINED, TRAINED_ROOM, begins_steep, may_be_outgrown
from autowu_hf.autowu.course.measures.scale import FAR, LAYER_SHARE, POLYAK_SHARE, TRUST_SHARE, Scale
from autowu_hf.autowu.course.timetable import MOST_REACHED
from autowu_hf.runtime.update_meter import Update


def test_after_a_transient_the_lr_grows_on_and_that_is_said(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        regression = Regression().go(STEPS)
    approach = regression.approach
    scale, at = approach["scale"], approach["transient"]
    by_polyak, of_all = POLYAK_SHARE * scale["polyak"], TRUST_SHARE * scale["trust"]
    by_trust = min(LAYER_SHARE * scale["layer_trust"], of_all)
    assert FAR * by_polyak < of_all < FARTHEST * by_polyak
    assert KEPT <= approach["kept"] < approach["risen"] <= MOST_RISEN
    wanted = math.sqrt(min(approach["risen"] * by_polyak, by_trust) * by_trust)
    assert regression.schedule.peak_lr == pytest.approx(wanted)
    assert regression.lrs[at] > regression.lrs[at - 1]  # training steps: nothing is given up
    assert max(regression.lrs) == pytest.approx(wanted)
    assert regression.schedule.num_steps_lost == 0
    assert regression.schedule.ended_by == "scale"
    assert f"half by step {at}, but P, which falls with what is learned" in caplog.text
    assert f"is {approach['kept']:.2g} times what it was, so that this was a transient" in caplog.text
    assert f"was {approach['kept']:.2g} times as high after a transient, at step {at}" in caplog.text


def test_losses_that_fall_no_further_take_the_raise_back(caplog):
    """A fresh head that has learned how often each class occurs looks like a transient, too."""
    regression = Regression()
    while regression.approach["transient"] is None:
        regression.go(1)
    at, weights = regression.done, copy.deepcopy(regression.model.state_dict())
    level = float(np.median(regression.losses[-10:]))
    regression.loss_of = lambda model, batch: level / (raw := Regression.loss_of(model, batch)).detach() * raw
    tried = regression.schedule._course.approach.transient.end(regression.schedule._course.approach.way)
    assert tried == at + round(TRIED * STEPS)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        regression.go(tried - at)
    assert regression.schedule.rewound_to is None  # it is restored at the next step, or is already
    assert regression.approach["break_reasons"] == ["no lower"]
    for name, own in regression.model.state_dict().items():
        assert torch.equal(own, weights[name])
    regression.go(STEPS - tried)
    legs = regression.approach["legs"]
    assert legs[-1]["to_lr"] == next(leg["to_lr"] for leg in reversed(legs) if leg["since"] < at)
    assert regression.schedule.peak_lr == legs[-1]["to_lr"]
    assert regression.schedule.num_steps_lost == tried - at
    assert f"AutoWU: by step {tried} the losses are no lower than when the learning rate was raised" in caplog.text
    assert f"back to it since the losses were no lower by step {tried}" in caplog.text


def test_losses_that_fall_on_leave_it():
    regression = Regression().go(STEPS)
    assert regression.approach["breaks"] == []
    assert regression.schedule.switch_step == regression.approach["transient"] + round(TRIED * STEPS)


def test_the_raised_lr_trains_better_than_that_of_the_first_gradients():
    raised, kept = Regression(), Regression()
    transient = kept.schedule._course.approach.transient
    transient.is_over, transient.risen, transient.raised_at = True, 1.0, 0  # so that the LR stays
    assert sum(raised.go(STEPS).losses[-20:]) < 0.8 * sum(kept.go(STEPS).losses[-20:])
    assert kept.schedule.peak_lr < 0.1 * raised.schedule.peak_lr


def test_where_targets_are_as_large_as_the_outputs_nothing_is_measured():
    approach = Regression(size=1.0).go(STEPS).approach
    assert approach["risen"] is None
    assert approach["transient"] is None


def test_where_p_is_not_far_below_r_halved_losses_make_the_lr_grow_as_before():
    model, optimizer, schedule = made(200)
    run(model, optimizer, schedule, quickly(200))
    approach = schedule.report()["approach"]
    assert approach["risen"] is None
    assert approach["sweep"] is not None


def test_the_loss_may_be_in_any_unit():
    once = Regression().go(STEPS)
    other = Regression()
    other.times = 1024.0
    other.go(STEPS)
    assert other.approach["transient"] == once.approach["transient"]
    assert other.schedule.peak_lr == pytest.approx(once.schedule.peak_lr, rel=1e-3)


def test_the_run_goes_back_to_the_end_of_the_transient_where_the_lr_is_too_high():
    regression = Regression().go(STEPS)
    at = regression.approach["transient"]
    broken = Regression()
    broken.go(at)
    kept = [p.detach().clone() for p in broken.model.parameters()]
    for _ in range(STEPS - at):  # and losses that say the LR has broken the run
        broken.optimizer.zero_grad()
        loss = 0.0 * sum(p.sum() for p in broken.model.parameters()) + 1e3 * broken.losses[0]
        loss.backward()
        broken.optimizer.step()
        broken.schedule.step(loss.detach())
        if broken.approach["breaks"]:
            break
    assert broken.approach["breaks"]
    assert all(map(torch.equal, broken.model.parameters(), kept))
    assert broken.approach["num_lost"] == broken.approach["breaks"][0] - at
    assert broken.approach["legs"][-1]["to_lr"] == pytest.approx(broken.approach["legs"][-2]["to_lr"] / 10.0)


@pytest.mark.parametrize("later", [-3, 2])
def test_a_resume_while_it_is_measured_and_after_changes_nothing(later):
    whole = Regression().go(STEPS)
    begun = Regression().go(whole.approach["transient"] + later)
    other = resumed(begun, STEPS).go(STEPS - begun.done)
    assert begun.lrs + other.lrs == whole.lrs
    assert other.schedule.peak_lr == whole.schedule.peak_lr
    assert all(map(torch.equal, other.model.parameters(), whole.model.parameters()))


def resumed(begun, steps, kind=Regression):
    """The same run as one of ``steps``, in another process."""
    other = kind(steps=steps, seed=1)
    state = io.BytesIO()
    torch.save([part.state_dict() for part in (begun.model, begun.optimizer, begun.schedule)], state)
    state.seek(0)
    for part, saved in zip((other.model, other.optimizer, other.schedule), torch.load(state), strict=True):
        part.load_state_dict(saved)
    other.done, other.losses = begun.done, [*begun.losses]
    return other


@pytest.mark.parametrize("steps", [STEPS - 20, 2 * STEPS])
def test_a_run_of_another_length_goes_on_to_measure(steps):
    at = Regression().go(STEPS).approach["transient"]
    begun = Regression().go(at - 3)
    assert begun.schedule._course.approach.transient.since is not None
    other = resumed(begun, steps).go(steps - begun.done)
    assert other.approach["kept"] >= KEPT
    assert abs(other.approach["transient"] - at) <= MOST_REACHED


@pytest.mark.parametrize("steps", [STEPS - 20, 20 * STEPS])
def test_the_raised_lr_is_the_same_in_a_run_of_another_length(steps):
    whole = Regression().go(STEPS)
    begun = Regression().go(whole.approach["transient"] + 1)
    other = resumed(begun, steps).go(20)
    assert max(other.lrs) == pytest.approx(whole.schedule.peak_lr)


def in_the_window():
    """A run in which two of the steps are done that are measured."""
    return Regression().go(Regression().go(STEPS).approach["transient"] - MOST_REACHED + 2)


def test_where_weights_were_frozen_p_is_of_other_weights_and_tells_nothing():
    regression = in_the_window()
    assert regression.schedule._course.approach.transient.since is not None
    for parameter in regression.model[0].parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    approach = regression.go(STEPS - regression.done).approach
    assert approach["risen"] is None
    assert approach["transient"] is None


def test_losses_that_fall_below_zero_meanwhile_end_it():
    """0 is no bound of theirs. A resumed run must not measure on for ever."""
    run = Regression()
    while run.schedule._course.approach.transient.since is None:
        run.go(1)
    run.loss_of = lambda model, batch: Regression.loss_of(model, batch) - 5.0
    approach = run.schedule._course.approach
    while not approach.is_over:
        run.go(1)
    assert "not positive" in approach.search.obstacle
    assert approach.transient.since is None
    assert not approach.search.meter.updates


@pytest.mark.parametrize("rewind", [True, False])
def test_a_logistic_loss_that_has_halved_has_learned(rewind, caplog):
    """Its slope falls with it, so that P stays; but the way so far goes on down. Where nobody knows that way, nothing
    is raised.
    """
    run = Preference(rewind=rewind)
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run.go(STEPS)
    assert may_be_transient(run.schedule._course.scale)
    assert run.approach["kept"] >= KEPT  # by that alone it would be a transient
    assert run.approach["transient"] is None
    assert "so that this was a transient" not in caplog.text
    assert sum(run.losses[-10:]) < 0.3 * sum(run.losses[:10])


@pytest.mark.parametrize("ends", [True, False])
def test_while_the_way_goes_on_the_next_steps_are_measured_too(ends):
    """Until three tenths of the run: the transient may not be over yet."""
    seen = []

    def goes_on_twice(updates, loss, kept):
        seen.append(run.done)
        return not ends or len({*seen}) < 3

    run = Regression(2 * STEPS)
    with mock.patch.object(transient, "goes_on", goes_on_twice):
        run.go(2 * STEPS)
    steps = sorted({*seen})
    assert steps[-1] <= 0.3 * 2 * STEPS + 1
    assert len(steps) >= 3
    assert run.approach["transient"] == (steps[2] + 1 if ends else None)
    assert run.schedule._course.approach.transient.is_over


@pytest.mark.parametrize("later", [-4, -1, 1])
def test_what_batches_see_of_the_way_is_the_same_after_a_resume(later):
    whole = Preference()
    while not whole.schedule._course.approach.transient.is_over:
        whole.go(1)
    begun = Preference().go(whole.done + later)
    other = resumed(begun, STEPS, Preference)
    assert (begun.schedule._course.approach.transient.since is not None) == (later < 0)
    other.first.load_state_dict(begun.first.state_dict())
    other.go(STEPS - begun.done)
    assert begun.lrs + other.lrs == whole.go(STEPS - whole.done).lrs


def test_one_loss_that_is_not_finite_is_left_out():
    regression = in_the_window()
    before = [parameter.detach().clone() for parameter in regression.model.parameters()]
    states = copy.deepcopy(regression.optimizer.state_dict())
    regression.times = math.nan
    regression.go(1)
    with torch.no_grad():  # as if the loop had caught it
        for parameter, weights in zip(regression.model.parameters(), before, strict=True):
            parameter.copy_(weights)
    regression.optimizer.load_state_dict({**states, "param_groups": regression.optimizer.state_dict()["param_groups"]})
    regression.times = 1.0
    assert regression.go(STEPS - regression.done).approach["transient"] is not None


class Sign(torch.optim.Optimizer):
    """Updates of one size, as Lion's."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 0.1)
                parameter.sub_(group["lr"] * average.sign())


def test_where_updates_have_kept_their_size_p_is_no_higher_and_the_lr_stays():
    approach = Regression(kind=Sign).go(STEPS).approach
    assert approach["kept"] is not None
    assert approach["transient"] is None


def test_what_was_learned_in_the_transient_does_not_count_later():
    regression = Regression()
    transient, way = regression.schedule._course.approach.transient, Way()
    losses = np.ones(50)
    assert transient.start(losses, 2, way) == 2
    transient.raised_at = 30
    assert 20 < transient.start(losses, 2, way) < 30
    assert transient.start(losses, 40, way) == 40
    assert transient.start(losses[:10], 0, way) < 10
    regression = Regression().go(STEPS)
    first, _ = regression.schedule._losses_of_now(regression.schedule.switch_step)
    assert first[0] < 0.5 * regression.losses[0]


def test_after_a_way_back_from_the_raised_lr_it_does_not_grow_on_again():
    """Its losses have halved long ago, and a line has said to how much it grows at most."""
    regression = Regression(steps=400).go(100)
    at = regression.approach["transient"]
    regression = Regression(steps=400).go(at + 12)
    regression.times = 1e4  # the loss itself, so that the run goes back
    regression.go(3)
    while not regression.approach["breaks"]:
        regression.go(1)
    regression.times = 1.0
    approach = regression.go(120 - regression.done).approach
    assert approach["breaks"]
    assert approach["sweep"] is None
    assert max(leg["to_lr"] for leg in approach["legs"]) < regression.schedule.report()["approach"]["scale"]["trust"]


def test_a_state_of_a_release_that_did_not_measure_goes_on():
    begun = Regression().go(10)
    approach = begun.schedule._course.approach
    state = copy.deepcopy(approach.state_dict())
    del state["transient"]
    approach.load_state_dict(state)
    assert begun.go(STEPS - 10).approach["transient"] is not None


def test_in_half_precision_nothing_is_measured():
    regression = Regression()
    regression.model.to(torch.bfloat16)
    transient = regression.schedule._course.approach.transient
    assert not transient.may_be(True, regression.schedule._course.approach.way)


FIRST = Update(
    slope=2.0, update_norm=10.0, weight_norm=1.0, alignment=0.3, resolution=1e-4, clipping=1.0, whole_norm=10.0
)
SCALE = Scale(polyak=1.0, trust=100.0, alignment=0.3, loss=2.0, num_steps=2, layer_trust=60.0)


def later(slope, whole_norm):
    return [dataclasses.replace(FIRST, slope=slope, whole_norm=whole_norm)] * 3


@pytest.mark.parametrize(
    ("slope", "norm", "loss", "risen", "kept"),
    [
        (0.2, 3.0, 1.0, 5.0, 1.5),
        (0.01, 3.0, 1.0, MOST_RISEN, 3.0),
        (-0.2, 3.0, 1.0, MOST_RISEN, 3.0),
        (0.5, 4.0, 1.0, 2.0, 0.8),
    ],
)
def test_p_is_the_loss_over_the_slope_again_and_the_lr_the_mean_of_it_and_of_what_r_and_m_allow(
    slope, norm, loss, risen, kept
):
    for scale in (SCALE, dataclasses.replace(SCALE, layer_trust=2.0), dataclasses.replace(SCALE, trust=3.0)):
        found = told_by([FIRST, FIRST], scale, later(slope, norm), loss)
        most = min(0.3 * scale.layer_trust, 0.2 * scale.trust)
        assert found == pytest.approx((risen, kept, math.sqrt(min(0.3 * risen, most) * most)))


@pytest.mark.parametrize(("slope", "norm"), [(0.5, 3.7), (0.2, 6.7), (0.2, 10.0)])
def test_it_was_no_transient_where_p_has_fallen_or_updates_have_kept_their_size(slope, norm):
    risen, kept, lr = told_by([FIRST], SCALE, later(slope, norm), 1.0)
    assert lr is None
    assert (kept < KEPT) == (slope == 0.5)
    assert risen == pytest.approx(1.0 / slope)


def falling(*falls):
    return [dataclasses.replace(FIRST, slope=0.3, whole_norm=3.0, fallen=fall) for fall in falls]


@pytest.mark.parametrize(
    ("falls", "loss", "kept", "goes"),
    [
        ((0.6, 0.7, 0.65, 0.6), 1.0, 1.0, True),
        ((0.9, -0.1, 0.7, 0.2), 1.0, 1.0, True),
        ((0.6, 0.7, 0.65, 0.6), 4.0, 1.0, False),  # of the loss, it is little
        ((0.6, 0.7, 0.65, 0.6), 1.0, 1.7, False),  # P has risen
        ((1.9, 1.9), 1.0, SURELY_KEPT, False),
        ((-0.6, -0.7, -0.65), 1.0, 1.0, False),
    ],
)
def test_the_more_p_has_risen_the_farther_must_the_way_go_on_down(falls, loss, kept, goes):
    assert goes_on(falling(*falls), loss, kept) == goes


def test_where_the_way_goes_on_it_was_none_unless_p_has_risen_far():
    for loss, is_one in ((0.8, False), (1.0, False), (1.3, False), (2.5, True)):
        _, kept, lr = told_by([FIRST], SCALE, falling(1.1 * loss, 1.2 * loss, 1.0 * loss), loss)
        assert (kept >= SURELY_KEPT) == is_one
        assert kept >= KEPT
        assert (lr is not None) == is_one


def test_p_may_lie_thirty_to_three_hundred_times_below_r():
    far = 0.2 / 0.3
    for trust, is_one in ((25.0, False), (35.0, True), (290.0, True), (310.0, False), (math.inf, False)):
        assert may_be_transient(dataclasses.replace(SCALE, trust=trust / far)) is is_one
    assert not may_be_transient(dataclasses.replace(SCALE, alignment=1.0))


def test_where_the_gradient_lies_in_few_weights_r_tells_nothing_of_the_others():
    far = dataclasses.replace(SCALE, trust=150.0)
    for narrowing, tells in ((1.0, True), (0.9, False), (0.2, False)):
        scale = dataclasses.replace(far, narrowing=narrowing)
        assert may_be_transient(scale) is tells
        assert may_be_outgrown(scale, 0.1) is tells
    assert not may_be_outgrown(far, 80.0)
    assert not may_be_outgrown(dataclasses.replace(far, density=0.9), 0.1)
    assert not may_be_outgrown(dataclasses.replace(far, trust=math.inf), 0.1)


def test_r_tells_nothing_of_a_transient_in_a_model_that_was_trained():
    far = dataclasses.replace(SCALE, trust=150.0)
    for norms, is_one in ((NEW, True), ("", True), (TRAINED, False)):
        assert may_be_transient(dataclasses.replace(far, norms=norms)) is is_one


def test_nor_of_a_better_lr_where_it_lies_far_above_p():
    for norms, room, tells in ((TRAINED, 0.9, True), (TRAINED, 1.1, False), (NEW, 1.1, True), ("", 1.1, True)):
        trust = room * TRAINED_ROOM * POLYAK_SHARE * SCALE.polyak
        assert may_be_outgrown(dataclasses.replace(SCALE, norms=norms, trust=trust), 0.1) is tells


def test_a_raise_that_costs_what_was_learned_is_taken_back_and_said(caplog):
    """The losses give back what they had won, by far less than a quarter above their start."""
    run = Regression(steps=200)
    while run.approach["transient"] is None:
        run.go(1)
    raised, start, low = run.done, run.losses[0], run.losses[-1]
    lr = run.lrs[-1]
    run.loss_of = lambda model, batch: Regression.loss_of(model, batch) * 0.0 + 0.9 * start
    with caplog.at_level(logging.INFO, "autowu_hf"):
        while not run.approach["breaks"]:
            run.go(1)
            assert run.done < raised + 30
    assert run.approach["break_reasons"] == ["lost"]
    assert "the losses have given back half or more of what had been learned" in caplog.text
    run.loss_of = Regression.loss_of
    run.go(2)
    assert f"AutoWU goes back to the weights and the optimizer's state of step {raised}" in caplog.text
    assert run.losses[-1] < (start + low) / 2.0
    assert lr < run.approach["legs"][-1]["to_lr"] < run.approach["legs"][-2]["to_lr"]


# A model from scratch that begins steeply -----------------------------------------------------------------------------


def test_a_language_model_from_scratch_has_the_lr_of_p_after_its_steep_beginning(caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        run = LanguageModel()
        while run.approach["transient"] is None:
            run.go(1)
        run.go(20)
    approach = run.approach
    scale, at = Scale(**{name: approach["scale"][name] for name in Scale.__dataclass_fields__}), approach["transient"]
    assert begins_steep(scale)
    assert approach["kept"] >= SURELY_KEPT
    before, after = run.lrs[at - 1], max(run.lrs)
    assert before == pytest.approx(scale.peak_lr_for(STEPS))
    assert after == pytest.approx(min(approach["risen"] * before, STEADY * scale.trusted_lr))
    assert after > 3.0 * before
    assert f"by step {at} P, which falls with what is learned, is " in caplog.text
    assert "so that the steep beginning of a model from scratch is over; the learning rate grows on" in caplog.text


def test_it_learns_more_for_it():
    raised = LanguageModel().go(STEPS)
    with mock.patch.object(transient, "begins_steep", return_value=False):
        low = LanguageModel().go(STEPS)
    assert low.approach["transient"] is None
    ended, ended_low = (statistics.fmean(run.losses[-10:]) for run in (raised, low))
    assert_below(ended, ended_low, low.losses[0] - ended_low)


def test_one_that_was_trained_does_not_begin_steeply():
    run = LanguageModel().go(30)
    again = LanguageModel(model=run.model).go(3)
    assert again.approach["scale"]["norms"] == TRAINED


def test_p_that_has_hardly_risen_raises_nothing_in_it():
    steep = dataclasses.replace(SCALE, trust=20.0, layer_trust=math.nan, norms=NEW)
    assert begins_steep(steep)
    assert may_be_transient(steep)
    for risen, lr in ((1.0, None), (3.0, None), (5.0, 5.0 * POLYAK_SHARE), (100.0, STEADY * TRUST_SHARE * 20.0)):
        seen = [dataclasses.replace(FIRST, slope=FIRST.slope / risen, whole_norm=0.5 * FIRST.whole_norm)]
        _, kept, found = told_by([FIRST], steep, seen, loss=2.0)
        assert (kept >= SURELY_KEPT) == (lr is not None)
        assert found == (lr if lr is None else pytest.approx(lr))
