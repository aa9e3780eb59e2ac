from __future__ import annotations

import torch
from digits_vit import digits, digits_trainer
from margins import assert_close

from autowu_hf import AutoLRSValidationCallback


def test_trainers_validation_loss_is_used(tmp_path):
    options = {"num_candidates": 2, "first_stage": 10, "longest_stage": 10}
    trainer = digits_trainer(tmp_path, "autolrs", 41, lr_scheduler_kwargs=options, eval_dataset=digits(80))
    trainer.add_callback(AutoLRSValidationCallback(trainer))
    trainer.train()
    model = trainer.model.eval()
    inputs = {name: torch.stack([example[name] for example in digits(80)]) for name in ("pixel_values", "labels")}
    with torch.no_grad():
        expected = float(model(**inputs).loss)
    model.train()
    assert_close([trainer.lr_scheduler.validation_loss()], [expected], 1e-4)
    assert model.training
    assert len(trainer.lr_scheduler.results) == 2
