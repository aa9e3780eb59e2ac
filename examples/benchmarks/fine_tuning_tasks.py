"""What ``fine_tuning.py`` trains: model, batches and evaluation of one run, for a seed.

Two fine-tunes, which also measure what is kept of the pretraining, and three tasks from scratch.
"""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from data import digits, docstrings, lower_digits, shuffled, stdlib_bytes, upper_digits
from models import DigitsViT, SentenceClassifier, minilm_folder, mlp, pretrained_minilm, resnet, small_gpt
from tasks import accuracy
from torch import Tensor, nn
from training import beside, train
from transformers import AutoTokenizer, get_scheduler

Measured = tuple[float, float, float]
"""The test metric (higher is better), the test loss, and what is kept of the pretraining (NaN without one)."""
ALL = slice(None)
"""All rows of the test set."""


@dataclass
class PreparedRun:
    """A run that is ready to train.

    Args:
        model: to train.
        batches: step, from 0 -> a batch.
        steps: of the run; ``steps_per_epoch`` of them are an epoch.
        loss_of: model and batch -> the loss.
        evaluate: of the trained model; of a slice of the held-out rows, if one is given, in the fine-tunes.
        decay: the name of transformers' schedule that runs with a fixed LR have.
    """

    model: nn.Module
    batches: Callable[[int], Any]
    steps: int
    steps_per_epoch: int
    loss_of: Callable[[nn.Module, Any], Tensor]
    evaluate: Callable[..., Measured]
    decay: str = "linear"

    def train(self, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        train(self.model, optimizer, schedule, map(self.batches, range(self.steps)), self.loss_of)

    def train_at(self, lr: float) -> None:
        """Trains with a fixed peak LR; the cosine has a warm-up of 5 %, as it has in training from scratch."""
        optimizer = adamw(self.model, lr)
        warm_up = self.steps // 20 if self.decay == "cosine" else 0
        self.train(optimizer, get_scheduler(self.decay, optimizer, warm_up, self.steps))


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def measured(logits: Tensor, targets: Tensor, kept: float = math.nan) -> Measured:
    return accuracy(logits, targets), float(nn.functional.cross_entropy(logits, targets)), kept


def minilm(seed: int, epochs: int) -> PreparedRun:
    """MiniLM learns docstrings' modules; kept is the similarity of its embeddings to the ones before."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    texts, labels = docstrings()
    order = random.Random(0).sample(range(len(texts)), len(texts))
    chosen, test = order[: len(order) * 4 // 5 // 16 * 16], order[len(order) * 4 // 5 :]
    model = SentenceClassifier(pretrained_minilm(), 384, 20)
    targets = torch.tensor(labels)
    draw = shuffled(len(chosen), 16, seed)

    def tokens(which: list[int]) -> dict[str, Tensor]:
        encoded = tokenizer(
            [texts[i] for i in which], truncation=True, max_length=24, padding=True, return_tensors="pt"
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def batch(step: int) -> Any:
        which = [chosen[i] for i in draw(step).tolist()]
        return tokens(which), targets[which]

    @torch.no_grad()
    def outputs(model: Any, which: list[int]) -> tuple[Tensor, Tensor]:
        """Embeddings and logits of texts of the test set."""
        model.eval()
        embedded = torch.cat([model.embed(beside(model, tokens(which[i : i + 50]))) for i in range(0, len(which), 50)])
        return embedded.cpu(), model.head(embedded).cpu()

    before, _ = outputs(model, test)

    def evaluate(model: nn.Module, rows: slice = ALL) -> Measured:
        after, logits = outputs(model, test[rows])
        return measured(logits, targets[test[rows]], float(nn.functional.cosine_similarity(before[rows], after).mean()))

    per_epoch = len(chosen) // 16
    return PreparedRun(model, batch, epochs * per_epoch, per_epoch, cross_entropy, evaluate)


def classification(
    model: nn.Module, x: Tensor, y: Tensor, n: int, batch: int, epochs: int, seed: int, decay: str
) -> PreparedRun:
    """Classification of the rows of ``x``: the first ``n`` to train on, the others to test on."""
    draw = shuffled(n, batch, seed)

    @torch.no_grad()
    def evaluate(model: nn.Module, rows: slice = ALL) -> Measured:
        model.eval()
        return measured(model(beside(model, x[n:][rows])).cpu(), y[n:][rows])

    def one(step: int) -> Any:
        which = draw(step)
        return x[:n][which], y[:n][which]

    return PreparedRun(model, one, epochs * (n // batch), n // batch, cross_entropy, evaluate, decay)


EPOCHS_BEFORE = 40
"""In which the ViT has learned the digits 0 to 4."""


@functools.lru_cache(maxsize=8)
def lower_digits_run(seed: int) -> PreparedRun:
    """A ViT that was trained on the digits 0 to 4, once for all that start from it."""
    torch.manual_seed(seed)
    run = classification(DigitsViT(4, 64, 5), *lower_digits(), 640, 32, EPOCHS_BEFORE, seed, "cosine")
    run.train_at(2e-3)
    return run


def vit(seed: int, epochs: int) -> PreparedRun:
    """Trained on the digits 0 to 4, now to learn 5 to 9; what is kept is the accuracy on 0 to 4 under the old head."""
    old = lower_digits_run(seed)
    model: Any = copy.deepcopy(old.model)
    old_head = copy.deepcopy(model.vit.classifier)
    torch.manual_seed(seed)
    model.vit.classifier = nn.Linear(64, 5)
    run = classification(model, *upper_digits(), 640, 32, epochs, seed, "linear")
    evaluate_new = run.evaluate

    def evaluate(model: Any, rows: slice = ALL) -> Measured:
        metric, loss, _ = evaluate_new(model, rows)
        head, model.vit.classifier = model.vit.classifier, beside(model, old_head)
        kept, _, _ = old.evaluate(model)
        model.vit.classifier = head
        return metric, loss, kept

    run.evaluate = evaluate
    return run


def digits_mlp(seed: int) -> PreparedRun:
    return classification(mlp(64, 10), *digits(1.0), 800, 32, 30, seed, "cosine")


def digits_resnet(seed: int) -> PreparedRun:
    return classification(resnet(24), *digits(1.0), 800, 64, 30, seed, "cosine")


def gpt(seed: int) -> PreparedRun:
    """Bytes of the standard library; the metric is minus the test loss."""
    source = stdlib_bytes()
    cut = len(source) * 9 // 10

    def windows(low: int, high: int, n: int, seed: int) -> Tensor:
        starts = torch.randint(low, high - 64, (n,), generator=torch.Generator().manual_seed(seed))
        return torch.stack([source[i : i + 64] for i in starts])

    def batch(step: int) -> Tensor:
        return windows(0, cut, 32, 10_000 * (seed + 1) + step)

    def loss_of(model: Any, ids: Tensor) -> Tensor:
        value: Tensor = model(input_ids=ids, labels=ids).loss
        return value

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Measured:
        model.eval()
        value = float(loss_of(model, beside(model, windows(cut, len(source), 400, 1))))
        return -value, value, math.nan

    return PreparedRun(small_gpt(64, 64), batch, 400, 100, loss_of, evaluate, "cosine")


PREPARE: dict[str, Callable[[int], PreparedRun]] = {
    "MiniLM, 1 epoch": lambda seed: minilm(seed, 1),
    "MiniLM, 3 epochs": lambda seed: minilm(seed, 3),
    "ViT digits, 3 epochs": lambda seed: vit(seed, 3),
    "ViT digits, 10 epochs": lambda seed: vit(seed, 10),
    "MLP": digits_mlp,
    "ResNet": digits_resnet,
    "GPT": gpt,
}
"""Task -> what makes a run of it, for a seed that stands in the global random numbers already."""
SCRATCH = ("MLP", "ResNet", "GPT")
"""The tasks without pretraining."""
