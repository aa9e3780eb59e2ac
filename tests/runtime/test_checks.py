from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
import pytest
import torch

from autowu_hf import (
    CLARS,
    get_autolrs_schedule,
    get_autowu_schedule,
    get_rex_schedule_with_warmup,
    get_salsa_schedule,
    per_sample_gradient_norms,
)
from autowu_hf.autolrs.stages import AutoLRSSettings
from autowu_hf.autowu.settings import AutoWUSettings
from autowu_hf.runtime.checks import check_steps, whole
from autowu_hf.salsa.settings import SalsaSettings

KINDS = {  # what may be given in the place of a Python number
    "numpy": lambda value: np.float64(value) if isinstance(value, float) else np.asarray(value)[()],
    "float32": lambda value: np.float32(value) if isinstance(value, float) else np.int64(value),
    "0-d array": np.array,
    "tensor": lambda value: torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None),
    "float": lambda value: value if isinstance(value, bool) else float(value),
    "decimal": lambda value: value if isinstance(value, bool) else Decimal(str(value)),
}
OPTIONS = {
    AutoWUSettings: {
        **{"min_lr": 1e-4, "max_lr": 0.25, "max_warmup_fraction": 0.5, "decay_fraction": 0.125, "confidence": 0.75},
        **{"test_every": 3, "patience": 2, "num_tests": 3, "seed": 1, "rewind_memory": 0.25},
        **{"standardize": True, "rewind": False, "guard": False, "scale": False, "rewind_in_checkpoint": False},
    },
    AutoLRSSettings: {
        **{"min_lr": 1e-4, "max_lr": 0.25, "kappa": 2.5},
        **{"first_stage": 50, "longest_stage": 100, "num_candidates": 4},
    },
    SalsaSettings: {
        **{"initial_lr": 0.5, "smoothing": 0.25, "drop_factor": 4.0, "significance": 0.125, "keep": 0.25},
        **{"line_search": False, "min_samples": 20, "test_every": 5},
    },
}


def optimizer_of() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", OPTIONS)
def test_options_may_be_numbers_of_any_kind(settings, kind):
    options = OPTIONS[settings]
    if kind != "float32":
        options = {name: KINDS[kind](value) for name, value in options.items()}
    else:
        options = {n: np.bool_(v) if isinstance(v, bool) else KINDS[kind](v) for n, v in options.items()}
    made, plain = settings(**options), settings(**OPTIONS[settings])
    for name, value in OPTIONS[settings].items():
        assert getattr(made, name) == pytest.approx(value, rel=1e-6)
        assert type(getattr(made, name)) is type(getattr(plain, name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_schedule_and_optimizer_takes_them(kind):
    n = KINDS[kind]
    lrs = []
    for number in (lambda value: value, n):
        schedules = [
            get_autolrs_schedule(optimizer_of(), number(300), number(20), min_lr=number(0.25), max_lr=number(0.5)),
            get_salsa_schedule(optimizer_of(), number(300), number(20), line_search=False, initial_lr=number(0.25)),
            get_rex_schedule_with_warmup(
                optimizer_of(), number(2), number(30), [number(0.25), number(0.5)], number(3), number(-1)
            ),
            get_rex_schedule_with_warmup(optimizer_of(), number(2), number(30), "epoch", number(3)),
        ]
        weight = torch.nn.Parameter(torch.ones(2, 2))
        options = {"lr": number(0.25), "momentum": number(0.5), "weight_decay": number(0.125), "eta": number(0.5)}
        clars = CLARS([{"params": [weight], "eps": number(0.0078125)}], **options)
        for _ in range(3):
            clars.zero_grad()
            weight.square().sum().backward()
            clars.step()
        for schedule in schedules:
            for _ in range(10):
                schedule.optimizer.step()
                if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
                    schedule.step()
                else:
                    schedule.step(1.0)
        lrs.append([schedule.get_last_lr()[0] for schedule in schedules])
        lrs[-1].append(weight.sum().item())
    assert lrs[0] == lrs[1]
    assert {*map(type, lrs[1])} == {float}


def test_milestones_may_be_an_array():
    for shares in (np.array([0.5, 0.75]), torch.tensor([0.5, 0.75]), (0.5, 0.75)):
        schedule = get_rex_schedule_with_warmup(optimizer_of(), 0, 100, shares)
        assert type(schedule.lr_lambdas[0](60)) is float


def test_a_chunk_size_may_be_one_too():
    model = torch.nn.Linear(2, 1)
    batch = (torch.ones(3, 2),)
    found = [
        per_sample_gradient_norms(model, lambda model, x: model(x).sum(), batch, chunk_size=size)["weight"]
        for size in (2, np.int64(2), torch.tensor(2), 2.0)
    ]
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoLRSSettings(num_candidates=np.float32(5.5)), "num_candidates must be a whole number of at least"),
        (lambda: AutoLRSSettings(max_lr=torch.ones(2)), "max_lr must be a number, got tensor"),
        (lambda: SalsaSettings(keep=np.float64(1.5)), "keep is 1.5, but must be in (0, 1]"),
        (lambda: SalsaSettings(line_search=np.int64(1)), "line_search must be True or False, got 1"),
        (lambda: get_rex_schedule_with_warmup(optimizer_of(), "2", 30), "num_warmup_steps must be a number, got '2'"),
        (lambda: get_rex_schedule_with_warmup(optimizer_of(), np.int64(30), 30), "num_warmup_steps is 30, but must"),
        (lambda: get_rex_schedule_with_warmup(optimizer_of(), 0, None), "num_training_steps must be a number, got"),
        (lambda: CLARS([torch.ones(1)], lr="0.1"), "lr must be a number, got '0.1'"),
        (lambda: CLARS([torch.ones(1)], lr=np.float64(-0.5)), "lr is -0.5, but must be 0 at least"),
        (
            lambda: CLARS([torch.ones(1)], lr=1.0, per_sample_model=torch.nn.Linear(1, 1), chunk_size="2"),
            "chunk_size is 2, but must be 1 at least",
        ),
    ],
)
def test_they_go_through_the_same_checks(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("steps", [100, np.int64(100), 100.0, torch.tensor(100), np.array(100)])
def test_a_number_of_steps_may_be_of_any_kind(steps):
    assert type(whole(steps)) is int
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    schedule = get_autowu_schedule(optimizer, steps, whole(steps) // 5, steps_per_epoch=steps)
    assert (schedule.num_training_steps, schedule.num_warmup_steps, schedule.steps_per_epoch) == (100, 20, 100)


@pytest.mark.parametrize("steps", [99.5, "100", None, True, torch.ones(2), float("inf"), float("nan")])
def test_what_is_no_whole_number_stays_as_it_is(steps):
    assert whole(steps) is steps


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ((0, 0, None), "num_training_steps must be a whole number of at least 1, got 0; pass the number of optimizer"),
        ((None, 0, None), "num_training_steps must be a whole number of at least 1, got None"),
        ((10, 10, None), "num_warmup_steps must be a whole number from 0 to num_training_steps - 1 = 9, got 10"),
        ((10, 0, 0), "steps_per_epoch must be a whole number of at least 1, got 0"),
    ],
)
def test_lengths_outside_their_limits_are_refused(lengths, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_steps(*lengths)
