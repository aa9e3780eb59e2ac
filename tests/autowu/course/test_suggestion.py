"""The suggestion after a transient; ``tests/test_suggest.py`` has all the rest."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from scale_runs import thin
from torch import nn
from transient_runs import STEPS, Regression

from autowu_hf import suggest_lr
from autowu_hf.autowu.course import suggestion
from autowu_hf.autowu.course.later.transient import KEPT


def suggested(regression, num=13):
    batches = [regression.batch(step) for step in range(num)]
    return suggest_lr(regression.model, regression.optimizer, regression.loss_of, batches)


@pytest.fixture(scope="module")
def after_a_transient():
    return suggested(Regression())


def test_after_a_transient_the_suggestion_is_near_the_lr_that_a_run_grows_to(after_a_transient):
    peak_lr = Regression().go(STEPS).schedule.peak_lr
    assert after_a_transient.kept >= KEPT
    assert 0.4 * peak_lr < after_a_transient.lr < 2.5 * peak_lr
    assert after_a_transient.lr > 5.0 * after_a_transient.scale.peak_lr
    kept = f"{after_a_transient.kept:.2g}"
    assert f"since P, per unit of the way, is {kept} times as high after a transient" in str(after_a_transient)
    assert after_a_transient.steps <= suggestion.MOST_STEPS


def test_the_steps_are_taken_back(after_a_transient):
    regression = Regression()
    before = copy.deepcopy((regression.model.state_dict(), regression.optimizer.state_dict()))
    hooks = len(regression.optimizer._optimizer_step_pre_hooks)  # of its own schedule
    assert suggested(regression).lr == after_a_transient.lr
    assert all(map(torch.equal, before[0].values(), regression.model.state_dict().values()))
    assert before[1] == regression.optimizer.state_dict()
    assert len(regression.optimizer._optimizer_step_pre_hooks) == hooks


def test_losses_that_fall_slowly_are_left_after_a_few_steps():
    regression = Regression()
    inner = regression.loss_of
    regression.loss_of = lambda model, batch: inner(model, batch) + 10.0 * inner(model, batch).detach()  # hardly falls
    regression.optimizer.param_groups[0]["weight_decay"] = 0.0
    found = suggested(regression)
    assert found.kept is None
    assert found.lr == found.scale.peak_lr


def test_where_p_is_near_r_nothing_is_trained():
    found = suggested(Regression(size=1.0))
    assert found.steps == found.scale.num_steps == 2
    assert found.kept is None


def test_a_loss_that_is_no_number_ends_it_at_the_scale():
    regression = Regression()
    inner, calls = regression.loss_of, []

    def broken(model, batch):
        calls.append(batch)
        return inner(model, batch) * (1.0 if len(calls) < 5 else float("nan"))

    regression.loss_of = broken
    found = suggested(regression)
    assert found.kept is None
    assert found.lr == found.scale.peak_lr


def test_what_was_raised_for_noise_is_no_transients(monkeypatch):
    monkeypatch.setattr(suggestion, "_raised", lambda *args: 8.0)
    found = suggested(Regression())
    assert found.lr == pytest.approx(8.0 * found.scale.peak_lr)
    assert found.steps == 2
    assert found.kept is None
    assert "times 8 since" in str(found)
    assert "transient" not in str(found)


def test_weights_that_begin_near_zero_are_said():
    regression = Regression(size=1.0)
    with torch.no_grad():
        for parameter in regression.model.parameters():
            parameter.mul_(1e-3)
    found = suggested(regression)
    assert found.scale.has_small_weights
    assert "the weights may have begun near zero, and allow more once they have grown" in str(found)


def test_tensors_that_hardly_have_a_gradient_are_said():
    model, optimizer, _ = thin(100)

    def losses():
        while True:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.randn(8, 6)), torch.zeros(8, dtype=torch.long))
            loss.backward()
            yield loss.item()

    found = suggestion.suggested(optimizer, losses())
    assert found.scale.density < 1.0
    assert found.lr == found.scale.peak_lr
    said = "most tensors hardly have a gradient: {:.1e} where nothing is learned"
    assert str(found).endswith(said.format(0.1 * found.lr))
    for density, is_said in [(0.5, True), (0.51, False)]:
        other = replace(found, scale=replace(found.scale, density=density))
        assert (said.format(density * found.lr) in str(other)) is is_said
        assert ("hardly have a gradient" in str(other)) is is_said
