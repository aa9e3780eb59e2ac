"""What ``nothing_found.py`` trains: small tasks whose losses tell little about the LR, or nothing.

A reward model and DPO begin at ln 2, with hardly any noise; classifiers with a fresh head stay near there for long;
one of soft or noisy targets can fall by a small part only; a contrastive fine-tune ends before anything can be seen; a
trained model has little left to learn; the loss of a policy gradient is 0 whatever happens, and so is that of some
losses that are made for their gradients alone.
"""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from data import digits, docstrings, named_docstrings, shuffled, stdlib_bytes
from fine_tuning_tasks import Measured, PreparedRun, cross_entropy, gpt, measured, vit
from models import SentenceClassifier, mlp, pretrained_minilm, small_gpt
from real_model_texts import MOST_TOKENS, minilm_tokenizer, pairs, tokens
from torch import Tensor, nn
from transformers import BertForSequenceClassification

LAYERS = 2
"""Of MiniLM's six that are kept."""
LENGTH = 32
"""Of the GPT's rows, in bytes."""
BETA = 0.1
"""Of DPO."""
GROUP = 8
"""Actions that are drawn for every input of the policy."""

TextPair = tuple[dict[str, Tensor], dict[str, Tensor]]


def cut_minilm(labels: int) -> SentenceClassifier:
    """MiniLM without its upper layers, and a fresh head."""
    encoder = pretrained_minilm()
    encoder.encoder.layer = encoder.encoder.layer[:LAYERS]
    return SentenceClassifier(encoder, 384, labels)


def scorer() -> BertForSequenceClassification:
    """All of MiniLM, and a fresh head that gives a text, or a pair of texts, a score."""
    encoder = pretrained_minilm()
    encoder.config.num_labels = 1
    model = BertForSequenceClassification(encoder.config)
    model.bert = encoder
    return model


# A reward model -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def text_pairs() -> list[tuple[str, str]]:
    """Docstrings, and each with its words in another order; in a fixed random order."""
    rng = random.Random(0)
    texts, _ = docstrings()
    found = []
    for text in rng.sample(texts, len(texts)):
        words = text.split()[:20]
        found.append((" ".join(words), " ".join(rng.sample(words, len(words)))))
    return found


def reward_model(seed: int) -> PreparedRun:
    """Learns to give a text a higher score than the same words in disorder; the metric is the share of held-out pairs
    that it ranks right.
    """
    known = text_pairs()
    held_out, train = known[:300], known[300:]
    draw = shuffled(len(train), 8, seed)

    def both(chosen: list[tuple[str, str]]) -> TextPair:
        return tokens([better for better, _ in chosen]), tokens([worse for _, worse in chosen])

    def margins(model: nn.Module, batch: TextPair) -> Tensor:
        return (model(batch[0]) - model(batch[1]))[:, 0]

    def loss_of(model: nn.Module, batch: TextPair) -> Tensor:
        return -nn.functional.logsigmoid(margins(model, batch)).mean()

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Measured:
        model.eval()
        margin = margins(model, both(held_out))
        return ranked_right(margin), float(-nn.functional.logsigmoid(margin).mean()), math.nan

    def batch(step: int) -> TextPair:
        return both([train[i] for i in draw(step).tolist()])

    return PreparedRun(cut_minilm(1), batch, 150, len(train) // 8, loss_of, evaluate)


def ranked_right(margin: Tensor) -> float:
    """The share of margins above 0; those that are 0 count as one half."""
    return float(((margin > 0).double() + 0.5 * (margin == 0)).mean())


# Classification with a fresh head -------------------------------------------------------------------------------------


def two_classes(seed: int) -> PreparedRun:
    """Tells docstrings of one half of the modules from those of the other."""
    texts, labels = docstrings()
    order = random.Random(0).sample(range(len(texts)), len(texts))
    held_out, train = order[:300], order[300:]
    targets = torch.tensor(labels) % 2
    draw = shuffled(len(train), 8, seed)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Measured:
        model.eval()
        return measured(model(tokens([texts[i] for i in held_out])), targets[held_out])

    def batch(step: int) -> tuple[Any, Tensor]:
        which = [train[i] for i in draw(step).tolist()]
        return tokens([texts[i] for i in which]), targets[which]

    return PreparedRun(cut_minilm(2), batch, 300, len(train) // 8, cross_entropy, evaluate)


def rare_class(seed: int) -> PreparedRun:
    """Finds the few docstrings of one module among those of all. The first thing that the head learns is that they are
    rare, which halves the loss. The metric is the share of pairs, one of either kind, of which the module's own gets
    the higher score.
    """
    texts, labels = docstrings()
    order = random.Random(0).sample(range(len(texts)), len(texts))
    own, others = ([i for i in order if (labels[i] == 0) == is_own] for is_own in (True, False))
    held_out = (own[: len(own) // 3], others[:200])
    train = own[len(own) // 3 :] + others[200:]
    draw = shuffled(len(train), 16, seed)

    def loss_of(model: nn.Module, batch: tuple[Any, Tensor]) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(**batch[0]).logits[:, 0], batch[1])

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Measured:
        model.eval()
        right, wrong = (model(**tokens([texts[i] for i in which])).logits[:, 0] for which in held_out)
        margin = (right.unsqueeze(1) - wrong).reshape(-1)
        return ranked_right(margin), float(-nn.functional.logsigmoid(margin).mean()), math.nan

    def batch(step: int) -> tuple[Any, Tensor]:
        which = [train[i] for i in draw(step).tolist()]
        return tokens([texts[i] for i in which]), torch.tensor([float(labels[i] == 0) for i in which])

    return PreparedRun(scorer(), batch, 100, len(train) // 16, loss_of, evaluate)


# Pairs of texts with a fresh head -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def questions() -> list[tuple[str, str, str]]:
    """Names of functions, the docstring of each, and another's; in a fixed random order."""
    known, rng = named_docstrings(), random.Random(0)
    others = [rng.randrange(len(known) - 1) for _ in known]
    return [(name, text, known[k + (k >= i)][1]) for i, ((name, text), k) in enumerate(zip(known, others, strict=True))]


def scores(model: nn.Module, names: Sequence[str], texts: Sequence[str]) -> Tensor:
    """(n,): of n names, each with a text."""
    options = {"truncation": True, "max_length": MOST_TOKENS, "padding": True, "return_tensors": "pt"}
    return model(**minilm_tokenizer()(list(names), list(texts), **options)).logits[:, 0]


@torch.no_grad()
def told_apart(model: nn.Module) -> Measured:
    """The share of held-out names whose own docstring gets a higher score than another's."""
    model.eval()
    names, right, wrong = zip(*questions()[:300], strict=True)
    margin = scores(model, names, right) - scores(model, names, wrong)
    return ranked_right(margin), float(-nn.functional.logsigmoid(margin).mean()), math.nan


def singly(
    seed: int, steps: int, loss_of_scores: Callable[[Tensor, Tensor], Tensor], noise: float = 0.0
) -> PreparedRun:
    """Gives a docstring and the name of a function a score, which is to be 1 where these belong together and else 0.

    Args:
        seed: of the batches.
        steps: optimizer steps.
        loss_of_scores: scores and targets, (16,) each -> the loss.
        noise: the standard deviation of what is added to each target, anew in each batch.
    """
    train = [
        (name, text, float(is_own))
        for name, *both in questions()[600:]
        for text, is_own in zip(both, (1, 0), strict=True)
    ]
    draw = shuffled(len(train), 16, seed)

    def batch(step: int) -> tuple[list[str], list[str], Tensor]:
        names, texts, targets = zip(*(train[i] for i in draw(step).tolist()), strict=True)
        generator = torch.Generator().manual_seed(10_000 * (seed + 1) + step)
        return list(names), list(texts), torch.tensor(targets) + noise * torch.randn(16, generator=generator)

    def loss_of(model: nn.Module, batch: tuple[list[str], list[str], Tensor]) -> Tensor:
        names, texts, targets = batch
        return loss_of_scores(scores(model, names, texts), targets)

    return PreparedRun(scorer(), batch, steps, len(train) // 16, loss_of, told_apart)


def cross_encoder(seed: int) -> PreparedRun:
    """Tells the docstring of a function from another's, reading the name and the docstring at once."""
    return singly(seed, 100, nn.functional.binary_cross_entropy_with_logits)


def noisy_scores(seed: int) -> PreparedRun:
    """The same by a squared error, from targets of which four fifths of the variance is noise."""
    return singly(seed, 60, nn.functional.mse_loss, noise=1.0)


def lists(seed: int) -> PreparedRun:
    """The same from lists of a name's own docstring and three others', by ListNet's top-1 loss (Cao et al. 2007): the
    targets are a softmax of 1, 0, 0 and 0, so that it begins at ln 4 = 1.39, and cannot fall below 1.27.
    """
    train = [(name, own) for name, own, _ in questions()[600:]]
    draw = shuffled(len(train), 4, seed)
    targets = torch.tensor([1.0, 0.0, 0.0, 0.0]).softmax(0)

    def batch(step: int) -> tuple[list[str], list[str]]:
        rng, names, texts = random.Random(10_000 * (seed + 1) + step), [], []
        for i in draw(step).tolist():
            others = rng.sample([k for k in range(len(train)) if k != i], 3)
            names += 4 * [train[i][0]]
            texts += [train[k][1] for k in (i, *others)]
        return names, texts

    def loss_of(model: nn.Module, batch: tuple[list[str], list[str]]) -> Tensor:
        return -(targets * scores(model, *batch).view(4, 4).log_softmax(1)).sum(1).mean()

    return PreparedRun(scorer(), batch, 60, len(train) // 4, loss_of, told_apart)


# Preferences, from a fresh model --------------------------------------------------------------------------------------


def log_likelihood(model: Any, ids: Tensor) -> Tensor:
    """(n,): of rows (n, length)."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return -nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)


def preferences(seed: int) -> PreparedRun:
    """DPO (Rafailov et al. 2023): source text against the same bytes in disorder. The metric is the share of held-out
    pairs whose margin over the reference is positive.
    """
    source = stdlib_bytes()
    model = small_gpt(LENGTH, 64)
    reference = copy.deepcopy(model).eval()

    def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(0, len(source) - LENGTH, (n,), generator=generator)
        chosen = torch.stack([source[start : start + LENGTH] for start in starts])
        disorder = torch.rand(chosen.shape, generator=generator).argsort(1)
        return chosen, chosen.gather(1, disorder)

    def margins(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        chosen, rejected = batch
        with torch.no_grad():
            before = log_likelihood(reference, chosen) - log_likelihood(reference, rejected)
        return BETA * (log_likelihood(model, chosen) - log_likelihood(model, rejected) - before)

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return -nn.functional.logsigmoid(margins(model, batch)).mean()

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Measured:
        model.eval()
        margin = margins(model, rows(400, 1))
        return ranked_right(margin), float(-nn.functional.logsigmoid(margin).mean()), math.nan

    return PreparedRun(model, lambda step: rows(8, 10_000 * (seed + 1) + step), 200, 100, loss_of, evaluate)


# Losses made for their gradients --------------------------------------------------------------------------------------


def policy(seed: int) -> PreparedRun:
    """A policy gradient with advantages relative to a group (GRPO: Shao et al. 2024): classes of digits are drawn, and
    the right one is rewarded. The metric is the reward of the likeliest class.
    """
    x, y = digits(0.5)
    draw = shuffled(1200, 16, seed)

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, right = batch
        log_probs = model(inputs).log_softmax(1)
        actions = log_probs.detach().exp().multinomial(GROUP, replacement=True)
        rewards = (actions == right[:, None]).float()
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        chosen = log_probs.gather(1, actions)
        return -(advantages * (chosen - chosen.detach()).exp()).mean()

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Measured:
        model.eval()
        return measured(model(x[1200:]), y[1200:])

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return x[draw(step)], y[draw(step)]

    return PreparedRun(mlp(64, 10), batch, 300, 75, loss_of, evaluate)


def of_vit(value: Callable[[Tensor], Tensor]) -> Callable[[int], PreparedRun]:
    """The digits ViT of ``fine_tuning.py``, three epochs.

    Args:
        value: the loss -> one with gradients in the same direction, whose value tells nothing.
    """

    def prepare(seed: int) -> PreparedRun:
        run = vit(seed, 3)
        run.loss_of = lambda model, batch: value(cross_entropy(model, batch))
        return run

    return prepare


# Going on -------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def trained_gpt(seed: int) -> nn.Module:
    """A GPT that has learned bytes of the standard library, once for all that start from it."""
    torch.manual_seed(seed)
    run = gpt(seed)
    run.train_at(3e-3)
    return run.model


def going_on(steps: int) -> Callable[[int], PreparedRun]:
    """The same data goes on, in batches that the trained GPT has not seen. The metric is the share of held-out bytes
    that it has for the likeliest.
    """

    def prepare(seed: int) -> PreparedRun:
        model = copy.deepcopy(trained_gpt(seed))
        before = gpt(seed)
        source = stdlib_bytes()
        held_out = source[len(source) * 9 // 10 :][: 400 * 64].view(400, 64)

        @torch.no_grad()
        def evaluate(model: Any) -> Measured:
            model.eval()
            return measured(model(input_ids=held_out).logits[:, :-1].flatten(0, 1), held_out[:, 1:].flatten())

        def batch(step: int) -> Any:
            return before.batches(before.steps + step)

        return PreparedRun(model, batch, steps, 100, before.loss_of, evaluate)

    return prepare


# All of them ----------------------------------------------------------------------------------------------------------


def ten_steps(seed: int) -> PreparedRun:
    """The contrastive fine-tune of ``real_models.py``."""
    run = pairs(seed, 10)
    evaluate = run.evaluate
    run.evaluate = lambda model: evaluate(model, "test")
    return run


TASKS: dict[str, Callable[[int], PreparedRun]] = {
    "policy gradient": policy,
    "ViT, loss always 0": of_vit(lambda loss: loss - loss.detach()),
    "ViT, loss always 1": of_vit(lambda loss: loss / loss.detach()),
    "MiniLM, pairs, 10 steps": ten_steps,
    "trained GPT, 20 steps": going_on(20),
    "trained GPT, 60 steps": going_on(60),
    "DPO, fresh GPT": preferences,
    "reward model": reward_model,
    "two classes, cut MiniLM": two_classes,
    "rare class, MiniLM": rare_class,
    "cross-encoder, MiniLM": cross_encoder,
    "cross-encoder, lists": lists,
    "cross-encoder, noisy scores": noisy_scores,
}
"""Task -> what makes a run of it, for a seed that stands in the global random numbers already; cheap ones first."""
