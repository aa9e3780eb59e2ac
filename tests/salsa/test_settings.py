from __future__ import annotations

import pytest
import torch
from salsa_models import Point

from autowu_hf.salsa.factory import get_salsa_schedule


@pytest.mark.parametrize(
    ("steps", "ticks", "samples", "interval"),
    [(100, 1, 16, 1), (5600, 1, 100, 10), (5600, 2, 50, 5), (58_650, 1, 1000, 100), (10**6, 1, 1000, 100)],
)
def test_the_tests_fit_the_run(steps, ticks, samples, interval):
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_salsa_schedule(optimizer, steps, 10)
    scheduler.prepared(ticks, [optimizer])
    assert (scheduler.min_samples, scheduler.test_every) == (samples, interval)


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ((0,), {}, "num_training_steps must be a whole number of at least 1, got 0"),
        ((10, 10), {}, "num_warmup_steps must be a whole number from 0 to num_training_steps - 1 = 9, got 10"),
        ((10,), {"initial_lr": 0.0}, "initial_lr is 0.0, but must be positive; None takes the optimizer's own"),
        ((10,), {"smoothing": 0.0}, r"smoothing is 0.0, but must be in \(0, 1\]; the default is 0.1"),
        ((10,), {"drop_factor": 1.0}, "drop_factor is 1.0, but must be more than 1; the default is 10"),
        ((10,), {"significance": 1.0}, r"significance is 1.0, but must be in \(0, 1\); the default is 0.05"),
        ((10,), {"keep": 1.5}, r"keep is 1.5, but must be in \(0, 1\]; the default is 1/8"),
        ((10,), {"min_samples": 15}, "min_samples is 15, but must be 16 at least, .* None fits it to the run"),
        ((10,), {"test_every": 0}, "test_every must be a whole number of at least 1, got 0"),
        ((10,), {"keep": None}, "keep must be a number, got None"),
        ((10,), {"min_samples": 20.5}, "min_samples must be a whole number of at least 1, got 20.5"),
        ((10,), {"line_search": "no"}, "line_search must be True or False, got 'no'"),
    ],
)
def test_bad_options_are_refused_with_the_limit_and_the_remedy(lengths, options, message):
    model = Point()
    with pytest.raises(ValueError, match=message):
        get_salsa_schedule(torch.optim.SGD(model.parameters(), lr=0.1), *lengths, **options)
