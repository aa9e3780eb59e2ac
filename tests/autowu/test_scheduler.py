from __future__ import annotations

import io
import logging
import math
import re

import numpy as np
import pytest
import torch
from tiny import get_schedule

from autowu_hf import AutoWUScheduler, MissingLossWarning, get_autowu_schedule
from autowu_hf.autowu.reporting.report import headline
from autowu_hf.runtime.finite import DivergedError
from autowu_hf.shapes import DECAY_TYPES, GROWTHS


def optimizer_of(*lrs: float, default: float = 1e-3) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (lrs or (default,))]
    return torch.optim.AdamW(groups, lr=default)


def valley(steps: int, minimum: float = 0.6, seed: int = 0) -> np.ndarray:
    """A noisy loss that falls until a share of the steps and rises after."""
    s = np.arange(steps) / steps
    return 2.0 - 1.5 * np.exp(-(((s - minimum) / 0.3) ** 2)) + 0.02 * np.random.default_rng(seed).standard_normal(steps)


def run(scheduler: AutoWUScheduler, losses, steps: int) -> list[float]:
    """Takes steps with given losses (the last one repeats); the LR of every step."""
    lrs = []
    for i in range(steps):
        lrs.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step(float(losses[min(i, len(losses) - 1)]))
    return lrs


def test_is_a_torch_scheduler_that_starts_at_min_lr():
    optimizer = optimizer_of()
    scheduler = get_schedule(optimizer, 100)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    assert scheduler.phase == "warmup"
    assert scheduler.get_last_lr() == [1e-5]
    assert optimizer.param_groups[0]["lr"] == 1e-5
    assert isinstance(optimizer.param_groups[0]["lr"], float)
    assert not hasattr(scheduler, "total_steps")  # accelerate treats schedulers that have one specially
    assert (scheduler.switch_step, scheduler.minimum_step, scheduler.peak_lr) == (None, None, None)


def test_switches_after_the_minimum_and_decays_from_its_lr():
    scheduler = get_schedule(optimizer_of(), 600, peak_rule="minimum")
    lrs = run(scheduler, valley(300), 600)
    switch, minimum = scheduler.switch_step, scheduler.minimum_step
    assert scheduler.phase == "decay"
    assert 0.55 * 300 < minimum < 0.66 * 300 < switch < 0.8 * 300
    assert scheduler.peak_lr == pytest.approx(1e-5 * 1e5 ** (minimum / 300), rel=1e-12)
    assert lrs[switch] == scheduler.peak_lr  # the first step after the switch runs at eta_t*
    assert lrs[:switch] == pytest.approx([1e-5 * 1e5 ** (t / 300) for t in range(switch)], rel=1e-12)
    assert all(a > b > 0 for a, b in zip(lrs[switch:], lrs[switch + 1 :], strict=False))
    assert scheduler.get_last_lr() == [0.0]


def test_stays_at_zero_when_stepped_past_the_end():
    scheduler = get_schedule(optimizer_of(), 60)
    run(scheduler, valley(30), 60)
    for _ in range(5):
        scheduler.step()
        assert scheduler.get_last_lr() == [0.0]


def test_patience_tests_in_a_row_and_records():
    scheduler = get_schedule(optimizer_of(), 600, test_every=5, patience=4, peak_rule="minimum")
    run(scheduler, valley(300), 600)
    assert [record.positive for record in scheduler.tests[-5:]] == [False, True, True, True, True]
    assert [record.step for record in scheduler.tests] == list(range(5, scheduler.switch_step + 1, 5))
    assert all(len(record.p_min) == 5 for record in scheduler.tests)
    assert len(scheduler.losses) == scheduler.switch_step
    assert scheduler.minimum_step == round(scheduler.tests[-1].minimum_step)


def test_a_cliff_is_looked_for_beyond_the_minimum_and_a_fifth_of_its_lr_is_the_peak():
    scheduler = get_schedule(optimizer_of(), 600)
    run(scheduler, np.where(np.arange(300) < 180, 1.0 - np.arange(300) / 180, np.arange(300) / 10 - 18), 600)
    cliff = scheduler.tests[-1].cliff_step
    assert cliff == pytest.approx(185, abs=8)
    before = scheduler.curve.warmup(round(cliff) - 1)  # the last LR that the loss there has suffered from
    assert scheduler.peak_lr == pytest.approx(0.2 * before, rel=1e-9)


def test_a_cliff_far_beyond_the_minimum_leaves_half_of_the_lr_there():
    scheduler = get_schedule(optimizer_of(), 600)
    run(scheduler, valley(300), 600)
    cliff = scheduler.tests[-1].cliff_step
    assert scheduler.ended_by == "cliff"
    assert 0.55 * 300 < scheduler.minimum_step < 0.66 * 300 < 0.8 * 300 < cliff < scheduler.switch_step < 300
    assert scheduler.peak_lr == pytest.approx(scheduler.curve.warmup(scheduler.minimum_step - 1) / 2)
    assert scheduler.curve.warmup(scheduler.rewound_to) <= scheduler.peak_lr


def noisy_curve(points: list[tuple[float, float]], steps: int = 300) -> np.ndarray:
    """Straight lines through (share of the steps, loss), and noise."""
    clean = np.interp(np.arange(steps) / steps, *zip(*points, strict=True))
    return clean + 0.02 * np.random.default_rng(0).standard_normal(steps)


def test_what_comes_between_minimum_and_cliff_does_not_move_the_minimum():
    """As of a language model: it forgets all but its tokens' frequencies, gets better at those, and breaks late.

    As long as it does not get better than it was.
    """
    scheduler = get_schedule(optimizer_of(), 600)
    points = [(0, 5.4), (0.3, 5.0), (0.55, 2.7), (0.6, 3.0), (0.8, 2.9), (0.85, 4.5), (1, 5.2)]
    run(scheduler, noisy_curve(points), 600)
    assert scheduler.ended_by == "cliff"
    assert scheduler.minimum_step == pytest.approx(0.55 * 300, abs=10)
    assert scheduler.peak_lr == pytest.approx(scheduler.curve.warmup(scheduler.minimum_step - 1) / 2)
    # The last test alone would have put it elsewhere.
    assert scheduler.tests[-1].minimum_step > scheduler.minimum_step + 10


def test_a_minimum_that_the_loss_comes_back_to_was_none():
    scheduler = get_schedule(optimizer_of(), 600)
    run(scheduler, noisy_curve([(0, 5.0), (0.2, 4.6), (0.3, 4.9), (0.7, 2.0), (0.75, 2.2), (0.9, 9)]), 600)
    assert scheduler.ended_by == "cliff"
    assert scheduler.minimum_step == pytest.approx(0.7 * 300, abs=10)


@pytest.mark.parametrize("rewind", [True, False])
@pytest.mark.parametrize(
    ("losses", "options", "told"),
    [
        (
            np.linspace(2.0, 1.0, 50),
            {"scale": False},
            "the losses fell, but told no LR up to 7.9e-1 (a higher max_lr may)",
        ),
        (np.ones(50), {"max_lr": 0.1}, "the losses told nothing up to LR 8.3e-2"),
    ],
)
def test_a_warm_up_that_sees_neither_cliff_nor_minimum_keeps_to_the_given_lr_and_says_so(
    losses, options, told, rewind, caplog
):
    scheduler = get_schedule(optimizer_of(default=0.007), 100, rewind=rewind, **options)
    run(scheduler, losses, 100)
    assert (scheduler.switch_step, scheduler.ended_by, scheduler.minimum_step) == (50, "nothing", None)
    assert scheduler.peak_lr == 0.007
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{told}, at step 50; peak LR 7.0e-3, which the optimizer was given" in said
    assert scheduler.lr_in_words() == "0.007, which the optimizer was given; AutoWU found none"


@pytest.mark.parametrize("rewind", [True, False])
@pytest.mark.parametrize("own", [1e-5, 0.007, 5.0])
def test_losses_that_fall_all_the_way_up_to_a_given_max_lr_make_it_the_peak(own, rewind, caplog):
    caplog.set_level(logging.INFO)
    noise = 0.02 * np.random.default_rng(0).standard_normal(50)
    scheduler = get_schedule(optimizer_of(default=own), 100, min_lr=1e-6, max_lr=1e-3, rewind=rewind)
    run(scheduler, np.linspace(2.0, 1.0, 50) + noise, 100)
    assert (scheduler.switch_step, scheduler.ended_by, scheduler.minimum_step) == (50, "max_lr", None)
    assert (scheduler.peak_lr, scheduler.rewound_to) == (1e-3, None)  # no step has done harm
    (said,) = [record for record in caplog.records if "peak LR" in record.getMessage()]
    assert (
        "the losses fell all the way up to max_lr, which is the peak, at step 50; peak LR 1.0e-3," in said.getMessage()
    )
    assert said.levelno == logging.INFO
    assert scheduler.lr_in_words() == "0.001, which is max_lr; the losses fell all the way up to it"
    kept = get_schedule(optimizer_of(default=own), 100, min_lr=1e-6, max_lr=1e-3, rewind=rewind)
    run(kept, np.full(50, 2.0), 100)
    assert (kept.ended_by, kept.peak_lr) == ("nothing", min(own, 1e-3))


@pytest.mark.parametrize(
    ("options", "lr", "said"),
    [({"max_lr": 0.1}, 0.1, "which is max_lr"), ({"scale": False}, 5.0, "which the optimizer was given")],
)
def test_the_given_lr_is_kept_below_a_given_max_lr(options, lr, said, caplog):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5.0)
    scheduler = get_schedule(optimizer, 100, **options)
    run(scheduler, np.ones(50), 100)
    assert (scheduler.ended_by, scheduler.peak_lr) == ("nothing", lr)
    assert said in caplog.text


def test_a_run_that_breaks_before_it_has_gained_anything_says_so_and_takes_no_lr_out_of_the_air(caplog):
    scheduler = get_schedule(optimizer_of(default=3e-5), 100)
    run(scheduler, [*2.0 + 0.02 * np.random.default_rng(0).standard_normal(30), *[1e3] * 20], 100)
    assert (scheduler.ended_by, scheduler.minimum_step, scheduler.peak_lr) == ("divergence", None, 3e-5)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"losses diverged at step {scheduler.switch_step}, nothing gained before; " in said
    assert "peak LR 3.0e-5, which the optimizer was given" in said
    assert scheduler.lr_in_words() == "3e-05, which the optimizer was given; AutoWU found none"
    assert "peak LR 3.0e-5, which the optimizer was given" in headline(scheduler.report())


@pytest.mark.parametrize("seed", range(8))
def test_a_minimum_within_the_noise_is_nothing(seed):
    scheduler = get_schedule(optimizer_of(default=0.007), 100)
    run(scheduler, 2.3 + 0.02 * np.random.default_rng(seed).standard_normal(50), 100)
    assert (scheduler.ended_by, scheduler.peak_lr) == ("nothing", 0.007)


def test_a_loss_that_rises_slowly_from_its_start_leaves_a_small_lr():
    """It is at its minimum when the run begins, as of a model that needs no more training."""
    scheduler = get_schedule(optimizer_of(), 400)
    rng = np.random.default_rng(0)
    run(scheduler, 1.0 + np.maximum(np.arange(200) - 80, 0) / 100 + 0.01 * rng.standard_normal(200), 400)
    assert scheduler.ended_by in ("cliff", "divergence")
    assert scheduler.peak_lr <= 0.1 * scheduler.curve.warmup(120)


def test_a_falling_loss_warms_up_to_the_cap_and_max_lr():
    scheduler = get_schedule(optimizer_of(), 100, max_lr=0.1, peak_rule="minimum", guard=False)
    lrs = run(scheduler, np.linspace(2.0, 1.0, 50), 100)
    assert (scheduler.switch_step, scheduler.minimum_step, scheduler.peak_lr) == (50, None, 0.1)
    assert lrs[50] == 0.1
    assert max(lrs) == 0.1


def test_num_warmup_steps_is_the_cap(caplog):
    scheduler = get_schedule(optimizer_of(), 100, 20)
    assert scheduler.warmup_cap == 20
    run(scheduler, np.linspace(2.0, 1.0, 50), 20)
    assert scheduler.switch_step == 20
    assert get_schedule(optimizer_of(), 100, max_warmup_fraction=0.25).warmup_cap == 25
    assert get_schedule(optimizer_of(), 2).warmup_cap == 1
    get_schedule(optimizer_of(), 100, 5).set_steps_per_epoch(None)
    assert "a larger num_warmup_steps (Trainer's warmup_steps) or a smaller test_every" in caplog.text


@pytest.mark.parametrize("decay_type", DECAY_TYPES)
@pytest.mark.parametrize("growth", GROWTHS)
def test_every_growth_and_decay_runs(growth, decay_type):
    scheduler = get_schedule(optimizer_of(), 80, growth=growth, decay_type=decay_type)
    lrs = run(scheduler, valley(40), 80)
    assert min(lrs) > 0
    assert scheduler.get_last_lr() == [0.0]
    assert scheduler.phase == "decay"


def test_groups_keep_their_ratios_and_the_users_lr_does_not_matter():
    small, large = optimizer_of(1e-3, 5e-4, 2e-3, default=1e-3), optimizer_of(10.0, 5.0, 20.0, default=10.0)
    a, b = get_schedule(small, 100), get_schedule(large, 100)
    for loss in valley(50):
        for scheduler in (a, b):
            scheduler.optimizer.step()
            scheduler.step(loss)
    assert a.get_last_lr() == b.get_last_lr()
    first, half, double = a.get_last_lr()
    assert half == pytest.approx(first / 2, rel=1e-12)
    assert double == pytest.approx(first * 2, rel=1e-12)


@pytest.mark.once
@pytest.mark.parametrize("preset", [None, "paper"])
def test_a_resumed_run_goes_on_bit_for_bit(preset):
    """Stopped at the start, between two tests, at a test, near the switch, and in the decay."""
    losses = np.concatenate([valley(300), np.ones(300)])

    def new() -> AutoWUScheduler:
        return get_schedule(optimizer_of(), 600, steps_per_epoch=50 if preset == "paper" else 20, preset=preset)

    whole = new()
    expected = run(whole, losses, 600)
    for stop in (215,) if preset == "paper" else (7, 60, 100, 215, 400):
        goes_on_bit_for_bit(new, stop, losses, whole, expected)


def goes_on_bit_for_bit(new, stop, losses, whole, expected):
    interrupted = new()
    run(interrupted, losses, stop)
    file = io.BytesIO()
    torch.save({"scheduler": interrupted.state_dict(), "optimizer": interrupted.optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = new()
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["scheduler"])
    assert run(resumed, losses[stop:], 600 - stop) == expected[stop:]
    assert resumed.losses == whole.losses
    assert resumed.tests[-1] == whole.tests[-1]
    assert (resumed.switch_step, resumed.minimum_step) == (whole.switch_step, whole.minimum_step)


def bowl(scheduler, until: int) -> None:
    """Steps whose loss depends on the LR alone: lowest at 1e-2."""
    rng = np.random.default_rng(0)
    while scheduler.last_epoch < until:
        way = math.log10(max(scheduler.get_last_lr()[0], 1e-9)) + 2.0
        scheduler.optimizer.step()
        loss = 2.0 - 1.5 * math.exp(-((way / 1.5) ** 2)) + 0.02 * rng.standard_normal()
        for _ in range(scheduler.ticks_per_step):
            scheduler.step(loss)


LENGTHS = [
    ({}, {"steps": 300}),
    ({}, {"steps": 200}),
    ({"steps": 300}, {"steps": 1200}),
    ({"warm_up": 300}, {"warm_up": 100}),
    ({"warm_up": 60}, {"warm_up": 300}),
    ({}, {"max_lr": 0.2}),
    ({"max_lr": 0.05}, {}),
    ({}, {"min_lr": 1e-4}),
    ({}, {"growth": "quick_start"}),
    ({"ticks": 2}, {}),
    ({}, {"ticks": 2}),
]


def made(steps: int = 600, warm_up: int = 0, ticks: int = 1, **options) -> AutoWUScheduler:
    scheduler = get_schedule(optimizer_of(), steps, warm_up, peak_rule="minimum", **options)
    scheduler.prepared(ticks, [scheduler.optimizer])
    return scheduler


@pytest.mark.parametrize("cut", [0.1, 0.5])
@pytest.mark.parametrize(("old", "new"), LENGTHS)
def test_a_warm_up_resumed_in_another_run_ends_near_a_fresh_one(old, new, cut, caplog):
    first, resumed = made(**old), made(**new)
    stop = int(cut * first.warmup_cap) // 2 * 2
    bowl(first, stop)
    assert first.switch_step is None
    with caplog.at_level(logging.INFO, "autowu_hf"):
        resumed.load_state_dict(first.state_dict())
    assert resumed.get_last_lr() == first.get_last_lr()
    assert [first.curve.warmup(step) for step in range(stop)] == [resumed.curve.warmup(step) for step in range(stop)]
    assert sum("planned for another run" in message for message in caplog.messages) == ("ticks" not in {**old, **new})
    bowl(resumed, resumed.num_training_steps)
    assert resumed.ended_by == "minimum"
    assert 0.6 < resumed.peak_lr / 1e-2 < 1.7
    assert resumed.get_last_lr() == [0.0]


def test_a_run_resumed_twice_is_the_one_that_was_resumed_once():
    first = made(600)
    bowl(first, 100)
    lrs = []
    for stops in ((), (101, 130)):
        run_of = made(300)
        run_of.load_state_dict(first.state_dict())
        for stop in stops:
            bowl(run_of, stop)
            state, run_of = run_of.state_dict(), made(300)
            run_of.load_state_dict(state)
        lrs.append([])
        while run_of.last_epoch < 150:
            bowl(run_of, run_of.last_epoch + 1)
            lrs[-1].append(run_of.get_last_lr()[0])
    assert lrs[0][30:] == lrs[1]


def test_a_divergence_is_told_in_optimizer_steps():
    scheduler = made(ticks=2, rewind=False)
    bowl(scheduler, 40)
    with torch.no_grad():
        scheduler.optimizer.param_groups[0]["params"][0].fill_(math.nan)
    with pytest.raises(DivergedError) as error:
        run(scheduler, [math.nan], 200)
    assert f"after step {(scheduler.last_epoch + 1) // 2}." in str(error.value)


def test_a_switched_run_resumed_with_another_total_ends_there():
    losses = np.concatenate([valley(300), np.ones(300)])
    first = get_schedule(optimizer_of(), 600)
    run(first, losses, 450)
    resumed = get_schedule(optimizer_of(), 900)
    resumed.load_state_dict(first.state_dict())
    assert resumed.curve.paces == first.curve.paces
    assert resumed.get_last_lr()[0] > first.get_last_lr()[0]
    assert min(run(resumed, losses[450:], 450)) > 0
    assert resumed.get_last_lr() == [0.0]


def test_a_state_of_another_scheduler_is_refused():
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer_of(), 10)
    with pytest.raises(ValueError, match="this is not a state of AutoWUScheduler, version 2: it has the keys .*T_max"):
        get_schedule(optimizer_of(), 10).load_state_dict(cosine.state_dict())


def test_a_run_that_turns_nan_switches():
    losses = valley(300)
    losses[200:] = np.nan
    scheduler = get_schedule(optimizer_of(), 600)
    run(scheduler, losses, 300)
    assert 200 < scheduler.switch_step <= 220
    assert scheduler.peak_lr < 0.1


@pytest.mark.parametrize("make", [get_schedule, get_autowu_schedule])
def test_epoch_tests_need_an_epoch_at_the_first_step(make):
    scheduler = make(optimizer_of(), 100, test_every="epoch")
    scheduler.optimizer.step()
    with pytest.raises(ValueError, match='test_every="epoch" needs the length of an epoch.* pass steps_per_epoch'):
        scheduler.step(1.0)


def test_an_epoch_may_be_told_later():
    scheduler = get_schedule(optimizer_of(), 100, test_every="epoch")
    scheduler.optimizer.step()
    with pytest.raises(ValueError, match='test_every="epoch" needs the length of an epoch.* pass steps_per_epoch'):
        scheduler.step(1.0)
    with pytest.raises(ValueError, match='test_every="epoch" needs'):
        scheduler.set_steps_per_epoch(None)
    scheduler.set_steps_per_epoch(np.int64(9))
    run(scheduler, np.linspace(2, 1, 50), 40)
    assert [record.step for record in scheduler.tests] == [9, 18, 27, 36]


def test_steps_without_any_loss_warn_once():
    scheduler = get_schedule(optimizer_of(), 100)
    scheduler.optimizer.step()
    with pytest.warns(MissingLossWarning, match="pass the loss") as record:
        scheduler.step()
        scheduler.step()
    assert len(record) == 1
    assert record[0].filename == __file__


def test_the_switch_is_logged_in_one_line(caplog):
    with caplog.at_level(logging.INFO, logger="autowu_hf"):
        run(get_schedule(optimizer_of(), 600, peak_rule="minimum"), valley(300), 400)
    first, line = [record.getMessage() for record in caplog.records]
    assert first.startswith(
        "AutoWU looks for the learning rate from 1e-05 to 1 within 300 of 600 steps. The loss may rise"
    )
    assert first.endswith("the weights then go back")
    pattern = r"AutoWU: minimum at step 1\d\d of 2\d\d; peak LR \d\.\de-\d, weights and optimizer state of step 1\d\d, "
    assert re.fullmatch(pattern + r"cosine decay over 3\d\d steps", line)


def test_report_holds_numbers_names_lists_and_none_only():
    scheduler = get_schedule(optimizer_of(), 600)
    run(scheduler, valley(300), 400)
    report = scheduler.report()
    assert report["peak_lr"] == scheduler.peak_lr
    assert report["losses"] == scheduler.losses
    assert report["settings"]["min_lr"] == 1e-5

    def plain(value) -> bool:
        if isinstance(value, dict):
            return all(plain(v) for v in value.values())
        if isinstance(value, list):
            return all(plain(v) for v in value)
        return value is None or type(value) in (bool, int, float, str)

    assert plain(report)


@pytest.mark.parametrize("steps", [20, 30, 60, 100])
def test_a_short_run_is_said_before_training_and_ends_sensibly(steps, caplog):
    scheduler = get_schedule(optimizer_of(), steps)
    assert caplog.text == ""
    cap = scheduler.warmup_cap
    run(scheduler, valley(cap, minimum=0.7), 1)
    assert ("one look at its end decides" in caplog.text) == (cap - 10 < 3)
    run(scheduler, valley(cap, minimum=0.7)[1:], steps - 1)
    assert caplog.text.count("leaves room for") <= 1
    assert scheduler.minimum_step == pytest.approx(0.7 * cap, abs=max(0.1 * cap, 1.5))
    assert scheduler.peak_lr <= 10 * scheduler.curve.warmup(0.7 * cap)
    assert scheduler.get_last_lr() == [0.0]


def test_a_short_run_of_the_papers_says_where_it_ends(caplog):
    scheduler = get_schedule(optimizer_of(), 40, preset="paper")
    scheduler.set_steps_per_epoch(10)
    assert "so it will end at max_lr = 1, whatever the losses say" in caplog.text
