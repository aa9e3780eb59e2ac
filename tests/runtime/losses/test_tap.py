from __future__ import annotations

import gc

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tiny import LOGGED_DIGITS, AcceptsNumItems, TinyClassifier, batches, get_schedule, trainer_for

from autowu_hf import AutoWUCallback
from autowu_hf.runtime.losses import tap as loss_tap
from autowu_hf.runtime.losses.tap import LossTap

pytestmark = pytest.mark.usefixtures("kept_as")


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def heard(tap: LossTap) -> list[float] | None:
    losses = tap.take()
    return None if losses is None else [float(loss) for loss in losses]


def backward(accelerator: Accelerator, value: float, sync: bool = True) -> None:
    accelerator.gradient_state._set_sync_gradients(sync)
    accelerator.backward(torch.tensor(value, requires_grad=True) * 1.0)


def test_hears_one_loss_per_step_and_sums_micro_batches(accelerator):
    tap = LossTap()
    tap.listen()
    assert heard(tap) is None
    backward(accelerator, 2.0)
    assert heard(tap) == [2.0]
    assert heard(tap) is None
    backward(accelerator, 1.0, sync=False)
    assert heard(tap) == []
    assert heard(tap) == []
    backward(accelerator, 0.25)
    assert heard(tap) == [1.25]


def test_a_step_ends_with_the_prepared_optimizers_step_and_one_that_was_skipped_is_dropped(accelerator):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    tap = LossTap(optimizer)
    tap.listen()
    prepared = accelerator.prepare(optimizer)
    for value, skipped in ((1.0, False), (float("inf"), True), (0.5, False)):
        backward(accelerator, value)
        backward(accelerator, value)
        prepared._is_overflow = skipped  # as the gradient scaler leaves it
        prepared.step()
    assert heard(tap) == [2.0, 1.0]


def test_deepspeeds_backward_steps_by_itself(accelerator, monkeypatch):
    """Every backward is a step, so the next one tells whether the last was skipped."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    tap = LossTap(optimizer)
    tap.listen()
    prepared = accelerator.prepare(optimizer)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    for value, skipped in ((1.0, False), (float("inf"), True), (0.5, False)):
        loss = torch.tensor(value, requires_grad=True)
        loss_tap.tell_backward(loss, accelerator)
        prepared._is_overflow = skipped
    assert heard(tap) == [1.0, 0.5]


def test_an_accelerate_loop_with_accumulation_gets_the_mean_over_its_micro_batches():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    tap = LossTap()
    tap.listen()
    for value, sync in ((3.0, False), (2.0, False), (1.0, True)):  # accelerator.accumulate is not used
        backward(accelerator, value, sync)
    assert heard(tap) == [2.0]
    assert tap.share == 1.0
    backward(accelerator, 4.0)  # a short last group, whose gradient accelerate divides by three
    assert heard(tap) == [4.0]
    assert tap.share == 1 / 3


def test_nothing_is_heard_after_stop_or_when_the_tap_is_gone(accelerator):
    tap = LossTap()
    tap.listen()
    tap.stop()
    backward(accelerator, 1.0)
    assert heard(tap) is None
    tap.listen()
    del tap
    gc.collect()
    assert len(loss_tap._listening) == 0


def test_a_loss_that_is_no_scalar_is_refused(accelerator):
    tap = LossTap()
    tap.listen()
    with pytest.raises(ValueError, match=r"passed to accelerator.backward must be a scalar, got shape \(2,\)"):
        accelerator.backward(torch.ones(2, requires_grad=True) * 1)


def test_an_accelerate_loop_records_its_losses():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters())
    data = torch.utils.data.DataLoader(batches(20), batch_size=4)  # 5 batches: groups of 2, 2 and 1
    scheduler = get_schedule(optimizer, num_training_steps=30)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
    expected, group = [], []
    for _ in range(2):
        for batch in data:
            with accelerator.accumulate(model):
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                group.append(loss.item())
                if accelerator.sync_gradients:
                    expected.append(sum(group) / len(group))
                    group = []
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert len(expected) == 6
    assert scheduler.scheduler.losses == pytest.approx(expected, abs=1e-6)


def test_a_scheduler_taken_back_into_its_warm_up_listens_again():
    accelerator = Accelerator(cpu=True)
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = get_schedule(optimizer, num_training_steps=40)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)

    def train(steps: int) -> None:
        for batch in torch.utils.data.DataLoader(batches(4 * steps), batch_size=4):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    train(10)
    state = scheduler.state_dict()
    train(30)
    losses = scheduler.scheduler.losses
    assert scheduler.scheduler.phase == "decay"
    scheduler.load_state_dict(state)
    assert scheduler.scheduler.phase == "warmup"
    train(10)
    assert len(losses) == len(scheduler.scheduler.losses) == 20


@pytest.mark.parametrize(("kept_as", "accumulation"), [("numbers", 1), ("tensors", 3)], indirect=["kept_as"])
@pytest.mark.parametrize("case", ["labels", "label_smoothing", "compute_loss_func", "num_items_in_batch"])
def test_recorded_losses_equal_trainers_logged_loss(tmp_path, case, accumulation):
    """28 examples in batches of 4 make 7 batches an epoch: with accumulation 3 the last group has one."""

    def compute_loss(outputs, labels, num_items_in_batch=None):
        total = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else len(labels))

    trainer = trainer_for(
        tmp_path,
        model=AcceptsNumItems() if case == "num_items_in_batch" else TinyClassifier(),
        train_dataset=batches(28),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=8,
        logging_steps=1,
        label_smoothing_factor=0.1 if case == "label_smoothing" else 0.0,
        lr_scheduler_kwargs={"max_lr": 1e-3, "max_warmup_fraction": 0.9, "patience": 1000},
        compute_loss_func=compute_loss if case == "compute_loss_func" else None,
        callbacks=[AutoWUCallback(plot=False)],
    )
    trainer.train()
    losses = trainer.lr_scheduler.losses
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == trainer.lr_scheduler.warmup_cap > 20
    assert losses == pytest.approx(logged[: len(losses)], abs=LOGGED_DIGITS)


def test_a_teacher_that_was_prepared_by_itself_is_one_of_the_models_and_another_optimizers_model_is_not(accelerator):
    student, teacher, other = (torch.nn.Linear(2, 1) for _ in range(3))
    teacher.requires_grad_(False)
    optimizer = accelerator.prepare(torch.optim.SGD(student.parameters(), lr=0.1))
    student, teacher, other = accelerator.prepare(student, teacher, other)
    tap = LossTap(optimizer)
    tap.listen()
    accelerator.backward(student(torch.ones(1, 2)).sum())
    assert [*map(id, tap.models())] == [id(student), id(teacher)]


def test_a_tap_that_yields_hears_only_what_no_other_tap_hears(accelerator):
    tap, first, second = LossTap(), LossTap(), LossTap()
    first.yields = second.yields = True
    first.listen()
    backward(accelerator, 1.0)
    assert heard(first) == [1.0]
    tap.listen()
    backward(accelerator, 2.0)
    assert heard(tap) == [2.0]  # and does not doubt that it is its own
    assert heard(first) is None
    tap.stop()
    second.listen()
    backward(accelerator, 3.0)
    assert heard(first) is heard(second) is None
