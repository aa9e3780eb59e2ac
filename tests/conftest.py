from __future__ import annotations

import gc
import gzip
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = os.environ.get("TEST_THREADS", "1")  # in every process that a test starts, too
os.environ["DS_ACCELERATOR"] = "cpu"

import numpy as np
import pytest
import torch
from accelerate.state import GradientState
from ranks import look_for_lomo_once

import autowu_hf

torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))

DATA = Path(__file__).parent / "data"


def pytest_collection_finish() -> None:
    """Every Trainer collects garbage: what was imported is no garbage, and is not looked through for it."""
    gc.freeze()
    look_for_lomo_once()


@pytest.fixture(scope="session")
def curves() -> list[dict[str, Any]]:
    """The recorded loss curves; see data/README.md."""
    with gzip.open(DATA / "loss_curves.json.gz") as file:
        records = json.load(file)
    for record in records:
        record["losses"] = np.array(record["losses"], dtype=np.float64)
    return records


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], Any]]:
    """Imports one of the benchmarks' modules."""
    benchmarks = str(Path(__file__).parents[1] / "examples" / "benchmarks")
    sys.path.insert(0, benchmarks)
    yield importlib.import_module
    sys.path.remove(benchmarks)


@pytest.fixture
def little_pretraining(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The ViT of the benchmarks has learned the first digits for five epochs, not 40."""
    before = load("fine_tuning_tasks")
    monkeypatch.setattr(before, "EPOCHS_BEFORE", 5)
    before.lower_digits_run.cache_clear()
    yield
    before.lower_digits_run.cache_clear()


@pytest.fixture(autouse=True)
def _registered() -> Any:
    """Every test starts and ends with the package registered, the seeds fixed, and outside of all data loaders."""
    state = GradientState()
    for loader in [*state.dataloader_references]:  # those of tests that broke off inside an epoch
        if loader is not None:
            state._remove_dataloader(loader)
    torch.manual_seed(0)
    np.random.seed(0)
    autowu_hf.register()
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    yield
    autowu_hf.register()
    if precision is None:  # older TrainingArguments set it for all that follows, other processes included
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    else:
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision
