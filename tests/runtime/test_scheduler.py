"""What the base class of the schedules does for all of them."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import TinyClassifier, batches, get_schedule
from torch.optim.lr_scheduler import ConstantLR, SequentialLR

from autowu_hf import MissingLossWarning, get_autolrs_schedule, get_autowu_schedule, get_salsa_schedule


def made(steps: int = 100, lr: float = 1e-2, **options):
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return model, optimizer, get_autowu_schedule(optimizer, steps, **options)


def loss_of(model, step: int) -> torch.Tensor:
    batch = torch.utils.data.default_collate(batches(8, seed=step))
    return model(**batch)["loss"]


def train(model, optimizer, schedule, steps, since=0, given=True):
    """The loss of every step."""
    losses = []
    for step in range(since, since + steps):
        loss = loss_of(model, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if given:
            schedule.step(loss)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("options", [{}, {"scale": False}])
@pytest.mark.parametrize("way", ["SequentialLR", "later"])
def test_losses_before_the_first_step_of_the_schedule_do_not_count(way, options):
    accelerator = Accelerator(cpu=True)
    model, optimizer, schedule = made(60, **options)
    stepped = schedule
    if way == "SequentialLR":
        constant = ConstantLR(optimizer, factor=1.0)
        stepped = SequentialLR(optimizer, [constant, schedule], milestones=[40])
        assert optimizer.param_groups[0]["lr"] == 1e-2
    model, optimizer = accelerator.prepare(model, optimizer)
    losses, lrs = [], []
    for step in range(100):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        accelerator.backward(loss)
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if way == "SequentialLR" or step >= 40:
            stepped.step()
        losses.append(loss.item())
    assert schedule.last_epoch == 60
    assert schedule.switch_step is not None
    assert len(schedule.losses) == schedule.switch_step
    assert schedule.losses == pytest.approx(losses[40 : 40 + schedule.switch_step])
    assert lrs[39] == (1e-2 if way == "SequentialLR" else lrs[0])
    assert lrs[40] == lrs[0] if way == "later" else lrs[40] < 1e-3
    if not options:
        assert schedule.report()["approach"]["scale"] is not None


def test_a_schedule_that_is_stepped_once_an_epoch_takes_every_loss():
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    model, optimizer, schedule = made(40, scale=False)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    for step in range(40):
        optimizer.zero_grad()
        accelerator.backward(loss_of(model, step))
        optimizer.step()
        if step % 4 == 3:
            schedule.step()
    assert len(schedule.scheduler.losses) == 40


@pytest.mark.parametrize("options", [{}, {"scale": False}])
def test_losses_that_never_come_leave_the_given_lr_and_a_warning(options, caplog):
    """As with one's own backward in a Trainer, Lightning's automatic optimization, SequentialLR in plain torch."""
    model, optimizer, schedule = made(60, **options)
    with pytest.warns(MissingLossWarning):
        for step in range(60):
            train(model, optimizer, schedule, 1, since=step, given=False)
            schedule.step()
    assert (schedule.ended_by, schedule.peak_lr) == ("nothing", 1e-2)
    assert any(r.levelname == "WARNING" and "which the optimizer was given" in r.getMessage() for r in caplog.records)


def test_lightnings_calls_hand_the_loss_over():
    """The backward is inside of optimizer.step; the schedule gets the logged loss, as a plateau's schedule would."""
    model, optimizer, schedule = made(40)
    losses = []
    for step in range(40):

        def closure(step=step):
            losses.append(loss_of(model, step))
            optimizer.zero_grad()
            losses[-1].backward()
            return losses[-1]

        optimizer.step(closure)
        schedule.step(losses[-1].detach())
    assert schedule.losses == pytest.approx([loss.item() for loss in losses[: schedule.switch_step]])
    assert schedule.get_last_lr() == [0.0]
    plain = made(40)
    train(*plain, 40)
    scales = [of.report()["approach"]["scale"]["lr"] for of in (schedule, plain[2])]
    assert scales[0] == pytest.approx(scales[1], rel=1e-3)


@pytest.mark.parametrize("cut", [10, 40])
def test_a_group_that_is_added_on_the_way_keeps_its_ratio_and_its_weights(cut):
    model, optimizer, schedule = made(100, scale=False)
    train(model, optimizer, schedule, cut)
    head = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [head], "lr": 1e-3})
    for step in range(cut, 100):
        loss = loss_of(model, step) + (head**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step(loss)
        base, added = schedule.get_last_lr()
        assert added == pytest.approx(base / 10, rel=1e-12)
    assert optimizer.param_groups[1]["initial_lr"] == 1e-3
    assert torch.isfinite(head).all()
    state = schedule.state_dict()
    _, other, again = made(100, scale=False)
    other.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 1e-3})
    again.load_state_dict(state)
    assert again.get_last_lr() == schedule.get_last_lr()


def test_the_switch_leaves_the_weights_of_a_group_that_no_snapshot_has():
    model, optimizer, schedule = made(200, scale=False)
    since = 0
    while schedule.last_epoch < 30:
        train(model, optimizer, schedule, 1, since := since + 1)
    head = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [head], "lr": 1e-3})
    assert schedule.rewind.snapshots
    before = [p.detach().clone() for p in model.parameters()]
    assert schedule.rewind.restore(lambda _: 0.0, 0.0) is not None
    assert torch.equal(head, torch.ones(3))
    assert not all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("make", [get_autowu_schedule, get_autolrs_schedule, get_salsa_schedule])
def test_every_schedule_takes_in_a_new_group_and_misses_one_that_is_gone(make):
    weights = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([weights.weight], lr=0.1)
    options = {"line_search": False} if make is get_salsa_schedule else {"model": weights}
    schedule = make(optimizer, 1000, **options)
    loss = weights(torch.ones(2)).square().sum()
    for step in range(4):
        if step == 2:
            optimizer.add_param_group({"params": [weights.bias], "lr": 0.05})
        loss = weights(torch.ones(2)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step(loss)
    first, second = schedule.get_last_lr()
    assert second == pytest.approx(first / 2)
    del optimizer.param_groups[1]
    with pytest.raises(ValueError, match=r"must keep its 2 parameter groups, but has 1; leave one in"):
        schedule.step(loss)


def test_a_second_schedule_on_a_tensor_lr_finds_what_was_given():
    model = TinyClassifier()
    lr = torch.tensor(0.25)
    groups = [{"params": [model.net[0].weight]}, {"params": [model.net[2].weight], "lr": torch.tensor(0.125)}]
    optimizer = torch.optim.AdamW(groups, lr=lr, foreach=False)
    for _ in range(2):
        schedule = get_autowu_schedule(optimizer, 20)
        assert schedule._ratios == [1.0, 0.5]
        assert schedule._rule.own_lr == 0.25
        train(model, optimizer, schedule, 20)
        assert lr.item() == 0.0
    assert optimizer.param_groups[0]["lr"] is lr


def test_copies_of_a_prepared_schedule_go_on_alike():
    accelerator = Accelerator(cpu=True)
    model, optimizer, schedule = made(60, scale=False)
    model, optimizer, schedule = things = accelerator.prepare(model, optimizer, schedule)
    train(*things, 12)
    others = copy.deepcopy(things)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(*things, 48, since=12) == train(*others, 48, since=12)
    assert others[2].scheduler.peak_lr == schedule.scheduler.peak_lr
    assert others[2].scheduler.optimizer is not schedule.scheduler.optimizer


def test_numbers_of_numpy_and_torch_are_taken():
    _, _, schedule = made(
        np.int64(100),
        patience=np.int64(2),
        num_tests=torch.tensor(3),
        test_every=5.0,
        confidence=np.float32(0.5),
        steps_per_epoch=torch.tensor(10),
        max_lr=torch.tensor(0.5),
    )
    s = schedule.settings
    assert (s.patience, s.num_tests, s.test_every, s.confidence, s.max_lr) == (2, 3, 5, 0.5, 0.5)
    assert {type(v) for v in (s.patience, s.num_tests, s.test_every, schedule.steps_per_epoch)} == {int}
    with pytest.raises(ValueError, match="patience must be a whole number"):
        made(100, patience=np.array([1, 2]))


SCHEDULES = {
    "autowu": lambda optimizer: get_autowu_schedule(optimizer, 40),
    "range": lambda optimizer: get_autowu_schedule(optimizer, 40, scale=False),
    "autolrs": lambda optimizer: get_autolrs_schedule(optimizer, 200),
    "salsa": lambda optimizer: get_salsa_schedule(optimizer, 40, line_search=False),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_other_schedules_take_by_name_is_refused_in_words(name):
    """The words of torch's schedules, not a TypeError, which DeepSpeed would take for a habit of its own."""
    model = TinyClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = SCHEDULES[name](optimizer)
    loss = loss_of(model, 0)
    loss.backward()
    optimizer.step()
    for given, said in [
        ({"epoch": 0}, "epoch="),
        ({"metrics": loss}, "metrics="),
        ({"epoch": 1, "x": 2}, "epoch= and"),
    ]:
        with pytest.raises(ValueError, match=rf"takes the loss of the optimizer step just done, got {said}"):
            schedule.step(**given)
    with pytest.raises(
        ValueError, match=r"call scheduler.step\(loss\), or scheduler.step\(\) where accelerator.backward"
    ):
        Accelerator(cpu=True).prepare(schedule).step(metrics=loss)
    assert schedule.last_epoch == 0
    schedule.step(loss)
    assert schedule.last_epoch == 1


def test_epochs_as_floats_are_refused_where_the_first_ends_the_search():
    """Epoch 0 is taken for a loss of nothing, after which no loss is looked at."""
    model, optimizer, schedule = made(10)
    for epoch in range(3):
        train(model, optimizer, schedule, 2, since=2 * epoch, given=False)
        if epoch < 2:
            schedule.step(float(epoch))
    assert (schedule.switch_step, schedule.ended_by) == (1, "nothing")
    with pytest.raises(ValueError, match="goes up by 1 each time, to 2 now, like a count of epochs"):
        schedule.step(2.0)


def test_the_only_group_is_missed_before_the_weights_go_back():
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = get_schedule(optimizer, 40, model=model, test_every=3)
    for step in range(1, 20):
        train(model, optimizer, schedule, 1, since=step, given=False)
        schedule.step(abs(step - 10.0))
    optimizer.param_groups.clear()  # before the step at which the losses end the warm-up
    optimizer.step()
    with pytest.raises(ValueError, match="must keep its 1 parameter groups, but has 0; leave one in"):
        schedule.step(10.0)
    assert schedule.last_epoch == 19
