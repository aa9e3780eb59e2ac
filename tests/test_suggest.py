"""A learning rate from two steps, after which everything is as it was."""

from __future__ import annotations

import copy
import logging
import random

import numpy as np
import pytest
import torch
from run_programs import command
from tiny import batches, trainer_for
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import autowu_hf
from autowu_hf import get_autowu_schedule, suggest_lr


def loop(make=torch.optim.AdamW, seed=0, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))
    data = [
        (torch.stack([r["x"] for r in rows]), torch.stack([r["labels"] for r in rows]))
        for rows in (batches(64, seed=i) for i in range(6))
    ]
    return model, make(model.parameters(), **{"lr": 1e-3, **options}), data


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model, optimizer, data, lr, epochs=10):
    for group in optimizer.param_groups:
        group["lr"] = lr
    losses = []
    for batch in data * epochs:
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_everything_is_put_back_bit_for_bit():
    model, optimizer, data = loop()
    train(model, optimizer, data, 1e-3, epochs=1)
    model.eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    grad = model[0].weight.grad
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    suggestion = suggest_lr(model, optimizer, loss_of, data)
    for old, new in zip(before[0].items(), model.state_dict().items(), strict=True):
        assert old[0] == new[0]
        assert torch.equal(old[1], new[1])
    for old, new in zip(before[1]["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert before[1]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert random.getstate() == numbers[0]
    assert np.random.get_state()[1].tolist() == numbers[1]
    assert torch.equal(torch.get_rng_state(), numbers[2])
    assert model[0].weight.grad is grad
    assert not model.training
    assert not optimizer._optimizer_step_pre_hooks
    assert 0 < suggestion.lr == float(suggestion) < 1
    assert suggestion.steps == suggestion.scale.num_steps == 2


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_the_suggestion_learns_more_than_a_hundredth_and_than_a_hundredfold(make):
    """Of one run of sixty steps each, in the same process."""
    model, optimizer, data = loop(make)
    lr = float(suggest_lr(model, optimizer, loss_of, data))
    last = {}
    for factor in (0.01, 1.0, 100.0):
        model, optimizer, data = loop(make)
        losses = train(model, optimizer, data, factor * lr)
        last[factor] = float(np.mean(losses[-12:]))
    assert last[1.0] < 0.9 * last[0.01]
    assert last[1.0] < 0.9 * last[100.0]


def test_the_suggestion_follows_the_units_of_loss_and_weights():
    model, optimizer, data = loop()
    plain = suggest_lr(model, optimizer, loss_of, data)
    scaled = suggest_lr(model, optimizer, lambda m, b: 1000.0 * loss_of(m, b), data)
    assert scaled.lr == pytest.approx(plain.lr, rel=0.02)

    class Hundredth(nn.Module):
        """A model whose weights are stored a hundred times larger."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.stored = nn.ParameterList([100.0 * p.detach() for p in inner.parameters()])

        def forward(self, x):
            names = [name for name, _ in self.inner.named_parameters()]
            weights = {name: p / 100.0 for name, p in zip(names, self.stored, strict=True)}
            return torch.func.functional_call(self.inner, weights, (x,))

    large = Hundredth(copy.deepcopy(model))
    other = suggest_lr(large, torch.optim.AdamW(large.stored.parameters(), lr=1e-3), loss_of, data)
    assert other.lr == pytest.approx(100.0 * plain.lr, rel=0.05)


@pytest.mark.parametrize(("make", "options"), [(torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})])
def test_an_optimizer_that_has_made_steps_gets_what_a_new_one_does(make, options):
    model, optimizer, data = loop(make, **options)
    train(model, optimizer, data, 1e-3)
    used = suggest_lr(model, optimizer, loss_of, data)
    new = suggest_lr(model, make(model.parameters(), lr=1e-3, **options), loss_of, data)
    assert used.lr == pytest.approx(new.lr, rel=0.3)


def test_sgd_is_told_apart():
    model, optimizer, data = loop(torch.optim.SGD, momentum=0.9)
    suggestion = suggest_lr(model, optimizer, loss_of, data)
    assert suggestion.scale.is_aligned
    assert "where to look" in str(suggestion)
    model, optimizer, data = loop()
    assert "where to look" not in str(suggest_lr(model, optimizer, loss_of, data))


def test_a_trainer_is_as_it_was(tmp_path):
    runs = []
    for look in (True, False):
        own = trainer_for(tmp_path / str(look), lr_scheduler_type="cosine", gradient_accumulation_steps=2)
        if look:
            suggestion = suggest_lr(own)
            assert 0 < suggestion.lr < 1
            assert own.optimizer is None
            assert "0." in str(suggestion) or "e-" in str(suggestion)
        own.train()
        runs.append([p.detach().clone() for p in own.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_an_epoch_of_one_step_is_gone_through_twice(tmp_path):
    own = trainer_for(tmp_path, lr_scheduler_type="cosine", per_device_train_batch_size=64)
    suggestion = suggest_lr(own)
    assert suggestion.steps == 2
    assert len(own.accelerator._dataloaders) == 0
    halves = trainer_for(tmp_path, lr_scheduler_type="cosine", per_device_train_batch_size=32)
    assert suggestion.lr == pytest.approx(suggest_lr(halves).lr, rel=0.5)


def test_accumulation_changes_nothing_but_rounding_and_noise(tmp_path):
    found = [
        suggest_lr(
            trainer_for(tmp_path / str(k), gradient_accumulation_steps=k, per_device_train_batch_size=32 // k)
        ).lr
        for k in (1, 4)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.05)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_it_clips_as_the_run_will(make, tmp_path):
    """SGD's update is the clipped gradient, so that the LR for it is as many times higher; Adam's is no other one."""
    model, optimizer, data = loop(make)
    free = suggest_lr(model, optimizer, loss_of, data)
    clipped = suggest_lr(model, optimizer, loss_of, data, max_grad_norm=0.01)
    if make is torch.optim.AdamW:
        assert clipped.lr == pytest.approx(free.lr, rel=0.05)
        return
    norms = []
    for batch in data[:2]:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()))
    assert clipped.scale.polyak / free.scale.polyak == pytest.approx(sum(norms) / 2 / 0.01, rel=0.2)


def test_a_trainer_clips_by_its_own_norm(tmp_path):
    found = {}
    for norm in (0.0, 0.01):
        trainer = trainer_for(tmp_path / str(norm), optim="sgd", max_grad_norm=norm)
        found[norm] = suggest_lr(trainer).scale.polyak
    assert found[0.01] > 5.0 * found[0.0]
    with pytest.raises(ValueError, match="a Trainer has a max_grad_norm of its own, got 1.0 beside it"):
        suggest_lr(trainer, max_grad_norm=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_of": None}, "needs loss_of beside a model, got None"),
        ({"batches": iter([])}, "cannot be put back; pass the DataLoader"),
        ({"loss_of": [], "batches": loss_of}, "must be a function of model and batch, got list; batches come last"),
        ({"batches": []}, "needs the batches of two optimizer steps, got those of 0"),
        ({"loss_of": lambda model, batch: -loss_of(model, batch)}, "losses are not positive"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive, got 0.0"),
        ({"loss_of": lambda model, batch: 0.0 * loss_of(model, batch)}, "no learning rate in 66 .*gradients are zero$"),
        ({"loss_of": lambda model, batch: loss_of(model, batch).item()}, "must be a scalar tensor, got float"),
        ({"loss_of": lambda model, batch: model(batch[0])}, r"scalar tensor, got shape \(64, 3\); return loss.mean"),
        (
            {"loss_of": lambda model, batch: loss_of(model, batch).detach()},
            "has no gradient; train at least one weight",
        ),
    ],
)
def test_what_cannot_be_done_is_said(change, message):
    model, optimizer, data = loop()
    arguments = {"optimizer": optimizer, "loss_of": loss_of, "batches": data, **change}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        suggest_lr(model, **arguments)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not optimizer._optimizer_step_pre_hooks


def test_an_optimizer_that_needs_a_closure_is_refused():
    model, _, data = loop()
    with pytest.raises(ValueError, match="without a closure, which LBFGS needs"):
        suggest_lr(model, torch.optim.LBFGS(model.parameters()), loss_of, data)


def test_an_error_in_a_forward_leaves_autocast_as_it_was(tmp_path):
    own = trainer_for(tmp_path, lr_scheduler_type="cosine", bf16=True)

    def breaks(*args):
        assert torch.is_autocast_enabled("cpu")
        raise RuntimeError("out of memory")

    own.model.register_forward_pre_hook(breaks)
    with pytest.raises(RuntimeError, match="out of memory"):
        suggest_lr(own)
    assert not torch.is_autocast_enabled("cpu")
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    assert depth == 1  # else weights that are cast stay in its cache, whatever becomes of them


@pytest.mark.parametrize("at", [0, 1, 2, 9, 25])
def test_a_schedule_that_measures_the_same_optimizer_takes_no_notice(at):
    runs = []
    for asks in (False, True):
        model, optimizer, data = loop()
        schedule = get_autowu_schedule(optimizer, 60)
        lrs = []
        for step in range(60):
            if asks and step == at:
                suggest_lr(model, optimizer, loss_of, data)
            loss = loss_of(model, data[step % len(data)])
            loss.backward()
            if asks and step == at:  # between a backward and its step, too
                suggest_lr(model, optimizer, loss_of, data)
            optimizer.step()
            schedule.step(loss.detach())
            optimizer.zero_grad()
            lrs.append(optimizer.param_groups[0]["lr"])
        runs.append((lrs, schedule.report()["approach"]["reaches"]))
    assert runs[0] == runs[1]
    assert runs[0][1]


def test_an_error_of_the_users_leaves_nothing_behind():
    model, optimizer, data = loop()
    before = copy.deepcopy(model.state_dict())
    calls = []

    def breaks(model, batch):
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return loss_of(model, batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        suggest_lr(model, optimizer, breaks, data)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not optimizer._optimizer_step_pre_hooks


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from tiny import trainer_for
own = trainer_for({folder!r}, lr_scheduler_type="cosine")
{end}
print("trained", own.state.global_step)
"""


LOOP = """
import torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(4, 3)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
before = model.weight.detach().clone()
for _ in range(3):
    accelerator.backward(model(torch.ones(2, 4)).square().mean())
    try:
        optimizer.step()
    finally:
        print("moved", not torch.equal(before, model.weight))
print("trained")
"""


@pytest.mark.once
def test_the_command_trains_nothing_in_a_script_without_a_trainer(tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    said = command("--suggest-lr", str(script), folder=tmp_path, fails=True)
    assert "steps an optimizer without one; nothing was trained" in said
    assert "moved False" in said
    assert "moved True" not in said
    assert "trained\n" not in said.replace("nothing was trained", "")


@pytest.mark.parametrize("sampled", [False, True])
def test_the_order_of_the_data_is_put_back(sampled):
    model, optimizer, data = loop()
    rows = [(x, y) for xs, ys in data for x, y in zip(xs, ys, strict=True)]
    generator = torch.Generator().manual_seed(3)
    options = {"shuffle": True, "generator": generator}
    if sampled:
        options = {"sampler": torch.utils.data.RandomSampler(rows, generator=generator)}
    loader = torch.utils.data.DataLoader(rows, batch_size=32, **options)
    before = generator.get_state()
    suggest_lr(model, optimizer, loss_of, loader)
    assert torch.equal(generator.get_state(), before)


def test_a_trainer_looks_in_its_own_precision_and_with_its_own_checkpointing(tmp_path):
    own = trainer_for(tmp_path, lr_scheduler_type="cosine", bf16=True)
    name = "activation_checkpointing" if hasattr(own.args, "activation_checkpointing") else "gradient_checkpointing"
    setattr(own.args, name, True)
    seen, calls = [], []
    own.model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    setattr(own.model, f"{name}_enable", lambda **kwargs: calls.append([*kwargs]))
    setattr(own.model, f"{name}_disable", lambda: calls.append("off"))
    suggest_lr(own)
    assert seen
    assert all(seen)
    assert calls == [[f"{name}_kwargs"], "off"]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("has_hook", [False, True])
def test_checkpointing_leaves_nothing_on_the_modules(tmp_path, has_hook):
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    model = BertForSequenceClassification(config)
    model.bert.requires_grad_(False)
    if has_hook:
        model.enable_input_require_grads()
    rows = [{"input_ids": torch.tensor([i % 20, 1, 2]), "labels": i % 2} for i in range(40)]
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=8, use_cpu=True, report_to="none")
    own = Trainer(model, arguments, train_dataset=rows)
    name = "activation_checkpointing" if hasattr(own.args, "activation_checkpointing") else "gradient_checkpointing"
    setattr(own.args, name, True)

    def state():
        return [({**vars(module)}, [*module._forward_hooks]) for module in model.modules()]

    before = state()
    lrs = [suggest_lr(own).lr for _ in range(2)]
    assert lrs[0] == lrs[1]
    assert not getattr(model, f"is_{name}")
    assert model.bert(torch.tensor([[1, 2]])).last_hidden_state.requires_grad == has_hook
    for (had, hooks), (has, hooks_now) in zip(before, state(), strict=True):
        assert hooks_now == hooks
        assert has.keys() == had.keys()
        assert all(has[key] is had[key] for key in had if key != "training")


def test_a_training_step_of_ones_own_is_not_asked(tmp_path, caplog):
    class Own(Trainer):
        def training_step(self, *args, **options):
            return super().training_step(*args, **options)

    own = trainer_for(tmp_path, lr_scheduler_type="cosine")
    with caplog.at_level(logging.INFO, "autowu_hf"):
        suggest_lr(own)
        assert not caplog.messages
        own.__class__ = Own
        suggest_lr(own)
    assert "suggest_lr calls compute_loss itself, and not Own.training_step" in caplog.text


def test_noise_that_trainer_adds_in_its_own_steps_is_said_to_be_left_out(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "autowu_hf"):
        suggest_lr(trainer_for(tmp_path, lr_scheduler_type="cosine", neftune_noise_alpha=5.0))
    assert "leaves out the noise of neftune_noise_alpha" in caplog.text


@pytest.mark.parametrize("end", ["own.train()", "pass", "sys.exit()"])
def test_the_command_prints_it_and_trains_nothing(tmp_path, end, request):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(request.path.parent), folder=str(tmp_path / "out"), end=end))
    said = command("--suggest-lr", str(script), folder=tmp_path, fails=end != "own.train()")
    if end == "own.train()":
        assert "suggested learning rate" in said
        assert "trained" not in said
    else:
        assert "ended without one" in said


def test_the_names_are_public():
    assert {"suggest_lr", "SuggestedLR"} <= set(autowu_hf.__all__)


def test_where_the_gradients_are_mostly_noise_later_batches_raise_the_suggestion():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.randn(20_000, generator=torch.Generator().manual_seed(0)))

    def loss_of_noise(model, seed):
        gradient = torch.randn(20_000, generator=torch.Generator().manual_seed(seed))
        product = model.weights @ (gradient + 0.1)
        return 10.0 + product - product.detach()

    model = Noisy()
    before = model.weights.detach().clone()
    suggestion = suggest_lr(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss_of_noise, range(8))
    assert suggestion.steps == 8
    assert suggestion.lr == pytest.approx(10.0 * suggestion.scale.peak_lr)
    assert suggestion.lasting < 0.025
    assert "times 10 since" in str(suggestion)
    assert torch.equal(before, model.weights)
    twice = suggest_lr(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss_of_noise, range(13))
    assert twice.steps == 13
    assert 10.0 < twice.lr / twice.scale.peak_lr <= 20.001
    assert torch.equal(before, model.weights)
    few = suggest_lr(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss_of_noise, range(7))
    assert (few.lr, few.lasting, few.steps) == (few.scale.peak_lr, None, 2)
    assert "may be too low by far" in str(few)
