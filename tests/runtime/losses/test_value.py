from __future__ import annotations

import pytest
import torch
from tiny import TinyClassifier, batches

from autowu_hf import get_autowu_schedule
from autowu_hf.runtime.losses.value import loss_value


def test_a_loss_on_the_cpu_is_a_number_at_once():
    for loss in (torch.tensor(0.5, requires_grad=True) * 1, torch.tensor([0.5]), torch.tensor(0.5).bfloat16()):
        taken = loss_value(loss, "step()")
        assert type(taken) is float
        assert taken == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_loss_elsewhere_stays_there_as_a_copy_without_a_graph(dtype):
    loss = torch.ones(1, dtype=dtype, device="meta", requires_grad=True) * 2
    taken = loss_value(loss, "step()")
    assert isinstance(taken, torch.Tensor)
    assert (taken.device.type, taken.shape, taken.requires_grad) == ("meta", (), False)
    assert taken.dtype == (dtype if dtype.itemsize > 2 else torch.float32)


def test_what_was_taken_does_not_change_with_the_loss(monkeypatch):
    for reads in (True, False):
        monkeypatch.setattr("autowu_hf.runtime.losses.value._READS_THE_CPU", reads)
        loss = torch.tensor(1.0)
        taken = loss_value(loss, "step()")
        loss += 1.0
        assert float(taken) == 1.0


@pytest.mark.parametrize("shape", [(0,), (2,), (1, 3)])
def test_a_loss_that_is_no_scalar_is_refused(shape):
    with pytest.raises(ValueError, match="the loss passed to step\\(\\) must be a scalar, got shape"):
        loss_value(torch.ones(shape), "step()")


class Shard(torch.Tensor):
    """Half of the loss, as a process may have it."""

    def full_tensor(self) -> torch.Tensor:
        return 2.0 * self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("reads", [True, False])
def test_of_a_loss_that_is_spread_over_processes_the_whole_is_taken(monkeypatch, reads):
    monkeypatch.setattr("autowu_hf.runtime.losses.value._READS_THE_CPU", reads)
    assert float(loss_value(torch.tensor(0.25).as_subclass(Shard), "step()")) == 0.5
    assert float(loss_value(torch.nn.Parameter(torch.tensor(0.25)), "step()")) == 0.25


def test_a_complex_loss_is_refused():
    with pytest.raises(ValueError, match="the loss passed to step\\(\\) must be real, got torch.complex64"):
        loss_value(torch.tensor(1.0 + 2.0j), "step()")


def test_a_run_is_the_same_with_losses_that_stay_on_their_device(monkeypatch):
    def run() -> list[float]:
        torch.manual_seed(0)
        model = TinyClassifier()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        schedule = get_autowu_schedule(optimizer, 60)
        lrs = []
        for batch in batches(60):
            loss = model(**batch)["loss"]
            loss.backward()
            optimizer.step()
            schedule.step(loss)
            optimizer.zero_grad()
            lrs += schedule.get_last_lr()
        assert schedule.switch_step is not None
        return lrs

    on_the_cpu = run()
    monkeypatch.setattr("autowu_hf.runtime.losses.value._READS_THE_CPU", False)
    assert run() == on_the_cpu
