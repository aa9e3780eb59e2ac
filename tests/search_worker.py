"""A worker process of a search; it has never imported this package when its Trainer arrives."""

from __future__ import annotations

import sys
from typing import Any


def work(pickled: bytes, results: Any) -> None:
    import cloudpickle

    assert "autowu_hf" not in sys.modules
    trainer = cloudpickle.loads(pickled)
    trainer.create_accelerator_and_postprocess()  # as Trainer does at the start of a trial
    trainer.train()
    scheduler = trainer.lr_scheduler
    results.put((type(scheduler).__name__, scheduler.last_epoch, len(scheduler.losses) == scheduler.switch_step))
