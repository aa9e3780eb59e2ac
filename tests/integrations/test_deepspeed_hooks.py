"""Stand-ins for DeepSpeed's engine and optimizer; ``test_scale_launchers`` runs the real ones."""

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
def put_in_place(monkeypatch):
    """Puts modules in the place of DeepSpeed's, as if they had been imported, and wraps what is in them."""

    def put(**modules):
        deepspeed_hooks.remove()
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, f"deepspeed.runtime.{name.replace('__', '.')}", module)
        deepspeed_hooks.install()

    yield put
    deepspeed_hooks.remove()
    monkeypatch.undo()
    deepspeed_hooks.install()


@pytest.fixture
def engine(put_in_place):
    module = ModuleType("engine")
    module.clip_grad_norm_ = CLIP
    put_in_place(engine=module)
    return module


class Unfused:
    """The masters of an optimizer, whose gradients are scaled by 8."""

    clip_grad, loss_scale = 0.5, 8.0

    def __init__(self, masters):
        self.fp32_groups = [[*masters]]

    def unscale_and_clip_grads(self, total_norm, apply_scale=True):
        scale = max((total_norm / self.loss_scale + 1e-6) / self.clip_grad, 1.0) * self.loss_scale
        for master in self.fp32_groups[0]:
            master.grad /= scale
        return scale


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


@pytest.mark.parametrize(("limit", "expected"), [(0.5, 8.0), (10.0, 1.0)])
def test_what_the_optimizer_for_half_precision_clips_is_told(put_in_place, limit, expected):
    kind = type("FP16_UnfusedOptimizer", (Unfused,), {"clip_grad": limit})
    module = ModuleType("unfused")
    module.FP16_UnfusedOptimizer = kind
    put_in_place(fp16__unfused_optimizer=module)
    scales = []

    def clip(weights, _):
        (weight,) = weights
        weight.grad *= 8.0
        scales.append(kind([weight]).unscale_and_clip_grads(4.0 * 8.0))

    assert clipping(clip) == pytest.approx(expected)
    assert scales == pytest.approx([8.0 * expected], rel=1e-5)
    deepspeed_hooks.remove()
    assert kind.unscale_and_clip_grads is Unfused.unscale_and_clip_grads


def test_where_it_clips_nothing_nothing_is_told(put_in_place):
    kind = type("FP16_UnfusedOptimizer", (Unfused,), {"clip_grad": 0.0})
    kind.unscale_and_clip_grads = lambda self, total_norm: 1.0
    module = ModuleType("unfused")
    module.FP16_UnfusedOptimizer = kind
    put_in_place(fp16__unfused_optimizer=module)
    assert clipping(lambda weights, _: kind(weights).unscale_and_clip_grads(4.0)) == 1.0


def test_a_release_without_that_function_is_left_alone(engine):
    deepspeed_hooks.remove()
    del engine.clip_grad_norm_
    deepspeed_hooks.install()
    assert not hasattr(engine, "clip_grad_norm_")
