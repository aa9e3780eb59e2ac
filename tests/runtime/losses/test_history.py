from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

from autowu_hf import DividedGradientsWarning, MissingLossWarning
from autowu_hf.runtime.losses.history import LossHistory

pytestmark = pytest.mark.usefixtures("kept_as")


def test_a_model_must_be_a_module():
    with pytest.raises(TypeError, match="model is 3, but must be a torch.nn.Module"):
        LossHistory(model=3)


def test_numbers_and_tensors_of_any_precision_are_kept():
    history = LossHistory()
    for loss in (
        2.0,
        torch.tensor(1.5),
        torch.tensor([1.25], dtype=torch.float64),
        torch.tensor(0.5).half(),
        np.float32(3),
    ):
        history.observe(loss)
    assert history.gathered.size == 0
    history.flush()
    assert history.gathered.tolist() == [2.0, 1.5, 1.25, 0.5, 3.0]
    assert history.gathered.dtype == np.float64


def test_a_loss_is_copied_when_it_is_seen():
    history, loss = LossHistory(), torch.tensor(1.0)
    history.observe(loss)
    loss += 1.0
    history.flush()
    assert history.gathered.tolist() == [1.0]


def test_no_graph_is_kept_alive():
    history = LossHistory()
    history.observe(torch.ones((), requires_grad=True) * 2.0)
    (kept,) = history._pending
    assert isinstance(kept, float) or not kept.requires_grad


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.ones(3), "the loss passed to step() must be a scalar, got shape (3,); reduce it first"),
        ("high", "the loss passed to step() must be a scalar tensor or a number, got str"),
        ([1.0, 2.0], "the loss passed to step() must be a scalar tensor or a number, got list"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused(loss, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LossHistory().observe(loss)


def test_steps_without_a_loss_warn_once_with_the_remedy():
    history = LossHistory()
    with pytest.warns(MissingLossWarning, match=r"Call accelerator.backward\(loss\) .* or pass the loss"):
        history.observe(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history.observe(None)


def test_state_holds_gathered_and_pending_losses():
    history = LossHistory()
    for loss in (3.0, 2.0):
        history.observe(loss)
    history.flush()
    history.observe(torch.tensor(1.0))
    resumed = LossHistory()
    resumed.load_state_dict(history.state_dict())
    assert resumed.gathered.tolist() == [3.0, 2.0]
    resumed.flush()
    assert resumed.gathered.tolist() == [3.0, 2.0, 1.0]


def test_what_was_pending_at_a_resume_keeps_its_digits():
    history = LossHistory()
    history.observe(torch.tensor(1.0 / 3.0, dtype=torch.float64))
    resumed = LossHistory()
    resumed.load_state_dict(history.state_dict())
    for h in (history, resumed):
        h.observe(torch.tensor(2.0 / 3.0, dtype=torch.float64))
        h.flush()
    assert resumed.gathered.tolist() == history.gathered.tolist() == [1.0 / 3.0, 2.0 / 3.0]


def test_reset_forgets_all():
    history = LossHistory()
    for _ in range(2):
        history.observe(1.0)
        history.flush()
        history.observe(2.0)
        history.reset()
        history.flush()
        assert history.gathered.tolist() == []


@pytest.mark.parametrize("loss", [3, np.int64(3), torch.tensor(3)])
def test_a_whole_number_is_no_loss(loss):
    """As of an epoch, which torch's schedules once took."""
    with pytest.raises(ValueError, match="got the whole number 3; torch's schedules once took an epoch there"):
        LossHistory().observe(loss)


@pytest.mark.parametrize(("start", "step", "last"), [(1.0, 1.0, "6"), (0.5, 0.01, "0.55")])
def test_a_count_is_warned_of_once(start, step, last):
    history = LossHistory()
    with pytest.warns(UserWarning, match=rf"goes up by {step:g} each time, to {last} now, like a count") as record:
        for i in range(40):
            history.observe(start + i * step)
    assert len(record) == 1


@pytest.mark.parametrize(("step", "last"), [(1.0, "2"), (0.01, "0.02")])
def test_a_count_from_0_is_no_loss(step, last):
    """As torch's warm restarts take it: ``step(epoch + i / len(batches))``."""
    history = LossHistory()
    history.observe(0.0)
    history.observe(step)
    with pytest.raises(ValueError, match=rf"goes up by {step:g} each time, to {last} now, like a count of epochs. ste"):
        history.observe(2 * step)


def test_losses_that_rise_are_no_count():
    history = LossHistory()
    for loss in (1.0, 1.1, 1.2, 1.3, 1.4, 1.49, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1):
        history.observe(loss)
    history = LossHistory()
    for loss in (0.0, 1.0, 2.1, 3.2, 4.3, 5.4, 6.5):
        history.observe(loss)


def test_a_quiet_history_warns_of_nothing():
    history = LossHistory(is_quiet=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history.observe(None)
        for epoch in range(10):
            history.observe(float(epoch))
    history.flush()
    assert history.gathered.tolist() == [*range(10)]


def test_a_divisor_belongs_to_losses_that_were_handed_in_and_is_said_once():
    history = LossHistory()
    assert not history.is_divided(64.0)
    history.observe(1.0)
    with pytest.warns(DividedGradientsWarning, match="divided by 64") as caught:
        assert history.is_divided(64.0)
        assert history.is_divided(64.0)
    assert len(caught) == 1
