from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from autowu_hf import get_autowu_schedule
from autowu_hf.autowu.settings import AutoWUSettings


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def test_every_setting_is_an_argument_and_is_documented():
    arguments = inspect.signature(get_autowu_schedule).parameters
    for field in dataclasses.fields(AutoWUSettings):
        assert arguments[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"        {field.name}: " in get_autowu_schedule.__doc__


def test_every_argument_reaches_the_settings():
    options = {
        "min_lr": 1e-6,
        "max_lr": 2.0,
        "max_warmup_fraction": 0.3,
        "growth": "linear",
        "decay_type": "constant_then_cosine",
        "decay_fraction": 0.4,
        "test_every": 11,
        "confidence": 0.9,
        "patience": 2,
        "num_tests": 3,
        "gp_engine": "gpytorch",
        "standardize": False,
        "peak_rule": "minimum",
        "rewind": "disk",
        "rewind_dir": "somewhere",
        "rewind_memory": 0.25,
        "rewind_in_checkpoint": False,
        "guard": False,
        "scale": False,
        "seed": 5,
        "report_dir": "elsewhere",
    }
    scheduler = get_autowu_schedule(optimizer(), 100, steps_per_epoch=10, **options)
    assert dataclasses.asdict(scheduler.settings) == options
    assert scheduler.steps_per_epoch == 10


def test_without_options_the_defaults_hold():
    assert get_autowu_schedule(optimizer(), 100).settings == AutoWUSettings()
    assert get_autowu_schedule(optimizer(), 100, preset="paper").settings.gp_engine == "gpytorch"


def test_bad_lengths_are_refused():
    with pytest.raises(ValueError, match="num_training_steps must be a whole number of at least 1, got 0"):
        get_autowu_schedule(optimizer(), 0)
