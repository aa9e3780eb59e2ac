from __future__ import annotations

import pytest

from autowu_hf.autolrs.stages import AutoLRSSettings, Stage, plan_stages


@pytest.mark.parametrize("steps", [101, 137, 200, 301, 999, 5000, 100_000])
@pytest.mark.parametrize("num_candidates", [2, 10])
def test_the_stages_take_exactly_the_steps_of_the_run(steps, num_candidates):
    stages = plan_stages(steps, AutoLRSSettings(num_candidates=num_candidates), start=1)
    assert stages[0].start == 1
    assert [stage.end for stage in stages] == [*(stage.start for stage in stages[1:]), steps]
    for stage in stages:
        assert stage.search_steps == num_candidates * stage.candidate_steps
        assert stage.candidate_steps >= 5
        assert 0 <= stage.train_steps - stage.search_steps < 2 * 5 * num_candidates + num_candidates


def test_they_double_up_to_the_longest_and_then_look_at_validation_losses():
    stages = plan_stages(80_001, AutoLRSSettings(), start=1)
    assert [stage.train_steps for stage in stages[:6]] == [1000, 2000, 4000, 8000, 8000, 8000]
    assert [stage.is_full for stage in stages] == [False] * 4 + [True] * (len(stages) - 4)
    assert stages[0].candidate_steps == 100


def test_a_short_run_has_short_stages():
    assert [stage.train_steps for stage in plan_stages(3001, AutoLRSSettings(), start=1)][:3] == [100, 200, 400]
    assert [stage.train_steps for stage in plan_stages(6001, AutoLRSSettings(), start=1)][:3] == [200, 400, 800]
    assert plan_stages(101, AutoLRSSettings(), start=1) == [Stage(1, 5, 50, 50, False)]


def test_validation_losses_are_taken_sixteen_times():
    assert Stage(0, 100, 1000, 1000, True).validation_places == [
        6,
        12,
        18,
        25,
        31,
        37,
        43,
        50,
        56,
        62,
        68,
        75,
        81,
        87,
        93,
        100,
    ]
    assert Stage(0, 5, 50, 50, True).validation_places == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 0.0}, "min_lr is 0.0 and max_lr 0.1, but 0 < min_lr < max_lr"),
        ({"min_lr": 0.2}, "min_lr is 0.2 and max_lr 0.1"),
        ({"max_lr": float("inf")}, "max_lr inf"),
        ({"max_lr": None}, "max_lr must be a number, got None"),
        ({"min_lr": "1e-4"}, "min_lr must be a number, got '1e-4'"),
        ({"num_candidates": 1}, "num_candidates must be a whole number of at least 2, got 1"),
        ({"num_candidates": 5.5}, "num_candidates must be a whole number of at least 2, got 5.5"),
        ({"longest_stage": None}, "longest_stage must be a whole number of at least 1, got None"),
        ({"first_stage": 49}, "first_stage is 49, but must be 50 at least"),
        ({"longest_stage": 10}, "longest_stage is 10, but must be 50 at least"),
        ({"kappa": -1.0}, "kappa is -1.0"),
        ({"kappa": float("nan")}, "kappa must be a number, got nan"),
        ({"kappa": float("inf")}, "kappa is inf, but must be finite"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AutoLRSSettings(**options)


def test_a_run_without_room_for_a_stage_is_refused():
    with pytest.raises(ValueError, match="99 steps for its stages, but needs 100 at least: 10 candidates of 5 steps"):
        plan_stages(100, AutoLRSSettings(), start=1)
