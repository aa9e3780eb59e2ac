from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Schedules of other modules may listen for as long as something there refers to them."""
    monkeypatch.setattr("autowu_hf.runtime.losses.tap._listening", [])


@pytest.fixture(params=["numbers", "tensors"])
def kept_as(request, monkeypatch):
    """Losses as they are kept on the CPU, and as on other devices."""
    if request.param == "tensors":
        monkeypatch.setattr("autowu_hf.runtime.losses.value._READS_THE_CPU", False)
