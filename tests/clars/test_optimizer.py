from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from digits_vit import CHANCE, digits, digits_loop
from margins import assert_below, assert_learned
from ranks import run_ranks
from samples import TinyViT, examples, gradients, one
from tiny import TinyClassifier
from torch import nn
from transformers import Trainer, TrainingArguments

from autowu_hf import CLARS

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import clars_two_processes


def norms(parts: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Of each layer the mean norm over parts of a batch."""
    return [torch.stack([g.norm() for g in layer]).mean() for layer in zip(*parts, strict=True)]


def mean(parts: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.stack(layer).mean(dim=0) for layer in zip(*parts, strict=True)]


class Textbook:
    """The formula, every parameter adapted; with the norms of the gradients themselves it is LARS."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, eta: float, momentum: float = 0.9) -> None:
        self.parameters = list(model.parameters())
        self.lr, self.weight_decay, self.eta, self.momentum = lr, weight_decay, eta, momentum
        self.velocity = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, grads: list[torch.Tensor], norms: list[torch.Tensor] | None = None) -> None:
        for i, p in enumerate(self.parameters):
            norm = grads[i].norm() if norms is None else norms[i]
            rate = self.eta * p.norm() / (norm + self.weight_decay * p.norm())
            self.velocity[i] = self.momentum * self.velocity[i] + rate * (grads[i] + self.weight_decay * p)
            p -= self.lr * self.velocity[i]


def clipped(grads: list[torch.Tensor], norms: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Both, scaled as ``clip_grad_norm_`` with ``clars_two_processes.CLIP`` scales the gradients."""
    total = torch.stack([g.norm() for g in grads]).norm()
    factor = clars_two_processes.CLIP / (total + 1e-6)
    assert factor < 1
    return [factor * g for g in grads], [factor * norm for norm in norms]


OPTIONS = {"lr": 0.5, "weight_decay": 0.01, "eta": 0.05}


def pair(**options) -> tuple[nn.Module, CLARS, nn.Module, Textbook]:
    """A model with CLARS for every parameter, and the same with the textbook's."""
    model, other = TinyClassifier().double(), TinyClassifier().double()
    if options.pop("exact", False):
        options["per_sample_model"] = model
    return (
        model,
        CLARS(model.parameters(), **OPTIONS, eps=0.0, adapt=True, **options),
        other,
        Textbook(other, **OPTIONS),
    )


def assert_same_weights(model, other, rtol=1e-9):
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("exact", [False, True])
def test_it_is_lars_where_the_samples_agree(exact):
    model, optimizer, other, lars = pair(exact=exact)
    for step in range(4):
        batch = {name: tensor.repeat_interleave(3, dim=0) for name, tensor in examples(1, seed=step).items()}
        lars.step(gradients(other, batch))
        model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same_weights(model, other)


@pytest.mark.parametrize("exact", [False, True])
def test_accumulated_batches_are_as_by_hand(exact):
    model, optimizer, other, textbook = pair(exact=exact)
    for step in range(3):
        micro = [examples(4, seed=10 * step + i) for i in range(3)]
        samples = [one(batch, i) for batch in micro for i in range(4)] if exact else micro
        parts = [gradients(other, part) for part in samples]
        textbook.step(mean(parts), norms(parts))
        for batch in micro:
            (model(**batch)["loss"] / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same_weights(model, other)


def test_one_backward_without_exact_norms_is_lars_and_differs_from_clars():
    model, optimizer, other, lars = pair()
    exact, clars, *_ = pair(exact=True)
    batch = examples(8)
    lars.step(gradients(other, batch))
    for trained, own in ((model, optimizer), (exact, clars)):
        trained(**batch)["loss"].backward()
        own.step()
    assert_same_weights(model, other)
    start = TinyClassifier().double()
    for a, b, c in zip(start.parameters(), other.parameters(), exact.parameters(), strict=True):
        assert_below((c - a).norm().item(), 0.9 * (b - a).norm().item(), (b - a).norm().item())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("order", ["zero last", "zero before backward"])
def test_scaled_clipped_and_skipped_steps(exact, order):
    """A gradient scaler with clipping, as under fp16; the second step overflows and is skipped."""
    model, optimizer, other, textbook = pair(exact=exact)
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(4):
        batch = examples(4, seed=step)
        if step != 1:
            parts = [gradients(other, one(batch, i)) for i in range(4)] if exact else [gradients(other, batch)]
            textbook.step(*clipped(mean(parts), norms(parts)))
        loss = model(**batch)["loss"] * (float("inf") if step == 1 else 1.0)
        if order == "zero before backward":
            optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.scaler.unscale_(optimizer.optimizer)  # which accelerate does under fp16 alone
        accelerator.clip_grad_norm_(model.parameters(), clars_two_processes.CLIP)
        optimizer.step()
        assert optimizer.step_was_skipped == (step == 1)
        if order == "zero last":
            model.zero_grad()  # as Trainer does
    assert_same_weights(model, other, rtol=1e-6)


def test_zeroed_gradients_are_forgotten():
    model, optimizer, other, textbook = pair()
    for set_to_none in (True, False):
        model(**examples(4, seed=9))["loss"].backward()
        optimizer.zero_grad(set_to_none=set_to_none)
        batch = examples(4)
        textbook.step(gradients(other, batch))
        model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same_weights(model, other)


def test_groups_biases_and_zeros():
    model, start = TinyClassifier().double(), TinyClassifier().double()
    first, last = model.net[0], model.net[2]
    with torch.no_grad():
        last.weight.zero_()
        start.net[2].weight.zero_()
    groups = [
        {"params": [first.weight], "lr": 2.0, "weight_decay": 0.1},
        {"params": [first.bias], "adapt": True, "eta": 0.5, "momentum": 0.0},
        {"params": last.parameters()},
    ]
    optimizer = CLARS(groups, lr=0.1, eta=0.25)
    batch = examples(6)
    grads = dict(zip([name for name, _ in start.named_parameters()], gradients(start, batch), strict=True))
    model(**batch)["loss"].backward()
    optimizer.step()
    moved = {name: b - a for (name, b), a in zip(model.named_parameters(), start.parameters(), strict=True)}
    w, g = start.net[0].weight, grads["net.0.weight"]
    assert g.norm() == 0  # the layer above is zeros, so nothing reaches this one
    torch.testing.assert_close(moved["net.0.weight"], -2.0 * 0.1 * w)
    torch.testing.assert_close(moved["net.0.bias"], torch.zeros_like(start.net[0].bias))
    torch.testing.assert_close(moved["net.2.weight"], -0.1 * grads["net.2.weight"])
    torch.testing.assert_close(moved["net.2.bias"], -0.1 * grads["net.2.bias"])
    batch = examples(6, seed=1)
    before = copy.deepcopy(model)
    grads = dict(zip(grads, gradients(before, batch), strict=True))
    optimizer.zero_grad()
    model(**batch)["loss"].backward()
    optimizer.step()
    b, g = before.net[0].bias, grads["net.0.bias"]
    torch.testing.assert_close(first.bias - b, -0.1 * 0.5 * b.norm() / g.norm() * g)
    w, g = before.net[2].weight, grads["net.2.weight"]
    expected = 0.9 * moved["net.2.weight"] - 0.1 * 0.25 * w.norm() / g.norm() * g
    torch.testing.assert_close(last.weight - w, expected)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_group_changes_nothing(exact, empty):
    model, twin = TinyClassifier().double(), TinyClassifier().double()
    groups = [{"params": twin.parameters()}]
    groups.insert(empty, {"params": []})
    for trained, params in ((model, model.parameters()), (twin, groups)):
        optimizer = CLARS(params, lr=0.1, eta=0.05, per_sample_model=trained if exact else None)
        for seed in range(2):
            trained(**examples(4, seed=seed))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_without_parameters_does_nothing():
    optimizer = CLARS([{"params": []}], lr=0.1)
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.state_dict()["state"] == {}


def test_a_layer_without_a_gradient_stays():
    model, optimizer, *_ = pair()
    for p in model.net[2].parameters():
        p.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    for _ in range(2):
        model(**examples(4))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)] == [False, False, True, True]
    optimizer.step()  # no gradients at all


def test_a_closure_is_called_with_gradients():
    model, optimizer, other, lars = pair()
    batch = examples(4)
    lars.step(gradients(other, batch))

    def closure():
        loss = model(**batch)["loss"]
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert_same_weights(model, other)


def test_only_calls_to_train_are_kept_and_none_after_the_step():
    model, optimizer, *_ = pair(exact=True)
    ema = copy.deepcopy(model)
    batch = examples(4)
    ema(**batch)
    with torch.no_grad():
        model(**batch)
    model.eval()(**batch)
    assert optimizer._batches == []
    model.train()(**batch)
    model(**batch)["loss"].backward()
    assert len(optimizer._batches) == 1
    optimizer.step()
    assert optimizer._batches == []


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state"])
def test_copies_go_on_alike(exact, how, tmp_path):
    model, optimizer, *_ = pair(exact=exact)

    def train(model, optimizer, seed):
        for i in range(2):
            (model(**examples(4, seed=seed + i))["loss"] / 2).backward()
        optimizer.step()
        optimizer.zero_grad()

    train(model, optimizer, 0)
    if how == "state":
        other, twin, *_ = pair(exact=exact)
        other.load_state_dict(model.state_dict())
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        twin.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    else:
        both = (model, optimizer)
        other, twin = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    for seed in (2, 4):
        train(model, optimizer, seed)
        train(other, twin, seed)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def digits_trainer(folder, exact: bool, **options) -> Trainer:
    model = TinyViT(dropout=0.1)
    own = {"per_sample_model": model, "chunk_size": 16} if exact else {}
    args = TrainingArguments(
        output_dir=str(folder),
        lr_scheduler_type="cosine",
        per_device_train_batch_size=32,
        gradient_accumulation_steps=1 if exact else 2,
        max_steps=60,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=0,
        weight_decay=1e-4,
        **{"save_strategy": "no", **options},
    )
    own |= {"lr": 0.05, "eta": 2.0 if exact else 0.5}
    return Trainer(model, args, train_dataset=digits(), optimizer_cls_and_kwargs=(CLARS, own))


@pytest.mark.parametrize("exact", [False, True])
def test_trainer_learns_the_digits_and_resumes_exactly(exact, tmp_path):
    whole = digits_trainer(tmp_path / "whole", exact, save_strategy="steps", save_steps=40)
    whole.train()
    assert {group["weight_decay"] for group in whole.optimizer.param_groups} == {1e-4, 0.0}  # 0 for biases and norms
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert_learned(sum(losses[-5:]) / 5, CHANCE, 0.1)
    part = digits_trainer(tmp_path / "part", exact)
    part.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-40"))
    assert part.state.global_step == 60
    for a, b in zip(whole.model.parameters(), part.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.once
def test_two_processes_have_the_same_weights_as_by_hand():
    script = clars_two_processes
    per_step = 2 * script.ACCUMULATION
    for exact, first, second in zip((False, True), *run_ranks(script.train_both), strict=True):
        assert first == second
        model = TinyClassifier().double()
        textbook = Textbook(model, **OPTIONS)
        for step in range(script.STEPS):
            parts = [script.micro_batch(step * per_step + i) for i in range(per_step)]
            if exact:
                parts = [one(part, i) for part in parts for i in range(script.SAMPLES)]
            found = [gradients(model, part) for part in parts]
            textbook.step(*clipped(mean(found), norms(found)))
        for a, b in zip(first, model.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(a, dtype=torch.float64), b.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0, but must be 0 at least; pass such a number"),
        ({"momentum": 1.0}, "momentum is 1.0, but must be from 0 to less than 1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan, but must be 0 at least"),
        ({"eta": 0.0}, "eta is 0.0, but must be above 0"),
        ({"eps": -1e-8}, "eps is -1e-08, but must be 0 at least"),
        ({"chunk_size": 2}, "are for exact norms alone; pass per_sample_model"),
        ({"compute_loss": len}, "are for exact norms alone; pass per_sample_model"),
        ({"per_sample_model": nn.Linear(1, 1), "chunk_size": 0}, "chunk_size is 0, but must be 1 at least; pass None"),
    ],
)
def test_bad_arguments_are_refused_with_the_limit_and_the_remedy(options, message):
    model = TinyClassifier()
    with pytest.raises(ValueError, match=message):
        CLARS(model.parameters(), **{"lr": 0.1, **options})
    if "chunk_size" not in options and "compute_loss" not in options:
        with pytest.raises(ValueError, match=message):
            CLARS([{"params": model.parameters(), **options}], lr=0.1)


def test_a_model_in_place_of_parameters_is_refused_as_trainer_would_pass_it():
    with pytest.raises(ValueError, match="params is a model; pass its parameters, and the model as per_sample_model"):
        CLARS(TinyClassifier(), lr=0.1)


def test_gradients_that_no_backward_made_are_refused():
    model, optimizer, *_ = pair()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"heard no backward of 4 of 4 layers .* shape \(16, 4\); unfreeze layers"):
        optimizer.step()
    model, optimizer, *_ = pair()
    model.net[0].weight.requires_grad_(False)
    late = CLARS(model.parameters(), lr=0.1)
    model.net[0].weight.requires_grad_(True)
    model(**examples(4))["loss"].backward()
    with pytest.raises(RuntimeError, match="heard no backward of 1 of 2 layers"):
        late.step()


def test_exact_norms_need_the_models_calls_and_parameters():
    model, _, other, _ = pair()
    batch = examples(4)
    optimizer = CLARS(model.parameters(), lr=0.1, per_sample_model=other)
    model(**batch)["loss"].backward()
    with pytest.raises(RuntimeError, match="saw no call of per_sample_model since the last step; pass the model that"):
        optimizer.step()
    other(**batch)
    with pytest.raises(
        ValueError, match=r"no parameters for layers of shapes \[\(16, 4\), \(3, 16\)\]; pass the whole"
    ):
        optimizer.step()


@pytest.mark.parametrize("exact", [False, True])
def test_sparse_gradients_are_refused(exact):
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = CLARS(model.parameters(), lr=0.1, **({"per_sample_model": model} if exact else {}))

    def train():
        model(torch.tensor([1, 2])).sum().backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match="needs dense gradients, got one of torch.sparse_coo; pass sparse=False"):
        train()


@pytest.mark.once
def test_two_processes_train_the_digits_and_resume_exactly(tmp_path):
    options = {"save_at": 30, "optimizer_name": "CLARS", "initializer_range": 0.1}
    whole = run_ranks(digits_loop, "linear", str(tmp_path / "state"), 120, **options)
    assert whole[0]["weights"] == whole[1]["weights"]
    assert whole[0]["lrs"] == whole[1]["lrs"]
    assert_learned(sum(whole[0]["losses"][-10:]) / 10, CHANCE, 0.1)
    part = run_ranks(digits_loop, "linear", str(tmp_path / "state"), 120, resume=True, **options)
    for mine, other in zip(part, whole, strict=True):
        assert mine["lrs"] == other["lrs"][30:]
        assert mine["losses"] == other["losses"][30:]
        assert mine["weights"] == other["weights"]
