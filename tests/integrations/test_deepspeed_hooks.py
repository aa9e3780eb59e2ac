"""A stand-in for DeepSpeed's engine; ``test_scale_launchers`` runs the real one."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from autowu_hf.integrations import deepspeed_hooks
from autowu_hf.runtime.update_meter import UpdateMeter

CLIP = torch.nn.utils.clip_grad_norm_


@pytest.fixture
def engine(monkeypatch):
    """A module in the place of DeepSpeed's, which has been imported, and the hook."""
    module = ModuleType("deepspeed.runtime.engine")
    module.clip_grad_norm_ = CLIP
    deepspeed_hooks.remove()
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.engine", module)
    deepspeed_hooks.install()
    yield module
    deepspeed_hooks.remove()
    monkeypatch.undo()
    deepspeed_hooks.install()


def clipping(clip):
    """What a meter finds where nobody hears the backward, whose gradient has the norm 4."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=1e-4)
    meter = UpdateMeter(optimizer, [1.0])
    meter.arm()
    weight.grad = torch.full((4,), 2.0)
    clip(iter([weight]), 0.5)
    optimizer.step()
    meter.disarm()
    return meter.updates[0].clipping


def test_what_the_engine_clips_is_told(engine):
    assert clipping(engine.clip_grad_norm_) == pytest.approx(8.0)
    assert clipping(CLIP) == 1.0


def test_it_is_put_back_and_whoever_holds_it_still_clips(engine):
    held = engine.clip_grad_norm_
    assert held is not CLIP
    deepspeed_hooks.install()
    assert engine.clip_grad_norm_ is held
    deepspeed_hooks.remove()
    assert engine.clip_grad_norm_ is CLIP
    assert clipping(held) == 1.0


def test_one_tensor_is_clipped_too(engine):
    assert clipping(lambda weights, limit: engine.clip_grad_norm_(next(weights), limit)) == pytest.approx(8.0)


def test_a_release_without_that_function_is_left_alone(engine):
    deepspeed_hooks.remove()
    del engine.clip_grad_norm_
    deepspeed_hooks.install()
    assert not hasattr(engine, "clip_grad_norm_")
